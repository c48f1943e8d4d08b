"""Pictures in and out: files to oriented RGB (and alpha, profile, EXIF), results to PNG, WebP or JPEG."""

import io
import logging
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from seesr.settings import Settings

log = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
"""The largest input that is decoded, checked on the header: twice what fills 8192 x 8192 at scale 2."""

WEBP_SIDE = 16383
JPEG_SIDE = 65500
JPEG_EXIF = 65500
"""Bytes of EXIF that fit into one JPEG segment."""

_ORIENTATION = 0x0112
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True)
class Picture:
    """One input: RGB in sRGB, the right way up; what else it carried, for the result to carry too."""

    rgb: Image.Image
    alpha: Image.Image | None = None
    grey: bool = False
    exif: bytes | None = None


def open_image(path: str | Path) -> Picture:
    """A file of any kind that Pillow reads -> Picture.

    EXIF orientation is applied, a colour profile converted to sRGB, 16 bits scaled to 8, alpha set apart (None where
    it is opaque everywhere). Of an animation the first frame is read. Raises ValueError in one sentence for anything
    that is no picture, is damaged, or holds more than MAX_PIXELS.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"image must be a file, got {path.name!r}, which does not exist")
    if path.stat().st_size == 0:
        raise ValueError("image must be a picture, got an empty file; upload it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _read(image)
    except UnidentifiedImageError:
        raise ValueError(
            "image must be a picture (PNG, JPEG, WebP, TIFF, BMP or GIF), got a file that is none of these"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(f"image must have at most {MAX_PIXELS / 1e6:.0f} megapixels; make it smaller") from None
    except (OSError, SyntaxError) as error:  # Pillow's own words for a truncated or broken file
        raise ValueError(f"image must be a whole picture, got a damaged file ({error}); upload it again") from error


def _read(image: Image.Image) -> Picture:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"image must have at most {MAX_PIXELS / 1e6:.0f} megapixels, got {image.width} x {image.height}; "
            "make it smaller"
        )
    if getattr(image, "n_frames", 1) > 1:
        log.info("The image has %d frames: upscaling the first.", image.n_frames)  # pyright: ignore
    profile = image.info.get("icc_profile")
    exif = _exif_without_orientation(image)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    image = _eight_bit(image)
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = None
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() == (255, 255):
            alpha = None
    return Picture(_to_srgb(image, profile), alpha, grey, exif)


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey (and Pillow's 32-bit stand-in for it) scaled to 8 bits; other modes as they are."""
    if image.mode == "F":
        return Image.fromarray(np.clip(np.asarray(image), 0, 255).round().astype(np.uint8))
    if image.mode not in _SIXTEEN_BIT:
        return image
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip((values + 128) // 257, 0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            base = image.convert("RGB") if image.mode == "RGBA" else image
            converted = ImageCms.profileToProfile(base, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None
            return converted
        except (ImageCms.PyCMSError, OSError) as error:
            log.warning("The colour profile of the image is not usable and is left out: %s", error)
    return image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA", "La", "RGBa") else image.convert("RGB")


def _exif_without_orientation(image: Image.Image) -> bytes | None:
    """The picture's EXIF with orientation 1 and without its thumbnail, or None."""
    try:
        if not image.getexif():
            return None
        exif = Image.Exif()  # a copy: the picture's own says how it must still be turned
        exif.load(image.getexif().tobytes())
        exif[_ORIENTATION] = 1
        return exif.tobytes()  # Pillow writes no thumbnail directory
    except (ValueError, TypeError, OSError, SyntaxError, KeyError) as error:
        log.warning("The EXIF data of the image is not readable and is left out: %s", error)
        return None


def save_image(picture: Picture, upscaled: Image.Image, path: str | Path, settings: Settings) -> None:
    """Write `upscaled` to `path` as settings.output_format, with the alpha, greyness and EXIF of `picture`.

    The file appears whole or not at all. JPEG has no alpha: transparent parts are put on white, and that is logged.
    Raises ValueError where the format can't hold the size.
    """
    kind = settings.output_format
    limit = {"png": 2**31 - 1, "webp": WEBP_SIDE, "jpg": JPEG_SIDE}[kind]
    if max(upscaled.size) > limit:
        raise ValueError(
            f"{kind} holds at most {limit} pixels a side, the result has {upscaled.width} x {upscaled.height}; "
            "ask for output_format png"
        )
    image = upscaled.convert("L") if picture.grey else upscaled
    if picture.alpha is not None:
        image = _with_alpha(image, picture.alpha, kind)
    options = {
        "png": {"format": "PNG", "compress_level": 2},
        "webp": {"format": "WEBP", "quality": settings.output_quality, "method": 4},
        "jpg": {
            "format": "JPEG",
            "quality": settings.output_quality,
            "subsampling": 0 if settings.output_quality >= 90 else 2,
        },
    }[kind]
    if picture.exif and kind == "jpg" and len(picture.exif) > JPEG_EXIF:
        log.warning("The EXIF data is longer than a JPEG can hold and is left out.")
    elif picture.exif:
        options["exif"] = picture.exif
    path = Path(path)
    handle, name = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            image.save(file, **options)  # type: ignore[arg-type]
        Path(name).chmod(0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _with_alpha(image: Image.Image, alpha: Image.Image, kind: str) -> Image.Image:
    alpha = alpha.resize(image.size, Image.Resampling.BICUBIC)
    if kind == "jpg":
        log.warning("JPEG has no transparency: transparent parts are put on white. Ask for png or webp to keep them.")
        white = Image.new(image.mode, image.size, "white")
        return Image.composite(image, white, alpha)
    image = image.convert("LA" if image.mode == "L" and kind == "png" else "RGBA")
    image.putalpha(alpha)
    return image


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Any size -> `size` (height, width), bicubic with antialiasing; the same object where it fits already."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (1, 3, H, W) in [0, 1], float32"""
    pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def to_image(tensor: Tensor) -> Image.Image:
    """(1, 3, H, W) in [0, 1] -> RGB picture, rounded"""
    pixels = torch.empty((*tensor.shape[2:], 3), dtype=torch.uint8)
    for rows in torch.arange(tensor.shape[2]).split(1024):  # a strip at a time: the temporaries stay small
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        pixels[part] = (tensor[0, :, part].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    return Image.fromarray(pixels.numpy())
