"""Write TIFF: 8 or 16 bits a channel, deflate with horizontal differences, compressed in strips on all cores."""

import struct
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from seesr.images.png import in_strips, strip_rows

Directory = Mapping[int, Any]
"""TIFF tags: tag -> (type, value bytes in little-endian order), or another Directory for EXIF and GPS."""

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SHORT, _LONG, _UNDEFINED = 3, 4, 7
_DEFLATE, _DIFFERENCES, _STRAIGHT_ALPHA = 8, 2, 2


def write_tiff(pixels: np.ndarray, file: BinaryIO, directory: Directory, icc_profile: bytes | None = None) -> None:
    """Write (H, W, C) uint8 or uint16 as grey, grey with alpha, RGB or RGBA, with the tags of `directory`."""
    height, width, channels = pixels.shape
    file.write(b"II*\0\0\0\0\0")
    offsets, counts = [], []
    for strip in in_strips(pixels, _compress):
        offsets.append(file.tell())
        counts.append(len(strip))
        file.write(strip)
    file.write(b"\0" * (file.tell() % 2))
    structure: dict[int, Any] = {
        256: _longs(width),
        257: _longs(height),
        258: _shorts(*(8 * pixels.itemsize,) * channels),
        259: _shorts(_DEFLATE),
        262: _shorts(2 if channels > 2 else 1),
        273: _longs(*offsets),
        277: _shorts(channels),
        278: _longs(strip_rows(pixels)),
        279: _longs(*counts),
        284: _shorts(1),
        317: _shorts(_DIFFERENCES),
    }
    if channels in (2, 4):
        structure[338] = _shorts(_STRAIGHT_ALPHA)
    if icc_profile:
        structure[34675] = (_UNDEFINED, icc_profile)
    start = file.tell()
    file.write(serialize({**directory, **structure}, start))
    file.seek(4)
    file.write(struct.pack("<I", start))


def serialize(directory: Directory, offset: int) -> bytes:
    """The bytes of a directory that begins at `offset` of its file, its values and subdirectories behind it."""
    behind = offset + 2 + 12 * len(directory) + 4
    entries, values = b"", b""
    for tag, entry in sorted(directory.items()):
        if isinstance(entry, Mapping):
            place = behind + len(values)
            values += serialize(entry, place)
            kind, value = _longs(place)
        else:
            kind, value = entry
        count = len(value) // _TYPE_BYTES[kind]
        if len(value) > 4:
            place = behind + len(values)
            values += value + b"\0" * (len(value) % 2)
            value = struct.pack("<I", place)
        entries += struct.pack("<HHI4s", tag, kind, count, value)
    return struct.pack("<H", len(directory)) + entries + bytes(4) + values


def _compress(pixels: np.ndarray, top: int, rows: int) -> bytes:
    strip = pixels[top : top + rows]
    differences = strip.astype(strip.dtype.newbyteorder("<"))
    differences[:, 1:] -= strip[:, :-1]  # modulo the largest value, as readers add
    return zlib.compress(differences.tobytes(), 4)


def _shorts(*values: int) -> tuple[int, bytes]:
    return _SHORT, struct.pack(f"<{len(values)}H", *values)


def _longs(*values: int) -> tuple[int, bytes]:
    return _LONG, struct.pack(f"<{len(values)}I", *values)
