"""Read an image file of any common format."""

import io
import logging
import os
import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from seesr.images import isobmff, netpbm, qoi, read_heif, read_jpeg, read_png, tiff, tiff_pixels
from seesr.images.color import ColorSpace, StatedColors, alpha_bleed, understand
from seesr.images.metadata import Metadata, apply_orientation, read_metadata
from seesr.images.pixels import from_pixels
from seesr.images.raster import MAX_PIXELS, STRIP, Raster, RefusalError, check_size, from_image, unsupported

log = logging.getLogger(__name__)

MAX_BYTES = 4 * MAX_PIXELS + 16_000_000  # the largest file that is opened: MAX_PIXELS as RGBA, and what stands before

cv2.setLogLevel(0)  # what a reader says about a damaged file is no message for users

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
_RARE = re.compile(r"(?i)(unsupported|unknown) (bmp (compression|pixel depth|bitfields)|\w+ mode)")  # Pillow's words
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
    b"%!PS": "a PostScript drawing (EPS)",
    b"\xc5\xd0\xd3\xc6": "a PostScript drawing (EPS)",
    b"PK\3\4": "a ZIP archive",
    b"\x1aE\xdf\xa3": "a video",
    b"FLV\1": "a video",
}
_MARKUP = re.compile(
    rb"(?is)\A(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?\?>|<!--.*?-->|<!doctype (?:svg|html)[^>]*>|\s)*<(svg|html)\b"
)
_VIDEO = {b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4V ", b"qt  ", b"3gp4", b"3gp5"}
_RARE_HEIF = {b"mif1", b"msf1", b"miaf", b"avci", b"avcs", b"vvic", b"vvis", b"evbi", b"evbs", b"jpeg", b"jpgs"}
_RAW_STARTS = (b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAP")  # Fuji, Sigma, Minolta, old Canon


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
    data, kind = [_read_bytes(source)], ""
    try:
        kind = _kind(data[0])
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
        if not kind and _RARE.search(str(error)):
            raise ValueError(str(unsupported("a file of a rare kind", "as PNG"))) from None
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
    _refuse_other_kinds(data, brands)
    if tiff.is_tiff(data):
        return "TIFF"
    if netpbm.is_netpbm(data):
        return "PNM"
    if brands & (_AVIF | _HEIF):
        return "AVIF" if data[8:12] in _AVIF or not brands & _HEIF else "HEIF"
    found = next((kind for start, kind in _STARTS.items() if data.startswith(start)), "")
    return "" if found == "WEBP" and data[8:12] != b"WEBP" else found


def _refuse_other_kinds(data: bytes, brands: set[bytes]) -> None:
    """Raise RefusalError for a file of a kind that is known and not read."""
    name = next((name for start, name in _NOT_READ.items() if data.startswith(start)), "")
    if markup := _MARKUP.match(data[:4000]):
        name = "a drawing (SVG)" if markup[1].lower() == b"svg" else "a web page"
    if not brands & (_AVIF | _HEIF):
        name = (
            "a video" if brands & _VIDEO else "a HEIF file that holds no HEVC or AV1" if brands & _RARE_HEIF else name
        )
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        name = "a video"
    if name:
        raise unsupported(name, "as PNG" if name != "a video" else "as a still image, such as PNG")


def _open(file: list[bytes], kind: str) -> OpenedImage:
    """Decode the file, which is taken out of the list, and free it; then colours, orientation, transparent parts."""
    raster, metadata, orientation = _decode(file.pop(), kind)
    alpha = None if raster.alpha is None or raster.alpha.min() == np.iinfo(raster.alpha.dtype).max else raster.alpha
    pixels, mode, stated = raster.pixels, raster.mode, raster.stated
    del raster  # each of them may be hundreds of megabytes
    pixels, color = understand(pixels, mode, stated)
    pixels = apply_orientation(pixels, orientation)
    if alpha is not None:
        alpha = apply_orientation(alpha, orientation)
        pixels = alpha_bleed(pixels, alpha)
    grey = pixels.shape[2] == 1
    rgb, mask = _eight_bit(pixels, "RGB"), None if alpha is None else _eight_bit(alpha, "L")
    if pixels.dtype == np.uint8:
        return OpenedImage(rgb, mask, grey, color=color, metadata=metadata)
    pixels = np.repeat(pixels, 3, axis=2) if grey else pixels
    return OpenedImage(rgb, mask, grey, pixels, alpha, color, metadata)


def _eight_bit(pixels: np.ndarray, mode: str) -> Image.Image:
    height, width = pixels.shape[:2]
    image = Image.new(mode, (width, height))
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    for top in range(0, height, STRIP):
        image.paste(from_pixels(pixels[top : top + STRIP]).convert(mode), (0, top))
    return image


def _decode(data: bytes, kind: str) -> tuple[Raster, Metadata, int]:
    """What the file stores, and its orientation."""
    if kind == "TIFF":
        page, at = tiff.choose_page(data)
        return tiff_pixels.read(data, page), *read_metadata(None, data, at)
    if kind in ("PNM", "QOI"):
        return (netpbm if kind == "PNM" else qoi).read(data), Metadata(), 1
    if kind == "PNG":
        data = read_png.mend(data)
    elif kind == "JPEG":
        read_jpeg.check_kind(data)
    data, exif = isobmff.take_exif(data) if kind in ("AVIF", "HEIF") else (data, None)
    with Image.open(io.BytesIO(data), formats=[kind] if kind else _WITHOUT_START) as image:
        check_size(*image.size)
        if exif:
            image.info["exif"] = exif
        if getattr(image, "n_frames", 1) > 1:
            log.info("The image has %d frames: upscaling the first.", image.n_frames)  # pyright: ignore
        metadata, orientation = read_metadata(image, data)
        raster = _READERS.get(kind, _read_by_pillow)(data, image)
    return raster, metadata, 1 if kind in ("AVIF", "HEIF") else orientation  # read_heif turns them


def _read_by_pillow(data: bytes, image: Image.Image) -> Raster:
    return replace(from_image(image), stated=StatedColors(icc=image.info.get("icc_profile")))


_READERS = {"PNG": read_png.read, "JPEG": read_jpeg.read, "AVIF": read_heif.read, "HEIF": read_heif.read}
