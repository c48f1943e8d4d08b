"""Write PNG in strips of rows on all cores, so that compressing a large result is not slower than upscaling it."""

import itertools
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, TypeVar

import numpy as np

COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: grey, grey with alpha, RGB, RGBA
STRIP_BYTES = 2**20  # of pixels in one strip, about. The file's bytes depend on it, not on the number of cores.
_SUB, _UP = 1, 2
_ADLER_BASE = 65521

T = TypeVar("T")


def write_png(pixels: np.ndarray, file: BinaryIO, chunks: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Write (H, W, C) uint8 or uint16 as grey, grey with alpha, RGB or RGBA. `chunks` (type, data) precede the pixels.

    Each strip is filtered by the left or the upper neighbours, whichever leaves less, and compressed with zlib's Z_RLE
    (run lengths and Huffman codes): string matching is slow and gains nothing on photographs.
    """
    height, width, channels = pixels.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    depth = 8 * pixels.itemsize
    write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, depth, COLOR_TYPES[channels], 0, 0, 0))
    for kind, data in chunks:
        write_chunk(file, kind, data)
    adler, start = 1, b"\x78\x01"
    for compressed, strip_adler, length in in_strips(pixels, _compress):
        write_chunk(file, b"IDAT", start + compressed)
        adler, start = adler32_combine(adler, strip_adler, length), b""
    write_chunk(file, b"IDAT", struct.pack(">I", adler))
    write_chunk(file, b"IEND", b"")


def adler32_combine(first: int, second: int, second_length: int) -> int:
    """Adler-32 of two byte strings joined, from the checksum of each (zlib's function, which Python lacks)."""
    a, b, low, high = first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16
    return (high + b + second_length * (a - 1)) % _ADLER_BASE << 16 | (a + low - 1) % _ADLER_BASE


def strip_rows(pixels: np.ndarray) -> int:
    """Rows of a strip of about STRIP_BYTES."""
    return max(1, STRIP_BYTES // pixels[0].nbytes)


def in_strips(pixels: np.ndarray, compress: Callable[[np.ndarray, int, int], T]) -> Iterator[T]:
    """`compress(pixels, top, rows)` of all strips, in order, on all cores."""
    rows = strip_rows(pixels)
    tops = range(0, len(pixels), rows)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(min(cores, len(tops)))
    try:
        yield from pool.map(compress, itertools.repeat(pixels), tops, itertools.repeat(rows))
    finally:  # on an error, strips that have not begun are dropped
        pool.shutdown(cancel_futures=True)


def _compress(whole: np.ndarray, top: int, rows: int) -> tuple[bytes, int, int]:
    """A part of one deflate stream, and the Adler-32 and the length of the filtered rows in it."""
    above, bottom = max(0, top - 1), min(len(whole), top + rows)
    pixels = _bytes(whole[above:bottom])
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
    end = zlib.Z_FINISH if bottom == len(whole) else zlib.Z_SYNC_FLUSH
    return packer.compress(filtered.data) + packer.flush(end), zlib.adler32(filtered.data), filtered.size


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (H, W, bytes of a pixel) uint8: PNG stores 16 bits with the high byte first, and filters bytes."""
    if pixels.dtype == np.uint8:
        return pixels
    return np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(*pixels.shape[:2], -1)


def _better_filter(pixels: np.ndarray) -> int:
    """_UP or _SUB, by the sum of absolute differences over every eighth row."""
    some = pixels[1::8]
    left = np.abs((some[:, 1:] - some[:, :-1]).view(np.int8).astype(np.int16)).sum(dtype=np.int64)
    up = np.abs((some - pixels[:-1:8]).view(np.int8).astype(np.int16)).sum(dtype=np.int64)
    return _UP if up <= left else _SUB


def write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    """One chunk with its length and checksum."""
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
