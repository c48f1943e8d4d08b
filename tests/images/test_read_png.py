"""PNG: every depth, transparency by a key colour, what is stated about colours, and damaged chunks."""

import io
import logging
import struct

import numpy as np
import pytest

from seesr import images
from seesr.images.read_png import chunks
from tests.image_files import chunk, png

SIZE = (19, 32)
TEXT = chunk(b"tEXt", b"Comment\0words")


def opened(data: bytes) -> images.OpenedImage:
    return images.open_image(io.BytesIO(data))


def with_wrong_checksum(part: bytes) -> bytes:
    return part[:-1] + bytes([part[-1] ^ 1])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_read_whole(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (*SIZE, channels))
    values[..., -1] |= 1  # no pixel is transparent
    found = opened(png(values, 16))
    assert found.pixels is not None
    colors = values[..., :1] if channels < 3 else values[..., :3]
    assert np.array_equal(found.pixels, np.broadcast_to(colors, (*SIZE, 3)))
    assert np.abs(np.asarray(found.rgb) - colors / 257).max() <= 0.5
    assert (found.alpha_pixels is None) == (channels % 2 == 1)
    if found.alpha_pixels is not None:
        assert np.array_equal(found.alpha_pixels, values[..., -1])
    assert found.grey == (channels < 3)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_key_is_transparent_at_every_depth(depth: int) -> None:
    values = np.random.default_rng(depth).integers(0, 2**depth, (*SIZE, 1))
    values[3, 5] = key = min(2**depth - 1, 5)
    found = opened(png(values, depth, chunk(b"tRNS", struct.pack(">H", key))))
    assert found.alpha is not None
    assert np.array_equal(np.asarray(found.alpha) == 0, values[..., 0] == key)
    white = 255 if depth <= 8 else 65535
    pixels = np.asarray(found.rgb) if depth <= 8 else found.pixels
    assert pixels is not None
    assert np.array_equal(pixels[..., :1][values != key], (values * white // (2**depth - 1))[values != key])


@pytest.mark.parametrize("depth", [8, 16])
def test_an_rgb_key_is_transparent_where_all_of_it_is_equal(depth: int) -> None:
    """At 16 bits, colours that differ only in the low byte differ."""
    key = (0x1234, 0x5678, 0x9ABC) if depth == 16 else (1, 2, 3)
    values = np.tile(key, (*SIZE, 1))
    values[2, 3, 2] ^= 1
    values[4, 5, 0] ^= 1
    alpha = opened(png(values, depth, chunk(b"tRNS", struct.pack(">3H", *key)))).alpha
    assert alpha is not None
    assert np.argwhere(np.asarray(alpha)).tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("part", [TEXT, chunk(b"pHYs", bytes(9)), chunk(b"gAMA", struct.pack(">I", 45455))])
def test_an_ancillary_chunk_with_a_wrong_checksum_is_left_out(
    depth: int, part: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.random.default_rng(0).integers(0, 2**depth, (*SIZE, 3))
    for where in ({"chunks": with_wrong_checksum(part)}, {"late": with_wrong_checksum(part)}):
        found = opened(png(values, depth, **where))
        pixels = np.asarray(found.rgb) if depth == 8 else found.pixels
        assert pixels is not None
        assert np.array_equal(pixels, values)
        assert f"The chunk {part[4:8].decode()} of the PNG is damaged and is left out" in caplog.text
        assert found.color.png == ()
        caplog.clear()


@pytest.mark.parametrize("depth", [8, 16])
def test_a_critical_chunk_with_a_wrong_checksum_is_damage(depth: int) -> None:
    data = png(np.zeros((*SIZE, 3)), depth)
    for kind in (b"IHDR", b"IDAT"):
        at = data.index(kind)
        end = at + 8 + int.from_bytes(data[at - 4 : at])
        with pytest.raises(ValueError, match=r"got a damaged file \(PNG\); upload it again"):
            opened(data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:])


@pytest.mark.parametrize("depth", [8, 16])
def test_missing_rows_are_damage(depth: int) -> None:
    data = png(np.random.default_rng(0).integers(0, 2**depth, (*SIZE, 3)), depth)
    for length in range(len(data) - 30, 33, -97):
        with pytest.raises(ValueError, match=r"got a damaged file \(PNG\)"):
            opened(data[:length])


def test_what_is_stated_about_colours_is_carried(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    chromaticities = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    stated = [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", chromaticities)]
    values = np.random.default_rng(0).integers(0, 256, (*SIZE, 3))
    for parts in (stated, stated[:1], [chunk(b"sRGB", b"\0")], [chunk(b"cICP", bytes([12, 13, 0, 1]))]):
        found = opened(png(values, 8, b"".join(parts)))
        assert np.array_equal(np.asarray(found.rgb), values)
        assert b"".join(chunk(*part) for part in found.color.png) == b"".join(parts)


@pytest.mark.parametrize("depth", [8, 16])
def test_the_narrow_range_of_cicp_is_expanded(depth: int) -> None:
    """ITU-T H.273: black is 16, white 235, and 16 * 256 and 235 * 256 at 16 bits."""
    scale, white = (1, 255) if depth == 8 else (256, 65535)
    values = np.tile(np.array([16, 235, 255, 0]).reshape(1, 4, 1) * scale, (3, 1, 3))
    found = opened(png(values, depth, chunk(b"cICP", bytes([1, 13, 0, 0]))))
    pixels = np.asarray(found.rgb) if depth == 8 else found.pixels
    assert pixels is not None
    assert pixels[0, :, 0].tolist() == [0, white, white, 0]
    assert found.color.png == ((b"cICP", bytes([1, 13, 0, 1])),)


def test_chunks_end_with_the_file() -> None:
    data = png(np.zeros((3, 3, 1)), 8, TEXT)
    assert [kind for kind, *_ in chunks(data)] == [b"IHDR", b"tEXt", b"IDAT", b"IEND"]
    assert [kind for kind, *_ in chunks(data[:-1])] == [b"IHDR", b"tEXt", b"IDAT"]
    assert list(chunks(data[:20])) == []
