"""What a file's colours are taken for, what is carried and what is converted, and the colours below alpha 0."""

import io
import logging
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor
from torch.nn import functional as F

from seesr import images
from seesr.images import icc, srgb
from seesr.images.color import SRGB, ColorSpace, StatedColors, alpha_bleed, grey_for_rgb, is_grayscale, understand
from seesr.images.icc import SRGB_CURVE, SRGB_PRIMARIES, Curve
from seesr.settings import OutputFormat, Settings
from tests.corpus import profile_of, saved
from tests.images.profiles import ADOBE, P3, PROPHOTO, REC2020, lab_under, lut_profile

PROFILES = {
    "P3": icc.build_profile("P3", SRGB_CURVE, P3),
    "Adobe": icc.build_profile("Adobe", Curve(563 / 256), ADOBE),
    "ProPhoto": icc.build_profile("ProPhoto", Curve(1.8), PROPHOTO),
    "grey 1.8": icc.build_profile("Grey", Curve(1.8), None),
}
SATURATED = np.uint8([(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 60, 10), (0, 200, 190), (90, 30, 160)])
RAMP = np.arange(256, dtype=np.uint8)


def rgb_image(dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7, 3)).astype(dtype)


def cicp(primaries: int, transfer: int) -> StatedColors:
    return StatedColors(cicp=(primaries, transfer, 6, 0))


def opponent(red: float, green: float, blue: float) -> tuple[float, float, float]:
    """CIELAB of three channels like XYB's: red to green, lightness, blue to yellow."""
    return 100 * green, 100 * red - 40, 40 - 100 * blue


def camera(red: float, green: float, blue: float) -> tuple[float, float, float]:
    """CIELAB of three channels like a camera's."""
    lightness = 20 * red + 70 * green + 10 * blue
    return lightness, 60 * red - 55 * green - 5 * blue, 20 * red + 30 * green - 50 * blue


# What is carried -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_with_a_curve_near_the_eyes_is_carried(name: str, dtype: type) -> None:
    grey = name.startswith("grey")
    pixels = rgb_image(dtype)[..., : 1 if grey else 3]
    found, space = understand(pixels, "L" if grey else "RGB", StatedColors(icc=PROFILES[name]))
    assert found.dtype == dtype
    assert np.shares_memory(found, pixels)
    assert (found == pixels).all()
    assert space == ColorSpace(PROFILES[name])


def test_nothing_stated_is_srgb() -> None:
    pixels = rgb_image()
    for stated in (StatedColors(), cicp(2, 2)):
        found, space = understand(pixels, "RGB", stated)
        assert (found == pixels).all()
        assert space == ColorSpace()
    assert understand(pixels[..., 0], "L", StatedColors())[0].shape == (5, 7, 1)


@pytest.mark.parametrize("kind", get_args(OutputFormat))
@pytest.mark.parametrize("name", ["P3", "Adobe", "ProPhoto"])
def test_saturated_colours_come_back(tmp_path: Path, name: str, kind: OutputFormat) -> None:
    """Flat patches beyond sRGB look the same (2 dE) through open_image and save_image."""
    pixels, out = SATURATED.repeat(16, 0).repeat(16, 1).reshape(6, 16, 16, 3), tmp_path / f"out.{kind}"
    pixels = np.concatenate(list(np.broadcast_to(SATURATED[:, None, None], pixels.shape)), 1)
    opened = images.open_image(saved(Image.fromarray(pixels), tmp_path / "a.png", icc_profile=PROFILES[name]))
    images.save_image(opened, opened.rgb, out, Settings(output_format=kind, output_quality=100))
    with Image.open(out) as result:
        colors = np.asarray(result.convert("RGB"))[8, 8::16]
        after = lab_under(result.info["icc_profile"], colors)
    before = lab_under(PROFILES[name], SATURATED)
    assert np.abs(colors.astype(int) - SATURATED).max() <= (0 if kind in ("png", "tiff") else 4)
    assert np.linalg.norm(after - before, axis=1).max() <= (0 if kind in ("png", "tiff") else 3)


def test_a_camera_profile_without_a_way_back_is_carried() -> None:
    """Before, the result was made by its tables from CIELAB, which are zero: black."""
    no_way_back = srgb_lut_of_zeros()
    profile = lut_profile(b"RGB ", b"scnr", camera, no_way_back)
    backwards = ImageCms.profileToProfile(
        Image.new("RGB", (1, 1), (180, 120, 60)),
        ImageCms.createProfile("sRGB"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
    )
    assert backwards is not None
    assert backwards.getpixel((0, 0)) == (0, 0, 0)
    pixels = rgb_image()
    found, space = understand(pixels, "RGB", StatedColors(icc=profile))
    assert (found == pixels).all()
    assert space == ColorSpace(profile)


def srgb_lut_of_zeros() -> bytes:
    from tests.images.profiles import lut8

    return lut8(3, 3, bytes(24))
