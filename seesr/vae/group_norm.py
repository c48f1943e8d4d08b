"""GroupNorm over an image in tiles: statistics per tile, merged, then applied."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Statistics = tuple[Tensor, Tensor]  # variance and mean of each group, in the dtype of the norm


def tile_stats(norm: nn.GroupNorm, interior: Tensor, dtype: torch.dtype) -> Statistics:
    """(B, C, h, w) -> variance and mean, (B, groups + 1) each, in `dtype`: the last column counts the values"""
    grouped = interior.unflatten(1, (norm.num_groups, -1))
    # A few groups at a time keep the wider copy small; var_mean is stable where sums of squares are not.
    step = max(1, norm.num_groups // 8)
    pairs = [torch.var_mean(few.to(dtype), dim=(2, 3, 4), correction=0) for few in grouped.split(step, dim=1)]
    count = pairs[0][0].new_full((len(grouped), 1), grouped[0, 0].numel())
    variance, mean = (torch.cat([*values, count], dim=1) for values in zip(*pairs, strict=True))
    return variance, mean


def merge_stats(tiles: Sequence[Statistics]) -> Statistics:
    """`tile_stats` of several tiles -> variance and mean of all of them, (B, groups) each"""
    variances, means = (torch.stack(values) for values in zip(*tiles, strict=True))
    dtype, variances, means = variances.dtype, variances.double(), means.double()
    share = variances[:, :, -1:] / variances[:, :, -1:].sum(0)
    variances, means = variances[:, :, :-1], means[:, :, :-1]
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    return variance.to(dtype), mean.to(dtype)


def normalize(norm: nn.GroupNorm, statistics: Statistics, hidden: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, h, w): GroupNorm with given statistics, then SiLU, in their dtype, rounded once"""
    batch, channels = hidden.shape[:2]
    variance, mean = (values.repeat_interleave(channels // norm.num_groups, dim=1).flatten() for values in statistics)
    weight, bias = (values.to(mean.dtype).repeat(batch) for values in (norm.weight, norm.bias))
    flat = hidden.reshape(1, batch * channels, *hidden.shape[2:])
    if mean.dtype != torch.float64:  # for float32 statistics, kernels widen the values by themselves
        normal = F.batch_norm(flat, mean, variance, weight, bias, eps=norm.eps)
        return F.silu(normal, inplace=True).view(hidden.shape)
    result = torch.empty_like(flat)
    step = max(1, batch * channels // 8)  # a few channels at a time, so that the wider copies stay small
    for few in (slice(start, start + step) for start in range(0, batch * channels, step)):
        normal = F.batch_norm(flat[:, few].double(), mean[few], variance[few], weight[few], bias[few], eps=norm.eps)
        result[:, few] = F.silu(normal, inplace=True)
    return result.view(hidden.shape)
