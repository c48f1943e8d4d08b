"""Read an image file of any common format."""

import io
import logging
import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pi_heif
from PIL import Image, UnidentifiedImageError

from seesr.images import isobmff, netpbm, read_jpeg, read_png, tiff, tiff_pixels
from seesr.images.color import ColorSpace, StatedColors, alpha_bleed, understand
from seesr.images.metadata import Metadata, apply_orientation, read_metadata
from seesr.images.pixels import from_pixels
from seesr.images.raster import MAX_PIXELS, Raster, RefusalError, check_size, from_image

log = logging.getLogger(__name__)

MAX_BYTES = 4 * MAX_PIXELS + 16_000_000  # the largest file that is opened: MAX_PIXELS as RGBA, and what stands before

pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)

# Formats that Pillow opens, by how a file begins. None of its readers starts another program or reads only a header.
_STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"RIFF": "WEBP",
    b"qoif": "QOI",
}
_AVIF, _HEIF = {b"avif", b"avis"}, {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_WITHOUT_START = ("BMP", "DIB", "ICO", "TGA", "PCX")  # Pillow decides by more than a few bytes
_NAMES = {"WEBP": "WebP", "HEIF": "HEIC"}

# Formats that are not read, by how a file begins.
_NOT_READ = {
    b"8BPS": "a Photoshop document (PSD)",
    b"\0\0\0\x0cjP  \r\n": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"\0\0\0\x0cJXL \r\n": "a JPEG XL file",
    b"\xff\x0a": "a JPEG XL file",
    b"\x76\x2f\x31\x01": "an OpenEXR file",
    b"#?RADIANCE": "a Radiance HDR file",
    b"II\xbc": "a JPEG XR file",
    b"gimp xcf": "a GIMP document (XCF)",
    b"DDS ": "a DDS texture",
    b"%PDF": "a PDF document",
    b"PF\n": "a floating point PFM file",
    b"Pf\n": "a floating point PFM file",
}
_RAW_STARTS = (b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM")


@dataclass(frozen=True)
class OpenedImage:
    """An upright image in its own RGB colour space.

    Where alpha is 0, the pixels have the colours around, so that resizing mixes no hidden colour into visible pixels.
    """

    rgb: Image.Image
    """8-bit RGB."""
    alpha: Image.Image | None = None
    """8-bit, None for an opaque image."""
    grey: bool = False
    """The file holds grey, and so does the result."""
    pixels: np.ndarray | None = None
    """(H, W, 3) uint16 where the file has more than 8 bits a channel."""
    alpha_pixels: np.ndarray | None = None
    """(H, W) uint16 beside `pixels`."""
    color: ColorSpace = field(default_factory=ColorSpace)
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def icc(self) -> bytes | None:
        return self.color.icc

    @property
    def exif(self) -> bytes | None:
        return self.metadata.exif


def open_image(source: str | Path | BinaryIO) -> OpenedImage:
    """Read an image file, given by its path or as a binary file; of an animation, its first frame.

    Raises ValueError if the file is missing, not an image, damaged, of a kind that is not read, or larger than
    MAX_PIXELS or MAX_BYTES.
    """
    data = _read_bytes(source)
    kind = ""
    try:
        kind = _kind(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _open(data, kind)
    except RefusalError as error:
        raise ValueError(str(error)) from None
    except Image.DecompressionBombError:
        raise ValueError(f"image must have at most {MAX_PIXELS / 1e6:.0f} megapixels; make it smaller") from None
    except MemoryError:
        raise
    except Exception as error:  # readers raise nearly any type on damaged files
        if not kind and isinstance(error, UnidentifiedImageError):
            kinds = "PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP or GIF"
            raise ValueError(f"image must be an image file ({kinds}), got a file that is none of these") from None
        found = f"a damaged file ({_NAMES.get(kind, kind)})" if kind else "a damaged file"
        raise ValueError(f"image must be a complete image file, got {found}; upload it again") from error


def _read_bytes(source: str | Path | BinaryIO) -> bytes:
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that is too long
            raise ValueError(f"image must be a file, got {path.name[:80]!r}, which does not exist")
        with path.open("rb") as file:
            return _read_bytes(file)
    start = source.tell()
    size = source.seek(0, os.SEEK_END) - start
    source.seek(start)
    if size == 0:
        raise ValueError("image must be an image file, got an empty file; upload it again")
    if size > MAX_BYTES:
        limits = f"at most {MAX_BYTES / 1e6:.0f} MB, got {size / 1e6:.0f} MB"
        raise ValueError(f"image must be a file of {limits}; make it smaller")
    return source.read()


def _kind(data: bytes) -> str:
    """The format of a file by how it begins, "" if only Pillow can tell. RefusalError for one that is not read."""
    brands = isobmff.brands(data)
    if data.startswith(_RAW_STARTS) or b"crx " in brands or (tiff.is_tiff(data) and tiff.is_raw(data)):
        raise RefusalError(
            "image must be a developed photograph, got a camera raw file; export it as JPEG, PNG or TIFF"
        )
    for start, name in _NOT_READ.items():
        if data.startswith(start):
            raise RefusalError(f"image must be an image file of a kind that is read here, got {name}; save it as PNG")
    if tiff.is_tiff(data):
        return "TIFF"
    if netpbm.is_netpbm(data):
        return "PNM"
    if brands & (_AVIF | _HEIF):
        return "AVIF" if data[8:12] in _AVIF or not brands & _HEIF else "HEIF"
    found = next((kind for start, kind in _STARTS.items() if data.startswith(start)), "")
    return "" if found == "WEBP" and data[8:12] != b"WEBP" else found


def _open(data: bytes, kind: str) -> OpenedImage:
    if kind == "TIFF":
        page, at = tiff.choose_page(data)
        return _finish(tiff_pixels.read(data, page), *read_metadata(None, data, at))
    if kind == "PNM":
        return _finish(netpbm.read(data))
    if kind == "PNG":
        data = read_png.mend(data)
    elif kind == "JPEG":
        read_jpeg.check_kind(data)
    elif kind in ("AVIF", "HEIF") and isobmff.is_cut(data):
        raise ValueError("a file that ends early")
    with Image.open(io.BytesIO(data), formats=[kind] if kind else _WITHOUT_START) as image:
        check_size(*image.size)
        if getattr(image, "n_frames", 1) > 1:
            log.info("The image has %d frames: upscaling the first.", image.n_frames)  # pyright: ignore
        metadata, orientation = read_metadata(image, data)
        if kind == "PNG":
            raster = read_png.read(data, image)
        else:
            raster = read_jpeg.read(data, image) if kind == "JPEG" else from_image(image)
            raster = replace(raster, stated=StatedColors(icc=image.info.get("icc_profile")))
    if kind in ("AVIF", "HEIF"):
        raster, orientation = _by_boxes(raster, data, kind), 1
    return _finish(raster, metadata, orientation)


def _by_boxes(raster: Raster, data: bytes, kind: str) -> Raster:
    """What the boxes say about colours, and about place where the decoder leaves that to its user (AVIF)."""
    stated = isobmff.properties(data)
    if not raster.stated.icc:  # a profile says more
        raster = replace(raster, stated=StatedColors(cicp=isobmff.color_codes(stated)))
    if kind == "HEIF":
        return raster
    alpha = None if raster.alpha is None else isobmff.transformed(raster.alpha, stated)
    return replace(raster, pixels=isobmff.transformed(raster.pixels, stated), alpha=alpha)


def _finish(raster: Raster, metadata: Metadata | None = None, orientation: int = 1) -> OpenedImage:
    """Colours understood, upright, and with colours below transparent parts."""
    pixels, color = understand(raster.pixels, raster.mode, raster.stated)
    alpha = None if raster.alpha is None or raster.alpha.min() == np.iinfo(raster.alpha.dtype).max else raster.alpha
    del raster
    pixels = apply_orientation(pixels, orientation)
    if alpha is not None:
        alpha = apply_orientation(alpha, orientation)
        pixels = alpha_bleed(pixels, alpha)
    grey = pixels.shape[2] == 1
    rgb = from_pixels(pixels[..., 0] if grey else pixels).convert("RGB")
    if pixels.dtype == np.uint8:
        mask = None if alpha is None else Image.fromarray(alpha)
        return OpenedImage(rgb, mask, grey, color=color, metadata=metadata or Metadata())
    mask = None if alpha is None else from_pixels(alpha)
    pixels = np.repeat(pixels, 3, axis=2) if grey else pixels
    return OpenedImage(rgb, mask, grey, pixels, alpha, color, metadata or Metadata())
