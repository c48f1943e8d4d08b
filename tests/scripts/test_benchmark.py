"""The benchmark times every stage."""

import json
import sys
from pathlib import Path

import pytest

from scripts.bench import benchmark, flops


def test_it_times_every_stage_and_writes_json(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, trace = tmp_path / "out.json", tmp_path / "trace.json"
    command = f"benchmark --bundle {tiny_bundle} --sides 32 --steps 1 --runs 1 --json {out} --profile {trace}"
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr(benchmark, "measure_ceilings", lambda *_: (1e11, 1e10))
    benchmark.main()
    (row,) = json.loads(out.read_text())
    seconds = {name: stage["seconds"] for name, stage in row["stages"].items()}
    assert seconds.keys() == {*flops.STAGES, "resize", "file"}
    assert all(value > 0 for value in seconds.values())
    used, kernel, _ = row["processor"]
    assert 0 <= kernel < used
    assert "| UNet |" in capsys.readouterr().out
    assert json.loads(trace.read_text())["traceEvents"]
