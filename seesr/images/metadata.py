"""EXIF and the orientation that it states."""

import logging

from PIL import Image

log = logging.getLogger(__name__)

_ORIENTATION = 0x0112
T = Image.Transpose
_TRANSPOSES = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE}
_TRANSPOSES |= {6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90}


def read_exif(image: Image.Image) -> tuple[bytes | None, int]:
    """The EXIF with orientation 1 and no thumbnail, and the orientation it had; (None, 1) without readable EXIF."""
    try:
        found = image.getexif()
        if not found:
            return None, 1
        orientation = found.get(_ORIENTATION)
        exif = Image.Exif()
        exif.load(found.tobytes())
        exif[_ORIENTATION] = 1
        return exif.tobytes(), orientation if isinstance(orientation, int) else 1  # Pillow writes no thumbnail
    except Exception as error:  # Pillow raises nearly any type on damaged EXIF
        log.warning("The EXIF data of the image is not readable and is left out: %s", error)
        return None, 1


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """The image upright. Orientations other than 2 to 8 change nothing."""
    return image.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else image
