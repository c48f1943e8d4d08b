"""Read QOI ("Quite OK Image", qoiformat.org) by NumPy: pixel by pixel in Python, 64 megapixels take a minute.

Each operation gives a pixel that depends on the one before it, or on the last one of a certain hash. Hashes are linear
in the differences, so that they are known before the pixels are: from them follows on which operation each depends.
"""

import io
import struct

import numpy as np
from PIL import Image

from seesr.images.raster import Raster, check_size, from_image, unsupported

START = b"qoif"
MOST_BY_PILLOW = 8_000_000  # pixels: it takes 1 s for a million

_HEAD, _TAIL = 14, 8
_PART = 2**18  # bytes that are decoded at a time
_MOST_ROUNDS = 20
_DIFF, _LUMA, _RUN, _RGB, _RGBA = 64, 128, 192, 254, 255  # where each kind of operation begins

_BYTE = np.arange(256)
_LENGTHS = np.select([_BYTE == _RGBA, _BYTE == _RGB, (_BYTE >= _LUMA) & (_BYTE < _RUN)], [5, 4, 2], 1).astype(np.uint8)
_IS_DIFF, _IS_LUMA = (_BYTE >= _DIFF) & (_BYTE < _LUMA), (_BYTE >= _LUMA) & (_BYTE < _RUN)
_DIFFERENCES = [  # of red, green and blue; red and blue of LUMA without what its second byte says
    np.select([_IS_DIFF, _IS_LUMA], [(_BYTE >> shift & 3) - 2, (_BYTE & 63) - 32 - less], 0).astype(np.uint8)
    for shift, less in ((4, 8), (2, 0), (0, 8))
]


def read(data: bytes) -> Raster:
    """The pixels of a file. ValueError if it is damaged."""
    width, height, channels, _ = struct.unpack_from(">IIBB", data, 4)
    check_size(width, height)
    if not width or not height or channels not in (3, 4):
        raise ValueError("a QOI of impossible sizes")
    stream = np.frombuffer(data, np.uint8)[_HEAD : len(data) - _TAIL]
    pixels, alpha = np.empty((width * height, 3), np.uint8), np.empty(width * height, np.uint8)
    at, done, state = 0, 0, _State()
    while done < len(pixels) and at < len(stream):
        part = stream[at : at + _PART]
        starts = _starts(part)
        if not len(starts):
            break
        values, first = state.decode(part, starts), part[starts]
        if values is None:
            return _read_by_pillow(data, width * height)
        counts = np.where((first >= _RUN) & (first < _RGB), (first & 63) + 1, 1)
        at += int(starts[-1]) + int(_LENGTHS[part[starts[-1]]])
        for channel, column in enumerate((*pixels.T, alpha)):
            found = np.repeat(values[channel], counts)[: len(pixels) - done]
            column[done : done + len(found)] = found
        done += min(int(counts.sum()), len(pixels) - done)
    if done < len(pixels):
        raise ValueError("a QOI that ends early")
    return Raster(pixels.reshape(height, width, 3), "RGB", alpha.reshape(height, width) if channels == 4 else None)


def _read_by_pillow(data: bytes, pixels: int) -> Raster:
    if pixels > MOST_BY_PILLOW:
        raise unsupported(f"a QOI of more than {MOST_BY_PILLOW / 1e6:.0f} megapixels and random alpha", "as PNG")
    return from_image(Image.open(io.BytesIO(data), formats=["QOI"]))


def _starts(part: np.ndarray) -> np.ndarray:
    """Where the operations begin in bytes that begin with one; only those that are all there."""
    lengths = np.append(_LENGTHS[part], np.uint8(0))
    places, jumps = np.arange(len(lengths)), [lengths]
    for _ in range(3):  # over 2, 4 and 8 operations
        jumps.append(jumps[-1] + jumps[-1].take(places + jumps[-1], mode="clip"))
    hops, firsts, at = jumps[3].tobytes(), [], 0
    while at < len(part):
        firsts.append(at)
        at += hops[at]
    starts = np.array(firsts, np.intp)[:, None]
    for jump in jumps[2::-1]:
        starts = np.minimum(np.stack([starts, starts + jump[starts]], -1), len(part)).reshape(len(firsts), -1)
    starts = starts.ravel()
    return starts[(starts < len(part)) & (starts + lengths[starts] <= len(part))]


class _State:
    """The last pixel, and the last one of each hash."""

    def __init__(self) -> None:
        self.last = np.array([0, 0, 0, 255], np.uint8)
        self.table = np.zeros((4, 64), np.uint8)

    def decode(self, part: np.ndarray, starts: np.ndarray) -> np.ndarray | None:
        """The operations that begin at `starts` -> (4, n) values; None if they don't settle."""
        operations = _Operations(part, starts, self.last)
        hashes = operations.guessed_hashes()
        for _ in range(_MOST_ROUNDS):
            order = np.argsort(np.append(np.arange(64, dtype=np.uint8), hashes), kind="stable")  # the table comes first
            values = operations.values(order, self.table)
            found = _hashes(values)
            if np.array_equal(found, hashes):  # each value follows from right ones before it
                written = order[np.cumsum(1 + np.bincount(hashes, minlength=64)) - 1] - 64  # last, by hash
                self.table[:, written >= 0] = values[:, written[written >= 0]]
                self.last = values[:, -1].copy()
                return values
            hashes = np.where(operations.is_index, operations.first, found)
        return None


class _Operations:
    """Operations in segments: the first of a segment has a colour or an index, the others differ from the one before.

    Segment 0 follows the last pixel of the part before. A value is that of its segment (`known`, or found by the index)
    plus the `sums` of all differences up to it. Alpha is constant in a segment.
    """

    def __init__(self, part: np.ndarray, starts: np.ndarray, last: np.ndarray) -> None:
        padded = np.append(part, np.zeros(5, np.uint8))
        self.first = first = part[starts]
        self.is_index, begins = first < _DIFF, (first < _DIFF) | (first >= _RGB)
        second = padded[starts + 1] * ((first >= _LUMA) & (first < _RUN))
        self.sums = np.stack([table[first] for table in _DIFFERENCES])
        self.sums[0] += second >> 4
        self.sums[2] += second & 15
        np.add.accumulate(self.sums, axis=1, dtype=np.uint8, out=self.sums)
        self.segment, self.roots = np.cumsum(begins), np.flatnonzero(begins)
        kinds = first[self.roots]
        self.lookups, self.inherits = 1 + np.flatnonzero(kinds < _DIFF), 1 + np.flatnonzero(kinds == _RGB)
        self.colors = 1 + np.flatnonzero(kinds == _RGBA)
        self.known = np.empty((4, len(self.roots) + 1), np.uint8)
        self.known[:, 0] = last
        for channel in range(4):
            self.known[channel, 1:] = padded[starts[self.roots] + 1 + channel]
        self.known[:3, 1:] -= self.sums[:, self.roots]

    def guessed_hashes(self) -> np.ndarray:
        """Right where alpha comes from the last operation that sets it, not from an index."""
        bases = self.known.copy()
        setter = np.zeros(bases.shape[1], np.intp)
        setter[self.colors] = self.colors
        bases[3] = bases[3][np.maximum.accumulate(setter)]
        base = _hashes(bases)
        zero = np.zeros((1, len(self.first)), np.uint8)
        sums = _hashes(np.concatenate([self.sums, zero]))
        at = self.roots[self.lookups - 1]
        base[self.lookups] = self.first[at] - sums[at]
        return (base[self.segment] + sums) & 63

    def values(self, order: np.ndarray, table: np.ndarray) -> np.ndarray:
        """(4, n), where `order` sorts the table and the operations by hash."""
        before = np.empty(len(order), np.intp)
        before[order[1:]] = order[:-1]
        at = self.roots[self.lookups - 1]
        source = before[at + 64] - 64  # the last operation with that hash
        inside = source >= 0
        bases = self.known.copy()
        stored = self.lookups[~inside]
        bases[:, stored] = table[:, self.first[at[~inside]]]
        bases[:3, stored] -= self.sums[:, at[~inside]]
        parents, steps = np.full(bases.shape[1], -1), np.zeros_like(bases)
        parents[self.lookups[inside]] = self.segment[source[inside]]
        steps[:3, self.lookups[inside]] = self.sums[:, source[inside]] - self.sums[:, at[inside]]
        _follow(bases[:3], parents.copy(), steps[:3])
        owner = np.arange(len(parents))
        owner[self.inherits] = 0
        parents[self.inherits] = np.maximum.accumulate(owner)[self.inherits]  # the last one that has an alpha itself
        _follow(bases[3:], parents, steps[3:])
        values = bases[:, self.segment]
        values[:3] += self.sums
        return values


def _follow(values: np.ndarray, parents: np.ndarray, steps: np.ndarray) -> None:
    """Set each value that has a parent to its parent's plus its step, however long the chain is."""
    waiting = np.flatnonzero(parents >= 0)
    while len(waiting):
        up = parents[waiting]
        ready = parents[up] < 0
        values[:, waiting[ready]] = values[:, up[ready]] + steps[:, waiting[ready]]
        late, up = waiting[~ready], up[~ready]
        further = parents[up]
        steps[:, late] += steps[:, up]
        parents[waiting[ready]] = -1
        parents[late] = further
        waiting = late


def _hashes(values: np.ndarray) -> np.ndarray:
    """(4, n) -> (n,)"""
    red, green, blue, alpha = values
    return (red * np.uint8(3) + green * np.uint8(5) + blue * np.uint8(7) + alpha * np.uint8(11)) & np.uint8(63)
