"""Nearest-neighbour doubling and its 3x3 convolution, as four sub-pixel convolutions before doubling."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seesr.vae.padding import empty_for, pad

# By phase: how three taps over doubled pixels fall onto two pixels. Phase 0 is the later row or column of a pixel.
_TAPS = (((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)), ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)))


def upsample(hidden: Tensor, conv: Any, padding: tuple[int, int, int, int]) -> Tensor:
    """(B, C, h, w) doubled and convolved -> (B, C', 2h - 2, 2w - 2), and one pixel more at every padded side

    `padding` holds 1 for each side with zeros around the map (left, right, top, bottom), else 0. Each of the four
    phases is a 2x2 convolution of the pixels before doubling: the same within rounding, with 4/9 of the arithmetic.
    """
    left, right, top, bottom = padding
    hidden = pad(hidden, padding, conv.weight)
    height, width = hidden.shape[2:]
    size = (2 * height - 2 - top - bottom, 2 * width - 2 - left - right)
    result = empty_for(conv.weight, hidden, (hidden.shape[0], conv.weight.shape[0], *size))
    for row in (0, 1):
        for column in (0, 1):
            rows = slice(int(row == 0 and top), height - int(row == 1 and bottom))
            columns = slice(int(column == 0 and left), width - int(column == 1 and right))
            phase = F.conv2d(hidden[:, :, rows, columns], _phase_weight(conv.weight, row, column), conv.bias)
            result[:, :, (row - top) % 2 :: 2, (column - left) % 2 :: 2] = phase
    return result


def _phase_weight(weight: Tensor, row: int, column: int) -> Tensor:
    """(C', C, 3, 3) -> (C', C, 2, 2), summed in float32 or wider, rounded once"""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    rows, columns = (torch.tensor(_TAPS[phase], device=weight.device, dtype=wide.dtype) for phase in (row, column))
    return torch.einsum("oiyx,ay,bx->oiab", wide, rows, columns).to(weight.dtype)
