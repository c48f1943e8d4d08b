"""What tests of scripts/upscale share: the log as it was, and Replicate's API on loopback with one model."""

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import replicate

from seesr.batch import retry
from seesr.batch.report import Report
from tests.replicate_api import ReplicateApi

ROOT = Path(__file__).resolve().parents[2]
MODEL = "owner/seesr-turbo"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command sets up the log of the whole process."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture(scope="session")
def replicate_server() -> Iterator[ReplicateApi]:
    with ReplicateApi() as running:
        running.add_model(*MODEL.split("/"))
        yield running


@pytest.fixture
def api(replicate_server: ReplicateApi, monkeypatch: pytest.MonkeyPatch) -> ReplicateApi:
    """The server as if it were new, and an environment that leads to it."""
    replicate_server.clear()
    for name, value in (replicate_server.env | {"REPLICATE_POLL_INTERVAL": "0.02"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retry, "SHORTEST", 0.02)
    return replicate_server


@pytest.fixture
def version(api: ReplicateApi) -> str:
    """The id of the model's version."""
    latest = api.models[MODEL]["latest_version"]
    return latest["id"] if latest else api.add_version(*MODEL.split("/"))


def start_long(api: ReplicateApi) -> Callable[[], None]:
    """Keep the model busy, so that what comes later waits. Returns what ends that."""
    url = api.serve("long.jpg", (ROOT / "examples/animal.jpg").read_bytes())
    client, version = replicate.Client(api.token, base_url=api.url), api.models[MODEL]["latest_version"]["id"]
    long = client.predictions.create(version=version, input={"image": url, "scale_factor": 8})
    return long.cancel


@contextmanager
def another_run(path: Path, roots: Sequence[str] = ()) -> Iterator[int | None]:
    """A process that holds this report: its number."""
    fork = multiprocessing.get_context("fork")
    ready, end = fork.Event(), fork.Event()
    process = fork.Process(target=_hold, args=[path, roots, ready, end])
    process.start()
    assert ready.wait(30)
    yield process.pid
    end.set()
    process.join()


def _hold(path: Path, roots: Sequence[str], ready: Any, end: Any) -> None:
    with Report(path, roots):
        ready.set()
        end.wait(30)


def wait_until(holds: Callable[[], object], told: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, told()
        time.sleep(0.01)
