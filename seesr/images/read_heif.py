"""Read HEIC and AVIF at their depth, with what their boxes state about place and colours."""

import io
import logging
from dataclasses import replace

import cv2
import numpy as np
import pi_heif
from PIL import Image

from seesr.images import isobmff
from seesr.images.color import StatedColors
from seesr.images.raster import STRIP, Raster, from_image, scaled

log = logging.getLogger(__name__)

pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)

MAX_DEEP_AVIF = 32_000_000  # pixels: OpenCV takes 1.4 GB for them. Larger ones are read with 8 bits.


def read(data: bytes, image: Image.Image) -> Raster:
    """The pixels, upright, of a file that Pillow has opened as `image`. ValueError if it is cut off."""
    if isobmff.is_cut(data):
        raise ValueError("a file that ends early")
    stated = isobmff.properties(data)
    icc = image.info.get("icc_profile")
    if image.format == "HEIF":
        depth = image.info.get("bit_depth", 8)
        raster = _deep_heif(data, depth) if depth > 8 else from_image(image)
    else:
        depth, deep = isobmff.depth(stated), None
        if depth > 8 and image.width * image.height <= MAX_DEEP_AVIF:
            deep = _deep_avif(data, depth)
        if depth > 8 and deep is None:
            log.warning("The AVIF has %d bits per channel: it is read with 8.", depth)
        raster = deep or from_image(image)
        if isobmff.is_grey(stated):
            raster = replace(raster, pixels=raster.pixels[..., :1].copy(), mode="L")
        alpha = None if raster.alpha is None else isobmff.transformed(raster.alpha, stated)
        raster = replace(raster, pixels=isobmff.transformed(raster.pixels, stated), alpha=alpha)
    return replace(raster, stated=StatedColors(icc=icc, cicp=None if icc else isobmff.color_codes(stated)))


def _deep_heif(data: bytes, depth: int) -> Raster:
    file = pi_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    return _split(np.asarray(file), depth, shift=16 - depth)  # the array lives as long as `file` does


def _deep_avif(data: bytes, depth: int) -> Raster | None:
    """By OpenCV, since Pillow reads 8 bits; None for a kind that it does not read, such as grey with alpha."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        return None
    for top in range(0, len(pixels) if pixels.ndim == 3 else 0, STRIP):
        rows = pixels[top : top + STRIP]
        rows[..., :3] = rows[..., 2::-1].copy()  # OpenCV has blue first
    return _split(pixels, depth)


def _split(pixels: np.ndarray, depth: int, shift: int = 0) -> Raster:
    """Numbers of `depth` bits, shifted to the left -> of 16 bits, and alpha apart."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = pixels.shape
    colors = np.empty((height, width, channels - 1 + channels % 2), np.uint16)
    alpha = np.empty((height, width), np.uint16) if channels in (2, 4) else None
    for top in range(0, height, STRIP):
        rows = slice(top, top + STRIP)
        values = scaled(pixels[rows] >> shift, 2**depth - 1)
        colors[rows] = values[..., : colors.shape[2]]
        if alpha is not None:
            alpha[rows] = values[..., -1]
    return Raster(colors, "L" if channels < 3 else "RGB", alpha)
