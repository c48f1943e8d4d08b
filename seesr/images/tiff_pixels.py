"""The pixels of a page of a TIFF, of any depth, as the page states them."""

import io
import logging
import struct
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from PIL import TiffImagePlugin

from seesr.images import tiff
from seesr.images.color import StatedColors
from seesr.images.directory import Directory
from seesr.images.raster import STRIP, Raster, check_size, from_image, scaled, unpremultiply, unsupported
from seesr.images.tiff import integer, integers, numbers
from seesr.images.tiff_segments import (
    CIELAB,
    FLOAT,
    ICCLAB,
    PALETTE,
    SIGNED,
    UNDEFINED,
    UNSIGNED,
    WHITE_IS_ZERO,
    YCBCR,
    Layout,
    assemble,
    blocks,
    layout_of,
)

log = logging.getLogger(__name__)

MOST_BEYOND = 0.01  # of the numbers of a floating point TIFF: highlights that are clipped

_BY_PILLOW = (2, 3, 4, 6, 7)  # fax and JPEG: their decoders also decide about colours
_JPEG = (6, 7)
_LONG8 = 16
_STRUCTURE = (  # the tags about pixels; 292 and on: fax, 347: JPEG tables, 512 and on: old JPEG, 529 and on: YCbCr
    *(*range(256, 260), 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, *range(322, 326), 332, 338, 339, 347),
    *(*range(512, 522), *range(529, 533)),
)


def read(data: bytes, page: Directory) -> Raster:
    """The pixels of a page, not turned. RefusalError for a kind that is not read, other errors for a damaged file."""
    if page.is_cut or any(tag in _STRUCTURE for tag, place in page.places if place in page.broken):
        raise ValueError("a TIFF with a damaged directory")
    check_size(integer(page, tiff.WIDTH), integer(page, tiff.HEIGHT))
    profile = bytes(page.entries[tiff.PROFILE][2]) if tiff.PROFILE in page.entries else None
    white, primaries = (page.numbers(tag) for tag in (tiff.WHITE_POINT, tiff.PRIMARIES))
    is_lab = integer(page, tiff.PHOTOMETRIC, 1) in (CIELAB, ICCLAB)
    known = len(white) == 2 and (is_lab or len(primaries) == 6)
    chromaticities = (*white, *([] if is_lab else primaries)) if known else None
    stated = StatedColors(icc=profile or None, chromaticities=chromaticities)
    if integer(page, tiff.COMPRESSION, 1) in _BY_PILLOW or integer(page, tiff.PHOTOMETRIC, 1) == YCBCR:
        return replace(_read_by_pillow(data, page), stated=stated)
    layout = layout_of(page, len(data))
    scale = _Scale(page, layout)
    raster = _read(data, layout, scale)
    if scale.are_whole():
        scale.take_whole()
        raster = _read(data, layout, scale)
    scale.check()
    return replace(raster, stated=stated)


def _read(data: bytes, layout: Layout, scale: "_Scale") -> Raster:
    colors = np.empty((layout.height, layout.width, scale.channels), scale.dtype)
    alpha = None if layout.alpha is None else np.empty(colors.shape[:2], scale.dtype)
    for plane in range(layout.samples if layout.planar else 1):
        if layout.planar and plane >= layout.colors and plane != layout.alpha:
            continue
        for top, left, values in blocks(memoryview(data), layout, plane):
            place = np.s_[top : top + values.shape[0], left : left + values.shape[1]]
            if not layout.planar:
                colors[place] = scale.colors(values[..., : layout.colors])
                if alpha is not None:
                    alpha[place] = scale(values[..., layout.alpha])
            elif plane < layout.colors:
                target = np.s_[:] if scale.channels > layout.colors else np.s_[plane : plane + 1]
                colors[place][..., target] = scale.colors(values, plane)
            elif alpha is not None:
                alpha[place] = scale(values[..., 0])
    if alpha is not None and layout.premultiplied:
        for top in range(0, layout.height, STRIP):
            part = slice(top, top + STRIP)
            colors[part] = unpremultiply(colors[part], alpha[part])
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[scale.channels]
    return Raster(colors, "LAB" if layout.photometric in (CIELAB, ICCLAB) else mode, alpha)


class _Scale:
    """Samples -> uint8, or uint16 for more than 8 bits, as the page states them."""

    def __init__(self, page: Directory, layout: Layout) -> None:
        self.layout, self.dtype, self.channels = layout, np.uint8 if layout.bits <= 8 else np.uint16, layout.colors
        self.beyond, self.lowest, self.highest, self.whole = 0, 0.0, 1.0, True
        low, high = numbers(page, tiff.SAMPLE_MIN), numbers(page, tiff.SAMPLE_MAX)
        self.range = (min(low), max(high)) if low and high and -1e30 < min(low) < max(high) < 1e30 else None
        if layout.form not in (UNSIGNED, SIGNED, FLOAT, UNDEFINED):
            raise unsupported("a TIFF of complex numbers")
        if layout.form == SIGNED and self.range is None:
            raise unsupported("a TIFF of signed numbers that does not say which are black and white")
        if layout.photometric == PALETTE:
            self.dtype, self.channels, self.table = np.uint8, 3, self._palette(page)

    def _palette(self, page: Directory) -> np.ndarray:
        colors = np.array(integers(page, tiff.COLOR_MAP), np.int64)
        if self.layout.form != UNSIGNED or len(colors) != 3 * 2**self.layout.bits:
            raise ValueError("a TIFF with a wrong colour map")
        # Some writers store 8-bit values.
        table = colors if colors.max() < 256 else (colors + 128) // 257
        return table.reshape(3, -1).T.astype(np.uint8)

    def colors(self, values: np.ndarray, plane: int = 0) -> np.ndarray:
        if self.layout.photometric == PALETTE:
            return self.table[values[..., 0]]
        result = self(values)
        if self.layout.photometric == WHITE_IS_ZERO:
            return np.iinfo(result.dtype).max - result
        if self.layout.photometric in (CIELAB, ICCLAB):
            return self._lab(result, plane)
        return result

    def _lab(self, values: np.ndarray, plane: int) -> np.ndarray:
        """L 0..max; a and b with half the range added."""
        values, half, deep = values.copy(), 1 << 8 * values.itemsize - 1, values.itemsize == 2
        lightness, others = (values[..., :1], values[..., 1:]) if values.shape[-1] == 3 else (values, values[..., :0])
        if values.shape[-1] == 1 and plane > 0:
            lightness, others = others, lightness
        if self.layout.photometric == CIELAB:
            others ^= half  # signed in the file
        elif deep:
            lightness[:] = np.minimum(lightness * (65535 / 65280) + 0.5, 65535)  # an ICC Lab of 16 bits ends at FF00
        return values

    def __call__(self, values: np.ndarray) -> np.ndarray:
        bits = self.layout.bits
        if self.layout.form not in (SIGNED, FLOAT):
            return scaled(values, 2**bits - 1)
        low, high = self.range or (0.0, 1.0)
        shares = (values.astype(np.float32 if bits <= 32 else np.float64) - low) / (high - low)
        beyond = np.isfinite(shares) & ((shares < 0) | (shares > 1))
        if beyond.any():
            self.beyond += np.count_nonzero(beyond)
            self.lowest = min(self.lowest, float(shares[beyond].min()))
            self.highest = max(self.highest, float(shares[beyond].max()))
        self.whole = self.whole and bool((shares == np.floor(shares))[np.isfinite(shares)].all())
        shares = np.nan_to_num(shares, nan=0, posinf=1, neginf=0)
        return (np.clip(shares, 0, 1) * np.iinfo(self.dtype).max + 0.5).astype(self.dtype)

    def are_whole(self) -> bool:
        """Whether floating point numbers are integers of 8 or 16 bits."""
        return self.range is None and self.beyond > 0 and self.whole and self.lowest >= 0 and self.highest < 65536

    def take_whole(self) -> None:
        """Scale from now on as those integers are scaled."""
        largest, self.dtype = (255, np.uint8) if self.highest < 256 else (65535, np.uint16)
        log.info("The numbers of the TIFF are whole: 0 is taken for black, %d for white.", largest)
        self.range, self.beyond = (0, largest), 0

    def check(self) -> None:
        """Raise RefusalError if the numbers do not mean what was taken for black and white."""
        if self.range is None and self.beyond > MOST_BEYOND * self.layout.width * self.layout.height * self.channels:
            found = f"a floating point TIFF with values from {self.lowest:.6g} to {self.highest:.6g}, not 0 to 1"
            raise unsupported(found)
        if self.beyond:
            log.warning("%d values of the TIFF are below black or above white: they are clipped.", self.beyond)


def _read_by_pillow(data: bytes, page: Directory) -> Raster:
    """A page of JPEG, fax or YCbCr, from a TIFF that has only the tags about pixels: others can't do harm."""
    bits, jpeg = max(integers(page, tiff.BITS) or [1]), integer(page, tiff.COMPRESSION, 1) in _JPEG
    if bits not in (1, 8) or (jpeg and integer(page, tiff.PLANAR, 1) == 2 and integer(page, tiff.SAMPLES, 1) > 1):
        raise unsupported("a TIFF of JPEG or YCbCr that has more than 8 bits, or its channels apart")
    entries: dict[int, tuple[int, int, Any]] = {tag: page.entries[tag] for tag in _STRUCTURE if tag in page.entries}
    if jpeg:
        entries.pop(tiff.FILL_ORDER, None)  # it does not apply, and Pillow would look for it
    for tag, (kind, count, _) in entries.items():
        if kind == _LONG8:  # a BigTIFF becomes a TIFF
            entries[tag] = (4, count, struct.pack(f"{page.order}{count}I", *integers(page, tag)))
    file = assemble(page.order, memoryview(data)[8:], entries)
    if integer(page, tiff.PHOTOMETRIC, 1) == YCBCR and not jpeg:
        found = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
        if found is None:
            raise ValueError("a damaged TIFF of YCbCr")
        return Raster(found, "RGB")
    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(file))
    except SyntaxError:  # Pillow has no mode for it
        raise unsupported("a TIFF of a rare kind") from None
    return from_image(image)
