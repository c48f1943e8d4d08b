"""Pictures in and out: every kind the right way up, and one sentence for what is none."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import grey_profile, wide_profile
from PIL import Image, ImageCms

from seesr import images
from seesr.settings import Settings

RED = (200, 30, 40)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def pixel(picture: images.Picture, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    value = picture.rgb.getpixel((x, y))
    assert isinstance(value, tuple)
    return value[0], value[1], value[2]


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp", "gif", "jpg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = saved(Image.new("RGB", (7, 5), RED), tmp_path / f"a.{suffix}")
    picture = images.open_image(path)
    assert picture.rgb.size == (7, 5)
    assert picture.rgb.mode == "RGB"
    assert np.abs(np.array(pixel(picture)) - RED).max() <= 3
    assert picture.alpha is None


@pytest.mark.parametrize(
    ("mode", "colour", "wanted", "grey"),
    [
        ("L", 99, (99, 99, 99), True),
        ("1", 1, (255, 255, 255), True),
        ("P", 0, (0, 0, 0), False),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0), False),
        ("I;16", 99 * 257, (99, 99, 99), True),
    ],
)
def test_modes(tmp_path: Path, mode: str, colour: object, wanted: tuple[int, int, int], grey: bool) -> None:
    path = saved(Image.new(mode, (4, 3), colour), tmp_path / "a.tiff")  # type: ignore[arg-type]
    picture = images.open_image(path)
    assert np.abs(np.array(pixel(picture)) - wanted).max() <= 2
    assert picture.grey == grey


def test_sixteen_bits_are_scaled_not_crushed(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    picture = images.open_image(saved(Image.fromarray(values), tmp_path / "a.png"))
    assert np.asarray(picture.rgb)[0, :, 0].tolist() == list(range(256))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_right_way_up(tmp_path: Path, orientation: int) -> None:
    """A stored picture with an orientation reads as the upright one that it stands for, and stays upright."""
    upright = Image.new("RGB", (6, 4), (0, 0, 0))
    upright.paste(RED, (0, 0, 3, 2))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    picture = images.open_image(saved(stored, tmp_path / "a.png", exif=exif))
    assert picture.rgb.tobytes() == upright.tobytes()
    images.save_image(picture, picture.rgb, tmp_path / "out.png", Settings())
    again = Image.open(tmp_path / "out.png")
    assert again.getexif()[0x0112] == 1
    assert again.getexif()[0x010F] == "maker"
    assert images.open_image(tmp_path / "out.png").rgb.tobytes() == upright.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_alpha_is_kept(tmp_path: Path, mode: str, kind: str) -> None:
    source = Image.new(mode, (8, 8), (90, 255) if mode == "LA" else (*RED, 255))
    source.putalpha(Image.linear_gradient("L").resize((8, 8)))
    picture = images.open_image(saved(source, tmp_path / "a.png"))
    assert picture.alpha is not None
    large = images.resize(picture.rgb, (32, 32))
    images.save_image(picture, large, tmp_path / f"out.{kind}", Settings(output_format=kind))  # type: ignore[arg-type]
    result = Image.open(tmp_path / f"out.{kind}")
    assert result.size == (32, 32)
    alpha = np.asarray(result.convert("RGBA").getchannel("A")).astype(int)
    wanted = np.asarray(picture.alpha.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(alpha - wanted).max() <= 1
    assert result.mode == (mode if kind == "png" else "RGBA")


def test_opaque_alpha_is_dropped_and_palette_transparency_is_not(tmp_path: Path) -> None:
    assert images.open_image(saved(Image.new("RGBA", (4, 4), (*RED, 255)), tmp_path / "a.png")).alpha is None
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 1), 1)
    picture = images.open_image(saved(palette, tmp_path / "b.png", transparency=1))
    assert picture.alpha is not None
    assert picture.alpha.getpixel((1, 1)) == 0
    assert picture.alpha.getpixel((0, 0)) == 255
    assert pixel(picture) == RED


def test_jpg_puts_transparency_on_white_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture = images.open_image(saved(Image.new("RGBA", (8, 8), (*RED, 0)), tmp_path / "a.png"))
    images.save_image(picture, picture.rgb, tmp_path / "out.jpg", Settings(output_format="jpg"))
    assert Image.open(tmp_path / "out.jpg").getpixel((4, 4)) == (255, 255, 255)
    assert "JPEG has no transparency" in caplog.text


def test_grey_stays_grey(tmp_path: Path) -> None:
    picture = images.open_image(saved(Image.new("L", (8, 8), 77), tmp_path / "a.png"))
    images.save_image(picture, picture.rgb, tmp_path / "out.png", Settings())
    assert Image.open(tmp_path / "out.png").mode == "L"


def test_a_profile_is_converted_to_srgb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Lab-free check: the same picture under a linear-light profile must come out brighter; a broken one is said."""
    image = Image.new("RGB", (4, 4), (60, 60, 60))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixel(images.open_image(saved(image, tmp_path / "a.png", icc_profile=srgb))) == (60, 60, 60)
    assert pixel(images.open_image(saved(image, tmp_path / "b.png", icc_profile=b"nonsense"))) == (60, 60, 60)
    assert "colour profile of the image is not usable" in caplog.text


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.abs(np.array(pixel(images.open_image(path))) - RED).max() <= 3


def bomb() -> bytes:
    """A PNG header of 60000 x 60000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def png(size: tuple[int, int] = (64, 64)) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "got an empty file"),
        (b"<!doctype html><html></html>", "must be a picture"),
        (b"just text", "must be a picture"),
        (png()[:2000], "damaged file"),
        (bomb(), "at most 64 megapixels"),
    ],
    ids=["empty", "html", "text", "truncated", "bomb"],
)
def test_what_is_no_picture_gets_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        images.open_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        images.open_image(tmp_path / "nowhere.png")


def test_too_long_for_webp_and_nothing_half_written(tmp_path: Path) -> None:
    long = Image.new("RGB", (16384, 1))
    picture = images.Picture(long)
    with pytest.raises(ValueError, match="webp holds at most 16383 pixels a side, the result has 16384 x 1"):
        images.save_image(picture, long, tmp_path / "out.webp", Settings(output_format="webp"))
    assert list(tmp_path.iterdir()) == []


def test_tensors_and_pictures_are_each_other_s_inverse() -> None:
    picture = Image.effect_noise((9, 7), 90).convert("RGB")
    tensor = images.to_tensor(picture)
    assert tensor.shape == (1, 3, 7, 9)
    assert tensor.dtype == torch.float32
    assert images.to_image(tensor).tobytes() == picture.tobytes()


def test_resize_takes_height_first() -> None:
    picture = Image.new("RGB", (9, 7))
    assert images.resize(picture, (14, 18)).size == (18, 14)
    assert images.resize(picture, (7, 9)) is picture


def test_hidden_colours_leave_no_fringe(tmp_path: Path) -> None:
    """A red disc on transparent black: enlarged, no pixel that shows is darker than the red of the disc."""
    y, x = np.mgrid[0:40, 0:40]
    disc = ((x - 20) ** 2 + (y - 20) ** 2 < 144)[..., None]
    pixels = np.where(disc, (*RED, 255), (0, 0, 0, 0)).astype(np.uint8)
    picture = images.open_image(saved(Image.fromarray(pixels), tmp_path / "a.png"))
    assert picture.alpha is not None
    images.save_image(picture, images.resize(picture.rgb, (160, 160)), tmp_path / "out.png", Settings())
    result = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert result.shape == (160, 160, 4)
    shown = result[result[..., 3] > 0][:, :3]
    assert np.abs(shown - RED).max() <= 2
    assert result[..., 3].min() == 0
    assert result[..., 3].max() == 255


def test_continued_colours_are_the_neighbours() -> None:
    colour, weight = torch.zeros(1, 3, 33, 47), torch.zeros(1, 1, 33, 47)
    colour[:, 0, :, :5], weight[..., :5] = 0.8, 1.0
    colour[:, 1, :, 40:], weight[..., 40:] = 0.6, 0.5
    filled = images._pull(colour, weight)
    assert filled[..., :5].equal(colour[..., :5])
    assert filled[..., 40:].equal(colour[..., 40:])
    torch.testing.assert_close(filled[0, :, 16, 6], torch.tensor([0.8, 0, 0]), atol=0.1, rtol=0)
    torch.testing.assert_close(filled[0, :, 16, 38], torch.tensor([0, 0.6, 0]), atol=0.1, rtol=0)
    assert images._pull(colour, torch.zeros(1, 1, 33, 47)) is colour


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_the_colour_profile_is_kept(tmp_path: Path, kind: str) -> None:
    """The model sees sRGB, the result is in the profile's colours again and says so."""
    stored = Image.new("RGB", (8, 8), (150, 110, 100))
    path = saved(stored, tmp_path / "a.png", icc_profile=wide_profile())
    picture = images.open_image(path)
    assert abs(pixel(picture)[0] - 164) <= 3
    images.save_image(picture, picture.rgb, tmp_path / f"out.{kind}", Settings(output_format=kind, output_quality=100))  # type: ignore[arg-type]
    result = Image.open(tmp_path / f"out.{kind}")
    assert result.info["icc_profile"] == wide_profile()
    assert np.abs(np.asarray(result.convert("RGB")).astype(int) - (150, 110, 100)).max() <= 4
    assert np.abs(np.array(pixel(images.open_image(tmp_path / f"out.{kind}"))) - pixel(picture)).max() <= 4


def test_a_grey_profile_stays_with_a_grey_picture(tmp_path: Path) -> None:
    path = saved(Image.new("L", (8, 8), 99), tmp_path / "a.png", icc_profile=grey_profile())
    picture = images.open_image(path)
    images.save_image(picture, picture.rgb, tmp_path / "out.png", Settings())
    result = Image.open(tmp_path / "out.png")
    assert result.mode == "L"
    assert result.info["icc_profile"] == grey_profile()
    assert abs(int(np.asarray(result)[0, 0]) - 99) <= 2


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 50)
    path = saved(Image.new("RGB", (9, 9), RED), tmp_path / "a.png")
    with pytest.raises(ValueError, match="image must be a file of at most 0 MB, got 0 MB; make it smaller"):
        images.open_image(path)


def test_exif_too_long_for_jpeg_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    picture = images.open_image(saved(Image.new("RGB", (9, 9), RED), tmp_path / "a.png", exif=exif))
    images.save_image(picture, picture.rgb, tmp_path / "out.jpg", Settings(output_format="jpg"))
    assert "longer than a JPEG can hold" in caplog.text
    assert not Image.open(tmp_path / "out.jpg").getexif()
