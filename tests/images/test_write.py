"""save_image: alpha and greyness are kept, and a file appears whole or not at all."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from seesr import images
from seesr.settings import Settings
from tests.corpus import RED, saved


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_alpha_is_kept(tmp_path: Path, mode: str, kind: Literal["png", "webp"]) -> None:
    source = Image.new(mode, (8, 8), (90, 255) if mode == "LA" else (*RED, 255))
    source.putalpha(Image.linear_gradient("L").resize((8, 8)))
    opened = images.open_image(saved(source, tmp_path / "a.png"))
    assert opened.alpha is not None
    large = images.resize(opened.rgb, (32, 32))
    images.save_image(opened, large, tmp_path / f"out.{kind}", Settings(output_format=kind))
    result = Image.open(tmp_path / f"out.{kind}")
    assert result.size == (32, 32)
    alpha = np.asarray(result.convert("RGBA").getchannel("A")).astype(int)
    wanted = np.asarray(opened.alpha.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(alpha - wanted).max() <= 1
    assert result.mode == (mode if kind == "png" else "RGBA")


def test_jpg_makes_transparency_white_and_logs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened = images.open_image(saved(Image.new("RGBA", (8, 8), (*RED, 0)), tmp_path / "a.png"))
    images.save_image(opened, opened.rgb, tmp_path / "out.jpg", Settings(output_format="jpg"))
    assert Image.open(tmp_path / "out.jpg").getpixel((4, 4)) == (255, 255, 255)
    assert "JPEG has no transparency" in caplog.text


def test_grey_stays_grey(tmp_path: Path) -> None:
    opened = images.open_image(saved(Image.new("L", (8, 8), 77), tmp_path / "a.png"))
    images.save_image(opened, opened.rgb, tmp_path / "out.png", Settings())
    assert Image.open(tmp_path / "out.png").mode == "L"


def test_a_result_too_long_for_webp_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    long = Image.new("RGB", (16384, 1))
    with pytest.raises(ValueError, match="webp holds at most 16383 pixels a side, the result has 16384 x 1"):
        images.save_image(images.OpenedImage(long), long, tmp_path / "out.webp", Settings(output_format="webp"))
    assert list(tmp_path.iterdir()) == []


def test_hidden_colours_leave_no_fringe(tmp_path: Path) -> None:
    """A red disc on transparent black, enlarged: no visible pixel is darker than the disc."""
    y, x = np.mgrid[0:40, 0:40]
    disc = ((x - 20) ** 2 + (y - 20) ** 2 < 144)[..., None]
    pixels = np.where(disc, (*RED, 255), (0, 0, 0, 0)).astype(np.uint8)
    opened = images.open_image(saved(Image.fromarray(pixels), tmp_path / "a.png"))
    assert opened.alpha is not None
    images.save_image(opened, images.resize(opened.rgb, (160, 160)), tmp_path / "out.png", Settings())
    result = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert result.shape == (160, 160, 4)
    shown = result[result[..., 3] > 0][:, :3]
    assert np.abs(shown - RED).max() <= 2
    assert result[..., 3].min() == 0
    assert result[..., 3].max() == 255
