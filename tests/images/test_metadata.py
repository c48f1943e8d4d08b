"""EXIF: its orientation is applied, the rest is kept."""

from pathlib import Path

import pytest
from PIL import Image

from seesr import images
from seesr.settings import Settings
from tests.corpus import RED, saved


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    """A rotated or flipped file reads as the upright image, and the result of it does too."""
    upright = Image.new("RGB", (6, 4), (0, 0, 0))
    upright.paste(RED, (0, 0, 3, 2))
    transposes = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(transposes[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    opened = images.open_image(saved(stored, tmp_path / "a.png", exif=exif))
    assert opened.rgb.tobytes() == upright.tobytes()
    images.save_image(opened, opened.rgb, tmp_path / "out.png", Settings())
    again = Image.open(tmp_path / "out.png")
    assert again.getexif()[0x0112] == 1
    assert again.getexif()[0x010F] == "maker"
    assert images.open_image(tmp_path / "out.png").rgb.tobytes() == upright.tobytes()


def test_exif_too_long_for_jpeg_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    opened = images.open_image(saved(Image.new("RGB", (9, 9), RED), tmp_path / "a.png", exif=exif))
    images.save_image(opened, opened.rgb, tmp_path / "out.jpg", Settings(output_format="jpg"))
    assert "longer than a JPEG can hold" in caplog.text
    assert not Image.open(tmp_path / "out.jpg").getexif()
