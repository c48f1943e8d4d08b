"""Write a result as PNG, WebP or JPEG."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from seesr import sizes
from seesr.images.color import from_srgb
from seesr.images.pixels import resize
from seesr.images.png import write_png
from seesr.images.read import OpenedImage, open_image
from seesr.settings import OutputFormat, Settings
from seesr.sizes import Size

log = logging.getLogger(__name__)

MAX_SIDE: dict[OutputFormat, int] = {"png": 2**31 - 1, "webp": 16383, "jpg": 65500}
JPEG_MAX_EXIF = 65500  # bytes of EXIF that fit into one JPEG segment


def open_checked(path: str | Path, settings: Settings) -> OpenedImage:
    """Open an image. Raises ValueError if its result would be too large for the model or for its format."""
    opened = open_image(path)
    size = (opened.rgb.height, opened.rgb.width)
    scale = sizes.scale_of(size, settings.scale_factor, settings.target_long_side)
    _check_output(sizes.working_size(size, scale, process_size=1)[0], settings)
    return opened


def _check_output(size: Size, settings: Settings) -> None:
    """Raise ValueError if settings.output_format cannot hold a result of `size` (height, width)."""
    kind, limit = settings.output_format, MAX_SIDE[settings.output_format]
    if max(size) > limit:
        found = f"{kind} holds at most {limit} pixels a side, the result has {size[1]} x {size[0]}"
        raise ValueError(f"{found}; ask for output_format png")


def save_image(opened: OpenedImage, result: Image.Image, path: str | Path, settings: Settings) -> None:
    """Write `result`, an RGB image in sRGB of any size, to `path` as settings.output_format.

    The file gets the alpha, greyness, colour profile and EXIF of `opened`. It appears whole or not at all. JPEG has no
    alpha: transparent parts become white, and a warning is logged. Raises ValueError if the format has no such sides.
    """
    kind, quality = settings.output_format, settings.output_quality
    _check_output((result.height, result.width), settings)
    image, icc = from_srgb(result, opened.icc, opened.grey)
    if opened.alpha is not None:
        image = _with_alpha(image, opened.alpha, kind)
    options: dict[str, Any] = {
        "png": {},
        "webp": {"format": "WEBP", "quality": quality, "method": 4},
        "jpg": {"format": "JPEG", "quality": quality, "subsampling": 0 if quality >= 90 else 2},
    }[kind]
    options["icc_profile"] = icc
    if opened.exif and kind == "jpg" and len(opened.exif) > JPEG_MAX_EXIF:
        log.warning("The EXIF data is longer than a JPEG can hold and is left out.")
    elif opened.exif:
        options["exif"] = opened.exif
    path = Path(path)
    handle, name = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            (write_png if kind == "png" else Image.Image.save)(image, file, **options)
        Path(name).chmod(0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _with_alpha(image: Image.Image, alpha: Image.Image, kind: OutputFormat) -> Image.Image:
    alpha = resize(alpha, (image.height, image.width))
    if kind == "jpg":
        log.warning("JPEG has no transparency: transparent parts become white. Ask for png or webp to keep them.")
        return Image.composite(image, Image.new(image.mode, image.size, "white"), alpha)
    image = image.convert("LA" if image.mode == "L" and kind == "png" else "RGBA")
    image.putalpha(alpha)
    return image
