"""scripts/upscale --engine replicate as users run it: whole runs, an interrupted one, refused ones."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from seesr.batch.__main__ import main
from tests.batch.conftest import MODEL, start_long, wait_until
from tests.batch.photographs import names_below, rows, write_photographs
from tests.replicate_api import ReplicateApi
from tests.replicate_jobs import ENDED

pytestmark = pytest.mark.slow
FAST = ["--engine", "replicate", "--num-inference-steps", "1", "--scale-factor", "1"]


class Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def run(*words: str | Path) -> Run:
        status = main([*map(str, words), *FAST])
        printed = capsys.readouterr()
        return Run(status, printed.out, printed.err)

    return run


def succeeded(api: ReplicateApi) -> int:
    """Predictions; that of `start_long` does not count, which may end before it is canceled."""
    ours = [job for job in api.predictions.values() if not job.inputs["image"].endswith("long.jpg")]
    return [job.view["status"] for job in ours].count("succeeded")


def test_a_folder_is_done_reported_and_then_skipped(
    api: ReplicateApi, version: str, tmp_path: Path, run: Callable[..., Run]
) -> None:
    write_photographs(tmp_path, ["a.jpg", "deep/b.png"])
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff no image")
    words = (tmp_path, "--model", MODEL, "--gpu", "t4", "--budget", "1", "--json")
    first = run(*words)
    assert first.status == 1
    assert "upscale: bad.jpg: image must be a complete image file, got a damaged file (JPEG)" in first.err
    by_name = {row["input"]: row for row in rows(tmp_path)}
    assert by_name.keys() == {"a.jpg", "deep/b.png", "bad.jpg"}
    *printed, summary = map(json.loads, first.out.splitlines())
    assert {row["input"]: row for row in printed} == by_name
    made = {job.view["input"]["seed"]: job.view["output"] for job in api.predictions.values()}
    for name, result in (("a.jpg", "a_upscaled.png"), ("deep/b.png", "deep/b_upscaled.png")):
        row = by_name[name]
        assert row["model"] == f"{MODEL}:{version}"
        assert row["cost"] > 0
        assert (tmp_path / result).read_bytes() == api.files[made[row["seed"]].partition("/files/")[2]]
    assert sum(row["cost"] for row in by_name.values()) == pytest.approx(summary["cost"], abs=1e-4)
    wanted = ["a.jpg", "a_upscaled.png", "bad.jpg", "deep/b.png", "deep/b_upscaled.png", "report.jsonl"]
    assert names_below(tmp_path) == wanted

    (tmp_path / "bad.jpg").unlink()
    second = run(*words)
    assert second.status == 0, second.err
    assert json.loads(second.out.splitlines()[-1])["skipped"] == 2
    assert len(api.predictions) == 3
    everything = first.out + first.err + second.out + second.err + (tmp_path / "report.jsonl").read_text()
    assert api.token not in everything


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_pays_for_nothing_twice(
    api: ReplicateApi, version: str, tmp_path: Path, run: Callable[..., Run], sent: signal.Signals
) -> None:
    names = [f"{number}.jpg" for number in range(9)]
    write_photographs(tmp_path, names)
    words, end = [str(tmp_path), "--model", MODEL, "--concurrency", "4"], start_long(api)
    command = [sys.executable, "-m", "seesr.batch", *words, *FAST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            wait_until(lambda: len(api.predictions) == 5)
            end()
            wait_until(lambda: succeeded(api) >= 2)
            running.send_signal(sent)
            _, errors = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130, errors
    assert "upscale: interrupted; run it again to go on" in errors
    views = [job.view for job in api.predictions.values()]
    wait_until(lambda: all(view["status"] in ENDED for view in views), lambda: (errors, *map(brief, views)))
    assert len(rows(tmp_path)) == succeeded(api)
    second = run(*words)
    assert second.status == 0, second.err
    assert sorted(row["input"] for row in rows(tmp_path)) == names
    assert succeeded(api) == 9
    assert names_below(tmp_path) == sorted([*names, *(f"{number}_upscaled.png" for number in range(9)), "report.jsonl"])


def brief(view: dict[str, Any]) -> str:
    names = ("status", "created_at", "started_at", "completed_at", "logs")
    return " ".join(str(view[name])[-60:] for name in names)


def test_what_stops_a_run_is_one_sentence(
    api: ReplicateApi, version: str, tmp_path: Path, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photographs(tmp_path, ["a.jpg"])
    poor = run(tmp_path, "--model", MODEL, "--gpu", "t4", "--budget", "0.000001")
    assert poor.status == 1
    assert "upscale: the next image may cost more than is left of --budget" in poor.err
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_" + "0" * 37)
    wrong = run(tmp_path, "--model", MODEL)
    assert wrong.status == 1
    assert wrong.err.startswith("upscale: GET /v1/models/owner/seesr-turbo: HTTP 401")
    assert wrong.err.count("\n") == 1
    assert "r8_" not in wrong.out + wrong.err
    assert api.predictions == {}
    assert not (tmp_path / "a_upscaled.png").exists()
