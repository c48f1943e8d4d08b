"""--engine replicate against Replicate's API on loopback: real predictions, and every fault planted."""

import base64
import hashlib
import logging
import os
import re
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import replicate
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from replicate.prediction import Prediction

from seesr import cost, images
from seesr.batch import predictions, replicate_engine, retry
from seesr.batch.job import Job, Options, StoppedError
from seesr.batch.remote import cost_of
from seesr.batch.replicate_engine import ReplicateEngine
from seesr.batch.run import make_engine
from seesr.settings import Settings
from tests.batch.conftest import MODEL, start_long, wait_until
from tests.replicate_api import ReplicateApi, Request

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photographs. The last is too large for a data URI."""
    with Image.open(ROOT / "examples/animal.jpg") as photo:
        photo.resize((32, 24)).save(tmp_path / "a.png")
        photo.resize((24, 32)).save(tmp_path / "b.jpg")
        (more := PngInfo()).add_text("Comment", "a long story " * 25_000)
        photo.resize((24, 24)).save(tmp_path / "c.png", pnginfo=more)
    return tmp_path


def jobs_of(folder: Path, *names: str) -> list[Job]:
    (folder / "out").mkdir(exist_ok=True)
    found = []
    for path in sorted(folder / name for name in names) if names else sorted(folder.glob("*.*")):
        with path.open("rb") as file:
            size = images.read_size(file)
        output = folder / "out" / f"{path.stem}.png"
        found.append(Job(str(path), str(output), str(folder), path.stat().st_size, path.stat().st_mtime, size))
    return found


def engine_of(seed: int | None = None, **options: Any) -> ReplicateEngine:
    """Results as large as their images, to be quick."""
    given: dict[str, Any] = {"scale_factor": 1.0, "num_inference_steps": 1}
    named: dict[str, Any] = {"model": MODEL} | options
    return ReplicateEngine(
        Options([], Settings(**given, seed=seed), given | {"seed": seed}, engine="replicate", **named)
    )


def do(engine: ReplicateEngine, jobs: Iterable[Job]) -> Iterator[dict[str, Any]]:
    """The rows, as the report holds them."""
    return (dict(row) for row in engine.run(jobs))


def stop_of(**options: Any) -> str:
    with pytest.raises(StoppedError) as stopped:
        engine_of(**options)
    return str(stopped.value)


def asked(api: ReplicateApi, method: str, path: str) -> list[Request]:
    return [request for request in api.requests if request.method == method and re.fullmatch(path, request.path)]


def check_results(api: ReplicateApi, jobs: Sequence[Job], rows: Sequence[dict[str, Any]]) -> None:
    """Every job is done once, each file holds the bytes that the model made of its seed, and nothing else is left."""
    assert sorted(row["input"] for row in rows) == sorted(job.input for job in jobs)
    assert [row.get("error") for row in rows] == [None] * len(rows)
    made = {job.view["input"]["seed"]: job.view["output"] for job in api.predictions.values() if job.view["output"]}
    for row in rows:
        path = Path(row["output"])
        assert path.read_bytes() == api.files[made[row["seed"]].partition("/files/")[2]]
        with Image.open(path) as result, Image.open(row["input"]) as image:
            assert (row["width"], row["height"]) == result.size == image.size
    assert not list(Path(jobs[0].root).rglob("*.part"))
    assert not [name for name in api.files if name.startswith("uploads/")]
    assert api.leaks == []


# Without a prediction


def test_what_is_run_must_be_named_well() -> None:
    assert "needs --model OWNER/NAME or --deployment OWNER/NAME, got neither" in stop_of(model=None)
    assert "got both" in stop_of(deployment="owner/name")
    assert "--model must be OWNER/NAME or OWNER/NAME:VERSION in lower case, got 'Owner'" in stop_of(model="Owner")
    assert "--model must be" in stop_of(model="owner/name:latest")
    assert "--deployment must be OWNER/NAME in lower case, got 'name'" in stop_of(model=None, deployment="name")


def test_a_missing_client_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "replicate", None)
    with pytest.raises(StoppedError, match=r"needs Replicate's client; install it by `scripts/setup deploy` or `pip "):
        make_engine(Options([], engine="replicate", model=MODEL))
    assert "replicate" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_a_wrong_token_stops_with_a_sentence(api: ReplicateApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_" + "0" * 37)
    assert "REPLICATE_API_TOKEN is not valid: make a token at replicate.com/account/api-tokens" in stop_of()
    monkeypatch.delenv("REPLICATE_API_TOKEN")
    assert "REPLICATE_API_TOKEN is not set" in stop_of()


def test_an_unknown_model_version_or_deployment_stops_with_a_sentence(api: ReplicateApi) -> None:
    for unknown in ({"model": "owner/other"}, {"model": f"{MODEL}:{'0' * 64}"}, {"model": None, "deployment": "o/n"}):
        stopped = stop_of(**unknown)
        assert "HTTP 404" in stopped
        assert stopped.endswith("not found, or not visible to this token: check OWNER/NAME")


def test_a_model_without_an_input_that_is_asked_for_is_refused(api: ReplicateApi) -> None:
    """An older version would ignore the input in silence."""
    api.add_model("owner", "older")
    id = api.add_version("owner", "older")
    latest = api.models["owner/older"]["latest_version"]
    latest["openapi_schema"] = {"components": {"schemas": {"Input": {"properties": {"images": {}, "seed": {}}}}}}
    stopped = stop_of(model="owner/older")
    missing = "image, scale_factor, num_inference_steps, output_format"
    assert f"owner/older must be a model of this project, and version {id[:12]} has no input {missing}: " in stopped


def test_without_a_network_the_run_does_not_start(api: ReplicateApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(replicate_engine, "FIRST_PATIENCE", 0.1)
    assert stop_of().startswith("no connection to Replicate ([Errno 111] Connection refused): check the network")
    monkeypatch.setenv("REPLICATE_BASE_URL", "api.replicate.com")
    monkeypatch.setattr(replicate_engine, "FIRST_PATIENCE", 600)
    assert "no connection to Replicate (Request URL is missing" in stop_of()


def test_what_a_prediction_cost() -> None:
    """A canceled one was paid as long as it ran."""

    def cost(status: str, started_at: str | None, metrics: dict[str, float] | None) -> float:
        view: Any = {"id": "x", "model": MODEL, "version": "v", "source": "api", "input": {}, "urls": {}, "logs": ""}
        view |= {"status": status, "started_at": started_at, "metrics": metrics}
        return cost_of(Prediction(**view, output=None, error=None), price=0.1, estimate=0.25)

    begun = "2026-01-01T00:00:00Z"
    assert cost("canceled", begun, {"predict_time": 2.0}) == 0.2
    assert cost("canceled", begun, None) == 0.25
    assert cost("processing", begun, {}) == 0.25, "Replicate did not take the cancellation"
    assert cost("starting", None, None) == 0.25
    assert cost("canceled", None, None) == 0, "it never ran"


def test_a_budget_needs_a_price(api: ReplicateApi, version: str, caplog: pytest.LogCaptureFixture) -> None:
    assert "--budget needs a price, and none is known for the hardware of a model" in stop_of(budget=5.0)
    assert "none is known for auto" in stop_of(budget=5.0, gpu="auto")
    for gpu in ("t4", "gpu-t4"):
        assert engine_of(budget=5.0, gpu=gpu).price == 0.000225
    assert caplog.messages == []
    engine = engine_of()
    assert engine.cost is None
    (warning,) = caplog.messages
    assert warning.startswith(
        "The cost is not shown: it needs a price, and none is known for the hardware of a model: "
    )
    assert engine.model == f"{MODEL}:{version}" == engine_of(model=f"{MODEL}:{version}").model


def test_images_that_cannot_be_done_are_rows_and_cost_nothing(api: ReplicateApi, version: str, folder: Path) -> None:
    jobs = jobs_of(folder, "a.png", "b.jpg", "c.png")
    jobs[0] = replace(jobs[0], bytes=123_456_789)
    jobs[1] = replace(jobs[1], size=(9000, 9000))
    Path(jobs[2].input).unlink()
    rows = {Path(row["input"]).name: row for row in do(engine_of(), jobs)}
    limit = "image must have at most 100 MB for Replicate, got 123.5 MB; make it smaller"
    assert rows["a.png"]["error"] == limit
    assert "the result may have at most 67 megapixels" in rows["b.jpg"]["error"]
    assert "image must be a file that can be read, got c.png" in rows["c.png"]["error"]
    assert asked(api, "POST", ".*") == []
    assert list((folder / "out").iterdir()) == []


# With predictions


@pytest.mark.slow
def test_results_are_the_models_and_rows_tell_all(
    api: ReplicateApi, version: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    jobs, engine = jobs_of(folder), engine_of(gpu="t4")
    rows = list(do(engine, jobs))
    check_results(api, jobs, rows)
    views = {job.view["input"]["seed"]: job.view for job in api.predictions.values()}
    assert len(views) == 3, "each image draws a seed of its own"
    for row in rows:
        path, view = Path(row["input"]), views[row["seed"]]
        assert row["bytes"] == path.stat().st_size
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert row["tags"] == view["metrics"]["tags"]
        assert row["retries"] == 0
        assert row["cost"] == pytest.approx(0.000225 * view["metrics"]["predict_time"])
        assert row["seconds"] > view["metrics"]["predict_time"]
        assert view["version"] == version
        assert view["input"].keys() == {"image", "seed", "output_format", "scale_factor", "num_inference_steps"}
    assert engine.budget.spent == pytest.approx(sum(row["cost"] for row in rows))
    assert [len(asked(api, method, "/v1/files.*")) for method in ("POST", "DELETE")] == [1, 1], "only c.png is uploaded"
    assert all(request.headers["prefer"] == "respond-async" for request in asked(api, "POST", "/v1/predictions"))
    assert "httpx" in caplog.text
    assert api.token not in caplog.text + repr(rows) + repr(engine.options)


FAULTS: dict[str, Callable[[ReplicateApi], None]] = {
    "429": lambda api: api.fail_next("POST", "/v1/predictions", 429, retry_after=1),
    "500": lambda api: api.fail_next("POST", "/v1/predictions", 500),
    "503 of polling": lambda api: api.fail_next("GET", "/v1/predictions/[a-z0-9]+", 503),
    "502 of an upload": lambda api: api.fail_next("POST", "/v1/files", 502),
    "lost request": lambda api: api.break_next("POST", "/v1/predictions", "before"),
    "lost answer": lambda api: api.break_next("POST", "/v1/predictions", "answer"),
    "lost answer of polling": lambda api: api.break_next("GET", "/v1/predictions/[a-z0-9]+", "answer"),
    "lost upload": lambda api: api.break_next("POST", "/v1/files", "before"),
    "cut result": lambda api: api.break_next("GET", "/files/.+/output.png", "answer"),
    "expired result": lambda api: api.fail_next("GET", "/files/.+/output.png", 404),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 7], ids=["drawn seeds", "a given seed"])
@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_costs_a_retry_and_no_second_prediction(
    api: ReplicateApi, version: str, folder: Path, plant: Callable[[ReplicateApi], None], seed: int | None
) -> None:
    jobs = jobs_of(folder, "a.png", "c.png")
    plant(api)
    rows = list(do(engine_of(seed), jobs))
    assert sum(row["retries"] for row in rows) >= 1
    assert len(api.predictions) == 2
    if seed is None:
        check_results(api, jobs, rows)
    assert [row.get("error") for row in rows] == [None, None]


@pytest.mark.slow
def test_the_result_of_another_image_is_never_taken(api: ReplicateApi, version: str, folder: Path) -> None:
    """With one seed for all, a lost prediction is known by its image."""
    jobs = jobs_of(folder, "a.png", "b.jpg")
    for _ in jobs:
        api.break_next("POST", "/v1/predictions", "answer")
    rows = list(do(engine_of(7), jobs))
    assert len(api.predictions) == 2
    for row in rows:
        uri = f"base64,{base64.b64encode(Path(row['input']).read_bytes()).decode()}"
        (view,) = [job.view for job in api.predictions.values() if job.view["input"]["image"].endswith(uri)]
        assert Path(row["output"]).read_bytes() == api.files[view["output"].partition("/files/")[2]]


@pytest.mark.slow
def test_a_prediction_that_fails_is_a_row(api: ReplicateApi, version: str, folder: Path) -> None:
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
    jobs = jobs_of(folder, "a.png", "b.jpg")
    rows = {Path(row["input"]).name: row for row in do(engine_of(gpu="t4"), jobs)}
    check_results(api, jobs[:1], [rows["a.png"]])
    failed = rows["b.jpg"]
    assert failed.keys() == {"input", "bytes", "sha256", "error", "cost", "retries"}
    assert failed["error"].startswith("image must be a complete image file, got a damaged file (JPEG)")
    assert failed["cost"] > 0


@pytest.mark.slow
def test_inputs_that_are_refused_are_rows_and_a_wrong_token_later_stops_the_run(
    api: ReplicateApi, version: str, folder: Path
) -> None:
    api.fail_next("POST", "/v1/predictions", 422, "- input.seed: Must be less")
    (row,) = do(engine_of(), jobs_of(folder, "a.png"))
    assert "HTTP 422 (- input.seed: Must be less): correct what it names" in row["error"]
    for status, sentence in ((401, "is not valid"), (402, "the account has no credit"), (404, "not found")):
        api.fail_next("POST", "/v1/predictions", status)
        with pytest.raises(StoppedError, match=sentence):
            list(do(engine_of(), jobs_of(folder, "a.png")))


@pytest.mark.slow
def test_a_prediction_that_someone_cancels_is_a_row(api: ReplicateApi, version: str, folder: Path) -> None:
    end = start_long(api)

    def cancel() -> None:
        wait_until(lambda: len(api.predictions) == 2)
        replicate.Client(api.token, base_url=api.url).predictions.cancel(list(api.predictions)[1])

    thread = threading.Thread(target=cancel)
    thread.start()
    (row,) = do(engine_of(), jobs_of(folder, "a.png"))
    thread.join()
    end()
    assert re.fullmatch("prediction [0-9a-f]+ was canceled: run this again", row["error"])


@pytest.mark.slow
def test_a_result_that_is_gone_is_a_row(api: ReplicateApi, version: str, folder: Path) -> None:
    for _ in range(3):
        api.fail_next("GET", "/files/.+/output.png", 404)
    (row,) = do(engine_of(gpu="t4"), jobs_of(folder, "a.png"))
    assert "cannot be downloaded (HTTP 404); it is kept for an hour only: run this again" in row["error"]
    assert row["cost"] > 0
    assert list((folder / "out").iterdir()) == []


@pytest.mark.slow
def test_a_result_that_cannot_be_written_stops_the_run(api: ReplicateApi, version: str, folder: Path) -> None:
    jobs = jobs_of(folder, "a.png")
    (folder / "out").rmdir()
    with pytest.raises(StoppedError, match=r"a\.png cannot be written"):
        list(do(engine_of(), jobs))


@pytest.mark.slow
def test_when_replicate_is_gone_the_run_stops(
    api: ReplicateApi, version: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "PATIENCE", 0.1)
    for _ in range(99):
        api.fail_next("POST", "/v1/predictions", 500)
    rows, running = [], do(engine_of(concurrency=(1, 2)), jobs_of(folder, "a.png", "b.jpg") * 9)
    with pytest.raises(StoppedError, match=r"2 images in a row got no answer: POST /v1/predictions: HTTP 500"):
        rows.extend(running)
    assert 2 <= len(rows) <= 3
    assert api.predictions == {}


@pytest.mark.slow
def test_a_budget_stops_before_it_is_passed_and_the_rest_is_done_later(
    api: ReplicateApi, version: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = replace(cost.CARDS["t4"], flops=1e18, bandwidth=1e18, launch=1e-9)  # as fast as this CPU with this bundle
    monkeypatch.setitem(cost.CARDS, "t4", fast)
    (job,) = jobs_of(folder, "a.png")
    jobs = [replace(job, output=f"{job.output}.{number}.png") for number in range(12)]
    rows = list(do(engine_of(gpu="t4"), jobs[:3]))
    engine = engine_of(gpu="t4", budget=2.5 * min(row["cost"] for row in rows), concurrency=(1, 1))
    with pytest.raises(StoppedError, match="the next image may cost more than is left of --budget") as stopped:
        rows.extend(do(engine, jobs[3:]))
    assert 3 < len(rows) < 12
    assert f"(${engine.budget.spent:.4f} spent)" in str(stopped.value)
    done = {row.get("output") for row in rows}
    rows += do(engine_of(gpu="t4", budget=1.0), [job for job in jobs if job.output not in done])
    check_results(api, jobs, rows)


@pytest.mark.slow
def test_a_deployment_runs_its_release_at_the_price_of_its_hardware(
    api: ReplicateApi, version: str, folder: Path
) -> None:
    client = replicate.Client(api.token, base_url=api.url)
    more: Any = {"hardware": "gpu-l40s", "min_instances": 0, "max_instances": 1}
    client.deployments.create(name="batch", model=MODEL, version=version, **more)
    jobs, engine = jobs_of(folder, "a.png"), engine_of(model=None, deployment="owner/batch", budget=1.0)
    rows = list(do(engine, jobs))
    check_results(api, jobs, rows)
    assert engine.model == f"{MODEL}:{version}"
    assert engine.price == 0.000975
    assert len(asked(api, "POST", "/v1/deployments/owner/batch/predictions")) == 1
    # A release in the middle of a run: what is in flight is not what the report would say.
    engine = engine_of(model=None, deployment="owner/batch")
    client.deployments.update("owner", "batch", version=api.add_version(*MODEL.split("/")))
    end = start_long(api)  # else this small image may succeed before it is cancelled
    with pytest.raises(StoppedError, match=f"owner/batch now runs version [0-9a-f]+, not {version}: run this again"):
        list(do(engine, jobs))
    end()
    view = list(api.predictions.values())[-1].view
    assert view["status"] == "canceled"
    assert (engine.budget.spent > 0) == (view["started_at"] is not None), "it is paid if it ran"


@pytest.mark.slow
def test_closing_cancels_what_runs(api: ReplicateApi, version: str, folder: Path) -> None:
    end = start_long(api)
    engine = engine_of(concurrency=(1, 3), gpu="t4")
    running = engine.run(jobs_of(folder))
    thread = threading.Thread(target=lambda: (wait_until(lambda: len(api.predictions) == 4), end()))
    thread.start()
    next(running)
    running.close()
    thread.join()
    statuses = [job.view["status"] for job in list(api.predictions.values())[1:]]
    assert sorted(statuses)[:2] != ["succeeded", "succeeded"]
    assert "starting" not in statuses
    assert "processing" not in statuses
    views = [job.view for job in list(api.predictions.values())[1:]]
    known = sum(view.get("metrics", {}).get("predict_time", 0) for view in views)
    assert engine.budget.spent >= 0.99 * 0.000225 * known, "what is paid counts, whether it gave a row or not"
    assert not [name for name in api.files if name.startswith("uploads/")]
    assert [thread for thread in threading.enumerate() if thread.name.startswith("replicate")] == []


@pytest.mark.slow
def test_an_interrupt_cancels_what_runs_and_the_next_run_does_the_rest(
    api: ReplicateApi, version: str, folder: Path
) -> None:
    jobs, rows, end = jobs_of(folder), [], start_long(api)

    def interrupt() -> None:
        wait_until(lambda: len(api.predictions) == 4)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    engine = engine_of(gpu="t4")
    with pytest.raises(KeyboardInterrupt):
        rows.extend(do(engine, jobs))
    thread.join()
    assert rows == []
    assert engine.cost == 0, "what waited was never run"
    assert {job.view["status"] for job in list(api.predictions.values())[1:]} == {"canceled"}
    end()
    rows.extend(do(engine_of(), jobs))
    check_results(api, jobs, rows)


@pytest.mark.slow
def test_a_prediction_whose_answer_was_lost_is_canceled_too(
    api: ReplicateApi, version: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = start_long(api)
    monkeypatch.setattr(retry, "SHORTEST", 60)
    api.break_next("POST", "/v1/predictions", "answer")

    def interrupt() -> None:
        wait_until(lambda: len(api.predictions) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(do(engine_of(), jobs_of(folder, "a.png")))
    thread.join()
    end()
    wait_until(lambda: list(api.predictions.values())[1].view["status"] == "canceled")
