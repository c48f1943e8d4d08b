"""write_png: other readers find the same pixels, profile and EXIF."""

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from seesr.images import png

SIZES = [(1, 1), (3, 1), (1, 9), (70, 41), (517, 3001)]
"""One strip and several, a row and a column."""


def pattern(mode: str, size: tuple[int, int]) -> Image.Image:
    """A horizontal gradient, horizontal stripes, and noise, so that both filters are chosen."""
    width, height = size
    bands = len(Image.new(mode, (1, 1)).getbands())
    y, x, band = np.mgrid[0:height, 0:width, 0:bands]
    values = np.where(y < height // 3, x * 3 + band * 40, np.where(y < 2 * height // 3, y % 7 * 30, 0))
    values[2 * height // 3 :] = np.random.default_rng(0).integers(0, 256, values[2 * height // 3 :].shape)
    return Image.fromarray(values.astype(np.uint8).squeeze(2) if bands == 1 else values.astype(np.uint8))


def written(image: Image.Image, **extras: bytes) -> bytes:
    stream = io.BytesIO()
    png.write_png(image, stream, **extras)
    return stream.getvalue()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", png.COLOR_TYPES)
def test_other_readers_find_the_same_pixels(mode: str, size: tuple[int, int]) -> None:
    image = pattern(mode, size)
    data = written(image)
    with Image.open(io.BytesIO(data)) as check:
        check.verify()  # the checksums of all chunks
    with Image.open(io.BytesIO(data)) as found:
        assert found.mode == mode
        assert np.array_equal(np.asarray(found), np.asarray(image))
    if mode in ("L", "RGB"):
        flag = cv2.IMREAD_GRAYSCALE if mode == "L" else cv2.IMREAD_COLOR_RGB
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        assert decoded is not None
        assert np.array_equal(decoded, np.asarray(image))


def test_the_checksum_of_the_stream_is_right() -> None:
    """Readers may ignore it, so zlib checks it."""
    data = written(pattern("RGB", (517, 3001)))
    stream, at = b"", 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            stream += data[at + 8 : at + 8 + length]
        at += 12 + length
    assert len(zlib.decompress(stream)) == 3001 * (1 + 3 * 517)
    with pytest.raises(zlib.error, match="incorrect data check"):
        zlib.decompress(stream[:-1] + bytes([stream[-1] ^ 1]))


def test_the_number_of_cores_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pattern("RGB", (517, 3001))
    many = written(image)
    monkeypatch.setattr(png.os, "sched_getaffinity", lambda _: {0})
    assert written(image) == many


def test_profile_and_exif_are_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = written(pattern("RGB", (8, 8)), icc_profile=profile, exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as found:
        assert found.info["icc_profile"] == profile
        assert found.getexif()[0x010F] == "maker"


def test_files_are_about_as_small_as_pillows() -> None:
    rng, side = np.random.default_rng(1), 512
    smooth = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(smooth) + rng.normal(0, 2, (side, side, 3)), 0, 255).astype(np.uint8)
    for image in (smooth, Image.fromarray(noisy)):
        other = io.BytesIO()
        image.save(other, "PNG", compress_level=1)
        assert len(written(image)) < 1.3 * len(other.getvalue())


def test_other_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="got CMYK; convert it first"):
        png.write_png(Image.new("CMYK", (2, 2)), io.BytesIO())
