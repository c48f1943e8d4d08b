"""Colour profiles to sRGB and back, and the colours below transparent pixels."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from seesr import images
from seesr.images.color import alpha_bleed
from seesr.settings import Settings
from tests.corpus import pixel, profile_of, saved


def test_an_srgb_profile_changes_nothing_and_a_broken_one_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.new("RGB", (4, 4), (60, 60, 60))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("a.png", srgb), ("b.png", b"nonsense")):
        opened = images.open_image(saved(image, tmp_path / name, icc_profile=profile))
        assert opened.rgb.getpixel((0, 0)) == (60, 60, 60)
    assert "colour profile of the image is not usable" in caplog.text


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_the_result_is_in_the_colour_profile_of_the_input(tmp_path: Path, kind: Literal["png", "webp", "jpg"]) -> None:
    """`rgb` is in sRGB, the result is in the profile's colours again and carries the profile."""
    wide, out = profile_of("profile-wide.png"), tmp_path / f"out.{kind}"
    path = saved(Image.new("RGB", (8, 8), (150, 110, 100)), tmp_path / "a.png", icc_profile=wide)
    opened = images.open_image(path)
    assert abs(pixel(opened.rgb)[0] - 164) <= 3
    images.save_image(opened, opened.rgb, out, Settings(output_format=kind, output_quality=100))
    result = Image.open(out)
    assert result.info["icc_profile"] == wide
    assert np.abs(np.asarray(result.convert("RGB")).astype(int) - (150, 110, 100)).max() <= 4
    assert np.abs(pixel(images.open_image(out).rgb) - pixel(opened.rgb)).max() <= 4


def test_a_grey_profile_stays_with_a_grey_image(tmp_path: Path) -> None:
    profile = profile_of("profile-grey.png")
    opened = images.open_image(saved(Image.new("L", (8, 8), 99), tmp_path / "a.png", icc_profile=profile))
    images.save_image(opened, opened.rgb, tmp_path / "out.png", Settings())
    result = Image.open(tmp_path / "out.png")
    assert result.mode == "L"
    assert result.info["icc_profile"] == profile
    assert abs(int(np.asarray(result)[0, 0]) - 99) <= 2


def test_alpha_bleed_takes_the_nearest_colours() -> None:
    color, weight = torch.zeros(1, 3, 33, 47), torch.zeros(1, 1, 33, 47)
    color[:, 0, :, :5], weight[..., :5] = 0.8, 1.0
    color[:, 1, :, 40:], weight[..., 40:] = 0.6, 0.5
    filled = alpha_bleed(color, weight)
    assert filled[..., :5].equal(color[..., :5])
    assert filled[..., 40:].equal(color[..., 40:])
    torch.testing.assert_close(filled[0, :, 16, 6], torch.tensor([0.8, 0, 0]), atol=0.1, rtol=0)
    torch.testing.assert_close(filled[0, :, 16, 38], torch.tensor([0, 0.6, 0]), atol=0.1, rtol=0)
    assert alpha_bleed(color, torch.zeros(1, 1, 33, 47)) is color
