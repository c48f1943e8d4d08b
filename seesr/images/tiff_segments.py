"""How the samples of a TIFF lie in the file: strips and tiles, expanded and unpacked to numbers."""

import io
import logging
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from seesr.images import tiff
from seesr.images.directory import Directory
from seesr.images.raster import unsupported
from seesr.images.tiff import integer, integers

log = logging.getLogger(__name__)

_NONE, _LZW, _DEFLATE, _OLD_DEFLATE, _LZMA, _PACKBITS = 1, 5, 8, 32946, 34925, 32773
_COMPRESSIONS = {34661: "JBIG", 34712: "JPEG 2000", 34887: "LERC", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL"}
WHITE_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB, ICCLAB = 0, 2, 3, 5, 6, 8, 9
_COLORS = {WHITE_IS_ZERO: 1, 1: 1, RGB: 3, PALETTE: 1, CMYK: 4, CIELAB: 3, ICCLAB: 3}
_DEPTHS = {PALETTE: range(1, 9), CIELAB: (8, 16), ICCLAB: (8, 16)}
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4
_ASSOCIATED, _UNASSOCIATED = 1, 2
MAX_SEGMENT = 2**30  # bytes of a strip or a tile
_BLOCK = 2**22  # bytes that are decoded at a time, about
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Layout:
    """How the samples of a page lie in the file. A segment is a strip or a tile."""

    order: str
    width: int
    height: int
    bits: int
    form: int  # SampleFormat
    photometric: int
    compression: int
    samples: int
    extra: list[int]
    planar: bool
    predictor: int
    reversed: bool  # the bits of each byte
    tiled: bool
    segment: tuple[int, int]  # height, width
    offsets: list[int]
    counts: list[int]

    @property
    def colors(self) -> int:
        return _COLORS[self.photometric]

    @property
    def alpha(self) -> int | None:
        """The sample that is alpha."""
        for number, meaning in enumerate(self.extra):
            if meaning in (_ASSOCIATED, _UNASSOCIATED):
                return self.colors + number
        return None

    @property
    def premultiplied(self) -> bool:
        return self.alpha is not None and self.extra[self.alpha - self.colors] == _ASSOCIATED


def layout_of(page: Directory, length: int) -> Layout:
    """The layout of a page in a file of `length` bytes. RefusalError for one that is not read."""
    compression = integer(page, tiff.COMPRESSION, 1)
    if compression not in (_NONE, _LZW, _DEFLATE, _OLD_DEFLATE, _LZMA, _PACKBITS):
        name = _COMPRESSIONS.get(compression, f"method {compression}")
        raise unsupported(f"a TIFF with {name} compression", "with LZW, deflate or no compression")
    samples, bits = integer(page, tiff.SAMPLES, 1), integers(page, tiff.BITS) or [1]
    photometric = integer(page, tiff.PHOTOMETRIC, RGB if samples >= 3 else 1)
    if photometric not in _COLORS or (photometric == CMYK and integer(page, tiff.INK_SET, 1) != 1):
        raise unsupported("a TIFF of a colour model other than grey, RGB, palette, CMYK and Lab")
    forms = integers(page, tiff.SAMPLE_FORMAT) or [UNSIGNED]
    if photometric in (CIELAB, ICCLAB):
        forms = [UNSIGNED]  # the photometry says which are signed
    if len(set(bits)) > 1 or len(set(forms)) > 1:
        raise unsupported("a TIFF whose channels differ in depth")
    if bits[0] not in _DEPTHS.get(photometric, range(1, 65)):
        raise unsupported(f"a TIFF of {bits[0]} bits a channel in this colour model")
    extra = integers(page, tiff.EXTRA_SAMPLES) or [_UNASSOCIATED]
    colors, extra = _COLORS[photometric], extra[: max(0, samples - _COLORS[photometric])]
    if samples < colors or samples > 32 or (colors == 1 and samples > 2):
        raise unsupported(f"a TIFF of {samples} channels")
    if samples > colors + len(extra) or 0 in extra:
        log.warning("The TIFF has channels that are neither colour nor alpha: they are left out.")
    width, height = integer(page, tiff.WIDTH), integer(page, tiff.HEIGHT)
    tiled = tiff.TILE_WIDTH in page.entries
    if tiled:
        segment = integer(page, tiff.TILE_HEIGHT), integer(page, tiff.TILE_WIDTH)
    else:
        segment = min(integer(page, tiff.ROWS_PER_STRIP, height), height), width
    if min(segment) <= 0 or segment[0] * segment[1] * samples * bits[0] > 8 * MAX_SEGMENT:
        raise ValueError("a TIFF of impossible segments")
    offsets = integers(page, tiff.TILE_OFFSETS if tiled else tiff.STRIP_OFFSETS)
    counts = integers(page, tiff.TILE_BYTES if tiled else tiff.STRIP_BYTES)
    counts = [counts[i] if i < len(counts) and counts[i] else length - at for i, at in enumerate(offsets)]
    return Layout(
        order=page.order,
        width=width,
        height=height,
        bits=bits[0],
        form=forms[0],
        photometric=photometric,
        compression=compression,
        samples=samples,
        extra=extra,
        planar=integer(page, tiff.PLANAR, 1) == 2 and samples > 1,
        predictor=integer(page, tiff.PREDICTOR, 1),
        reversed=integer(page, tiff.FILL_ORDER, 1) == 2,
        tiled=tiled,
        segment=segment,
        offsets=offsets,
        counts=counts,
    )


def blocks(data: memoryview, layout: Layout, plane: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(top, left, (rows, columns, samples)) of parts that together cover the page."""
    (rows, columns), samples = layout.segment, 1 if layout.planar else layout.samples
    across, down = -(-layout.width // columns), -(-layout.height // rows)
    row_bytes = -(-columns * samples * layout.bits // 8)
    step = max(1, _BLOCK // (row_bytes * rows))
    if len(layout.offsets) < across * down * (layout.samples if layout.planar else 1):
        raise ValueError("a TIFF with too few segments")
    for start in range(0, across * down, step):
        numbers = range(start, min(start + step, across * down))
        heights = [rows if layout.tiled else min(rows, layout.height - n * rows) for n in numbers]
        segments = [_segment(data, layout, plane * across * down + number) for number in numbers]
        for first, raw in _expand(segments, heights, row_bytes, layout):
            values = _unpack(raw, columns, samples, layout)
            for index, number in enumerate(numbers):
                y, x = divmod(number, across)
                part = values[index * rows : (index + 1) * rows] if len(numbers) > 1 else values
                top, left = y * rows + first, x * columns
                if top < layout.height:
                    yield top, left, part[: layout.height - top, : layout.width - left]


def _segment(data: memoryview, layout: Layout, number: int) -> memoryview:
    at = layout.offsets[number]
    found = data[at : at + layout.counts[number]]
    return memoryview(bytes(found).translate(_REVERSED)) if layout.reversed else found


def _expand(
    segments: list[memoryview], heights: list[int], row_bytes: int, layout: Layout
) -> Iterator[tuple[int, np.ndarray]]:
    """Segments one below the other -> (first row, (rows, row bytes) uint8). One long segment comes in parts."""
    if layout.compression in (_LZW, _PACKBITS):
        yield 0, _expand_by_libtiff(segments, heights, row_bytes, layout.compression)
        return
    expand = {_NONE: lambda segment: iter([segment]), _LZMA: _expand_lzma}.get(layout.compression, _inflate)
    if len(segments) > 1:
        rows = [
            np.concatenate(list(_rows(expand(segment), height, row_bytes)))
            for segment, height in zip(segments, heights, strict=True)
        ]
        yield 0, np.concatenate(rows)
        return
    first = 0
    for part in _rows(expand(segments[0]), heights[0], row_bytes):
        yield first, part
        first += len(part)


def _rows(parts: Iterator[bytes | memoryview], height: int, row_bytes: int) -> Iterator[np.ndarray]:
    """Bytes in parts of any length -> `height` rows, about _BLOCK at a time. ValueError if there are fewer."""
    rest, most = b"", max(1, _BLOCK // row_bytes)
    for part in parts:
        part = memoryview(rest + bytes(part) if rest else part)
        while height and len(part) >= row_bytes:
            rows = min(height, most, len(part) // row_bytes)
            yield np.frombuffer(part[: rows * row_bytes], np.uint8).reshape(rows, row_bytes)
            height, part = height - rows, part[rows * row_bytes :]
        if not height:
            return
        rest = bytes(part)
    raise ValueError("a TIFF whose pixels end early")


def _inflate(segment: memoryview) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    for at in range(0, len(segment), 2**20):
        part, waiting = b"", bytes(segment[at : at + 2**20])
        while waiting or part:
            part = unpacker.decompress(waiting, _BLOCK)
            waiting = unpacker.unconsumed_tail
            yield part


def _expand_lzma(segment: memoryview) -> Iterator[bytes]:
    unpacker, waiting = lzma.LZMADecompressor(memlimit=2**28), bytes(segment)
    while not unpacker.eof and (waiting or not unpacker.needs_input):
        yield unpacker.decompress(waiting, _BLOCK)
        waiting = b""


def _expand_by_libtiff(segments: list[memoryview], heights: list[int], row_bytes: int, compression: int) -> np.ndarray:
    """The rows of segments, read as the strips of a grey image whose pixels are bytes."""
    starts = np.cumsum([8, *map(len, segments)]).tolist()
    entries = {tiff.WIDTH: [row_bytes], tiff.HEIGHT: [sum(heights)], tiff.ROWS_PER_STRIP: [heights[0]]}
    entries |= {tiff.STRIP_OFFSETS: starts[:-1], tiff.STRIP_BYTES: [len(segment) for segment in segments]}
    entries |= {tiff.BITS: [8], tiff.COMPRESSION: [compression], tiff.PHOTOMETRIC: [1], tiff.SAMPLES: [1]}
    parts = {tag: (4, len(values), struct.pack(f"<{len(values)}I", *values)) for tag, values in entries.items()}
    body = b"".join(segments)
    with TiffImagePlugin.TiffImageFile(io.BytesIO(assemble("<", body, parts))) as image:
        return np.asarray(image)


def assemble(order: str, body: bytes | memoryview, entries: dict[int, tuple[int, int, Any]]) -> bytes:
    """A TIFF of one directory behind `body`, which begins at byte 8."""
    at, table, values = 8 + len(body), b"", b""
    start = at + 2 + 12 * len(entries) + 4
    for tag, (kind, count, value) in sorted(entries.items()):
        value = bytes(value)
        table += struct.pack(order + "HHI", tag, kind, count)
        if len(value) > 4:
            table += struct.pack(order + "I", start + len(values))
            values += value
        else:
            table += value.ljust(4, b"\0")
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, at)
    return b"".join([head, body, struct.pack(order + "H", len(entries)), table, bytes(4), values])


def _unpack(raw: np.ndarray, columns: int, samples: int, layout: Layout) -> np.ndarray:
    """(rows, row bytes) uint8 -> (rows, columns, samples) of the sample's type, the predictor undone."""
    bits, shape = layout.bits, (len(raw), columns, samples)
    kind = {SIGNED: "i", FLOAT: "f"}.get(layout.form, "u")
    if kind == "f" and bits not in (16, 32, 64):
        raise unsupported(f"a TIFF of {bits}-bit floating point numbers")
    if layout.predictor == 3 and kind == "f":
        raw = np.add.accumulate(raw.reshape(len(raw), -1, samples), axis=1, dtype=np.uint8)
        planes = raw.reshape(len(raw), bits // 8, columns * samples)  # the high bytes of a row, then the next ...
        return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">f{bits // 8}").reshape(shape)
    if bits in (8, 16, 32, 64):
        values = raw.view(f"{layout.order}u{bits // 8}").reshape(shape)
        if layout.predictor == 2:
            values = np.add.accumulate(values, axis=1, dtype=values.dtype.newbyteorder("="))
        return values.view(values.dtype.str.replace("u", kind))
    if layout.predictor != 1 or kind == "i" or not (bits <= 16 or bits == 24):
        raise unsupported(f"a TIFF of {bits} bits a channel")
    if bits == 24:
        parts = raw.reshape(*shape, 3).astype(np.uint32)
        low, high = (0, 2) if layout.order == "<" else (2, 0)
        return parts[..., high] << 16 | parts[..., 1] << 8 | parts[..., low]
    return _unpack_bits(raw, columns * samples, bits).reshape(shape)


def _unpack_bits(raw: np.ndarray, count: int, bits: int) -> np.ndarray:
    """(rows, row bytes) -> (rows, count): numbers of 1 to 16 bits, packed from the high bit on."""
    padded = np.pad(raw, ((0, 0), (0, 2)))
    first, shift = np.divmod(np.arange(count) * bits, 8)
    values = padded[:, first].astype(np.uint32) << 16
    values |= padded[:, first + 1].astype(np.uint32) << 8
    values |= padded[:, first + 2]
    values >>= (24 - bits - shift).astype(np.uint32)
    return (values & (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)
