"""What Pillow does not do for a JPEG: name kinds that are not read, and read a file that lacks only its last marker."""

import io
import logging
import struct
from dataclasses import replace

from PIL import Image

from seesr.images.color import StatedColors
from seesr.images.raster import STRIP, Raster, check_size, from_image, unsupported

log = logging.getLogger(__name__)

_END = b"\xff\xd9"
_RESTARTS = [bytes([0xFF, 0xD0 + number]) for number in range(8)]
_JUNK = tuple(  # bits of three kinds, behind the pixels and behind any restart marker
    bits + b"".join(marker + bits for marker in _RESTARTS[:: 1 - 2 * (number % 2)])
    for number, bits in enumerate((b"\x55\xaa\x35" * 9, b"\xc3\x9e\x0f" * 9, b"\x1d\xe2\x74" * 9))
)
_FRAMES = {0xC0 + number: number for number in range(16) if number not in (4, 8, 12)}  # SOF0 to SOF15
_LOSSLESS, _HIERARCHICAL, _JPEG_LS = (3, 7, 11, 15), (5, 6, 7, 13, 14, 15), 0xF7


def read(data: bytes, image: Image.Image) -> Raster:
    """The pixels of a JPEG, which Pillow has opened as `image`. A file that lacks only its end marker is read."""
    return replace(_read(data, image), stated=StatedColors(icc=image.info.get("icc_profile")))


def _read(data: bytes, image: Image.Image) -> Raster:
    try:
        return from_image(image)
    except OSError:
        data = data.removesuffix(b"\xff")
        mended = _open(data + _END)
        if not all(_are_equal(mended, _open(data + junk + _END)) for junk in _JUNK):
            raise  # libjpeg took junk for pixels that are missing
        log.warning("The JPEG lacks its end marker. Its pixels are complete.")
        return from_image(mended)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=["JPEG"])


def _are_equal(one: Image.Image, other: Image.Image) -> bool:
    boxes = [(0, top, one.width, min(top + STRIP, one.height)) for top in range(0, one.height, STRIP)]
    return all(one.crop(box).tobytes() == other.crop(box).tobytes() for box in boxes)


def check_kind(data: bytes) -> None:
    """Raise RefusalError for a kind of JPEG that is not read."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _JPEG_LS:
            raise unsupported("a JPEG-LS file", "as PNG or as baseline JPEG")
        if marker in _FRAMES:
            depth, height, width = struct.unpack_from(">BHH", data, at + 4)
            check_size(width, height)
            if _FRAMES[marker] in _LOSSLESS + _HIERARCHICAL:
                raise unsupported("a lossless or hierarchical JPEG", "as PNG or as baseline JPEG")
            if depth != 8:
                raise unsupported(f"a JPEG of {depth} bits a channel", "as PNG or as a JPEG of 8 bits")
            return
        at += 2 + length
