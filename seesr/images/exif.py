"""EXIF blocks, which are small TIFF files: patched in place, or rebuilt where they must be shorter.

In place, text in any encoding survives, and so do maker notes, whose offsets count from the start of the block.
Nothing in a block is trusted.
"""

import logging
import re
import struct
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import ExifTags

from seesr.images.directory import NUMBERS, TEXTS, Directory, read_directory
from seesr.images.write_tiff import serialize
from seesr.sizes import Size

log = logging.getLogger(__name__)

MAX_BYTES = 8 * 2**20  # of the EXIF that is taken from a TIFF

ORIENTATION, EXIF, GPS, INTEROP, MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0xA005, 0x927C
RESOLUTION = X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_THUMBNAIL, _THUMBNAIL_BYTES, _USER_COMMENT = 0x0201, 0x0202, 0x9286
_WIDTHS, _HEIGHTS = (256, 40962, 4097), (257, 40963, 4098)  # in the first, the EXIF and the interoperability directory
# What describes the photograph in a TIFF's first directory: texts, names, dates, rating. The rest is its structure.
_DESCRIPTIVE = {269, 270, 271, 272, 285, 305, 306, 315, 316, 18246, 18249, 33432, 36867, *range(40091, 40096)}
_DESCRIPTIVE |= {ORIENTATION, *RESOLUTION}
_NOT_COPIED = {330, EXIF, GPS, INTEROP, 37724, 59932}  # offsets, Photoshop's layers, padding
_INSIDE = ((EXIF, GPS), (INTEROP,), ())  # the directories in the first, in those, and in that


def find_block(raw: bytes) -> bytes | None:
    """The block in what a file holds as EXIF: without "Exif\\0\\0" before it. None if nothing in it is readable."""
    head = re.search(rb"II\*\0|MM\0\*", raw[:64])
    block = raw[head.start() :] if head else b""
    return block if read_directory(block).entries else None


def upright(block: bytes) -> bytes:
    """The block with orientation 1, where it states one, and without its thumbnail and broken entries."""
    first, patched = read_directory(block), bytearray(block)
    for tag, place in first.places:
        if tag == ORIENTATION:
            struct.pack_into(first.order + "HIHH", patched, place + 2, 3, 1, 1, 0)
    inner = read_directory(block, first.offset(EXIF))
    for directory in (
        inner,
        read_directory(block, inner.offset(INTEROP)),
        read_directory(block, first.offset(GPS)),
        first,
    ):
        _drop_broken(directory, patched)
    if first.next:
        struct.pack_into(first.order + "I", patched, first.end, 0)
        thumbnail = read_directory(block, first.next)
        start, length = thumbnail.offset(_THUMBNAIL), thumbnail.offset(_THUMBNAIL_BYTES)
        if block[start : start + 2] == b"\xff\xd8" and start + length <= len(block):
            patched[start : start + length] = bytes(length)
            if not block[start + length :].strip(b"\0"):
                del patched[start:]
    return bytes(patched)


def _drop_broken(directory: Directory, block: bytearray) -> None:
    """Close up the entries of a directory in its place: many readers stop at a broken one."""
    places = [place for _, place in directory.places]
    if not places or (not directory.broken and directory.end == places[-1] + 12):
        return
    kept = [bytes(block[place : place + 12]) for place in places if place not in directory.broken]
    struct.pack_into(directory.order + "H", block, places[0] - 2, len(kept))
    block[places[0] : places[-1] + 12] = b"".join(kept) + bytes(12 * len(directory.broken))
    behind = places[0] + 12 * len(kept)  # the offset of the next directory
    block[behind : behind + 4] = bytes(4)


def with_size(block: bytes, size: Size) -> bytes:
    """The block with `size`, (height, width), wherever it states a size of the image."""
    first, patched = read_directory(block), bytearray(block)
    inner = read_directory(block, first.offset(EXIF))
    for directory in (first, inner, read_directory(block, inner.offset(INTEROP))):
        for tag, place in directory.places:
            if tag in _WIDTHS + _HEIGHTS:
                struct.pack_into(first.order + "HII", patched, place + 2, 4, 1, size[tag in _WIDTHS])
    return bytes(patched)


def orientation_of(block: bytes) -> int | None:
    """The orientation, 1 to 8, whatever type it is stored as; None if none is stated."""
    orientation = read_directory(block).number(ORIENTATION)
    return int(orientation) if orientation in range(1, 9) else None


def dpi_of(block: bytes) -> tuple[float, float]:
    """The print resolution, across and down; zeros if none is stated. Without a unit it is in inches."""
    first = read_directory(block)
    unit = {2: 1.0, 3: 2.54}.get(int(first.number(RESOLUTION_UNIT, 2)), 0.0)
    across, down = first.number(X_RESOLUTION), first.number(Y_RESOLUTION)
    return across * unit, (down or across) * unit


def with_dpi(block: bytes, dpi: tuple[float, float]) -> bytes:
    """The block with this print resolution, if it states one in full."""
    first, patched = read_directory(block), bytearray(block)
    kinds = [first.entries.get(tag, (0, 0))[:2] for tag in RESOLUTION]
    if kinds != [(5, 1), (5, 1), (3, 1)]:
        return block
    values = {X_RESOLUTION: ratio(dpi[0]), Y_RESOLUTION: ratio(dpi[1])}
    for tag, place in first.places:
        if tag == RESOLUTION_UNIT:
            struct.pack_into(first.order + "H", patched, place + 8, 2)
        elif tag in values:
            (at,) = struct.unpack_from(first.order + "I", block, place + 8)
            if at + 8 <= len(block):  # the tag may be there twice
                struct.pack_into(first.order + "II", patched, at, *values[tag])
    return bytes(patched)


def ratio(dots: float) -> tuple[int, int]:
    return Fraction(dots).limit_denominator(10_000).as_integer_ratio()


def describes(block: bytes) -> bool:
    """Whether a block states more than orientation and resolution."""
    return bool(read_directory(block).entries.keys() - {ORIENTATION, *RESOLUTION})


def rebuilt(data: bytes | memoryview, first: Directory, limit: int, holder: str) -> bytes | None:
    """A new block of at most `limit` bytes: what describes, EXIF and GPS of the directory `first` of a block or TIFF.

    If it is too long, maker notes, then the longest values are left out, and a warning names them and `holder`.
    """
    tags = _copied(data, first)
    directories = [tags, *(inner for inner in tags.values() if isinstance(inner, dict))]
    directories += [inner for outer in directories[1:] for inner in outer.values() if isinstance(inner, dict)]
    values = [
        (tag == MAKER_NOTE, len(entry[1]), tag, number)
        for number, directory in enumerate(directories)
        for tag, entry in directory.items()
        if not isinstance(entry, dict)
    ]
    room = limit - 8 - sum(6 + 13 * len(directory) for directory in directories) - sum(value[1] for value in values)
    dropped = []
    for _, length, tag, number in sorted(values, reverse=True):
        if room >= 0:
            break
        del directories[number][tag]
        dropped.append(ExifTags.TAGS.get(tag, str(tag)))
        room += 13 + length
    if dropped:
        log.warning("The EXIF data is longer than %s: %s left out.", holder, ", ".join(dropped[:9]))
    return block_of(_little(tags, first.order))


def tags_of(block: bytes) -> dict[int, Any]:
    """What describes: tag -> (type, little-endian value); EXIF and GPS as the same inside."""
    first = read_directory(block)
    return _little(_copied(block, first), first.order)


def block_of(tags: dict[int, Any]) -> bytes | None:
    """A new block of such tags; None without any."""
    return b"II*\0\x08\0\0\0" + serialize(tags, 8) if tags else None


def _copied(data: bytes | memoryview, directory: Directory, level: int = 0) -> dict[int, Any]:
    """tag -> (type, view of the value), or what is in a directory. Of the first directory only what describes."""
    tags: dict[int, Any] = {}
    for tag, (kind, _, value) in directory.entries.items():
        if tag in _INSIDE[level]:
            tags[tag] = _copied(data, read_directory(data, directory.offset(tag)), level + 1)
        elif tag not in _NOT_COPIED and (kind < 16 or kind in TEXTS) and (level or tag in _DESCRIPTIVE):
            tags[tag] = 2 if kind in TEXTS else kind, value
    return tags


def _little(tags: dict[int, Any], order: str) -> dict[int, Any]:
    """The tags with values as bytes in little-endian order, without empty directories."""
    found: dict[int, Any] = {}
    for tag, entry in tags.items():
        if not isinstance(entry, dict):
            found[tag] = entry[0], _swapped(entry[1], order, NUMBERS[entry[0]])
            if tag == _USER_COMMENT and found[tag][1][:8] == b"UNICODE\0" and len(entry[1]) % 2 == 0:
                found[tag] = entry[0], b"UNICODE\0" + _swapped(entry[1][8:], order, "u2")
        elif inner := _little(entry, order):
            found[tag] = inner
    return found


def _swapped(value: memoryview, order: str, base: str) -> bytes:
    return np.frombuffer(value, order + base).astype("<" + base).tobytes()
