"""GroupNorm and SiLU: of a whole map, or of one in tiles by statistics per tile, merged, then applied."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seesr.vae.padding import memory_format

Statistics = tuple[Tensor, Tensor]  # variance and mean of each group, in the dtype of the norm


def norm_silu_conv(norm: nn.GroupNorm, conv: Any, hidden: Tensor) -> Tensor:
    """GroupNorm, SiLU and a convolution of a whole map: (B, C, h, w) -> (B, C', h, w)"""
    if hidden.device.type == "cpu" and memory_format(conv.weight) == torch.channels_last:
        # In this order torch's GroupNorm on a CPU is off by 3e-4: it takes the difference of two large sums.
        statistics = tile_stats(norm, hidden, torch.promote_types(hidden.dtype, torch.float32))
        return conv(normalize(norm, merge_stats([statistics]), hidden))
    return conv(F.silu(norm(hidden), inplace=True))


def tile_stats(norm: nn.GroupNorm, interior: Tensor, dtype: torch.dtype) -> Statistics:
    """(B, C, h, w) -> variance and mean, (B, groups + 1) each, in `dtype`: the last column counts the values"""
    count = interior.new_full((len(interior), 1), interior[0].numel() // norm.num_groups, dtype=dtype)
    fast = interior.device.type == "cpu" and interior.dtype == dtype == torch.float32
    found = (_measure_on_cpu if fast else _measure)(norm.num_groups, interior, dtype)
    variance, mean = (torch.cat([values, count], dim=1) for values in found)
    return variance, mean


def _measure(groups: int, interior: Tensor, dtype: torch.dtype) -> Statistics:
    grouped = interior.unflatten(1, (groups, -1))
    # A few groups at a time keep the wider copy small; var_mean is stable where sums of squares are not.
    step = max(1, groups // 8)
    pairs = [torch.var_mean(few.to(dtype), dim=(2, 3, 4), correction=0) for few in grouped.split(step, dim=1)]
    variance, mean = (torch.cat(values, dim=1) for values in zip(*pairs, strict=True))
    return variance, mean


def _measure_on_cpu(groups: int, interior: Tensor, dtype: torch.dtype) -> Statistics:
    """As exact as var_mean, in a seventh of its time on a CPU: sums of squares are stable around a near mean."""
    near = interior[:, :, ::16, ::16].mean((2, 3))
    apart = interior - near[:, :, None, None]
    offset, square = apart.mean((2, 3)).double(), apart.square_().mean((2, 3)).double()
    means, variances = (values.unflatten(1, (groups, -1)) for values in (near + offset, square - offset.square()))
    mean = means.mean(2)
    variance = variances.mean(2) + (means - mean[:, :, None]).square().mean(2)
    return variance.to(dtype), mean.to(dtype)


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
