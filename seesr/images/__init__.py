"""Image files in and out, with the alpha, colour profile and EXIF that they carry."""

# ruff: noqa: F401
from seesr.images.color import is_grayscale
from seesr.images.pixels import flat_sides, from_pixels, resize, to_image, to_result, to_tensor
from seesr.images.read import MAX_BYTES, MAX_PIXELS, OpenedImage, open_image
from seesr.images.read_size import read_size
from seesr.images.write import DEEP_FORMATS, open_checked, save_image, write_image
