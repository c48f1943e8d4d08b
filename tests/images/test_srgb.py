"""Conversions to sRGB, against published numbers and the colour engine."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageCms

from seesr.images import icc, srgb
from seesr.images.icc import Curve
from tests.images.profiles import INTENT, P3, REC2020, lut8, lut_profile

DEPTHS = [np.uint8, np.uint16]


def stored(values: Sequence[float], dtype: type) -> np.ndarray:
    """Values in [0, 1] -> a (1, 1, C) image."""
    return np.round(np.array(values)[None, None] * np.iinfo(dtype).max).astype(dtype)


def press(cyan: int, magenta: int, yellow: int, black: int) -> tuple[float, float, float]:
    """CIELAB of inks at 0 or 1, roughly those of offset printing. Black ink is not quite black."""
    lightness = 100 - 45 * cyan - 52 * magenta - 11 * yellow + 18 * cyan * magenta
    faded = 0 if black else 1
    return (
        max(lightness, 20) * faded + 12 * black,
        (-37 * cyan + 74 * magenta - 5 * yellow) * faded,
        (-50 * cyan - 3 * magenta + 93 * yellow) * faded,
    )


PRESS = lut_profile(b"CMYK", b"prtr", press, lut8(3, 4, b"".join(bytes([0, 0, 0, k]) for k in [255] * 4 + [0] * 4)))


@pytest.mark.parametrize("dtype", DEPTHS)
def test_linear_light_gets_the_srgb_curve(dtype: type) -> None:
    """IEC 61966-2-1: 0.0031308 is 0.04045, 0.2140411 is 0.5 and 0.5 is 0.7353570."""
    light = np.array([[[0.0], [0.0031308], [0.2140411], [0.5], [1.0]]])
    top = np.iinfo(dtype).max
    grey = srgb.from_linear(np.round(light * top).astype(dtype), [Curve()], None)
    rgb = srgb.from_linear(
        np.round(light.repeat(3, 2) * top).astype(dtype), [Curve()] * 3, icc.rgb_to_d50(icc.SRGB_PRIMARIES)
    )
    # Rounding of linear light to 8 bits is coarse: 0.0031308 is stored as 1/255, which is 13/255 of sRGB.
    wanted = [0, 13, 128, 188, 255] if dtype == np.uint8 else [0, 2651, 32768, 48192, 65535]
    for found in (grey, rgb):
        assert found.dtype == dtype
        assert np.abs(found[0, :, 0].astype(int) - wanted).max() <= (1 if dtype == np.uint8 else 6)
    assert srgb.from_linear(stored([0.5], np.uint8), [Curve()], None).tolist() == [[[188]]]


def test_primaries_are_converted_as_css_color_4_says() -> None:
    """Its matrix from linear Display P3 to linear sRGB; what is out of range is clipped."""
    matrix = np.array([[1.2249402, -0.2249402, 0], [-0.0420570, 1.0420570, 0], [-0.0196376, -0.0786360, 1.0982736]])
    for light in ([0.4, 0.3, 0.2], [0.1, 0.5, 0.6], [1, 0, 0]):
        linear = (matrix @ light).clip(0, 1)
        wanted = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        found = srgb.from_linear(stored(light, np.uint16), [Curve()] * 3, icc.rgb_to_d50(P3))
        np.testing.assert_allclose(found[0, 0] / 65535, wanted, atol=2e-4)


def test_lab_equals_the_colour_engine() -> None:
    random = np.random.default_rng(0)
    lab = np.column_stack([random.integers(0, 256, 4000), random.integers(60, 190, (4000, 2))]).astype(np.uint8)
    image = Image.frombytes(
        "LAB", (4000, 1), (lab ^ np.array([0, 128, 128], np.uint8)).tobytes()
    )  # Pillow's are signed
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    turn = ImageCms.buildTransform(*profiles, "LAB", "RGB", INTENT, ImageCms.Flags.NOOPTIMIZE)
    wanted = np.asarray(ImageCms.applyTransform(image, turn)).astype(int)
    difference = np.abs(srgb.from_lab(lab[None]) - wanted)
    assert difference.max() <= 2
    assert difference.mean() < 0.2


def test_lab_of_16_bits_keeps_its_steps() -> None:
    """sRGB's red is (54.29, 80.81, 69.89) in CIELAB under D50 (CSS Color 4); greys differ in every 16-bit step."""
    red = np.array([[[54.29 / 100 * 65535, (80.81 + 128) * 256, (69.89 + 128) * 256]]], np.uint16)
    np.testing.assert_allclose(srgb.from_lab(red)[0, 0] / 65535, [1, 0, 0], atol=0.02)
    ramp = np.stack([np.arange(30000, 30500), *[np.full(500, 32768)] * 2], 1).astype(np.uint16)[None]
    grey = srgb.from_lab(ramp).astype(int)
    assert np.ptp(grey, axis=2).max() <= 8
    assert len(np.unique(grey[..., 1])) == 1 + np.ptp(grey[..., 1])


@pytest.mark.parametrize("dtype", DEPTHS)
def test_cmyk_without_a_profile_is_plain(dtype: type) -> None:
    inks = np.random.default_rng(0).integers(0, 256, (9, 70, 4)).astype(np.uint8)
    wanted = np.asarray(Image.frombytes("CMYK", (70, 9), inks.tobytes()).convert("RGB")).astype(int)
    found = srgb.from_cmyk(inks.astype(dtype) * dtype(np.iinfo(dtype).max // 255))
    assert np.abs(found / (np.iinfo(dtype).max // 255) - wanted).max() <= 1


# Percent of ink, and sRGB by `transicc -t1 -b` of Little CMS 2.14 through the profile above.
INKS = [
    ((0, 0, 0, 0), (255, 255, 255)),
    ((100, 0, 0, 0), (0, 148.6, 217.1)),
    ((0, 0, 0, 100), (0, 0, 0)),
    ((0, 60, 80, 0), (222.5, 108.2, 0)),
    ((40, 30, 30, 0), (174.4, 155.6, 146.9)),
    ((20, 20, 20, 60), (90.2, 100.4, 105.5)),
]


@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize(("inks", "wanted"), INKS)
def test_cmyk_by_a_profile_is_relative_with_black_point_compensation(
    inks: tuple[int, ...], wanted: tuple[float, ...], dtype: type
) -> None:
    source = ImageCms.ImageCmsProfile(io.BytesIO(PRESS))
    found = srgb.from_profile(stored([ink / 100 for ink in inks], dtype), "CMYK", source)
    assert np.abs(found[0, 0] / (np.iinfo(dtype).max / 255) - wanted).max() <= 2


# ITU-R BT.2408 tables 1 and 2: 18 % grey is 26 cd/m², at 38 % of PQ and of HLG; graphics white is 203 cd/m², at 58 %
# and 75 %. On a display whose white is 203 cd/m² the grey stays at 26/203 of light, 39.3 % of sRGB. The roll-off of
# ITU-R BT.2390 from 1000 to 203 cd/m², by hand, takes 203 to 160 cd/m², 90 % of sRGB.
@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize(
    ("transfer", "signal", "wanted"),
    [
        (srgb.PQ, 0, 0),
        (srgb.PQ, 0.3797, 0.393),
        (srgb.PQ, 0.5807, 0.897),
        (srgb.PQ, 0.7518, 1),
        (srgb.PQ, 1, 1),
        (srgb.HLG, 0, 0),
        (srgb.HLG, 0.378, 0.393),
        (srgb.HLG, 0.75, 0.897),
        (srgb.HLG, 1, 1),
    ],
)
def test_hdr_greys_are_where_broadcasters_put_them(transfer: int, signal: float, wanted: float, dtype: type) -> None:
    found = srgb.from_hdr(stored([signal] * 3, dtype), REC2020, transfer)
    np.testing.assert_allclose(found[0, 0] / np.iinfo(dtype).max, wanted, atol=0.008)
    grey = srgb.from_hdr(stored([signal], dtype), REC2020, transfer)
    assert abs(int(grey[0, 0, 0]) - int(found[0, 0, 0])) <= (1 if dtype == np.uint8 else 20)


def test_hdr_keeps_the_ratios_of_the_channels_and_their_order() -> None:
    """Light of 400, 200 and 100 cd/m² in PQ (0.6526, 0.5791, 0.5081, by SMPTE ST 2084) stays at 4 : 2 : 1."""
    found = srgb.from_hdr(stored([0.65258, 0.57916, 0.50808], np.uint16), REC2020, srgb.PQ)[0, 0] / 65535
    light = ((found + 0.055) / 1.055) ** 2.4
    np.testing.assert_allclose(light / light[2], [4, 2, 1], rtol=0.005)
    ramp = np.arange(65536, dtype=np.uint16)[None, :, None]
    for transfer in (srgb.PQ, srgb.HLG):
        assert np.diff(srgb.from_hdr(ramp, REC2020, transfer)[0, :, 0].astype(int)).min() >= -1


def test_strips_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (37, 23, 3)).astype(np.uint16)
    whole = srgb.from_lab(pixels)
    monkeypatch.setattr(srgb, "STRIP", 64)
    assert len(list(srgb.strips(pixels))) == 19
    assert (srgb.from_lab(pixels) == whole).all()


@pytest.mark.parametrize("white", [None, (0.3127, 0.329)])
def test_lab_is_read_under_its_white(white: tuple[float, float] | None) -> None:
    """Lindbloom's values of sRGB red, green and blue: under D50 and, as ImageMagick writes them, under D65."""
    lab = np.array(
        [(54.29, 80.81, 69.89), (87.82, -79.28, 80.99), (29.57, 68.30, -112.03)]
        if white is None
        else [(53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86)]
    )
    stored = np.round((lab + np.array([0, 128, 128])) * (655.35, 256, 256)).astype(np.uint16)[None]
    found = srgb.from_lab(stored, white)[0] / 257
    assert np.abs(found - np.diag([255, 255, 255])).max() < 3
