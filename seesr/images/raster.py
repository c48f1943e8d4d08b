"""The pixels of a file as it stores them, before colours and orientation are applied."""

import functools
import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from seesr.images.color import StatedColors

MAX_PIXELS = 64_000_000  # the largest image that is decoded: more than fills 8192 x 8192 at scale 2
STRIP = 256  # rows that are converted at a time


class RefusalError(Exception):
    """Why a file is not read: a whole sentence for the user."""


@dataclass(frozen=True)
class Raster:
    """Pixels (H, W, C) uint8 or uint16 of mode "L", "RGB", "CMYK" or "LAB", and alpha (H, W) of the same type.

    CMYK: 0 is no ink. LAB: a and b have 128 (32768) added.
    """

    pixels: np.ndarray
    mode: str
    alpha: np.ndarray | None = None
    stated: StatedColors = field(default_factory=StatedColors)


def check_size(width: int, height: int) -> None:
    """Raise RefusalError for an image of more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        limit, found = f"{MAX_PIXELS / 1e6:.0f} megapixels", f"{width} x {height}"
        raise RefusalError(f"image must have at most {limit}, got {found}; make it smaller")


def unsupported(kind: str, instead: str = "as 8 or 16 bit RGB") -> RefusalError:
    """The refusal of a file that is valid but of a kind that is not read."""
    return RefusalError(
        f"image must be an image file of a supported kind, got {kind}, which is not read; save it {instead}"
    )


_READ_AS = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBX": "RGB"}
_READ_AS |= {"RGBA": "RGBA", "RGBa": "RGBA", "CMYK": "CMYK", "LAB": "LAB", "YCbCr": "RGB"}


def from_image(image: Image.Image) -> Raster:
    """A Pillow image -> its raster. It is converted in strips, which takes little memory."""
    image.load()
    mode = _READ_AS.get(image.mode)
    if mode is None:
        raise unsupported("one whose pixels are neither grey, RGB, CMYK nor Lab")
    if mode in ("L", "RGB") and image.has_transparency_data:
        mode += "A"
    colors, has_alpha = mode.removesuffix("A"), mode in ("LA", "RGBA")
    pixels = np.empty((image.height, image.width, {"L": 1, "CMYK": 4}.get(colors, 3)), np.uint8)
    alpha = np.empty(pixels.shape[:2], np.uint8) if has_alpha else None
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        values = np.asarray(strip if strip.mode == mode else strip.convert(mode))
        rows = slice(top, top + len(values))
        pixels[rows] = values.reshape(*values.shape[:2], -1)[..., : pixels.shape[2]]
        if alpha is not None:
            alpha[rows] = values[..., -1]
    if colors == "LAB":
        pixels[..., 1:] ^= 128  # signed in Pillow
    return Raster(pixels, colors, alpha)


def unpremultiply(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (..., C) that were multiplied by alpha (...) -> as they were, of the same type."""
    largest = np.iinfo(color.dtype).max
    values = color.astype(np.float32) * (largest / np.maximum(alpha, 1).astype(np.float32))[..., None]
    return np.minimum(values + 0.5, largest).astype(color.dtype)


def scaled(values: np.ndarray, largest: int) -> np.ndarray:
    """Unsigned integers of 0..largest -> uint8 of 0..255 if `largest` fits, else uint16 of 0..65535."""
    dtype, white = (np.uint8, 255) if largest < 256 else (np.uint16, 65535)
    if largest == white:
        return values.astype(dtype, copy=False)
    if largest < 65536:
        return _table(largest, white).astype(dtype)[values]
    return (values / (largest / white) + 0.5).astype(dtype)


@functools.lru_cache(8)
def _table(largest: int, white: int) -> np.ndarray:
    steps = np.arange(2 ** math.ceil(math.log2(largest + 1)))
    return np.minimum((steps * white + largest // 2) // largest, white)
