"""Read a PNG of any depth, and what it states about its colours."""

import logging
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from seesr.images.color import StatedColors
from seesr.images.raster import Raster, check_size, from_image, unsupported

log = logging.getLogger(__name__)

PngImagePlugin.MAX_TEXT_CHUNK = 8 * 2**20  # some printers' colour profiles exceed Pillow's 1 MB

START = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _GREY_ALPHA, _RGBA = 0, 2, 4, 6  # colour types


def chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Type, body and the whole chunk, up to the end. Checksums are not looked at: `mend` does, once."""
    view, at = memoryview(data), len(START)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        whole = view[at : at + 12 + length]
        if len(whole) < 12 + length:
            return
        yield kind, whole[8:-4], whole
        at = len(data) if kind == b"IEND" else at + len(whole)


def mend(data: bytes) -> bytes:
    """The file without the ancillary chunks whose checksum is wrong. ValueError if that of another chunk is."""
    good: list[bytes | memoryview] = [data[: len(START)]]
    at = len(START)
    for kind, _, whole in chunks(data):
        if kind == b"CgBI":
            raise unsupported("a PNG for iOS apps (CgBI)", "as an ordinary PNG")
        at += len(whole)
        if zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:]):
            good.append(whole)
        elif not kind[:1].islower():
            raise ValueError("a critical chunk of a PNG with a wrong checksum")
        else:
            log.warning("The chunk %s of the PNG is damaged and is left out.", kind.decode("ascii", "replace"))
    return data if sum(map(len, good)) == at else b"".join([*good, data[at:]])


def read(data: bytes, image: Image.Image) -> Raster:
    """The pixels of a PNG, which Pillow has opened as `image`."""
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    check_size(width, height)
    stated, key = _stated(data, image), None
    for kind, body, _ in chunks(data):
        if kind == b"tRNS" and color in (_GREY, _RGB):
            key = np.frombuffer(body[: 2 if color == _GREY else 6], ">u2")
    if depth == 16:
        raster = _read_deep(data, color)
    else:
        if key is not None:
            image.info.pop("transparency", None)  # Pillow compares it wrongly with 1, 2 and 4 bits
        raster = from_image(image)
    if key is not None and key.size == raster.pixels.shape[2]:
        raster = replace(raster, alpha=_alpha(raster.pixels, key, depth))
    return _full_range(replace(raster, stated=stated))


def _alpha(pixels: np.ndarray, key: np.ndarray, depth: int) -> np.ndarray:
    """(H, W, C), and the colour of which every pixel is transparent, as a PNG of `depth` bits has it -> (H, W)"""
    largest = np.iinfo(pixels.dtype).max
    key = (key.astype(np.int64) & 2**depth - 1) * largest // (2**depth - 1)
    alpha = np.empty(pixels.shape[:2], pixels.dtype)
    for top in range(0, len(pixels), 256):
        part = slice(top, top + 256)
        alpha[part] = np.where((pixels[part] == key).all(-1), 0, largest)
    return alpha


def _read_deep(data: bytes, color: int) -> Raster:
    """16 bits by OpenCV, which Pillow cuts to 8. It gets only the pixels: it would apply gamma and transparency."""
    parts = [whole for kind, _, whole in chunks(data) if kind in (b"IHDR", b"IDAT")]
    end = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    found = cv2.imdecode(np.frombuffer(b"".join([START, *parts, end]), np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise ValueError("a damaged PNG of 16 bits")
    found = found.reshape(*found.shape[:2], -1)
    alpha = found[..., -1].copy() if color in (_GREY_ALPHA, _RGBA) else None
    pixels = found[..., :1] if color in (_GREY, _GREY_ALPHA) else found[..., 2::-1]
    return Raster(np.ascontiguousarray(pixels), "L" if color in (_GREY, _GREY_ALPHA) else "RGB", alpha)


def _stated(data: bytes, image: Image.Image) -> StatedColors:
    found = {}
    for kind, body, _ in chunks(data):
        if kind == b"IDAT":
            break
        found.setdefault(kind, body)
    gamma, primaries = found.get(b"gAMA", b""), found.get(b"cHRM", b"")
    return StatedColors(
        icc=image.info.get("icc_profile"),
        cicp=tuple(found[b"cICP"]) if len(found.get(b"cICP", b"")) == 4 else None,
        gamma=int.from_bytes(gamma) / 100_000 if len(gamma) == 4 else None,
        chromaticities=tuple(value / 100_000 for value in struct.unpack(">8I", primaries))
        if len(primaries) == 32
        else None,
        srgb_intent=found[b"sRGB"][0] if len(found.get(b"sRGB", b"")) == 1 else None,
    )


def _full_range(raster: Raster) -> Raster:
    """cICP of a narrow range: black at 16, white at 235 (times 256 for 16 bits) -> the full range."""
    cicp = raster.stated.cicp
    if cicp is None or cicp[3] != 0:
        return raster
    scale, largest = raster.pixels.itemsize * 255 - 254, np.iinfo(raster.pixels.dtype).max
    pixels = np.empty_like(raster.pixels)
    for top in range(0, len(pixels), 256):
        part = (raster.pixels[top : top + 256].astype(np.float32) / scale - 16) / 219
        pixels[top : top + 256] = np.clip(part * largest + 0.5, 0, largest)
    return replace(raster, pixels=pixels, stated=replace(raster.stated, cicp=(*cicp[:3], 1)))
