"""Doubling by phases equals interpolating and convolving, whichever edges are padded."""

import itertools

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch.nn import functional as F

from seesr.upsampling import double, double_by_phases


@pytest.mark.parametrize("edges", list(itertools.product((0, 1), repeat=4)))
def test_doubling_by_phases_is_doubling(edges: tuple[int, int, int, int]) -> None:
    left, right, top, bottom = edges
    conv = torch.nn.Conv2d(3, 5, 3).double()
    hidden = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    wide = F.pad(F.interpolate(hidden, scale_factor=2.0, mode="nearest"), (left, right, top, bottom))
    assert (double(hidden, conv, edges) - conv(wide)).abs().max() < 1e-12


def test_an_upsampler_does_the_same_by_phases() -> None:
    model = torch.nn.Sequential(Upsample2D(6, use_conv=True, out_channels=4))
    hidden = torch.randn(1, 6, 5, 9)
    before = model(hidden)
    double_by_phases(model)
    assert type(model[0]) is not Upsample2D
    torch.testing.assert_close(model(hidden), before, atol=1e-6, rtol=1e-5)
