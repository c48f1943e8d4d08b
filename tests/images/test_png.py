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


def pattern(channels: int, size: tuple[int, int], dtype: type = np.uint8) -> np.ndarray:
    """A horizontal gradient, horizontal stripes, and noise, so that both filters are chosen."""
    width, height = size
    y, x, band = np.mgrid[0:height, 0:width, 0:channels]
    values = np.where(y < height // 3, x * 3 + band * 40, np.where(y < 2 * height // 3, y % 7 * 30, 0))
    values *= 1 if dtype is np.uint8 else 217
    noise = values[2 * height // 3 :]
    noise[:] = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, noise.shape)
    return values.astype(dtype)


def written(pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    stream = io.BytesIO()
    png.write_png(pixels, stream, chunks)
    return stream.getvalue()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", png.COLOR_TYPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_other_readers_find_the_same_pixels(channels: int, size: tuple[int, int], dtype: type) -> None:
    pixels = pattern(channels, size, dtype)
    data = written(pixels)
    with Image.open(io.BytesIO(data)) as check:
        check.verify()  # the checksums of all chunks
    with Image.open(io.BytesIO(data)) as found:
        assert found.size == size
        if dtype is np.uint8:
            assert found.mode == ["L", "LA", "RGB", "RGBA"][channels - 1]
            assert np.array_equal(np.asarray(found).reshape(pixels.shape), pixels)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert decoded.dtype == dtype
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    assert np.array_equal(decoded.reshape(size[1], size[0], -1), pixels[..., order])


def test_the_checksum_of_the_stream_is_right() -> None:
    """Readers may ignore it, so zlib checks it."""
    data = written(pattern(3, (517, 3001)))
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
    image = pattern(3, (517, 3001))
    many = written(image)
    monkeypatch.setattr(png.os, "sched_getaffinity", lambda _: {0})
    assert written(image) == many


def test_chunks_are_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "maker"
    iccp = b"ICC Profile\0\0" + zlib.compress(profile)
    data = written(pattern(3, (8, 8)), (b"iCCP", iccp), (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
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
        assert len(written(np.asarray(image))) < 1.3 * len(other.getvalue())
