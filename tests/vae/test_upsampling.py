"""Sub-pixel upsampling equals interpolation and convolution, whichever sides are padded."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from seesr.vae.subpixel import use_subpixel_upsampling
from seesr.vae.upsampling import upsample

from diffusers.models.upsampling import Upsample2D


@pytest.mark.parametrize("padding", list(itertools.product((0, 1), repeat=4)))
def test_subpixel_upsampling_equals_interpolation_and_convolution(padding: tuple[int, int, int, int]) -> None:
    left, right, top, bottom = padding
    conv = torch.nn.Conv2d(3, 5, 3).double()
    hidden = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    wide = F.pad(F.interpolate(hidden, scale_factor=2.0, mode="nearest"), (left, right, top, bottom))
    assert (upsample(hidden, conv, padding) - conv(wide)).abs().max() < 1e-12


def test_a_converted_upsampler_gives_the_same_result() -> None:
    model = torch.nn.Sequential(Upsample2D(6, use_conv=True, out_channels=4))
    hidden = torch.randn(1, 6, 5, 9)
    before = model(hidden)
    use_subpixel_upsampling(model)
    assert type(model[0]) is not Upsample2D
    torch.testing.assert_close(model(hidden), before, atol=1e-6, rtol=1e-5)
