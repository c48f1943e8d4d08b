"""The size of an image by its header, without decoding it."""

import mmap
import warnings
from typing import BinaryIO

from PIL import Image

from seesr.images import exif, tiff
from seesr.images.tiff import HEIGHT, ORIENTATION, WIDTH
from seesr.sizes import Size


def read_size(file: BinaryIO) -> Size | None:
    """(height, width), upright by the EXIF orientation, of an image file; None where its header cannot be read.

    For planning: a file with a size may still be damaged.
    """
    try:
        head = file.read(16)
        file.seek(0)
        if tiff.is_tiff(head):
            return _size_of_tiff(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                block = None if image.format == "HEIF" else exif.find_block(image.info.get("exif") or b"")
                return _upright(image.height, image.width, (exif.orientation_of(block) if block else None) or 1)
    except Exception:  # readers raise nearly any type on damaged files
        return None


def _size_of_tiff(file: BinaryIO) -> Size | None:
    try:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError:  # not on this machine's disk
        data = memoryview(file.read())
    page, _ = tiff.choose_page(data)
    height, width = tiff.integer(page, HEIGHT), tiff.integer(page, WIDTH)
    return _upright(height, width, tiff.integer(page, ORIENTATION, 1))


def _upright(height: int, width: int, orientation: int) -> Size | None:
    if height < 1 or width < 1:
        return None
    return (width, height) if orientation in range(5, 9) else (height, width)
