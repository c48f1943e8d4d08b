"""Colour fixes against the reference's recorded ones, and what each promises."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from seesr.color_fix import PEAK_IMAGES, low_frequencies, match_color, set_fidelity
from seesr.settings import ColorFix
from tests.golden import recorded

RECORDED = recorded("colour")


def pair(number: int) -> tuple[Tensor, Tensor]:
    target, source = (RECORDED[f"{number}.{name}_uint8"].permute(2, 0, 1)[None] / 255 for name in ("target", "source"))
    return target, source


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("mode", ["wavelet", "adain"])
def test_equals_the_reference(number: int, mode: ColorFix) -> None:
    fixed = match_color(*pair(number), mode)
    torch.testing.assert_close(fixed, RECORDED[f"{number}.{mode}_float"].clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["wavelet", "dwt", "adain"])
@pytest.mark.parametrize("size", [(64, 96), (37, 53), (1, 1), (3, 200)])
def test_a_colour_cast_goes_and_the_detail_stays(mode: ColorFix, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    control = torch.rand(2, 3, *size) * 0.2 + 0.4
    cast = torch.tensor([0.1, -0.08, 0.05])[:, None, None]
    fixed = match_color(control + cast, control, mode)
    assert fixed.shape == control.shape
    torch.testing.assert_close(fixed, control, atol=2e-3, rtol=0)


def test_dwt_and_wavelet_agree_on_smooth_pictures() -> None:
    """They differ in where low ends and high begins, so a slow gradient is matched alike by both."""
    y = torch.linspace(0.2, 0.8, 256)[:, None].expand(256, 256)
    control = torch.stack([y, y.T, y])[None]
    image = (control * 0.8 + 0.05).clone()
    fixed = [match_color(image, control, mode) for mode in ("wavelet", "dwt")]
    assert (fixed[0] - fixed[1]).abs().mean() < 0.005


def test_none_leaves_the_picture_alone() -> None:
    target, source = pair(0)
    assert match_color(target, source, "none").equal(target)


def test_the_result_is_in_range_and_float32() -> None:
    fixed = match_color(torch.ones(1, 3, 40, 40).half(), torch.rand(1, 3, 40, 40).half(), "wavelet")
    assert fixed.dtype == torch.float32
    assert fixed.min() >= 0
    assert fixed.max() <= 1


def test_low_frequencies_of_a_constant_are_the_constant() -> None:
    torch.testing.assert_close(low_frequencies(torch.full((1, 3, 9, 5), 0.3)), torch.full((1, 3, 9, 5), 0.3))


def test_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size, got \(1, 3, 8, 8\) and \(1, 3, 8, 9\)"):
        match_color(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9), "wavelet")


@pytest.mark.parametrize("strip", [2048, 7, 1])
def test_fidelity_scales_two_bands_of_the_difference(strip: int) -> None:
    torch.manual_seed(2)
    image, control = (torch.rand(1, 3, 30, 41) * 0.2 + 0.4 for _ in range(2))
    low = low_frequencies(image - control, 1)
    for fidelity, fine, rest in ((0.0, 2, 2**0.25), (0.5, 1, 1), (0.75, 0.5**0.5, 1), (1.0, 0.5, 1)):
        wanted = control + rest * low + fine * (image - control - low)
        torch.testing.assert_close(set_fidelity(image, control, fidelity, strip), wanted, atol=1e-6, rtol=0)
    assert set_fidelity(image, image, 0.0).equal(image)
    assert 0 <= set_fidelity(image, 1 - image, 0.0).min() <= set_fidelity(image, 1 - image, 0.0).max() <= 1


def test_the_memory_of_every_fix_is_known() -> None:
    assert PEAK_IMAGES.keys() == set(get_args(ColorFix))
