"""TIFF: depth, photometry, layout and pages as the file states them. Values are built here or come from libtiff."""

import io
import itertools
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from seesr import images
from seesr.images.write_tiff import write_tiff
from seesr.settings import Settings
from tests.corpus import DATA
from tests.image_files import Entries, pages, tiff

GREY, RGB, PALETTE, CMYK, CIELAB, ICCLAB = 1, 2, 3, 5, 8, 9
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
ASSOCIATED, UNASSOCIATED = 1, 2
SIZE = (37, 53)


def opened(data: bytes) -> images.OpenedImage:
    return images.open_image(io.BytesIO(data))


def numbers(image: images.OpenedImage) -> np.ndarray:
    """The pixels at their full depth."""
    return (np.asarray(image.rgb) if image.pixels is None else image.pixels).astype(int)


def ramp(largest: float, width: int = 96) -> np.ndarray:
    """(4, width, 1) from 0 to `largest`."""
    return np.tile(np.linspace(0, largest, width), (4, 1))[..., None]


def greys(data: bytes) -> list[int]:
    """Five values of a ramp, of 8 bits."""
    row = np.asarray(opened(data).rgb)[2, :, 0]
    return [int(row[x]) for x in (0, 24, 48, 72, 95)]


LAYOUTS = list(itertools.product("<>", (False, True), (None, (16, 32))))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 32, 64])
def test_every_depth_is_scaled_to_white(bits: int) -> None:
    """Grey of both photometries, RGB and RGB with alpha; either byte order, chunky and planar, strips and tiles."""
    largest, white = 2**bits - 1, 255 if bits <= 8 else 65535
    for (order, planar, tile), (photometric, channels) in itertools.product(LAYOUTS, ((0, 1), (1, 1), (2, 3), (2, 4))):
        values = np.random.default_rng(bits).integers(0, min(largest, 2**53), (*SIZE, channels), np.uint64, True)
        more: Entries = {338: (3, [UNASSOCIATED])} if channels == 4 else {}
        data = tiff(values, bits, photometric, order=order, planar=planar, tile=tile, rows=7, more=more)
        found = opened(data)
        wanted = np.round(values.astype(np.longdouble) / largest * white).astype(int)
        wanted = white - wanted if photometric == 0 else wanted
        assert (found.pixels is not None) == (bits > 8)
        assert found.grey == (channels == 1)
        shown = wanted[..., -1] > 0 if channels == 4 else np.ones(SIZE, bool)  # colours below alpha 0 are replaced
        assert np.abs(numbers(found) - wanted[..., : min(3, channels)])[shown].max() <= 1
        if channels == 4:
            alpha = found.alpha if bits <= 8 else found.alpha_pixels
            assert np.abs(np.asarray(alpha).astype(int) - wanted[..., 3]).max() <= 1


@pytest.mark.parametrize(
    ("bits", "photometric", "wanted"),
    [
        (16, 0, [255, 191, 126, 62, 0]),  # tiff2rgba and ImageMagick: 255, 191, 126, 61, 0; they cut, we round
        (12, 1, [0, 64, 129, 193, 255]),  # ImageMagick
        (32, 1, [0, 64, 129, 193, 255]),
    ],
)
def test_a_ramp_is_as_other_readers_show_it(bits: int, photometric: int, wanted: list[int]) -> None:
    assert greys(tiff(np.floor(ramp(2**bits - 1)), bits, photometric)) == wanted


# Floating point and signed numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_floating_point_from_0_to_1_is_kept(bits: int) -> None:
    values = np.random.default_rng(0).random((*SIZE, 3))
    found = opened(tiff(values, bits, RGB, form=FLOAT, rows=5))
    assert np.abs(numbers(found) - values * 65535).max() <= (17 if bits == 16 else 1)


@pytest.mark.parametrize(("odd", "value"), [(1.01, 65535), (np.inf, 65535), (-np.inf, 0), (np.nan, 0), (-0.2, 0)])
def test_a_few_numbers_beyond_are_clipped(odd: float, value: int, caplog: pytest.LogCaptureFixture) -> None:
    values = ramp(1)
    values[0, 0] = odd
    data = tiff(values, 32, form=FLOAT)
    assert greys(data) == [0, 64, 129, 193, 255]
    assert numbers(opened(data))[0, 0, 0] == value
    assert ("are clipped" in caplog.text) == bool(np.isfinite(odd))


def test_floating_point_of_another_range_is_scaled_as_stated_or_refused() -> None:
    values = ramp(65535) + 0.25
    stated: Entries = {340: (11, [0.25]), 341: (11, [65535.25])}
    assert greys(tiff(values, 32, form=FLOAT, more=stated)) == [0, 64, 129, 193, 255]
    with pytest.raises(
        ValueError,
        match=r"floating point TIFF with values from 0 to 65535.2, not 0 to 1, which is not read; save it as",
    ):
        opened(tiff(values, 32, form=FLOAT))


@pytest.mark.parametrize("largest", [255, 65535])
def test_whole_floating_point_numbers_were_integers(largest: int) -> None:
    found = opened(tiff(np.round(ramp(largest)), 32, form=FLOAT))
    assert (found.pixels is not None) == (largest > 255)
    assert np.abs(numbers(found) - np.round(ramp(largest))).max() == 0


def test_signed_numbers_need_a_stated_range() -> None:
    """What is black is not known: TIFF has no rule, and libtiff shows -1 as white."""
    values = np.round(ramp(4000)) - 1000
    stated: Entries = {340: (3, [0]), 341: (3, [3000])}
    assert greys(tiff(values, 16, form=SIGNED, more=stated))[2:] == [87, 173, 255]
    with pytest.raises(
        ValueError,
        match="TIFF of signed numbers that does not say which are black and white, which is not read; save it",
    ):
        opened(tiff(values, 16, form=SIGNED))


# Colours ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [255, 65535])
def test_a_colour_map_of_8_or_16_bits(largest: int) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (3, 256))
    index = np.arange(256).reshape(16, 16, 1)
    data = tiff(index, 8, PALETTE, more={320: (3, (colors * (largest // 255)).ravel().tolist())})
    assert np.array_equal(numbers(opened(data)), colors.T.reshape(16, 16, 3))


@pytest.mark.parametrize(
    ("photometric", "bits", "red"),
    [
        (CIELAB, 8, (138, 81, 70)),  # sRGB red: L 54.29, a 80.80, b 69.89 (D50)
        (CIELAB, 16, (35579, 20685, 17892)),
        (ICCLAB, 8, (138, 209, 198)),
        (ICCLAB, 16, (35440, 53453, 50660)),
    ],
)
def test_lab_is_read(photometric: int, bits: int, red: tuple[int, int, int]) -> None:
    for planar in (False, True):
        found = opened(tiff(np.tile(red, (4, 4, 1)), bits, photometric, planar=planar))
        assert np.abs(np.asarray(found.rgb)[1, 1].astype(int) - (255, 0, 0)).max() <= 3


def test_cmyk_of_8_and_16_bits() -> None:
    for bits, full in ((8, 255), (16, 65535)):
        red = opened(tiff(np.tile([0, full, full, 0], (4, 4, 1)), bits, CMYK))
        paper = opened(tiff(np.zeros((4, 4, 4)), bits, CMYK))
        assert np.asarray(red.rgb)[1, 1].tolist()[0] > 220
        assert np.asarray(red.rgb)[1, 1, 1:].max() < 60
        assert np.asarray(paper.rgb).min() >= 254


def test_white_point_and_primaries_are_carried(tmp_path: Path) -> None:
    """What libtiff calls TIFFTAG_WHITEPOINT and TIFFTAG_PRIMARYCHROMATICITIES, of Display P3."""
    white, primaries = (31270, 32900), (68000, 32000, 26500, 69000, 15000, 6000)
    tags: Entries = {
        tag: (5, [part for value in values for part in (value, 100000)])
        for tag, values in ((318, white), (319, primaries))
    }
    found = opened(tiff(np.tile([200, 30, 10], (4, 4, 1)), 8, RGB, more=tags))
    images.save_image(found, found.rgb, tmp_path / "a.png", Settings())
    result = Image.open(tmp_path / "a.png")
    assert np.asarray(result)[0, 0].tolist() == [200, 30, 10]
    assert result.info["chromaticity"] == pytest.approx([0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06])
    assert found.icc is not None
    to_srgb = ImageCms.profileToProfile(result, io.BytesIO(found.icc), ImageCms.createProfile("sRGB"))
    # By the matrices of P3 and sRGB, of linear light, clipped.
    assert np.abs(np.asarray(to_srgb)[0, 0].astype(int) - (219, 0, 0)).max() <= 2


def test_premultiplied_colours_are_divided() -> None:
    straight = np.tile([40000, 20000, 60000, 32768], (4, 4, 1))
    stored = np.dstack([np.round(straight[..., :3] * (32768 / 65535)), straight[..., 3]])
    found = opened(tiff(stored, 16, RGB, more={338: (3, [ASSOCIATED])}))
    assert np.abs(numbers(found) - straight[..., :3]).max() <= 2


def test_more_channels_than_colours_and_alpha() -> None:
    """What is left out is logged; what would be misread is refused."""
    values = np.random.default_rng(0).integers(0, 256, (*SIZE, 5))
    found = opened(tiff(values, 8, RGB, more={338: (3, [0, UNASSOCIATED])}))
    assert np.array_equal(np.asarray(found.alpha), values[..., 4])
    assert opened(tiff(values[..., :4], 8, RGB, more={338: (3, [0])})).alpha is None
    with pytest.raises(ValueError, match="got a TIFF of 5 channels, which is not read; save it as 8 or 16 bit RGB"):
        opened(tiff(values, 8, GREY, more={338: (3, [0] * 4)}))


@pytest.mark.parametrize("horizontal", [1, 2])
def test_ycbcr_without_jpeg(horizontal: int) -> None:
    """Red of ITU-R BT.601: Y 76, Cb 85, Cr 255."""
    unit = [76] * horizontal + [85, 255]
    more: Entries = {258: (3, [8] * 3), 277: (3, [3]), 530: (3, [horizontal, 1]), 259: (3, [1]), 262: (3, [6])}
    more |= {256: (3, [32]), 257: (3, [8]), 278: (3, [8])}
    found = opened(pages([(more, [bytes(unit) * (32 * 8 // horizontal)])]))
    assert np.abs(np.asarray(found.rgb).astype(int) - (254, 0, 0)).max() <= 2


# Pages --------------------------------------------------------------------------------------------------------------


def page(value: int, side: int, **tags: Any) -> tuple[Entries, list[bytes]]:
    entries: Entries = {
        256: (4, [side]),
        257: (4, [side]),
        258: (3, [8]),
        262: (3, [1]),
        277: (3, [1]),
        278: (4, [side]),
    }
    return {**entries, **{int(tag[1:]): value for tag, value in tags.items()}}, [bytes([value]) * side**2]


THUMBNAIL, FULL, MASK = (4, [1]), (4, [0]), (4, [4])


@pytest.mark.parametrize(
    ("content", "below", "value"),
    [
        ([page(10, 8, t254=THUMBNAIL), page(20, 16, t254=FULL), page(30, 32, t254=FULL)], -1, 30),
        ([page(10, 8, t254=THUMBNAIL), page(20, 16, t254=FULL)], 0, 20),  # below the first page
        ([page(10, 64, t254=MASK), page(20, 16, t254=FULL)], -1, 20),
        ([page(10, 8, t255=(3, [2])), page(20, 16, t255=(3, [1]))], -1, 20),
        ([page(10, 8), page(20, 16)], -1, 10),  # pages of a document: the first
        ([page(10, 16, t254=FULL), page(20, 8, t254=THUMBNAIL)], -1, 10),
    ],
)
def test_the_page_that_is_read(content: list[Any], below: int, value: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for order in "<>":
        assert np.asarray(opened(pages(content, order, below)).rgb)[0, 0, 0] == value
    assert f"The TIFF has {len(content)} pages" in caplog.text


def test_a_page_below_a_thumbnail_has_its_orientation() -> None:
    thumbnail = page(10, 8, t254=THUMBNAIL, t274=(3, [6]))
    full: Entries = {**page(20, 16, t254=FULL)[0], 256: (4, [32])}
    assert opened(pages([thumbnail, (full, [bytes(512)])], below=0)).rgb.size == (16, 32)
    own = {**full, 274: (3, [1])}
    assert opened(pages([thumbnail, (own, [bytes(512)])], below=0)).rgb.size == (32, 16)


@pytest.mark.parametrize("end", [2**32 - 1, 10**6, 7, 8, 263])
def test_a_broken_next_directory_does_no_harm(end: int) -> None:
    assert np.asarray(opened(pages([page(10, 16)], end=end)).rgb)[0, 0, 0] == 10


@pytest.mark.parametrize(
    "tags",
    [
        {"t50706": (1, [1, 4, 0, 0])},  # DNGVersion
        {"t262": (3, [32803])},  # a colour filter array
        {"t259": (3, [34713])},  # Nikon
    ],
)
def test_camera_raw_is_named(tags: dict[str, Any]) -> None:
    raw = [page(10, 8, t254=THUMBNAIL), page(20, 16, t254=FULL, **tags)]
    for below in (-1, 0):
        with pytest.raises(ValueError, match="got a camera raw file; export it as JPEG, PNG or TIFF"):
            opened(pages(raw, below=below))


@pytest.mark.parametrize(
    "start", [b"FUJIFILMCCD-RAW 0201", b"II*\0\x10\0\0\0CR\2\0", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"]
)
def test_other_camera_raw_is_named(start: bytes) -> None:
    with pytest.raises(ValueError, match="got a camera raw file"):
        opened(start + bytes(200))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (
            {"t259": (3, [50000])},
            "TIFF with Zstandard compression, which is not read; save it with LZW, deflate or no compression",
        ),
        ({"t262": (3, [32845])}, "TIFF of a colour model other than grey, RGB, palette, CMYK and Lab"),
        ({"t339": (3, [6])}, "TIFF of complex numbers"),
    ],
)
def test_a_kind_that_is_not_read_is_named(tags: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        opened(pages([page(10, 16, **tags)]))


# Orientation and damage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_orientation_of_every_mode(tmp_path: Path, mode: str, orientation: int, compression: str | None) -> None:
    """The corner where orientation puts the first pixel is white, the rest is black."""
    if compression == "jpeg" and mode in ("1", "P", "I;16", "RGBA"):
        return
    stored = Image.new("L", (48, 32))
    stored.paste(255, (0, 0, 16, 16))
    deep = Image.fromarray(np.asarray(stored).astype(np.uint16) * 257)
    stored = deep if mode == "I;16" else stored.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.tif", compression=compression, exif=exif)
    found = images.open_image(tmp_path / "a.tif")
    assert found.rgb.size == ((48, 32) if orientation < 5 else (32, 48))
    right, bottom = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    corners = np.asarray(found.rgb.convert("L"))[[4, -5]][:, [4, -5]] > 127
    assert corners.tolist() == [[(y, x) == (bottom, right) for x in (False, True)] for y in (False, True)]


@pytest.mark.parametrize(("method", "compress"), [(1, bytes), (8, zlib.compress)])
def test_too_few_pixels_are_damage(method: int, compress: Callable[[bytes], bytes]) -> None:
    values, more = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)), {259: (3, [method])}
    whole = tiff(values, 8, RGB, rows=8, compress=compress, more=more)
    assert np.array_equal(numbers(opened(whole)), values)
    short = tiff(values, 8, RGB, rows=8, compress=lambda part: compress(part[:-1]), more=more)
    with pytest.raises(ValueError, match=r"got a damaged file \(TIFF\); upload it again"):
        opened(short)


def test_a_long_strip_is_read_in_parts() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (2100, 1100, 1))
    for compress, method in ((bytes, 1), (zlib.compress, 8)):
        assert np.array_equal(
            numbers(opened(tiff(values, 16, compress=compress, more={259: (3, [method])})))[..., :1], values
        )


def test_bits_beyond_all_memory_are_refused() -> None:
    file = (DATA / "rgb.tif").read_bytes()
    for tag, kind, value in ((277, 3, 65535), (258, 3, 65535), (322, 4, 2**31), (278, 4, 2**32 - 1)):
        at = file.index(struct.pack("<HH", 277, 3))
        broken = bytearray(file)
        struct.pack_into("<HHII", broken, at, tag, kind, 1, value)
        with pytest.raises(ValueError, match=r"^image must"):
            opened(bytes(broken))


def test_a_directory_that_is_cut_or_broken_is_damage() -> None:
    """libtiff writes it at the end of the file. What is missing of it must not be guessed."""
    stream = io.BytesIO()
    write_tiff(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8), stream, {})
    data = stream.getvalue()
    start = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[start : start + 2], "little")
    for end in range(start + 1, start + 2 + 12 * count):
        with pytest.raises(ValueError, match=r"damaged file|TIFF"):
            opened(data[:end])
    for entry in range(count):
        broken = bytearray(data)
        struct.pack_into("<H", broken, start + 2 + 12 * entry + 2, 99)  # a type that is none
        with pytest.raises(ValueError, match="damaged file"):
            opened(bytes(broken))
