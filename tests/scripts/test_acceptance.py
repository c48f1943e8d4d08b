"""The acceptance command on a CPU; its results survive and are not made twice; shares are those of the cost model."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import acceptance, acceptance_report
from scripts.bench.checklist import CHECK, Checklist, Item
from seesr import cost
from seesr.cost import CARDS
from seesr.settings import Settings

HERE = {"card": "A", "commit": "1"}


def run(path: Path | None, *items: Item, environment: dict[str, str] = HERE, limit: float = 60) -> Checklist:
    checklist = Checklist(path, environment, "cpu", limit)
    checklist.run(items)
    return checklist


def test_a_later_run_makes_only_what_is_missing(tmp_path: Path) -> None:
    path, made = tmp_path / "card.json", Counter[str]()

    def note(name: str, broken: bool = False) -> Callable[[], dict[str, Any]]:
        def make() -> dict[str, Any]:
            made[name] += 1
            if name == "second":
                assert json.loads(path.read_text())["runs"][-1]["rows"]["first"]["seconds"] == 1.5  # written at once
            if broken:
                raise RuntimeError("the tiles\ndo not meet")
            return {"text": "fine", "seconds": 1.5}

        return make

    first, third = Item("first", CHECK, 0, note("first")), Item("third", "size", 1, note("third"))
    failed = run(path, first, Item("second", CHECK, 0, note("second", broken=True)), third)
    second = failed.rows["second"]
    assert (second["status"], second["text"]) == ("failed", "RuntimeError: the tiles do not meet")
    assert [failed.rows[name]["status"] for name in ("first", "third")] == ["passed", "measured"]
    items = (first, Item("second", CHECK, 0, note("second")), third)
    assert run(path, *items).rows["second"]["status"] == "passed"
    assert made == {"first": 1, "second": 2, "third": 1}
    other = run(path, *items, environment=HERE | {"commit": "2"})
    assert made == {"first": 2, "second": 3, "third": 2}
    runs = json.loads(path.read_text())["runs"]
    assert [found["environment"]["commit"] for found in runs] == ["1", "2"]
    assert runs[1]["rows"] == other.rows
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_run_or_would_not_end_in_time_says_so() -> None:
    def slow() -> dict[str, Any]:
        time.sleep(0.1)
        return {"text": "slow"}

    def never() -> dict[str, Any]:
        raise AssertionError("it was run")

    rows = run(
        None,
        Item("blocked", CHECK, 1, never, "needs a CUDA card"),
        Item("long", CHECK, 61, never),
        Item("slow", "size", 0.01, slow),
        Item("larger", "size", 10, never),  # at this pace 100 s
        Item("other", "setup", 10, slow),
    ).rows
    assert [row["status"] for row in rows.values()] == ["not run", "not run", "measured", "not run", "measured"]
    assert rows["blocked"]["text"] == "needs a CUDA card"
    assert rows["long"]["text"] == "time: about 61 s are needed, 60 s are left"
    assert rows["larger"]["text"].startswith("time: about 1")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--device cuda", "no CUDA card can be used here; --device cpu runs the embedded bundle on the CPU"),
        ("--device cpu --json {0}/no/card.json", "--json must name a file that can be written, got {0}/no/card.json ("),
        ("--device cpu --json {0}/torn.json", "{0}/torn.json holds no results of this command ("),
        ("--device cpu --bundle {0}", "{0}/bundle.json is missing"),
    ],
)
def test_a_fault_is_named_before_anything_runs(
    options: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in options and acceptance.hardware.device() != "cpu":
        pytest.skip("there is a CUDA card")
    (tmp_path / "torn.json").write_text('{"runs": [{"env')
    monkeypatch.setattr(sys, "argv", ["acceptance", *options.format(tmp_path).split()])
    with pytest.raises(SystemExit) as caught:
        acceptance.main()
    assert caught.value.code == 2
    assert f"error: {sentence.format(tmp_path)}" in capsys.readouterr().err


def test_the_shares_of_predicted_seconds_are_those_they_were_predicted_by() -> None:
    card = replace(CARDS["h100"], vae=0.25)
    rows: dict[str, dict[str, Any]] = {}
    for result in (512, 4096, 8192):
        settings, padded, counted = Settings(num_inference_steps=1), (result, result), cost.read_counted()
        plan = cost.plan_for_card(counted.memory, acceptance.hardware.GPUS["h100"], counted.weights, padded, settings)
        seconds = Counter[str]()
        for found in cost.runs((result // 8, result // 8), settings, plan):
            stage = {"embed": "ControlNet", "denoise": "UNet"}.get(found.name, found.name.split()[0])
            seconds[stage] += found.seconds(counted.kernels[found.name], card)  # pyright: ignore[reportArgumentType]
        rows[str(result)] = {"side": result // 4, "fast_vae": False} | acceptance_report.shares(
            "h100", padded, settings, plan, seconds
        )
    measured = acceptance_report.measured_card(rows, "h100")
    assert measured is not None
    assert measured.networks == pytest.approx(card.networks, abs=0.015)  # where the host is waited for, it is less
    assert measured == replace(card, networks=measured.networks, basis="measured")
    assert acceptance_report.measured_card({"512": rows["512"]}, "h100") is None


@pytest.mark.slow
def test_the_whole_command_runs_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cpu.json"
    monkeypatch.setattr(sys, "argv", f"acceptance --device cpu --json {path}".split())
    with pytest.raises(SystemExit) as caught:
        acceptance.main()
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    (found,) = json.loads(path.read_text())["runs"]
    statuses = {name: row["status"] for name, row in found["rows"].items()}
    done = {name for name, status in statuses.items() if status != "not run"}
    checks = {"golden parity, fp32", "a seed repeats"}
    sizes = {"32 -> 128, 1 step(s)", "32 -> 128, 1 step(s), fast_vae"}
    assert done == checks | sizes | {"ceilings", "setup", "weights"}
    assert {found["rows"][name]["text"] for name in statuses.keys() - done} == {
        "needs a CUDA card",
        "a CPU runs in fp32",
    }
    for name in sizes:
        row = found["rows"][name]
        assert row["seconds"] == pytest.approx(sum(row["stages"].values()))
        assert max(row["held"].values()) == pytest.approx(max(row["peaks"].values()), rel=0.15)
        assert f"| {name} | {row['stages']['encode']:.2f} | " in printed
    (card, torch) = (found["environment"][name] for name in ("card", "torch"))
    assert f"Measured on {card}, torch {torch}, commit " in printed
    assert f"by `python -m scripts.bench.acceptance --device cpu --json {path}`: 2 checks passed, 0 failed" in printed
    monkeypatch.setattr(acceptance, "environment", lambda *_: found["environment"])  # the code may change meanwhile
    with pytest.raises(SystemExit):
        acceptance.main()
    again = capsys.readouterr().out
    assert all(f"{name}: done before" in again for name in done)
    assert " s left" not in again
    assert again.split("\n\n")[-1] == printed.split("\n\n")[-1]
