"""PNG by strips of rows, on all cores: compressing a large result must not take longer than making it."""

import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

COLOR_TYPES = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}
STRIP = 2**20
"""Bytes of one strip, about: one core's work at a time. It decides the file's bytes, the number of cores does not."""

SUB, UP = 1, 2
_BASE = 65521
"""Adler-32's modulus."""


@dataclass(frozen=True)
class _Strip:
    """Rows as a piece of one deflate stream, with the checksum of what they were before."""

    compressed: bytes
    adler: int
    length: int


def save(image: "Image.Image", file: BinaryIO, icc_profile: bytes | None = None, exif: bytes | None = None) -> None:
    """Write an L, LA, RGB or RGBA picture of 8 bits, with a colour profile and EXIF where given.

    A strip's rows are filtered by their left or their upper neighbours, whichever leaves less, and compressed by
    run lengths and Huffman codes only (zlib's Z_RLE): searching for repetitions costs time and gains nothing on
    photographs. Raises ValueError for other modes.
    """
    if image.mode not in COLOR_TYPES:
        raise ValueError(f"a PNG is written from {', '.join(COLOR_TYPES)}, got {image.mode}; convert it first")
    image.load()
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", *image.size, 8, COLOR_TYPES[image.mode], 0, 0, 0))
    if icc_profile:
        _chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
    if exif:
        _chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    adler, start = 1, b"\x78\x01"
    for strip in _strips(image):
        _chunk(file, b"IDAT", start + strip.compressed)
        adler, start = _joined(adler, strip), b""
    _chunk(file, b"IDAT", struct.pack(">I", adler))
    _chunk(file, b"IEND", b"")


def _strips(image: "Image.Image") -> Iterator[_Strip]:
    rows = max(1, STRIP // (image.width * len(image.getbands())))
    tops = range(0, image.height, rows)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(min(cores, len(tops)))
    try:
        yield from pool.map(_compress, itertools.repeat(image), tops, itertools.repeat(rows))
    finally:  # when cancelled too: what has not begun never will
        pool.shutdown(cancel_futures=True)


def _compress(image: "Image.Image", top: int, rows: int) -> _Strip:
    bottom = min(image.height, top + rows)
    above = max(0, top - 1)
    pixels = np.asarray(image.crop((0, above, image.width, bottom)))
    pixels = pixels.reshape(bottom - above, image.width, -1)
    if top == 0:
        pixels = np.concatenate([np.zeros_like(pixels[:1]), pixels])
    filtered = np.empty((bottom - top, 1 + pixels[0].size), np.uint8)
    values = filtered[:, 1:].reshape(bottom - top, *pixels.shape[1:])
    filtered[:, 0] = kind = _better_filter(pixels)
    if kind == UP:
        np.subtract(pixels[1:], pixels[:-1], out=values)
    else:
        values[:, 0] = pixels[1:, 0]
        np.subtract(pixels[1:, 1:], pixels[1:, :-1], out=values[:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    end = zlib.Z_FINISH if bottom == image.height else zlib.Z_SYNC_FLUSH
    return _Strip(packer.compress(filtered.data) + packer.flush(end), zlib.adler32(filtered.data), filtered.size)


def _better_filter(pixels: np.ndarray) -> int:
    """By the sum of absolute differences of every eighth row, the usual measure."""
    some = pixels[1::8]
    left = np.abs((some[:, 1:] - some[:, :-1]).view(np.int8).astype(np.int16)).sum(dtype=np.int64)
    up = np.abs((some - pixels[:-1:8]).view(np.int8).astype(np.int16)).sum(dtype=np.int64)
    return UP if up <= left else SUB


def _joined(adler: int, strip: _Strip) -> int:
    """Adler-32 of two pieces together, from each one's own: zlib has it and Python does not hand it on."""
    a, b, low, high = adler & 0xFFFF, adler >> 16, strip.adler & 0xFFFF, strip.adler >> 16
    return (high + b + strip.length * (a - 1)) % _BASE << 16 | (a + low - 1) % _BASE


def _chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
