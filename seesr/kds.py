"""Kernel density steering: several runs of one picture, drawn towards where most of them agree.

Source: Kernel Density Steering (arXiv 2507.05604). Its published codes steer nothing at 1 to 4 steps, because their
distances grow with the patch; here a distance is a mean square and the bandwidth is relative to the runs' own spread.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH = 1
"""Side of the patches that are steered on their own, in latent pixels."""

CHUNK = 2**22
"""Pairs of runs times patches that are compared at a time."""


def steer(x0: Tensor, bandwidth: float, strength: float = 1.0, patch: int = PATCH) -> Tensor:
    """(N, C, h, w) clean latents of N runs -> (N, C, h, w), float32: each patch moved towards its likeliest place

    One mean shift with a Gaussian kernel: a patch becomes the mean of the N patches at its place, weighted by
    exp(-d² / 2H²), where d is their root mean square distance and H is `bandwidth` (0.1 to 0.8) times twice the
    median of all these distances. `strength` 0 moves nothing, 1 all the way. One run, or equal ones, stay as they are.
    """
    runs, _, height, width = x0.shape
    x0 = x0.float()
    if runs == 1:
        return x0
    patches = _cut(x0, patch)
    squared = torch.cat([_distances(part) for part in _parts(patches)], dim=2)
    pairs = torch.triu_indices(runs, runs, 1)
    scale = bandwidth * 2 * squared[pairs[0], pairs[1]].sqrt().median()
    if scale == 0:
        return x0
    moved = []
    for part, distance in zip(_parts(patches), squared.split(_step(runs), dim=2), strict=True):
        weight = torch.exp(distance / (-2 * scale**2))
        weight /= weight.sum(1, keepdim=True)
        moved.append(torch.einsum("ijl,jcl->icl", weight, part))
    return _join(patches.lerp(torch.cat(moved, dim=2), strength), patch, (height, width))


def nearest_to_mean(x0: Tensor) -> int:
    """(N, C, h, w) -> which run lies nearest the mean of all, by squared distance; the first of equals"""
    x0 = x0.float()
    mean = x0.mean(0)
    return int(torch.stack([(one - mean).square().mean() for one in x0]).argmin())


def _step(runs: int) -> int:
    return max(1, CHUNK // runs**2)


def _parts(patches: Tensor) -> tuple[Tensor, ...]:
    return patches.split(_step(len(patches)), dim=2)


def _distances(patches: Tensor) -> Tensor:
    """(N, P, L) -> (N, N, L): mean squares of the differences"""
    return torch.stack([(patches - one).square().mean(1) for one in patches])


def _cut(x0: Tensor, patch: int) -> Tensor:
    """(N, C, h, w) -> (N, C * patch², L); what a last row or column lacks repeats its edge"""
    if patch == 1:
        return x0.flatten(2)
    height, width = x0.shape[2:]
    return F.unfold(F.pad(x0, (0, -width % patch, 0, -height % patch), mode="replicate"), patch, stride=patch)


def _join(patches: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    if patch == 1:
        return patches.unflatten(2, size)
    height, width = (-(-side // patch) * patch for side in size)
    return F.fold(patches, (height, width), patch, stride=patch)[:, :, : size[0], : size[1]]
