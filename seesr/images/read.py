"""Read an image file of any common format."""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pi_heif
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from seesr.images.color import alpha_bleed, to_srgb
from seesr.images.metadata import apply_orientation, read_exif
from seesr.images.pixels import to_image, to_tensor

log = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000  # the largest image that is decoded: more than fills 8192 x 8192 at scale 2
MAX_BYTES = 256_000_000  # the largest file that is opened: MAX_PIXELS as uncompressed RGBA

# The Pillow readers in use. None of them starts another program or reads only a header.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "ICO", "QOI", "PCX")

pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
PngImagePlugin.MAX_TEXT_CHUNK = 8 * 2**20  # some printers' colour profiles exceed Pillow's 1 MB

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_GREY = ("1", "L", "LA", "La", "F", *_SIXTEEN_BIT)


@dataclass(frozen=True)
class OpenedImage:
    """An upright 8-bit RGB image in sRGB, and its file's alpha, greyness, EXIF and colour profile.

    Where alpha is 0, `rgb` has the colours around, so that resizing mixes no hidden colour into visible pixels.
    """

    rgb: Image.Image
    alpha: Image.Image | None = None
    grey: bool = False
    exif: bytes | None = None
    icc: bytes | None = None


def open_image(path: str | Path) -> OpenedImage:
    """Read an image file; of an animation, its first frame.

    EXIF orientation is applied, colours are converted to sRGB, 16 bits are scaled to 8. `alpha` is None for an opaque
    image. Raises ValueError if the file is missing, not an image, damaged, or larger than MAX_PIXELS or MAX_BYTES.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that is too long
        raise ValueError(f"image must be a file, got {path.name[:80]!r}, which does not exist")
    size, limit = path.stat().st_size, f"{MAX_PIXELS / 1e6:.0f} megapixels"
    if size == 0:
        raise ValueError("image must be an image file, got an empty file; upload it again")
    if size > MAX_BYTES:
        limits = f"at most {MAX_BYTES / 1e6:.0f} MB, got {size / 1e6:.0f} MB"
        raise ValueError(f"image must be a file of {limits}; make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height <= MAX_PIXELS:
                    return _read(image)
    except UnidentifiedImageError:
        kinds = "PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP or GIF"
        raise ValueError(f"image must be an image file ({kinds}), got a file that is none of these") from None
    except Image.DecompressionBombError:
        raise ValueError(f"image must have at most {limit}; make it smaller") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly any type on damaged files
        words = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(
            f"image must be a complete image file, got a damaged file ({words}); upload it again"
        ) from error
    raise ValueError(f"image must have at most {limit}, got {width} x {height}; make it smaller")


def _read(image: Image.Image) -> OpenedImage:
    if getattr(image, "n_frames", 1) > 1:
        log.info("The image has %d frames: upscaling the first.", image.n_frames)  # pyright: ignore
    profile, key = image.info.get("icc_profile"), image.info.get("transparency")
    grey = image.mode in _GREY or _stored_grey(image)
    image.load()
    exif, orientation = read_exif(image)  # after load(), which applies the orientation of a TIFF
    alpha = None
    if image.mode in _SIXTEEN_BIT and isinstance(key, int):  # this one grey value is transparent
        alpha = Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    image = _eight_bit(image)
    if image.mode in ("P", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
    if alpha is None and image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
    rgb, icc = to_srgb(apply_orientation(image, orientation), profile, grey)
    if alpha is None or alpha.getextrema() == (255, 255):
        return OpenedImage(rgb, None, grey, exif, icc)
    alpha = apply_orientation(alpha, orientation)
    weight = torch.from_numpy(np.array(alpha))[None, None].float() / 255
    return OpenedImage(to_image(alpha_bleed(to_tensor(rgb), weight)), alpha, grey, exif, icc)


def _stored_grey(image: Image.Image) -> bool:
    """Whether the file holds grey with alpha although Pillow reads it as RGBA (16-bit PNG)."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""  # pyright: ignore
    return str(arguments[0] if isinstance(arguments, tuple) else arguments).startswith("LA")


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey (which Pillow may hold as 32-bit) and float grey -> L. Other modes are returned as they are."""
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
        values = values * 255 if values.max(initial=0) <= 1 else values
        return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))
    if image.mode not in _SIXTEEN_BIT:
        return image
    return Image.fromarray(np.clip((np.asarray(image).astype(np.int64) + 128) // 257, 0, 255).astype(np.uint8))
