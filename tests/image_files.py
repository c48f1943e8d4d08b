"""Image files built byte by byte, with values that the test knows."""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Entries = dict[int, tuple[int, list[Any]]]
"""Tag -> (type, values) of a TIFF."""

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 7: "B", 11: "f", 12: "d", 13: "I", 16: "Q"}


def packed(values: np.ndarray, bits: int, order: str, form: int) -> bytes:
    """(rows, W, C) -> as a TIFF stores them; `form`: 1 unsigned, 2 signed, 3 floating point."""
    if bits in (8, 16, 32, 64):
        return values.astype(f"{order}{' uif'[form]}{bits // 8}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    rows = (values.reshape(len(values), -1, 1).astype(np.int64) >> shifts & 1).astype(np.uint8)
    return np.packbits(rows.reshape(len(values), -1), axis=1).tobytes()


def tiff(
    values: np.ndarray,
    bits: int = 8,
    photometric: int = 1,
    *,
    order: str = "<",
    form: int = 1,
    planar: bool = False,
    tile: tuple[int, int] | None = None,
    rows: int = 0,
    compress: Callable[[bytes], bytes] = bytes,
    more: Entries | None = None,
) -> bytes:
    """A TIFF of one page from (H, W, C) values, in strips of `rows` or in tiles of (height, width)."""
    height, width, channels = values.shape
    step = tile or (rows or height, width)
    grid = [(y, x) for y in range(0, height, step[0]) for x in range(0, width, step[1])]
    if tile:
        values = np.pad(values, ((0, -height % tile[0]), (0, -width % tile[1]), (0, 0)))
    planes = np.split(values, channels, axis=2) if planar else [values]
    parts = [plane[y : y + step[0], x : x + step[1]] for plane in planes for y, x in grid]
    entries: Entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * channels),
        262: (3, [photometric]),
        277: (3, [channels]),
        284: (3, [2 if planar else 1]),
        339: (3, [form] * channels),
        **({322: (4, [step[1]]), 323: (4, [step[0]])} if tile else {278: (4, [step[0]])}),
        **(more or {}),
    }
    return pages([(entries, [compress(packed(part, bits, order, form)) for part in parts])], order)


def pages(content: list[tuple[Entries, list[bytes]]], order: str = "<", below: int = -1, end: int = 0) -> bytes:
    """A TIFF of several pages, each of its entries and segments. `end` is the offset after the last page.

    The last page is not in the chain but below page number `below` if that is given.
    """
    file = bytearray(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 0))
    links = [4]  # where the offset of each next directory is written
    for number, (entries, segments) in enumerate(content):
        starts = np.cumsum([len(file), *map(len, segments)]).tolist()[:-1]
        file += b"".join(segments)
        file += bytes(len(file) % 2)
        tags = (324, 325) if 322 in entries else (273, 279)
        entries = {**entries, tags[0]: (4, starts), tags[1]: (4, [len(part) for part in segments])}
        if number == below:
            entries[330] = (4, [0])
        struct.pack_into(order + "I", file, links[-1], len(file))
        place, values = len(file), bytearray()
        after = place + 2 + 12 * len(entries) + 4
        file += struct.pack(order + "H", len(entries))
        for tag, (kind, numbers) in sorted(entries.items()):
            value = struct.pack(f"{order}{len(numbers)}{_TYPES[kind]}", *numbers)
            if tag == 330 and number == below:
                links.append(len(file) + 8)
            file += struct.pack(order + "HHI", tag, kind, len(numbers) // (2 if kind == 5 else 1))  # 5 has two each
            file += struct.pack(order + "I", after + len(values)) if len(value) > 4 else value.ljust(4, b"\0")
            values += value if len(value) > 4 else b""
        if number != below:
            links.append(len(file))
        file += struct.pack(order + "I", end if number == len(content) - 1 else 0) + values
    return bytes(file)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, depth: int = 8, chunks: bytes = b"", late: bytes = b"") -> bytes:
    """A PNG from (H, W, 1 to 4) values of `depth` bits, with more chunks before and behind the pixels."""
    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + packed(row[None], depth, ">", 1) for row in values)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + pixels + late + chunk(b"IEND", b"")


def with_property(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A HEIC or AVIF whose image number 1 has one more property."""
    box = struct.pack(">I", 8 + len(body)) + kind + body
    ipco, ipma = data.index(b"ipco") - 4, data.index(b"ipma") - 4
    number = 1 + sum(1 for _ in _boxes(data[ipco + 8 : ipco + int.from_bytes(data[ipco : ipco + 4])]))
    count = ipma + 18  # version and flags 0, one or more entries, the first of which is image 1
    assert data[ipma + 8 : ipma + 12] == bytes(4), "an ipma of another version"
    end = count + 1 + data[count]
    grown = bytearray(data[:end] + bytes([0x80 | number]) + data[end:])
    grown[count] += 1
    at = ipco + int.from_bytes(data[ipco : ipco + 4])
    grown[at:at] = box
    for name, more in ((b"ipco", len(box)), (b"ipma", 1), (b"iprp", len(box) + 1), (b"meta", len(box) + 1)):
        place = grown.index(name) - 4
        struct.pack_into(">I", grown, place, int.from_bytes(grown[place : place + 4]) + more)
    _move_items(grown, len(box) + 1)
    return bytes(grown)


def _boxes(body: bytes) -> Iterator[bytes]:
    while body:
        length = int.from_bytes(body[:4])
        yield body[:length]
        body = body[length:]


def _move_items(file: bytearray, more: int) -> None:
    """Add to every offset of an iloc box of version 0 or 1 whose offsets and lengths have 4 bytes."""
    iloc = file.index(b"iloc") + 4
    version, base = file[iloc], file[iloc + 5] >> 4
    assert version < 2
    assert file[iloc + 4] == 0x44
    at = iloc + 8
    for _ in range(int.from_bytes(file[iloc + 6 : iloc + 8])):
        at += (6 if version else 4) + base  # the base offsets of the files at hand are 0
        extents = int.from_bytes(file[at : at + 2])
        for place in range(at + 2, at + 2 + 8 * extents, 8):
            struct.pack_into(">I", file, place, int.from_bytes(file[place : place + 4]) + more)
        at += 2 + 8 * extents
