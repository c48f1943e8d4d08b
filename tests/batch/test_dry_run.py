"""What --dry-run lists and predicts, and what a plan of many names takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seesr import cost
from seesr.batch import dry_run
from seesr.batch.__main__ import main
from seesr.batch.job import Options, Row
from seesr.batch.report import settings_of
from seesr.settings import Settings
from tests.batch.photographs import ROOT, names_below, write_photographs

BUNDLE = ["--bundle", str(ROOT / "weights/tiny"), "--dry-run"]


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[Any]:
    assert main([*map(str, words), *BUNDLE, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_lists_and_predicts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photographs(tmp_path / "in", ["a.jpg", "deep/b.png"])
    (tmp_path / "in/bad.jpg").write_bytes(b"no image")
    before = names_below(tmp_path)
    first, second, third, total = run(capsys, tmp_path / "in", "--out", tmp_path / "out", "--scale-factor", "2")
    assert names_below(tmp_path) == before
    assert [Path(row["output"]).name for row in (first, second, third)] == ["b.png", "a.png", "bad.png"]
    assert (first["height"], first["width"]) == (50, 50)
    assert third["cards"] == {}
    assert first["cards"].keys() == total["cards"].keys() == cost.CARDS.keys()
    expected = cost.estimate("t4", (25, 25), Settings(scale_factor=2))
    assert first["cards"]["t4"]["seconds"] == pytest.approx(expected.seconds, abs=1e-3)
    assert first["cards"]["t4"]["dollars"] == pytest.approx(expected.dollars, abs=1e-6)
    assert "dollars" not in total["cards"]["v100"]
    for card in cost.CARDS:
        together = sum(row["cards"][card]["seconds"] for row in (first, second))
        assert total["cards"][card]["seconds"] == pytest.approx(together, abs=2e-3)
    counts = {"images": 3, "skipped": 0, "unknown": 1, "megapixels": 0.005}
    assert {name: total[name] for name in counts} == counts


def test_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_photographs(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    monkeypatch.setattr(dry_run, "LISTED", 2)
    assert main([str(tmp_path), *BUNDLE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/b.jpg -> {tmp_path}/b_upscaled.png  25 x 25 -> 100 x 100"
    assert lines[2:4] == ["and 1 more (--json lists all)", "3 images to do: 0.0 megapixels of results"]
    cards = [line.split() for line in lines[6:]]
    assert [card[0] for card in cards] == list(cost.CARDS)
    assert [card[-1] for card in cards if card[0] == "v100"] == ["sold"]
    assert all(float(card[-1]) > 0 for card in cards if card[0] != "v100")


def test_for_replicate_the_model_counts_only_where_its_version_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photograph,) = write_photographs(tmp_path, ["a.jpg"])
    stat = photograph.stat()
    row = Row(input="a.jpg", bytes=stat.st_size, sha256="00", output="a_upscaled.png", modified=stat.st_mtime)
    row |= Row(settings=settings_of(Settings()), model="owner/name:" + "0" * 64)
    (tmp_path / "report.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "a_upscaled.png").touch()
    words = [str(tmp_path), "--dry-run", "--engine", "replicate", "--model"]
    sentence = "results of other models and versions count as done here; the run makes them again"
    for model, skipped, told in (
        ("owner/name", 1, [f"upscale: {sentence}"]),
        ("owner/name:" + "0" * 64, 1, []),
        ("owner/name:" + "1" * 64, 0, []),
    ):
        assert main([*words, model, "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out.splitlines()[-1])["skipped"] == skipped
        assert err.splitlines() == told
    assert main([*words, "owner/name", "--scale-factor", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["skipped"] == 0, "settings count always"


def test_it_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), *BUNDLE]) == 0
    assert capsys.readouterr().err == f"upscale: found no images in {tmp_path}\n"
    write_photographs(tmp_path, ["a.jpg", "a_upscaled.png"])
    assert main([str(tmp_path), *BUNDLE]) == 0
    assert "1 results of earlier runs are left out" in capsys.readouterr().err
    (tmp_path / "report.jsonl").mkdir()
    assert main([str(tmp_path), *BUNDLE]) == 1
    assert "report.jsonl cannot be read (Is a directory); " in capsys.readouterr().err


def test_many_sizes_are_rounded_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "DISTINCT", 3)
    predictions = dry_run.Predictions(Options(paths=["a"]))
    sizes = [(300 + 7 * number, 400) for number in range(12)]
    found = [predictions.seconds(size)["t4"] for size in sizes]
    exact = [cost.estimate("t4", size, Settings()).seconds for size in sizes]
    assert found[:3] == exact[:3]
    assert found[3:] == pytest.approx(exact[3:], rel=0.3), "one tile more makes a step"
    assert sum(found) == pytest.approx(sum(exact), rel=0.05)
    assert found[3:] != exact[3:]


def test_a_result_that_no_card_makes_is_not_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photographs(tmp_path, ["a.png"])
    row, total = run(capsys, tmp_path, "--target-long-side", "8192")
    assert row["cards"] == total["cards"] == {}
    assert total["unknown"] == 1


@pytest.mark.slow
def test_twenty_thousand_names_start_soon_and_take_little_memory(tmp_path: Path) -> None:
    (photograph,) = write_photographs(tmp_path, [".photograph.jpg"])
    for number in range(20_000):
        folder = tmp_path / f"{number // 1000:03}"
        folder.mkdir(exist_ok=True)
        os.link(photograph, folder / f"IMG_{number:06}.jpg")
    code = """
import resource, sys, time
from seesr.batch.find import Inputs
from seesr.batch.naming import Naming
from seesr.batch.options import parse
from seesr.batch.plan import Plan
from seesr.batch.report import Report, path_of

def held():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, start = held(), time.process_time()
options = parse([sys.argv[1], "--dry-run"])
naming = Naming(options)
inputs = Inputs(options, naming)
report = Report(path_of(inputs.roots[0], options))
plan = Plan(options, inputs, naming, {inputs.roots[0]: report}, None)
jobs = plan.jobs()
next(jobs)
print(time.process_time() - start, 1 + sum(1 for _ in jobs), held() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    start, count, megabytes = map(float, done.stdout.split())
    assert count == 20_000
    assert start < 10, "CPU seconds until the first image"
    assert megabytes < 100, "beside 250 MB of imports"
