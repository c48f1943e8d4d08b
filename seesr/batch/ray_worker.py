"""A worker of Ray Data: it loads the model once, then reads, upscales and writes one image after another."""

import ctypes
import json
import os
import platform
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray

from seesr.batch import files, ray_bundle, work
from seesr.batch.job import CanceledError, Job, Row, StoppedError
from seesr.batch.ray_cluster import describe
from seesr.batch.ray_feed import Batch
from seesr.settings import Settings

if TYPE_CHECKING:
    from seesr.pipeline import Result, SeeSR

ATTEMPTS = 3
"""How often an image is begun whose worker dies each time."""

CALLS = 2
"""Images of a worker at a time: one is read or written while the other is upscaled."""

PR_SET_PDEATHSIG = 1

SECONDS_BETWEEN_SIGNS = 1.0


@dataclass(frozen=True)
class Setup:
    """What a worker needs beside jobs."""

    settings: Settings
    bundle: Path
    model: str
    """The bundle's bundle_id."""
    gpu: str | None
    """As SeeSR.load takes it."""
    gpus: int
    threads: int
    """Of torch on the CPU. Results are the same bytes for the same number only."""
    share: float
    """Of the node's memory that a worker without a GPU may use."""
    code: str | None = None
    """The code's code_id, or None where workers run on the machine of the command and nothing can differ."""


class Worker:
    """Called by Ray Data with a batch of one job, in CALLS threads. Answers {"index", "answer"}, the second as JSON:

    {"row": Row}, {"stop": why the whole run cannot go on}, or {} for a job that shall not be done.
    """

    def __init__(self, setup: Setup, feed: Any, sent: "ray.ObjectRef | None" = None) -> None:
        self._setup, self._feed = setup, feed
        self._upscaling, self._last_sign = threading.Lock(), 0.0
        self._fault: str | None = None
        self._seesr: SeeSR | None = None
        _die_with_node()
        feed.sign.remote()
        try:
            self._seesr = _load(setup, sent)
        except StoppedError as error:
            self._fault = str(error)
        except Exception as error:  # Ray would start the worker again and again, and tell nobody why
            self._fault = f"the worker on {platform.node()} cannot load the model: {describe(error)}"
        feed.sign.remote()

    def __call__(self, batch: Batch) -> Batch:
        index = int(batch["index"][0])
        answer: dict[str, Any] = {}
        earlier: Any = ray.get(self._feed.begin.remote(index))
        if earlier >= 0:
            try:
                sent = json.loads(str(batch["job"][0]))
                answer = self._answer(Job(**sent["job"]), sent["mark"], earlier)
            except CanceledError:
                pass
            except StoppedError as error:
                answer = {"stop": str(error)}
            except Exception as error:  # such as a storage's own errors
                answer = {"stop": f"the worker on {platform.node()} failed: {describe(error)}"}
            finally:
                self._feed.end.remote(index)
        return {"index": [index], "answer": [json.dumps(answer)]}

    def _answer(self, job: Job, mark: str, earlier: int) -> dict[str, Any]:
        if self._seesr is None:
            raise StoppedError(self._fault or "")
        if earlier >= ATTEMPTS:
            text = f"its worker died {ATTEMPTS} times, perhaps for lack of memory; try a smaller scale_factor"
            return {"row": work.failed(job, ValueError(text))}
        if self._setup.code is not None:
            check_storage(job, mark)
        try:
            row = self._row(job, self._seesr)
        except ValueError as error:
            row = work.failed(job, error)
        if earlier:
            row["retries"] = row.get("retries", 0) + earlier
        return {"row": row}

    def _row(self, job: Job, seesr: "SeeSR") -> Row:
        settings = self._setup.settings
        opened = work.read(job, settings)
        with self._upscaling:
            result = self._upscale(opened, seesr)
        return work.write(job, opened, result, settings)

    def _upscale(self, opened: work.Opened, seesr: "SeeSR") -> "Result":
        import torch

        torch.set_num_threads(self._setup.threads)  # for this thread
        try:
            return work.upscale(seesr, opened, self._setup.settings, self._tell_progress)
        except StoppedError:  # the GPU stopped: only a new process can go on
            os._exit(1)

    def _tell_progress(self, done: float, stage: str) -> None:
        if time.monotonic() - self._last_sign > SECONDS_BETWEEN_SIGNS:
            self._last_sign = time.monotonic()
            if not ray.get(self._feed.sign.remote()):
                raise CanceledError


def _die_with_node() -> None:
    """Let the kernel kill this process when its raylet ends. Some hang when they exit, and would keep their GPU."""
    if sys.platform == "linux" and os.environ.get("RAY_RAYLET_PID") == str(os.getppid()):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _load(setup: Setup, sent: "ray.ObjectRef | None") -> "SeeSR":
    bundle = setup.bundle
    if setup.code is not None:
        ray_bundle.check_code(setup.code)
        bundle = ray_bundle.find(
            bundle, setup.model, None if sent is None else lambda: cast(ray_bundle.Files, ray.get(sent))
        )
    import torch

    from seesr import hardware

    if setup.gpus and hardware.device() == "cpu":
        text = f"Ray gave the worker on {platform.node()} a GPU that torch cannot use"
        raise StoppedError(f"{text}; install there a torch for its CUDA version, and check nvidia-smi")
    torch.set_num_threads(setup.threads)
    seesr = work.load(bundle, setup.gpu)
    if not setup.gpus:
        seesr.memory_limit = int(hardware.free_memory("cpu") * setup.share)
    return seesr


def check_storage(job: Job, mark: str) -> None:
    """Raise StoppedError unless this worker has what the command has, and knows the job's kinds of addresses.

    That is the folder that holds `mark`, and an input of the same size and time.
    """
    here = f"the worker on {platform.node()} does not see"
    if mark and not os.path.exists(mark):
        raise StoppedError(
            f"{here} {job.root} as the command does; name a folder by --out that all nodes share, or an address"
        )
    if not files.is_address(job.input) and not _is_same(job):
        raise StoppedError(
            f"{here} the same {job.input} as the command; put inputs on storage that all nodes share, or at an address "
            "(if it was changed just now, run again)"
        )
    try:
        for name in (job.input, job.output):
            if files.is_address(name):
                files.file_system(name)
    except ValueError as error:
        raise StoppedError(f"the worker on {platform.node()} cannot use it: {error}") from None


def _is_same(job: Job) -> bool:
    """Whether a local input is as the plan saw it."""
    try:
        found = files.stat(job.input)
    except OSError:
        return job.bytes == 0  # the command could not read it either
    return found.bytes == job.bytes and job.modified in (None, found.modified)
