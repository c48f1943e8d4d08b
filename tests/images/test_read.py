"""open_image: every format upright, and one sentence for a file that is not read."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seesr import images
from seesr.images import read
from tests.corpus import DATA, RED, pixel, saved


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp", "gif", "jpg"])
def test_common_formats_are_read(tmp_path: Path, suffix: str) -> None:
    path = saved(Image.new("RGB", (7, 5), RED), tmp_path / f"a.{suffix}")
    opened = images.open_image(path)
    assert opened.rgb.size == (7, 5)
    assert opened.rgb.mode == "RGB"
    assert np.abs(pixel(opened.rgb) - RED).max() <= 3
    assert opened.alpha is None


@pytest.mark.parametrize(
    ("mode", "color", "wanted", "grey"),
    [
        ("L", 99, (99, 99, 99), True),
        ("1", 1, (255, 255, 255), True),
        ("P", 0, (0, 0, 0), False),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0), False),
        ("I;16", 99 * 257, (99, 99, 99), True),
    ],
)
def test_modes_become_rgb(tmp_path: Path, mode: str, color: object, wanted: tuple[int, int, int], grey: bool) -> None:
    path = saved(Image.new(mode, (4, 3), color), tmp_path / "a.tiff")  # type: ignore[arg-type]
    opened = images.open_image(path)
    assert np.abs(pixel(opened.rgb) - wanted).max() <= 2
    assert opened.grey == grey


def test_16_bits_are_scaled_to_8(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    opened = images.open_image(saved(Image.fromarray(values), tmp_path / "a.png"))
    assert np.asarray(opened.rgb)[0, :, 0].tolist() == list(range(256))


def test_opaque_alpha_is_dropped_and_palette_transparency_is_not(tmp_path: Path) -> None:
    assert images.open_image(saved(Image.new("RGBA", (4, 4), (*RED, 255)), tmp_path / "a.png")).alpha is None
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 1), 1)
    opened = images.open_image(saved(palette, tmp_path / "b.png", transparency=1))
    assert opened.alpha is not None
    assert opened.alpha.getpixel((1, 1)) == 0
    assert opened.alpha.getpixel((0, 0)) == 255
    assert opened.rgb.getpixel((0, 0)) == RED


def test_a_binary_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    data = saved(Image.new("RGB", (7, 5), RED), tmp_path / "a.png").read_bytes()
    stream = io.BytesIO(b"before" + data)
    stream.seek(6)
    assert images.open_image(stream).rgb.size == (7, 5)


def test_a_large_uncompressed_tiff_is_not_too_large() -> None:
    assert read.MAX_BYTES >= 4 * read.MAX_PIXELS + 1_000_000


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"8BPS\0\1", "a Photoshop document"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
        (b"\xff\x0a\xfa", "a JPEG XL file"),
        (b"\x76\x2f\x31\x01", "an OpenEXR file"),
        (b"%PDF-1.7", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript drawing"),
        (b'<?xml version="1.0"?>\n<!-- a sign -->\n<svg xmlns="http://www.w3.org/2000/svg">', "a drawing .SVG."),
        (b"  <svg width='5'>", "a drawing .SVG."),
        (b"<!DOCTYPE html>\n<html lang='en'>", "a web page"),
        (b"PK\3\4\x14\0", "a ZIP archive"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "a video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a video"),
        (b"\x1aE\xdf\xa3\x9fB\x86", "a video"),
        (b"RIFF\x24\0\0\0AVI LIST", "a video"),
        (b"\0\0\0\x18ftypvvic\0\0\0\0mif1vvic", "a HEIF file that holds no HEVC or AV1"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avci", "a HEIF file that holds no HEVC or AV1"),
    ],
)
def test_formats_that_are_not_read_are_named(start: bytes, name: str) -> None:
    with pytest.raises(
        ValueError, match=f"must be an image file of a supported kind, got {name}.*, which is not read; save it as"
    ):
        images.open_image(io.BytesIO(start + bytes(100)))


@pytest.mark.parametrize(
    "name", ["cut-in-half.jpg", "cut-in-half.gif", "cut-in-half.webp", "cut-in-half.bmp", "cut-in-half.tif"]
)
def test_damage_is_said_without_internals(name: str) -> None:
    with pytest.raises(ValueError, match="damaged") as caught:
        images.open_image(DATA / name)
    words = r"image must be a complete image file, got a damaged file( \((JPEG|GIF|WebP|BMP|TIFF)\))?; upload it again"
    assert re.fullmatch(words, str(caught.value))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 255))]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.abs(pixel(images.open_image(path).rgb) - RED).max() <= 3


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("empty.png", "got an empty file"),
        ("page.html", "must be an image file"),
        ("text.txt", "must be an image file"),
        ("cut-in-data.png", "damaged file"),
        ("60000x60000.png", "at most 64 megapixels"),
    ],
)
def test_a_refusal_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        images.open_image(DATA / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        images.open_image(tmp_path / "nowhere.png")


def test_a_file_above_the_size_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_BYTES", 50)
    path = saved(Image.new("RGB", (9, 9), RED), tmp_path / "a.png")
    with pytest.raises(ValueError, match="image must be a file of at most 0 MB, got 0 MB; make it smaller"):
        images.open_image(path)
