"""The table of docs/api.md: what a result keeps of its file, found by running every input through every output."""

import argparse
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, IptcImagePlugin

from seesr import images
from seesr.images import icc, metadata, png, write_tiff
from seesr.images.metadata import Metadata
from seesr.images.pixels import from_pixels
from seesr.settings import OutputFormat, Settings
from tests.images.profiles import P3, lab_under

ROOT = Path(__file__).resolve().parents[2]
OUTPUTS: tuple[OutputFormat, ...] = ("png", "tiff", "webp", "jpg")
LETTERS = {
    "a": "alpha",
    "16": "16 bits",
    "c": "colour space",
    "e": "EXIF",
    "x": "XMP",
    "i": "IPTC",
    "d": "print resolution",
}
PROFILE = icc.build_profile("Test P3", icc.SRGB_CURVE, P3)
GREEN = np.array([[0, 255, 0]], np.uint8)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'
IPTC = b"\x1c\x02\x19\x00\x06flower"
ARTIST = "Zoë".encode()


def exif() -> bytes:
    """An EXIF block with a resolution and a text."""
    resolution = [struct.pack("<HHII", tag, 5, 1, 62) for tag in (282, 283)]
    entries = [*resolution, struct.pack("<HHIHH", 296, 3, 1, 2, 0), struct.pack("<HHI4s", 315, 2, 4, ARTIST)]
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + struct.pack("<III", 0, 300, 1)


KEPT = Metadata(exif(), XMP, IPTC, (300.0, 300.0))


def pixels(channels: int, dtype: type = np.uint8) -> np.ndarray:
    y, x, channel = np.mgrid[0:24, 0:32, 0:channels]
    values = (x * 6 + y * 2 + channel * 9) * ((channel < 3) | (x > 5))  # a transparent border
    return (values * (1 if dtype is np.uint8 else 211)).astype(dtype)


def by_pillow(kind: str, channels: int = 4, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(channels)).save(stream, kind, **options)
    return stream.getvalue()


def as_png(dtype: type, *colors: tuple[bytes, bytes]) -> bytes:
    stream = io.BytesIO()
    colors = colors or ((b"iCCP", b"P3\0\0" + zlib.compress(PROFILE)),)
    png.write_png(pixels(4, dtype), stream, [*colors, *metadata.png_chunks(KEPT)])
    return stream.getvalue()


def as_tiff(dtype: type) -> bytes:
    stream = io.BytesIO()
    write_tiff.write_tiff(pixels(4, dtype), stream, metadata.tiff_directory(KEPT), PROFILE)
    return stream.getvalue()


def inputs() -> dict[str, bytes]:
    """Files that hold all that their format can, by the name in the table."""
    segments = b"".join(metadata.jpeg_segments(KEPT))
    common: dict[str, Any] = {"icc_profile": PROFILE, "exif": b"Exif\0\0" + exif(), "xmp": XMP}
    return {
        "PNG": as_png(np.uint8),
        "PNG with cICP": as_png(np.uint8, (b"cICP", bytes([12, 13, 0, 1]))),
        "PNG of 16 bits": as_png(np.uint16),
        "TIFF": as_tiff(np.uint8),
        "TIFF of 16 bits": as_tiff(np.uint16),
        "JPEG": by_pillow("JPEG", 3, quality=95, icc_profile=PROFILE, extra=segments, dpi=(300, 300)),
        "WebP": by_pillow("WEBP", lossless=True, **common),
        "AVIF": by_pillow("AVIF", **common),
        "BMP": by_pillow("BMP", 3, dpi=(300, 300)),
        "GIF": by_pillow("GIF"),
    }


def kept(path: Path) -> set[str]:
    """The letters of what a file holds, as other readers see it."""
    with Image.open(path) as image:
        image.load()
        found = {"a"} if "A" in image.getbands() else set()
        profile, stated = image.info.get("icc_profile"), b"cICP\x0c\x0d\0\1" in path.read_bytes()[:200]
        if stated or (profile and np.abs(lab_under(profile, GREEN) - lab_under(PROFILE, GREEN)).max() <= 1):
            found.add("c")
        tags = dict(image.getexif())
        found |= {"e"} if 315 in tags else set()
        dpi = image.info.get("dpi") or (tags.get(282, 72),)
        found |= {"d"} if abs(float(dpi[0]) - 300) < 0.1 else set()
        packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
        found |= {"x"} if packet else set()
        if image.format != "WEBP":
            found |= {"i"} if IptcImagePlugin.getiptcinfo(image) or "Raw profile type iptc" in image.info else set()
    if path.suffix in (".png", ".tiff"):
        decoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert decoded is not None
        found |= {"16"} if decoded.dtype == np.uint16 else set()
    return found


class Result:
    """A result as large as its input."""

    def __init__(self, opened: images.OpenedImage) -> None:
        self.pixels = opened.pixels
        self.image = opened.rgb if opened.pixels is None else from_pixels(opened.pixels)


def table(folder: Path) -> list[str]:
    """Markdown: a row for all inputs of which the same is kept, a column per output format."""
    rows: dict[str, list[str]] = {}
    for name, data in inputs().items():
        opened = images.open_image(io.BytesIO(data))
        cells = []
        for kind in OUTPUTS:
            path = folder / f"out.{kind}"
            images.save_image(opened, Result(opened), path, Settings(output_format=kind))
            cells.append(" ".join(letter for letter in LETTERS if letter in kept(path)))
        rows.setdefault(" | ".join(cells), []).append(name)
    head = [f"| input | {' | '.join(OUTPUTS)} |", f"|{'---|' * (1 + len(OUTPUTS))}"]
    return [*head, *(f"| {', '.join(names)} | {cells} |" for cells, names in rows.items())]


@pytest.mark.slow
def test_the_documented_table_is_what_is_kept(tmp_path: Path) -> None:
    """`.venv/bin/python -m tests.images.test_kept` prints the table."""
    assert "\n".join(table(tmp_path)) in (ROOT / "docs/api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", OUTPUTS)
def test_what_an_input_does_not_hold_is_not_invented(kind: OutputFormat, tmp_path: Path) -> None:
    opened = images.open_image(io.BytesIO(by_pillow("PNG", 3)))
    images.save_image(opened, opened.rgb, tmp_path / f"out.{kind}", Settings(output_format=kind))
    assert kept(tmp_path / f"out.{kind}") == set()


if __name__ == "__main__":
    import tempfile

    argparse.ArgumentParser(description="Print the table of docs/api.md: what a result keeps of its file.").parse_args()
    with tempfile.TemporaryDirectory() as name:
        print("\n".join(table(Path(name))))
