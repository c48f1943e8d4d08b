"""Image file directories, of which TIFF files and EXIF blocks consist. Nothing in them is trusted."""

import math
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_ENTRIES = 1000  # read of one directory

RATIONALS, TEXTS = (5, 10), (2, 129)  # 129: UTF-8 of Exif 3.0
NUMBERS = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4", 11: "f4"}
NUMBERS |= {12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8", 129: "u1"}  # type of a value -> of its numbers


@dataclass(frozen=True)
class Directory:
    """An image file directory. `entries`: tag -> (type, count, value bytes in the byte order of the file)."""

    order: str = "<"
    entries: dict[int, tuple[int, int, memoryview]] = field(default_factory=dict)
    places: tuple[tuple[int, int], ...] = ()  # (tag, offset) of every entry
    broken: frozenset[int] = frozenset()  # offsets of those whose value is not there or of no type
    end: int = 0  # where the offset of the next directory stands
    next: int = 0  # that offset
    is_cut: bool = False  # the file ends before the directory does

    def numbers(self, tag: int) -> list[Any]:
        """The numbers of a tag, also where it is a text; [] if it is missing or not a number."""
        return self._numbers(tag, None)

    def number(self, tag: int, default: float = 0) -> float:
        """The first number of a tag, if it is finite."""
        first = (self._numbers(tag, 16) or [default])[0]
        return first if math.isfinite(first) else default

    def offset(self, tag: int) -> int:
        """The first number of a tag as a place in the file; 0 if it is none."""
        return max(0, int(self.number(tag)))

    def _numbers(self, tag: int, length: int | None) -> list[Any]:
        """The numbers in the first `length` bytes of a value, which may be long."""
        kind, _, value = self.entries.get(tag, (0, 0, memoryview(b"")))
        try:
            if kind in TEXTS:
                return [float(bytes(value[:32]).split(b"\0")[0])]
            found = np.frombuffer(value[:length], self.order + NUMBERS[kind]).tolist() if kind else []
        except ValueError:
            return []
        return (
            [a / b if b else 0.0 for a, b in zip(found[::2], found[1::2], strict=True)] if kind in RATIONALS else found
        )


def read_directory(data: bytes | memoryview, at: int | None = None) -> Directory:
    """The directory at byte `at`, by default the first, of a TIFF, a BigTIFF or an EXIF block; an empty one if none.

    Never raises. Broken entries are only in `places`. Values are views: nothing is copied.
    """
    data = memoryview(data)
    order = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}.get(bytes(data[:4]), "")
    word, counter = ("Q", "Q") if b"+" in bytes(data[2:4]) else ("I", "H")
    wide, head, step = struct.calcsize(word), struct.calcsize(counter), 4 + 2 * struct.calcsize(word)

    def number(form: str, place: int) -> int:
        inside = 0 <= place <= len(data) - struct.calcsize(form)
        return struct.unpack_from(order + form, data, place)[0] if inside else 0

    at = number(word, wide) if at is None else at
    if not order or not 0 < at < len(data):
        return Directory()
    count = number(counter, at)
    entries, places, broken = {}, [], []
    for place in range(at + head, at + head + step * min(count, MAX_ENTRIES), step):
        if place + step > len(data):
            break
        tag, kind, values = struct.unpack_from(order + "HH" + word, data, place)
        places.append((tag, place))
        length = np.dtype(NUMBERS.get(kind, "u1")).itemsize * values * (2 if kind in RATIONALS else 1)
        value = place + step - wide
        if length > wide:
            value = number(word, value)
        if kind in NUMBERS and values and value + length <= len(data):
            entries.setdefault(tag, (kind, values, data[value : value + length]))
        else:
            broken.append(place)
    end = at + head + step * count
    is_cut = end > len(data)
    return Directory(order, entries, tuple(places), frozenset(broken), end, number(word, end), is_cut)
