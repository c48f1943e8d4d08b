"""Write a result as PNG, WebP, JPEG or TIFF, with all that its input carried and the format can hold."""

import logging
import os
import secrets
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image

from seesr import sizes
from seesr.images import color, metadata
from seesr.images.metadata import Metadata
from seesr.images.pixels import resize, to_grey
from seesr.images.png import write_png
from seesr.images.read import OpenedImage, open_image
from seesr.images.write_tiff import write_tiff
from seesr.settings import OutputFormat, Settings
from seesr.sizes import Size

log = logging.getLogger(__name__)

MAX_SIDE: dict[OutputFormat, int] = {"png": 2**31 - 1, "webp": 16383, "jpg": 65500, "tiff": 2**31 - 1}
DEEP_FORMATS: tuple[OutputFormat, ...] = ("png", "tiff")
"""The formats that hold 16 bits per channel."""


class Upscaled(Protocol):
    """A seesr.pipeline.Result, as far as it is written."""

    @property
    def image(self) -> Image.Image: ...

    @property
    def pixels(self) -> np.ndarray | None: ...


def open_checked(source: str | Path | BinaryIO, settings: Settings) -> OpenedImage:
    """Open an image, given by its path or as a binary file.

    Raises ValueError if its result would be too large for the model or for its format.
    """
    opened = open_image(source)
    size = (opened.rgb.height, opened.rgb.width)
    scale = settings.scale(size)
    _check_output(sizes.working_size(size, scale, process_size=1)[0], settings)
    return opened


def _check_output(size: Size, settings: Settings) -> None:
    """Raise ValueError if settings.output_format cannot hold a result of `size` (height, width)."""
    kind, limit = settings.output_format, MAX_SIDE[settings.output_format]
    if max(size) > limit:
        found = f"{kind} holds at most {limit} pixels a side, the result has {size[1]} x {size[0]}"
        raise ValueError(f"{found}; ask for output_format png")


def save_image(opened: OpenedImage, result: Image.Image | Upscaled, path: str | Path, settings: Settings) -> None:
    """Write `result`, or an RGB image of any size, to `path` as settings.output_format.

    The file gets the alpha, greyness, depth, colour space and metadata of `opened`. It appears whole or not at all.
    JPEG has no alpha: transparent parts become white, and a warning is logged. Raises ValueError if the format has no
    such sides.
    """
    path = Path(path)
    part = path.with_name(f".seesr-{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:  # unlike those of tempfile it gets the rights that the umask leaves
            write_image(opened, result, file, settings)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_image(opened: OpenedImage, result: Image.Image | Upscaled, file: BinaryIO, settings: Settings) -> None:
    """What `save_image` writes, to an open file."""
    pixels = _result_pixels(opened, result, settings.output_format)
    _check_output(pixels.shape[:2], settings)
    kept = metadata.for_result(opened.metadata, pixels.shape[:2])
    _write(pixels, file, opened.color, kept, settings)


def _result_pixels(opened: OpenedImage, result: Image.Image | Upscaled, kind: OutputFormat) -> np.ndarray:
    """(H, W, C) uint8 or uint16: grey or RGB, with alpha where the input has it and the format can hold it."""
    image, deep = (result, None) if isinstance(result, Image.Image) else (result.image, result.pixels)
    size = (image.height, image.width)
    alpha = None if opened.alpha is None else resize(opened.alpha, size)
    if alpha is not None and kind == "jpg":
        log.warning("JPEG has no transparency: transparent parts become white. Ask for png, webp or tiff to keep them.")
        image, alpha = Image.composite(image, Image.new("RGB", image.size, "white"), alpha), None
    if deep is None or kind not in DEEP_FORMATS:
        pixels = np.asarray(image.convert("L") if opened.grey else image).reshape(*size, -1)
        return pixels if alpha is None else np.dstack([pixels, np.asarray(alpha)])
    pixels = to_grey(deep) if opened.grey else deep
    if alpha is None:
        return pixels
    if opened.alpha_pixels is not None:
        return np.dstack([pixels, resize(opened.alpha_pixels, size)])
    return np.dstack([pixels, np.asarray(alpha).astype(np.uint16) * 257])


def _write(pixels: np.ndarray, file: BinaryIO, space: color.ColorSpace, kept: Metadata, settings: Settings) -> None:
    kind, quality = settings.output_format, settings.output_quality
    if kind == "png":
        profile = [(b"iCCP", b"ICC Profile\0\0" + zlib.compress(space.icc))] if space.icc else []
        write_png(pixels, file, [*(space.png or profile), *metadata.png_chunks(kept)])
    elif kind == "tiff":
        write_tiff(pixels, file, metadata.tiff_directory(kept), space.icc)
    elif kind == "jpg":
        options = {"dpi": kept.dpi} if kept.dpi else {}
        segments, subsampling = b"".join(metadata.jpeg_segments(kept)), 0 if quality >= 90 else 2
        image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        image.save(
            file, "JPEG", quality=quality, subsampling=subsampling, icc_profile=space.icc, extra=segments, **options
        )
    else:
        icc = space.icc
        if pixels.shape[2] < 3:  # WebP has no grey
            pixels = pixels[:, :, [0, 0, 0, *range(1, pixels.shape[2])]]
            icc = color.grey_for_rgb(icc) if icc else None
        options = metadata.webp_options(kept)
        Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=4, icc_profile=icc, **options)
