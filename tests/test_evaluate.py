"""The metrics against values known by hand."""

import numpy as np
import pytest
from evaluate import Row, psnr, ssim, table

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_psnr_of_a_known_error() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    assert psnr(grey, grey) == float("inf")
    assert psnr(grey, grey + 1) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(grey, grey + 10) == pytest.approx(28.1308, abs=1e-4)


def test_ssim_of_equal_flat_and_unrelated_pictures() -> None:
    assert ssim(NOISE, NOISE) == pytest.approx(1)
    dark, light = np.full((32, 32, 3), 50, np.uint8), np.full((32, 32, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, light) == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1))
    assert abs(ssim(NOISE, NOISE[::-1])) < 0.1


def test_the_table_gives_means_and_the_worst_gain() -> None:
    rows = [
        Row("a", "bicubic", 20, 0.5, None, 0),
        Row("b", "bicubic", 30, 0.7, None, 0),
        Row("a", "ours", 21, 0.6, 0.4, 1),
        Row("b", "ours", 29.5, 0.8, 0.6, 3),
    ]
    assert "| ours | 25.25 | +0.25 | -0.50 | 0.7000 | 0.5000 | 2.00 |" in table(rows)
