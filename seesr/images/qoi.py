"""Read QOI ("Quite OK Image", qoiformat.org). Pillow takes a minute for 64 megapixels."""

import struct

import qoi
from numpy import ascontiguousarray

from seesr.images.raster import Raster, check_size

_COLOR_SPACE = 13  # where the byte stands that names the curve; it changes no pixel


def read(data: bytes) -> Raster:
    """The pixels of a file. ValueError if it is damaged."""
    check_size(*struct.unpack_from(">II", data, 4))
    try:
        pixels = qoi.decode(data[:_COLOR_SPACE] + b"\0" + data[_COLOR_SPACE + 1 :])
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return Raster(ascontiguousarray(pixels[..., :3]), "RGB", pixels[..., 3].copy() if pixels.shape[2] == 4 else None)
