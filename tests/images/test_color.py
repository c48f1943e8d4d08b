"""What a file's colours are taken for, what is carried and what is converted, and the colours below alpha 0."""

import io
import logging
import subprocess
import sys
from dataclasses import replace
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
from tests.corpus import saved
from tests.images.profiles import ADOBE, INTENT, P3, PROPHOTO, REC2020, lab_under, lut8, lut_profile

PROFILES = {
    "P3": icc.build_profile("P3", SRGB_CURVE, P3),
    "Adobe": icc.build_profile("Adobe", Curve(563 / 256), ADOBE),
    "ProPhoto": icc.build_profile("ProPhoto", Curve(1.8), PROPHOTO),
    "grey 1.8": icc.build_profile("Grey", Curve(1.8), None),
}
SATURATED = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 60, 10), (0, 200, 190), (90, 30, 160)], np.uint8)
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
    """Flat patches beyond sRGB go through open_image and save_image: exactly, or within the loss of WebP and JPEG."""
    out, exact = tmp_path / f"out.{kind}", kind in ("png", "tiff")
    patches = Image.fromarray(SATURATED.repeat(16, 0)[None].repeat(16, 0))
    opened = images.open_image(saved(patches, tmp_path / "a.png", icc_profile=PROFILES[name]))
    images.save_image(opened, opened.rgb, out, Settings(output_format=kind, output_quality=100))
    with Image.open(out) as result:
        colors, profile = np.asarray(result.convert("RGB"))[8, 8::16], result.info["icc_profile"]
    assert np.abs(colors.astype(int) - SATURATED).max() <= (0 if exact else 4)
    difference = lab_under(profile, colors) - lab_under(PROFILES[name], SATURATED)
    assert np.linalg.norm(difference, axis=1).max() <= (0 if exact else 3)


def test_a_camera_profile_without_a_way_back_is_carried() -> None:
    """Converted from sRGB by its empty tables, every colour is black."""
    profile = lut_profile(b"RGB ", b"scnr", camera, way_back=lut8(3, 3, bytes(24)))
    source, target = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile))
    backwards = ImageCms.profileToProfile(Image.new("RGB", (1, 1), (180, 120, 60)), source, target)
    assert backwards is not None
    assert backwards.getpixel((0, 0)) == (0, 0, 0)
    found, space = understand(rgb_image(), "RGB", StatedColors(icc=profile))
    assert (found == rgb_image()).all()
    assert space == ColorSpace(profile)


def test_a_grey_profile_serves_formats_without_grey() -> None:
    """Equal channels under the built RGB profile mean what the grey value means."""
    lab_curve = Curve(1.2)  # a profile whose curve gives lightness: its PCS is Lab
    in_lab = icc.build_profile("Grey", lab_curve, None)
    in_lab = in_lab[:20] + b"Lab " + in_lab[24:]
    for grey in (PROFILES["grey 1.8"], icc.build_profile("Grey", SRGB_CURVE, None), in_lab):
        rgb = grey_for_rgb(grey)
        assert rgb is not None
        difference = lab_under(rgb, RAMP[:, None].repeat(3, 1)) - lab_under(grey, RAMP[:, None])
        assert np.abs(difference).max() < 1.1  # steps of CIELAB in 8 bits
    assert grey_for_rgb(PROFILES["P3"]) == PROFILES["P3"]
    assert grey_for_rgb(None) is None


# What a PNG states without a profile, and AVIF and HEIC ------------------------------------------------------------

SRGB_PRIMARIES_AND_GAMMA = StatedColors(gamma=0.45455, chromaticities=SRGB_PRIMARIES)
GAMA, CHRM_P3 = (
    (b"gAMA", bytes.fromhex("0000b18f")),
    bytes.fromhex(
        "00007a26 00008084 000109a0 00007d00 00006784 00010d88 00003a98 00001770"  # the example of PNG's cHRM, with P3
    ),
)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    ("stated", "kinds"),
    [
        (StatedColors(srgb_intent=1), [b"sRGB"]),
        (replace(SRGB_PRIMARIES_AND_GAMMA, srgb_intent=1), [b"sRGB"]),
        (SRGB_PRIMARIES_AND_GAMMA, [b"gAMA", b"cHRM"]),
        (StatedColors(gamma=0.45455), [b"gAMA"]),
        (StatedColors(chromaticities=SRGB_PRIMARIES), [b"cHRM"]),
        (cicp(1, 13), [b"cICP"]),
        (cicp(1, 2), [b"cICP"]),
        (cicp(2, 13), [b"cICP"]),
    ],
)
def test_srgb_in_other_words_needs_no_profile(stated: StatedColors, kinds: list[bytes], mode: str) -> None:
    pixels = rgb_image()[..., : len(mode)]
    found, space = understand(pixels, mode, stated)
    assert (found == pixels).all()
    assert space.icc is None
    assert [kind for kind, _ in space.png] == kinds
    if kinds == [b"cICP"]:
        assert space.png[0][1] == bytes([1, 13, 0, 1])


@pytest.mark.parametrize(
    ("stated", "chunks", "primaries", "light"),
    [  # light of 128 by each standard's formula
        (StatedColors(gamma=0.45455, chromaticities=P3), (GAMA, (b"cHRM", CHRM_P3)), P3, 0.2195),
        (StatedColors(chromaticities=P3), ((b"cHRM", CHRM_P3),), P3, 0.2159),
        (StatedColors(gamma=0.55556), ((b"gAMA", bytes.fromhex("0000d904")),), SRGB_PRIMARIES, 0.2892),
        (cicp(12, 13), ((b"cICP", b"\x0c\x0d\0\1"),), P3, 0.2159),
        (cicp(9, 1), ((b"cICP", b"\x09\x01\0\1"),), REC2020, 0.2616),
        (cicp(9, 14), ((b"cICP", b"\x09\x0e\0\1"),), REC2020, 0.2616),
        (cicp(5, 5), ((b"cICP", b"\x05\x05\0\1"),), (*SRGB_PRIMARIES[:4], 0.29, *SRGB_PRIMARIES[5:]), 0.1452),
        (cicp(1, 4), ((b"cICP", b"\x01\x04\0\1"),), SRGB_PRIMARIES, 0.2195),
    ],
)
def test_chunks_are_carried_with_a_profile_for_other_formats(
    stated: StatedColors, chunks: tuple[tuple[bytes, bytes], ...], primaries: tuple[float, ...], light: float
) -> None:
    found, space = understand(rgb_image(), "RGB", stated)
    assert (found == rgb_image()).all()
    assert space.png == chunks
    assert space.icc is not None
    tags = icc.read_tags(space.icc)
    np.testing.assert_allclose(icc.read_matrix(tags), icc.rgb_to_d50(primaries), atol=1e-4)
    lightness = lab_under(space.icc, np.array([[128, 128, 128]]))[0, 0]
    assert ((lightness + 16) / 116) ** 3 == pytest.approx(light, abs=0.003)
    grey = understand(rgb_image()[..., :1], "L", stated)[1].icc
    if light == 0.2159:  # the curve of sRGB
        assert grey is None
    else:
        assert grey is not None
        assert lab_under(grey, np.array([[128]]))[0, 0] == pytest.approx(lightness, abs=0.4)


def test_the_first_statement_of_the_png_specification_holds() -> None:
    everything = StatedColors(PROFILES["Adobe"], (12, 13, 0, 1), 0.45455, SRGB_PRIMARIES, 0)
    assert understand(rgb_image(), "RGB", everything)[1].png == ((b"cICP", b"\x0c\x0d\0\1"),)
    assert understand(rgb_image(), "RGB", replace(everything, cicp=None))[1] == ColorSpace(PROFILES["Adobe"])
    assert understand(rgb_image(), "RGB", replace(everything, cicp=None, icc=None))[1].png == ((b"sRGB", b"\0"),)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (StatedColors(icc=b"nonsense"), "colour profile"),
        (StatedColors(icc=PROFILES["P3"][:300]), "colour profile"),
        (StatedColors(icc=PROFILES["grey 1.8"]), "it is for GRAY, the image is RGB"),
        (StatedColors(icc=PROFILES["P3"][:12] + b"link" + PROFILES["P3"][16:]), "class link"),
        (StatedColors(icc=lut_profile(b"RGB ", b"scnr", lambda *_: (50, 0, 0))), "all tones equal"),
        (StatedColors(gamma=0), "gamma 0"),
        (StatedColors(chromaticities=(0,) * 8), "chromaticities"),
        (cicp(77, 1), "77/1"),
        (cicp(1, 99), "1/99"),
    ],
)
def test_what_is_not_usable_is_left_out_with_a_warning(
    stated: StatedColors, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    found, space = understand(rgb_image(), "RGB", stated)
    assert (found == rgb_image()).all()
    assert space == ColorSpace()
    assert words in caplog.text
    assert understand(rgb_image(), "RGB", replace(stated, srgb_intent=0))[1] == SRGB


# What is converted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stated",
    [
        StatedColors(gamma=1.0),
        StatedColors(gamma=1.0, chromaticities=SRGB_PRIMARIES),
        StatedColors(icc=icc.build_profile("Linear", Curve(), SRGB_PRIMARIES)),
        cicp(1, 8),
    ],
)
def test_linear_light_is_converted(stated: StatedColors, caplog: pytest.LogCaptureFixture) -> None:
    """Half of the light is 188 in sRGB."""
    caplog.set_level(logging.INFO)
    found, space = understand(np.full((2, 2, 3), 128, np.uint8), "RGB", stated)
    assert (found == 188).all()
    assert space == SRGB
    assert "converted to sRGB" in caplog.text
    deep, _ = understand(np.full((2, 2, 3), 32768, np.uint16), "RGB", stated)
    assert np.abs(deep.astype(int) - 48192).max() <= 3
    if not stated.icc:
        assert (understand(np.full((2, 2), 128, np.uint8), "L", stated)[0] == 188).all()


@pytest.mark.parametrize("gamma", [1.0, 1.4, 3.0])
def test_far_curves_are_converted_as_the_colour_engine_does(gamma: float) -> None:
    profile, grey = icc.build_profile("Far", Curve(gamma), P3), icc.build_profile("Far", Curve(gamma), None)
    pixels = np.random.default_rng(0).integers(40, 256, (20, 30, 3)).astype(np.uint8)
    found, space = understand(pixels, "RGB", StatedColors(icc=profile))
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    turn = ImageCms.buildTransform(source, target, "RGB", "RGB", INTENT, ImageCms.Flags.NOOPTIMIZE)
    wanted = np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), turn)).astype(int)
    assert space == SRGB
    assert np.abs(found - wanted).max() <= 2
    light = SRGB_CURVE(understand(RAMP[None], "L", StatedColors(icc=grey))[0][0, :, 0] / 255)
    np.testing.assert_allclose(light, (RAMP / 255) ** gamma, atol=0.005)


def test_tables_with_a_far_curve_or_other_channels_are_converted() -> None:
    """A camera's linear light in a profile of tables, and channels like those of XYB."""
    linear = lut_profile(b"RGB ", b"scnr", camera, gamma=1 / 2.4)
    found, space = understand(np.full((1, 1, 3), 128, np.uint8), "RGB", StatedColors(icc=linear))
    assert space == SRGB
    assert np.abs(found.astype(int) - 185).max() <= 2  # (128/255)^(1/2.4) is a lightness of 75
    other = lut_profile(b"RGB ", b"scnr", opponent)
    red, space = understand(np.array([[[255, 138, 50]]], np.uint8), "RGB", StatedColors(icc=other))
    assert space == SRGB
    assert red[0, 0, 0] > 200 > red[0, 0, 1]


def test_hdr_becomes_sdr_in_its_own_primaries(caplog: pytest.LogCaptureFixture) -> None:
    """18 % grey of ITU-R BT.2408 (38 % of PQ and of HLG) is 39 % of sRGB's curve."""
    caplog.set_level(logging.INFO)
    tagged = with_cicp_tag(PROFILES["P3"], 9, srgb.PQ)
    for stated in (cicp(9, srgb.PQ), cicp(9, srgb.HLG), StatedColors(icc=tagged)):
        found, space = understand(np.full((1, 1, 3), round(0.38 * 65535), np.uint16), "RGB", stated)
        assert np.abs(found / 65535 - 0.394).max() < 0.01
        assert space.png == ((b"cICP", bytes([9, 13, 0, 1])),)
        assert space.icc == icc.build_profile("Built from cICP", SRGB_CURVE, REC2020)
    assert caplog.text.count("tone-mapped") == 3


def with_cicp_tag(profile: bytes, primaries: int, transfer: int) -> bytes:
    """The profile with a cicp tag (ICC.1:2022) in place of its copyright."""
    tag = b"cicp" + bytes([0, 0, 0, 0, primaries, transfer, 0, 1])
    place = profile.index(b"cprt")
    entry = b"cicp" + (len(profile)).to_bytes(4, "big") + len(tag).to_bytes(4, "big")
    whole = profile[:place] + entry + profile[place + 12 :] + tag
    return len(whole).to_bytes(4, "big") + whole[4:]


def test_cmyk_and_lab_become_srgb(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found, space = understand(np.array([[[0, 255, 255, 0]]], np.uint8), "CMYK", StatedColors())
    assert (found.tolist(), space) == ([[[255, 0, 0]]], SRGB)
    assert "without a profile" in caplog.text
    found, _ = understand(np.array([[[0, 255, 255, 0]]], np.uint8), "CMYK", StatedColors(icc=PROFILES["P3"]))
    assert found.tolist() == [[[255, 0, 0]]]
    assert "it is for RGB, the image is CMYK" in caplog.text
    found, space = understand(np.array([[[138, 128, 128]]], np.uint8), "LAB", StatedColors())
    assert np.abs(found.astype(int) - 129).max() <= 1  # L 54.1
    assert space == SRGB
    assert "CIELAB" in caplog.text


# Greyness and transparency -------------------------------------------------------------------------------------------


def test_greyness_allows_one_level() -> None:
    assert is_grayscale(Image.new("RGB", (3, 3), (50, 51, 50)))
    assert not is_grayscale(Image.new("RGB", (3, 3), (50, 52, 50)))


def reference_bleed(color: Tensor, weight: Tensor) -> Tensor:
    """Push-pull in floating point, the whole image at once."""
    if weight.min() > 0 or weight.max() == 0 or max(weight.shape) == 1:
        return color
    sums = F.avg_pool2d(torch.cat([color * weight, weight], 1), 2, ceil_mode=True)
    half = reference_bleed(sums[:, :3] / sums[:, 3:].clamp(min=1e-8), (sums[:, 3:] > 0).double())
    return torch.where(weight > 0, color, F.interpolate(half, size=color.shape[2:], mode="bilinear"))


@pytest.mark.parametrize("strip", [2**20, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.uint8, 0.51), (np.uint16, 3)])
def test_alpha_bleed_is_push_pull(dtype: type, tolerance: float, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srgb, "STRIP", strip)
    random, top = np.random.default_rng(0), np.iinfo(dtype).max
    for height, width, share in ((1, 9, 0.3), (9, 1, 0.3), (33, 47, 0.01), (64, 64, 0.5), (101, 7, 0.9)):
        color = random.integers(0, top + 1, (height, width, 3)).astype(dtype)
        alpha = (random.integers(1, top + 1, (height, width)) * (random.random((height, width)) < share)).astype(dtype)
        before = color.copy()
        filled = alpha_bleed(color, alpha)
        tensors = torch.from_numpy(color / top).permute(2, 0, 1)[None], torch.from_numpy(alpha / top)[None, None]
        wanted = reference_bleed(*tensors)[0].permute(1, 2, 0).numpy() * top
        assert np.abs(filled - wanted).max() <= tolerance
        assert (filled[alpha > 0] == color[alpha > 0]).all()
        assert (alpha_bleed(color[..., :1], alpha) == filled[..., :1]).all()
        assert (color == before).all()


def test_alpha_bleed_takes_the_nearest_colours() -> None:
    color, alpha = np.zeros((33, 47, 3), np.uint8), np.zeros((33, 47), np.uint8)
    color[:, :5, 0], alpha[:, :5] = 204, 255
    color[:, 40:, 1], alpha[:, 40:] = 153, 128
    filled = alpha_bleed(color, alpha)
    assert (filled[:, :5] == color[:, :5]).all()
    assert (filled[:, 40:] == color[:, 40:]).all()
    np.testing.assert_allclose(filled[16, 6], (204, 0, 0), atol=25)
    np.testing.assert_allclose(filled[16, 38], (0, 153, 0), atol=25)


@pytest.mark.parametrize("value", [0, 200])
def test_alpha_bleed_without_hidden_or_visible_pixels_changes_nothing(value: int) -> None:
    color = rgb_image()
    assert alpha_bleed(color, np.full((5, 7), value, np.uint8)) is color


@pytest.mark.slow
def test_64_megapixels_take_little_memory() -> None:
    """Above the input and the result, and with the interpreter: within 0.7 GB."""
    code = """if True:
        import resource, numpy as np
        from seesr.images.color import alpha_bleed
        color, alpha = np.zeros((8000, 8000, 3), np.uint8), np.zeros((8000, 8000), np.uint8)
        color[:], alpha[::9, ::7] = 90, 255
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (alpha_bleed(color, alpha)[::100, ::100] == 90).all()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) < 700_000  # kB
