"""Zeros around a map, in the memory order of the convolution that follows."""

import torch
from torch import Tensor


def memory_format(weight: Tensor) -> torch.memory_format:
    """How the results of a convolution with this weight lie in memory."""
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def empty_for(weight: Tensor, hidden: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of `shape` like `hidden`, in the memory order of `weight`."""
    return torch.empty(shape, dtype=hidden.dtype, device=hidden.device, memory_format=memory_format(weight))


def pad(hidden: Tensor, padding: tuple[int, int, int, int], weight: Tensor) -> Tensor:
    """(B, C, h, w) with zeros at left, right, top and bottom; itself if there are none. On a CPU faster than F.pad."""
    left, right, top, bottom = padding
    if not any(padding):
        return hidden
    height, width = hidden.shape[2:]
    padded = empty_for(weight, hidden, (*hidden.shape[:2], top + height + bottom, left + width + right))
    padded[:, :, top : top + height, left : left + width] = hidden
    for strip in (padded[:, :, :top], padded[:, :, top + height :], padded[..., :left], padded[..., left + width :]):
        strip.zero_()
    return padded
