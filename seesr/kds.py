"""Kernel density steering: move several particles of one image towards where most of them agree.

Source: Kernel Density Steering (arXiv 2507.05604). Its published code has no effect at 1 to 4 steps, because its
distances grow with the patch. Here a distance is a mean square, and the bandwidth is relative to the particles' spread.
"""

import torch
from torch import Tensor

CHUNK = 2**22  # pairs of particles times latent pixels that are compared at a time


def steer(x0: Tensor, bandwidth: float) -> Tensor:
    """(N, C, h, w) clean latents of N particles -> (N, C, h, w), float32: each latent pixel moved to a denser place

    One mean shift with a Gaussian kernel. A pixel becomes the mean of the N pixels at its place, weighted by
    exp(-d² / 2H²), where d is their root mean square distance over channels and H is `bandwidth` (0.1 to 0.8) times
    twice the median of all distances. One particle, or equal ones, stay unchanged.
    """
    count, x0 = len(x0), x0.float()
    if count == 1:
        return x0
    step = max(1, CHUNK // count**2)
    chunks = x0.flatten(2).split(step, dim=2)
    squared = torch.cat([_mean_squares(chunk) for chunk in chunks], dim=2)
    pairs = torch.triu_indices(count, count, 1)
    scale = bandwidth * 2 * squared[pairs[0], pairs[1]].sqrt().median()
    if scale == 0:
        return x0
    moved = []
    for chunk, distance in zip(chunks, squared.split(step, dim=2), strict=True):
        weight = torch.exp(distance / (-2 * scale**2))
        weight /= weight.sum(1, keepdim=True)
        moved.append(torch.einsum("ijl,jcl->icl", weight, chunk))
    return torch.cat(moved, dim=2).view_as(x0)


def nearest_to_mean(x0: Tensor) -> int:
    """(N, C, h, w) -> index of the particle nearest to the mean of all, by squared distance; the first of equals"""
    difference = x0.float() - x0.float().mean(0)
    return int(torch.stack([particle.square().mean() for particle in difference]).argmin())


def _mean_squares(pixels: Tensor) -> Tensor:
    """(N, C, L) -> (N, N, L): mean squares of the differences"""
    return torch.stack([(pixels - particle).square().mean(1) for particle in pixels])
