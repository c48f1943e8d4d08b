"""HEIC and AVIF: place, colours, depth, and files that are cut off."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from seesr import images
from seesr.images import isobmff
from tests.corpus import DATA, RED
from tests.image_files import with_property

BOTH = pytest.mark.parametrize("name", ["rgb.avif", "rgb.heic"])
GREEN, BLUE, WHITE = (20, 150, 60), (30, 60, 190), (240, 240, 230)


def quarters(data: bytes) -> list[list[tuple[int, int, int]]]:
    """The colours in the centres of the quarters, by row, as they were before compression."""
    rgb = np.asarray(images.open_image(io.BytesIO(data)).rgb).astype(int)
    (height, width), colors = rgb.shape[:2], (RED, GREEN, BLUE, WHITE)
    places = [[(y, x) for x in (width // 4, width * 3 // 4)] for y in (height // 4, height * 3 // 4)]
    return [[min(colors, key=lambda color: np.abs(rgb[at] - color).max()) for at in row] for row in places]


@BOTH
@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (b"irot", 0, [[RED, GREEN], [BLUE, WHITE]]),
        (b"irot", 1, [[GREEN, WHITE], [RED, BLUE]]),
        (b"irot", 2, [[WHITE, BLUE], [GREEN, RED]]),
        (b"irot", 3, [[BLUE, RED], [WHITE, GREEN]]),
        (b"imir", 0, [[BLUE, WHITE], [RED, GREEN]]),
        (b"imir", 1, [[GREEN, RED], [WHITE, BLUE]]),
    ],
)
def test_turned_and_mirrored(name: str, kind: bytes, value: int, wanted: list[list[tuple[int, int, int]]]) -> None:
    """libheif turns HEIC, isobmff.py turns AVIF: both as ISO/IEC 23008-12 says."""
    data = with_property((DATA / name).read_bytes(), kind, bytes([value]))
    assert quarters(data) == wanted


@BOTH
def test_cropped(name: str) -> None:
    """20 x 10 pixels at the left upper corner, then what is cropped is turned."""
    clap = struct.pack(">8i", 20, 1, 10, 1, -22, 1, -11, 1)
    data = with_property((DATA / name).read_bytes(), b"clap", clap)
    found = images.open_image(io.BytesIO(data))
    assert found.rgb.size == (20, 10)
    assert np.abs(np.asarray(found.rgb).astype(int) - RED).max() <= 4
    assert images.open_image(io.BytesIO(with_property(data, b"irot", b"\1"))).rgb.size == (10, 20)


@pytest.mark.parametrize(
    "numbers", [(0, 1, 10, 1, 0, 1, 0, 1), (10, 0, 10, 1, 0, 1, 0, 1), (200, 1, 10, 1, 0, 1, 0, 1)]
)
def test_an_impossible_crop_is_left_out(numbers: tuple[int, ...]) -> None:
    data = with_property((DATA / "rgb.avif").read_bytes(), b"clap", struct.pack(">8i", *numbers))
    assert images.open_image(io.BytesIO(data)).rgb.size == (64, 32)


@BOTH
def test_colour_codes_are_carried(name: str) -> None:
    """nclx of Display P3."""
    nclx = b"nclx" + struct.pack(">3HB", 12, 13, 6, 0x80)
    plain = (DATA / name).read_bytes()
    data = plain.replace(b"nclx\0\1\0\r\0\6\x80", nclx) if b"nclx" in plain else with_property(plain, b"colr", nclx)
    found = images.open_image(io.BytesIO(data))
    assert found.color.png == ((b"cICP", bytes([12, 13, 0, 1])),)
    assert found.icc is not None
    assert quarters(data) == [[RED, GREEN], [BLUE, WHITE]]


@pytest.mark.parametrize("name", ["rgb-10.avif", "rgb-10.heic", "grey-12.avif", "grey-12.heic"])
def test_depth_is_kept(name: str) -> None:
    """Written from 16 bits by libavif and libheif; white of 10 bits is 1023."""
    found = images.open_image(DATA / name)
    assert found.pixels is not None
    wanted = [30 * 257] * 3 if found.grey else [257 * value for value in RED]
    assert np.abs(found.pixels[8, 16].astype(int) - wanted).max() < 4 * 257
    assert (found.pixels % 257 != 0).any()  # not made from 8 bits


@pytest.mark.parametrize("name", ["rgb.avif", "alpha.avif", "rgb.heic", "alpha.heic", "rgb-10.heic"])
def test_a_file_that_is_cut_off_is_damaged(name: str) -> None:
    """libheif shows what is missing in green or grey."""
    data = (DATA / name).read_bytes()
    assert not isobmff.is_cut(data)
    for length in range(40, len(data)):
        with pytest.raises(ValueError, match=r"damaged file|none of these"):
            images.open_image(io.BytesIO(data[:length]))
    assert images.open_image(io.BytesIO(data + bytes(9)))  # what follows the boxes does no harm


def test_a_box_that_reaches_to_the_end_of_the_file_may_be_cut_too() -> None:
    """Its length is 0; the place of the pixels tells."""
    data = bytearray((DATA / "rgb.heic").read_bytes())
    at = data.rindex(b"mdat") - 4
    data[at : at + 4] = bytes(4)
    assert images.open_image(io.BytesIO(bytes(data))).rgb.size == (64, 32)
    with pytest.raises(ValueError, match=r"damaged file \(HEIC\)"):
        images.open_image(io.BytesIO(bytes(data[:-20])))


@pytest.mark.parametrize("kind", ["avif", "heic"])
@pytest.mark.parametrize("fault", ["none", "not a TIFF", "a tag of a wrong type"])
def test_faulty_exif_loses_neither_pixels_nor_orientation(kind: str, fault: str) -> None:
    """libavif refuses a file whose EXIF is no TIFF, Pillow one with a tag that it can't write again."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    stream = io.BytesIO()
    Image.new("RGB", (24, 48), RED).save(stream, "AVIF", exif=exif)
    data = bytearray(stream.getvalue() if kind == "avif" else (DATA / "orientation-6.heic").read_bytes())
    start = data.rindex(b"MM\0*" if kind == "avif" else b"Exif\0\0") + (0 if kind == "avif" else 6)
    if fault == "not a TIFF":
        data[start : start + 4] = b"XXXX"
    elif fault != "none":
        data[start + 12 : start + 14] = b"\0\7"
    found = images.open_image(io.BytesIO(bytes(data)))
    assert found.rgb.size == ((48, 24) if kind == "avif" else (64, 32))
    assert (found.exif is None) == (fault == "not a TIFF")


@pytest.mark.parametrize("kind", [b"\xe9xif", b"Ex\x80f"])
def test_an_item_whose_type_is_no_ascii_harms_no_decoder(kind: bytes) -> None:
    """It crashed pi_heif, and with it the worker."""
    whole = (DATA / "orientation-6.heic").read_bytes()
    data = whole.replace(b"Exif", kind, 1)
    assert data != whole
    assert kind not in isobmff.take_exif(data)[0]
    assert images.open_image(io.BytesIO(data)).rgb.size == images.open_image(io.BytesIO(whole)).rgb.size
