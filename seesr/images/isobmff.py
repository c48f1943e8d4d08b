"""The boxes of HEIC and AVIF files: whether the file is whole, and what is to be done with the decoded pixels."""

import struct
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

Box = tuple[bytes, memoryview, bool]
"""Its type, its body, and whether it is all there."""

_TOP_LEVEL = (b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip", b"uuid", b"idat")


def brands(data: bytes) -> set[bytes]:
    """The brands of a file that begins with an ftyp box, else none."""
    length = int.from_bytes(data[:4])
    if data[4:8] != b"ftyp" or length < 16:
        return set()
    return {data[8:12], *(data[at : at + 4] for at in range(16, min(length, len(data), 400), 4))}


def boxes(body: memoryview) -> Iterator[Box]:
    """The boxes that follow each other in `body`."""
    at = 0
    while at + 8 <= len(body):
        length, kind, head = int.from_bytes(body[at : at + 4]), bytes(body[at + 4 : at + 8]), 8
        if length == 1:
            length, head = int.from_bytes(body[at + 8 : at + 16]), 16
        end = len(body) if length == 0 else at + length
        if end < at + head:
            return
        yield kind, body[at + head : end], end <= len(body)
        at = end


def is_cut(data: bytes) -> bool:
    """Whether a box ends, or an item lies, beyond the end of the file."""
    if any(kind in _TOP_LEVEL and not whole for kind, _, whole in boxes(memoryview(data))):
        return True
    return any(end > len(data) for _, _, end in _places(_meta(memoryview(data))))


def take_exif(data: bytes) -> tuple[bytes, bytes | None]:
    """The file without its EXIF and without items whose texts are no ASCII, which decoders fail on, and the EXIF."""
    file, exif = bytearray(data), None
    meta = _meta(memoryview(file))
    for kind, body, _ in boxes(meta.get(b"iinf", memoryview(b""))[6:]):
        wide = len(body) > 0 and body[0] > 2  # the item's number has 4 bytes
        place = slice(10, 14) if wide else slice(8, 12)
        if kind != b"infe" or len(body) < place.stop:
            continue
        name, texts = bytes(body[place]), bytes(body[place.stop :])
        if name == b"Exif" and exif is None:
            item = int.from_bytes(body[4:8] if wide else body[4:6])
            found = b"".join(data[start:end] for number, start, end in _places(meta) if number == item)
            exif = found[4 + int.from_bytes(found[:4]) :] or None  # it begins with where the TIFF begins
        if name == b"Exif" or not name.isascii() or (name in (b"mime", b"uri ") and not texts.isascii()):
            body[place] = b"free"
    return bytes(file), exif


def properties(data: bytes) -> list[tuple[bytes, memoryview]]:
    """Type and body of the properties of the primary image, in the order in which they apply."""
    meta = _meta(memoryview(data))
    primary, known = meta.get(b"pitm", b""), meta.get(b"iprp", memoryview(b""))
    if len(primary) < 6:
        return []
    item = int.from_bytes(primary[4:8] if primary[0] else primary[4:6])
    containers = [(kind, body) for kind, body, _ in boxes(known)]
    stated = [(kind, body) for name, box in containers if name == b"ipco" for kind, body, _ in boxes(box)]
    indexes = [index for name, box in containers if name == b"ipma" for index in _associated(box, item)]
    return [stated[index - 1] for index in indexes if 0 < index <= len(stated)]


def color_codes(stated: list[tuple[bytes, memoryview]]) -> tuple[int, int, int, int] | None:
    """Primaries, transfer, matrix and range (always full: decoders expand it) of an nclx property."""
    for kind, body in stated:
        if kind == b"colr" and body[:4] == b"nclx" and len(body) >= 10:
            primaries, transfer, _ = struct.unpack_from(">3H", body, 4)
            return primaries, transfer, 0, 1
    return None


def depth(stated: list[tuple[bytes, memoryview]]) -> int:
    """Bits a channel, by a pixi or an av1C property; 8 if there is none."""
    for kind, body in stated:
        if kind == b"pixi" and len(body) > 5:
            return max(body[5 : 5 + body[4]], default=8)
        if kind == b"av1C" and len(body) > 2:
            return 8 if not body[2] & 0x40 else 12 if body[2] & 0x20 else 10
    return 8


def is_grey(stated: list[tuple[bytes, memoryview]]) -> bool:
    """Whether an av1C property says that the image has one channel."""
    return any(kind == b"av1C" and len(body) > 2 and bool(body[2] & 0x10) for kind, body in stated)


def transformed(pixels: np.ndarray, stated: list[tuple[bytes, memoryview]]) -> np.ndarray:
    """(H, W[, C]) cropped, turned and mirrored as clap, irot and imir state."""
    for kind, body in stated:
        if kind == b"clap" and len(body) >= 32:
            pixels = _cropped(pixels, body)
        elif kind == b"irot" and len(body) >= 1:
            pixels = np.rot90(pixels, body[0] & 3)
        elif kind == b"imir" and len(body) >= 1:
            pixels = pixels[:, ::-1] if body[0] & 1 else pixels[::-1]
    return np.ascontiguousarray(pixels)


def _cropped(pixels: np.ndarray, clap: memoryview) -> np.ndarray:
    """The clean aperture: width, height and the offset of its centre, each a fraction. All if it is impossible."""
    numbers = struct.unpack_from(">8i", clap)
    if min(numbers[1::2]) <= 0:
        return pixels
    width, height, x, y = (Fraction(above, below) for above, below in zip(numbers[::2], numbers[1::2], strict=True))
    left, top = x + (pixels.shape[1] - width) / 2, y + (pixels.shape[0] - height) / 2
    columns, rows = slice(round(left), round(left) + round(width)), slice(round(top), round(top) + round(height))
    inside = 0 <= columns.start < columns.stop <= pixels.shape[1] and 0 <= rows.start < rows.stop <= pixels.shape[0]
    return pixels[rows, columns] if inside else pixels


def _meta(data: memoryview) -> dict[bytes, memoryview]:
    """The boxes of the meta box, behind its version and flags."""
    meta = next((body for kind, body, _ in boxes(data) if kind == b"meta"), memoryview(b""))
    return {kind: body for kind, body, _ in boxes(meta[4:])}


def _associated(box: memoryview, item: int) -> list[int]:
    """The indexes (from 1) of the properties that an ipma box gives an item."""
    if len(box) < 8:
        return []
    wide_item, wide_index, at = box[0] >= 1, box[3] & 1, 8
    for _ in range(int.from_bytes(box[4:8])):
        size = 4 if wide_item else 2
        if at + size >= len(box):
            break
        found, count, step = int.from_bytes(box[at : at + size]), box[at + size], 1 + wide_index
        indexes, at = box[at + size + 1 : at + size + 1 + count * step], at + size + 1 + count * step
        if found == item:
            mask = 0x7FFF if wide_index else 0x7F  # the high bit says that the property is essential
            return [int.from_bytes(indexes[i : i + step]) & mask for i in range(0, len(indexes), step)]
    return []


def _places(meta: dict[bytes, memoryview]) -> Iterator[tuple[int, int, int]]:
    """Number, first byte and end of the items, or their parts, that lie in the file itself."""
    iloc, at = meta.get(b"iloc", memoryview(b"")), 6
    if len(iloc) < 8:
        return
    version, wide = iloc[0], 4 if iloc[0] == 2 else 2
    offset_size, length_size, base_size, index_size = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4, iloc[5] & 15

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(iloc[at - size : at])

    for _ in range(number(wide)):
        item, method = number(wide), number(2) & 15 if version else 0
        number(2)
        base = number(base_size)
        for _ in range(number(2)):
            if at >= len(iloc):
                return
            number(index_size if version else 0)
            start, length = base + number(offset_size), number(length_size)
            if method == 0:
                yield item, start, start + length
