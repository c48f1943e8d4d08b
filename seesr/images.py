"""Pictures in and out: files to upright sRGB (and alpha, profile, EXIF), results to PNG, WebP or JPEG."""

import io
import logging
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pi_heif
import torch
from PIL import Image, ImageChops, ImageCms, PngImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from seesr import png
from seesr.settings import Settings

log = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
"""The largest input that is decoded, checked on the header: twice what fills 8192 x 8192 at scale 2."""

MAX_BYTES = 256_000_000
"""The largest file that is opened: MAX_PIXELS as uncompressed RGBA."""

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "ICO", "QOI", "PCX")
"""Pillow's readers that are used: none that starts another program or only knows a header."""

WEBP_SIDE = 16383
JPEG_SIDE = 65500
JPEG_EXIF = 65500
"""Bytes of EXIF that fit into one JPEG segment."""

pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)

PngImagePlugin.MAX_TEXT_CHUNK = 8 * 2**20  # Pillow's 1 MB is less than some printers' colour profiles

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_GREY = ("1", "L", "LA", "La", "F", *_SIXTEEN_BIT)


@dataclass(frozen=True)
class Picture:
    """One input: `rgb` in sRGB, the right way up; what else it carried, for the result to carry too.

    Where alpha is 0, `rgb` continues the colours around, so that no edge shows the colour that was hidden there.
    """

    rgb: Image.Image
    alpha: Image.Image | None = None
    grey: bool = False
    exif: bytes | None = None
    icc: bytes | None = None


def open_image(path: str | Path) -> Picture:
    """A file of any kind that Pillow reads -> Picture.

    EXIF orientation is applied, a colour profile converted to sRGB, 16 bits scaled to 8, alpha set apart (None where
    it is opaque everywhere). Of an animation the first frame is read. Raises ValueError in one sentence for anything
    that is no picture, is damaged, or holds more than MAX_PIXELS or MAX_BYTES.
    """
    path = Path(path)
    size = _file_size(path)
    if size == 0:
        raise ValueError("image must be a picture, got an empty file; upload it again")
    if size > MAX_BYTES:
        raise ValueError(
            f"image must be a file of at most {MAX_BYTES / 1e6:.0f} MB, got {size / 1e6:.0f} MB; make it smaller"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height <= MAX_PIXELS:
                    return _read(image)
    except UnidentifiedImageError:
        raise ValueError(
            "image must be a picture (PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP or GIF), got a file that is none of these"
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(f"image must have at most {MAX_PIXELS / 1e6:.0f} megapixels; make it smaller") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything
        words = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"image must be a whole picture, got a damaged file ({words}); upload it again") from error
    raise ValueError(
        f"image must have at most {MAX_PIXELS / 1e6:.0f} megapixels, got {width} x {height}; make it smaller"
    )


def is_colourless(rgb: Image.Image) -> bool:
    """Whether no pixel of an RGB picture has a colour, but for a level of rounding."""
    red, green, blue = rgb.split()
    return all(max(ImageChops.difference(green, other).histogram()[2:]) == 0 for other in (red, blue))


def _file_size(path: Path) -> int:
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError:
        pass
    raise ValueError(f"image must be a file, got {path.name[:80]!r}, which does not exist")


def _read(image: Image.Image) -> Picture:
    if getattr(image, "n_frames", 1) > 1:
        log.info("The image has %d frames: upscaling the first.", image.n_frames)  # pyright: ignore
    profile, key = image.info.get("icc_profile"), image.info.get("transparency")
    grey = image.mode in _GREY or _stored_grey(image)
    image.load()
    exif, orientation = _exif(image)  # only now: Pillow turns a TIFF by itself
    alpha = _keyed(image, key) if image.mode in _SIXTEEN_BIT and isinstance(key, int) else None
    image = _eight_bit(image)
    if image.mode in ("P", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
    if alpha is None and image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
        alpha = alpha and alpha.transpose(_TURNS[orientation])
    rgb, icc = _to_srgb(image, profile, grey)
    if alpha is None or alpha.getextrema() == (255, 255):
        return Picture(rgb, None, grey, exif, icc)
    return Picture(_continue_colours(rgb, alpha), alpha, grey, exif, icc)


def _stored_grey(image: Image.Image) -> bool:
    """Whether the file holds grey with alpha although Pillow reads it as RGBA (16-bit PNG)."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""  # pyright: ignore
    return str(arguments[0] if isinstance(arguments, tuple) else arguments).startswith("LA")


def _keyed(image: Image.Image, key: int) -> Image.Image:
    """Alpha of a 16-bit picture in which one value stands for nothing."""
    return Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey (and Pillow's 32-bit stand-in for it) scaled to 8 bits, floats too; other modes as they are."""
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
        values = values * 255 if values.max(initial=0) <= 1 else values
        return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))
    if image.mode not in _SIXTEEN_BIT:
        return image
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip((values + 128) // 257, 0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None, grey: bool) -> tuple[Image.Image, bytes | None]:
    """The picture as RGB in sRGB, and its profile if the result can carry it (one of RGB or of grey)."""
    plain = image.convert("L" if grey else "CMYK" if image.mode == "CMYK" else "RGB")
    if not profile:
        return plain.convert("RGB"), None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()  # pyright: ignore
        if space != {"L": "GRAY"}.get(plain.mode, plain.mode):
            raise ImageCms.PyCMSError(f"it is one of {space} for a picture of {plain.mode}")
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None
        return converted, None if plain.mode == "CMYK" else profile
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning("The colour profile of the image is not usable and is left out: %s", error)
        return plain.convert("RGB"), None


def _from_srgb(image: Image.Image, profile: bytes | None, grey: bool) -> tuple[Image.Image, bytes | None]:
    """The result in the colours of the input's profile, grey where it was grey."""
    mode = "L" if grey else "RGB"
    if profile is not None:
        try:
            target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode=mode)
            assert converted is not None
            return converted, profile
        except (ImageCms.PyCMSError, OSError) as error:
            log.warning("The colour profile of the image can only be read: the result is in sRGB. (%s)", error)
    return image.convert(mode), None


def _continue_colours(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    """Give pixels of alpha 0 the colours around them, as nothing is known of theirs (push-pull, Gortler 1996)."""
    weight = torch.from_numpy(np.array(alpha))[None, None].float() / 255
    return to_image(_pull(to_tensor(rgb), weight))


def _pull(colour: Tensor, weight: Tensor) -> Tensor:
    """(1, 3, H, W), (1, 1, H, W) -> colours, those of weight 0 out of a picture of half the size"""
    if weight.min() > 0 or weight.max() == 0 or max(weight.shape) == 1:
        return colour
    sums = F.avg_pool2d(torch.cat([colour * weight, weight], 1), 2, ceil_mode=True)
    half = _pull(sums[:, :3] / sums[:, 3:].clamp(min=1e-8), (sums[:, 3:] > 0).float())
    return torch.where(weight > 0, colour, F.interpolate(half, size=colour.shape[2:], mode="bilinear"))


def _exif(image: Image.Image) -> tuple[bytes | None, int]:
    """The picture's EXIF with orientation 1 and without its thumbnail (None without any), and its orientation."""
    try:
        found = image.getexif()
        if not found:
            return None, 1
        orientation = found.get(_ORIENTATION)
        exif = Image.Exif()
        exif.load(found.tobytes())
        exif[_ORIENTATION] = 1
        # Pillow writes no thumbnail directory.
        return exif.tobytes(), orientation if isinstance(orientation, int) else 1
    except Exception as error:  # as damaged pictures do, so do damaged notes
        log.warning("The EXIF data of the image is not readable and is left out: %s", error)
        return None, 1


def check_output(size: tuple[int, int], settings: Settings) -> None:
    """Raise ValueError where settings.output_format can't hold a result of `size` (width, height)."""
    kind = settings.output_format
    limit = {"png": 2**31 - 1, "webp": WEBP_SIDE, "jpg": JPEG_SIDE}[kind]
    if max(size) > limit:
        raise ValueError(
            f"{kind} holds at most {limit} pixels a side, the result has {size[0]} x {size[1]}; "
            "ask for output_format png"
        )


def save_image(picture: Picture, upscaled: Image.Image, path: str | Path, settings: Settings) -> None:
    """Write `upscaled` to `path` as settings.output_format, with the alpha, greyness, profile and EXIF of `picture`.

    The file appears whole or not at all. JPEG has no alpha: transparent parts are put on white, and that is logged.
    Raises ValueError where the format can't hold the size.
    """
    kind = settings.output_format
    check_output(upscaled.size, settings)
    image, icc = _from_srgb(upscaled, picture.icc, picture.grey)
    if picture.alpha is not None:
        image = _with_alpha(image, picture.alpha, kind)
    options: dict[str, Any] = {
        "png": {},
        "webp": {"format": "WEBP", "quality": settings.output_quality, "method": 4},
        "jpg": {
            "format": "JPEG",
            "quality": settings.output_quality,
            "subsampling": 0 if settings.output_quality >= 90 else 2,
        },
    }[kind]
    options["icc_profile"] = icc
    if picture.exif and kind == "jpg" and len(picture.exif) > JPEG_EXIF:
        log.warning("The EXIF data is longer than a JPEG can hold and is left out.")
    elif picture.exif:
        options["exif"] = picture.exif
    path = Path(path)
    handle, name = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            (png.save if kind == "png" else Image.Image.save)(image, file, **options)
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


def to_tensor(image: Image.Image, device: str = "cpu") -> Tensor:
    """RGB picture -> (1, 3, H, W) in [0, 1], float32, on `device`, where bytes go and are widened"""
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float().div_(255)


def to_image(tensor: Tensor) -> Image.Image:
    """(1, 3, H, W) in [0, 1] -> RGB picture, rounded"""
    pixels = torch.empty((*tensor.shape[2:], 3), dtype=torch.uint8)
    for rows in torch.arange(tensor.shape[2]).split(1024):  # a strip at a time: the temporaries stay small
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        pixels[part] = (tensor[0, :, part].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    return from_pixels(pixels.numpy())


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 -> RGB picture"""
    return Image.fromarray(pixels)
