"""Write PNG in strips of rows on all cores, so that compressing a large result is not slower than upscaling it."""

import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
from PIL import Image

COLOR_TYPES = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}
STRIP_BYTES = 2**20  # of pixels in one strip, about. The file's bytes depend on it, not on the number of cores.
_SUB, _UP = 1, 2
_ADLER_BASE = 65521


def write_png(image: Image.Image, file: BinaryIO, icc_profile: bytes | None = None, exif: bytes | None = None) -> None:
    """Write an 8-bit L, LA, RGB or RGBA image, with a colour profile and EXIF if given. ValueError for other modes.

    Each strip is filtered by the left or the upper neighbours, whichever leaves less, and compressed with zlib's Z_RLE
    (run lengths and Huffman codes): string matching is slow and gains nothing on photographs.
    """
    if image.mode not in COLOR_TYPES:
        raise ValueError(f"a PNG is written from {', '.join(COLOR_TYPES)}, got {image.mode}; convert it first")
    image.load()
    file.write(b"\x89PNG\r\n\x1a\n")
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", *image.size, 8, COLOR_TYPES[image.mode], 0, 0, 0))
    if icc_profile:
        _write_chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
    if exif:
        _write_chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    adler, start = 1, b"\x78\x01"
    for compressed, strip_adler, length in _strips(image):
        _write_chunk(file, b"IDAT", start + compressed)
        adler, start = adler32_combine(adler, strip_adler, length), b""
    _write_chunk(file, b"IDAT", struct.pack(">I", adler))
    _write_chunk(file, b"IEND", b"")


def adler32_combine(first: int, second: int, second_length: int) -> int:
    """Adler-32 of two byte strings joined, from the checksum of each (zlib's function, which Python lacks)."""
    a, b, low, high = first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16
    return (high + b + second_length * (a - 1)) % _ADLER_BASE << 16 | (a + low - 1) % _ADLER_BASE


def _strips(image: Image.Image) -> Iterator[tuple[bytes, int, int]]:
    rows = max(1, STRIP_BYTES // (image.width * len(image.getbands())))
    tops = range(0, image.height, rows)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(min(cores, len(tops)))
    try:
        yield from pool.map(_compress, itertools.repeat(image), tops, itertools.repeat(rows))
    finally:  # on an error, strips that have not begun are dropped
        pool.shutdown(cancel_futures=True)


def _compress(image: Image.Image, top: int, rows: int) -> tuple[bytes, int, int]:
    """A part of one deflate stream, and the Adler-32 and the length of the filtered rows in it."""
    above, bottom = max(0, top - 1), min(image.height, top + rows)
    pixels = np.asarray(image.crop((0, above, image.width, bottom)))
    pixels = pixels.reshape(bottom - above, image.width, -1)
    if top == 0:
        pixels = np.concatenate([np.zeros_like(pixels[:1]), pixels])
    filtered = np.empty((bottom - top, 1 + pixels[0].size), np.uint8)
    values = filtered[:, 1:].reshape(bottom - top, *pixels.shape[1:])
    filtered[:, 0] = kind = _better_filter(pixels)
    if kind == _UP:
        np.subtract(pixels[1:], pixels[:-1], out=values)
    else:
        values[:, 0] = pixels[1:, 0]
        np.subtract(pixels[1:, 1:], pixels[1:, :-1], out=values[:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    end = zlib.Z_FINISH if bottom == image.height else zlib.Z_SYNC_FLUSH
    return packer.compress(filtered.data) + packer.flush(end), zlib.adler32(filtered.data), filtered.size


def _better_filter(pixels: np.ndarray) -> int:
    """_UP or _SUB, by the sum of absolute differences over every eighth row."""
    some = pixels[1::8]
    left = np.abs((some[:, 1:] - some[:, :-1]).view(np.int8).astype(np.int16)).sum(dtype=np.int64)
    up = np.abs((some - pixels[:-1:8]).view(np.int8).astype(np.int16)).sum(dtype=np.int64)
    return _UP if up <= left else _SUB


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
