"""A dataset of Ray Data under way: jobs go in one by one, rows come out as soon as their files are whole."""

import contextlib
import json
import os
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from seesr.batch import files, ray_cluster
from seesr.batch.job import Job, Row, StoppedError
from seesr.batch.ray_feed import Feed, draw
from seesr.batch.ray_worker import CALLS, Setup, Worker

QUEUE = 8
"""Jobs under way for each worker: enough to go on while the command reads the headers of further images."""

_RESUME = "run the same command again: what is done is skipped"


class Stream:
    """Workers at work. `workers` are the least and the most; `share` is what each takes of a node.

    `shared`: they may be on other machines, and must see the folder that the report is in.
    """

    def __init__(
        self, setup: Setup, share: ray_cluster.Share, workers: tuple[int, int], sent: Any = None, shared: bool = False
    ) -> None:
        self.waiting: dict[int, Job] = {}
        self._share, self._limit, self._shared = share, QUEUE * workers[1], shared
        self._number, self._closed = 0, False
        self._done: list[int] = []
        self._found: deque[Row] = deque()
        self._answers: queue.SimpleQueue[tuple[int, dict[str, Any]] | BaseException | None] = queue.SimpleQueue()
        self._marks: dict[str, str] = {}
        self._folders: set[str] = set()
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        self._feed: Any = ray.remote(Feed).options(num_cpus=0, label_selector=here).remote()
        dataset = _dataset(self._feed, here, setup, share, workers, sent)
        self._thread = threading.Thread(target=self._pump, args=[dataset], daemon=True)
        self._thread.start()

    @property
    def room(self) -> int:
        """How many jobs can be put now."""
        return 0 if self._closed else self._limit - len(self.waiting)

    def put(self, jobs: Sequence[Job]) -> None:
        """Give jobs to the workers."""
        payloads = [json.dumps({"job": asdict(job), "mark": self._mark(job.root)}) for job in jobs]
        for job in jobs:
            self.waiting[self._number] = job
            self._number += 1
        self._feed.put.remote(payloads, [])

    def close(self) -> None:
        """No job comes any more."""
        if not self._closed:
            self._closed = True
            self._feed.close.remote()

    def rows(self, seconds: float) -> Iterator[Row]:
        """The rows that are there, after waiting for one that long. Raises StoppedError where the run cannot go on."""
        with contextlib.suppress(queue.Empty):
            self._take(self._answers.get(timeout=seconds))
            while True:
                self._take(self._answers.get_nowait())
        if self._done:
            self._feed.put.remote([], self._done)
            self._done = []
        while self._found:
            yield self._found.popleft()

    def silence(self) -> tuple[float, bool]:
        """As Feed.silence. Raises StoppedError where Ray is gone."""
        try:
            return ray.get(self._feed.silence.remote(), timeout=60)
        except RayError as error:
            raise StoppedError(f"Ray does not answer ({ray_cluster.describe(error)}); {_RESUME}") from None

    def why_silent(self, seconds: float) -> str:
        """A sentence for the user after that many seconds of silence."""
        nodes = ray_cluster.nodes()
        cpus, gpus = (sum(int(node.get(name, 0)) for node in nodes) for name in ("CPU", "GPU"))
        has = f"the cluster has {cpus} CPUs and {gpus} GPUs on {len(nodes)} nodes"
        advice = "add nodes, wait for other jobs there, or ask for less by --concurrency or OMP_NUM_THREADS"
        return f"no worker made progress for {seconds:.0f} s; each takes {self._share}, {has}: {advice}"

    def rest(self, seconds: float) -> Iterator[Row]:
        """Stop, and give the rows of files that become whole within that time. Workers give up what they compute."""
        end, self._closed = time.monotonic() + seconds, True
        with contextlib.suppress(RayError):
            self._feed.close.remote(stop=True)
        while time.monotonic() < end:
            at_work = self._is_at_work()
            with contextlib.suppress(StoppedError):
                yield from self.rows(0.2)
            if not at_work and self._answers.empty():
                break

    def stop(self, seconds: float) -> None:
        """As `rest`, where nobody takes rows any more; then a moment for Ray Data to end before Ray does."""
        for _ in self.rest(seconds):
            pass
        self._thread.join(1.0)

    def tidy(self) -> None:
        """Remove what workers left that died or were stopped. For the time when there are none any more."""
        for mark in self._marks.values():
            Path(mark).unlink(missing_ok=True)
        for folder in self._folders | {os.path.dirname(job.output) for job in self.waiting.values()}:
            files.remove_leftovers(folder)

    def _is_at_work(self) -> bool:
        try:
            return ray.get(self._feed.is_at_work.remote(), timeout=10)
        except RayError:
            return False

    def _pump(self, dataset: Any) -> None:
        """In a thread: pass on what the dataset gives, then how it ended."""
        try:
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
                for index, answer in zip(batch["index"], batch["answer"], strict=True):
                    self._answers.put((int(index), json.loads(str(answer))))
            self._answers.put(None)
        except BaseException as error:  # whatever it is: the run waits for it in the main thread
            self._answers.put(error)

    def _take(self, answer: tuple[int, dict[str, Any]] | BaseException | None) -> None:
        if isinstance(answer, BaseException):
            raise StoppedError(f"Ray stopped the run ({ray_cluster.describe(answer)}); {_RESUME}") from None
        if answer is None:
            if self.waiting:
                raise StoppedError(f"Ray ended with {len(self.waiting)} images not done; {_RESUME}")
            return
        index, content = answer
        if "stop" in content:
            raise StoppedError(content["stop"])
        if "row" in content and index in self.waiting:
            job, row = self.waiting.pop(index), content["row"]
            self._done.append(index)
            self._found.append(row)
            if row.get("retries"):
                self._folders.add(os.path.dirname(job.output))

    def _mark(self, root: str) -> str:
        """An empty file in `root`, by which workers on other nodes see that they have the same folder."""
        if not self._shared or files.is_address(root):
            return ""
        if root not in self._marks:
            handle, self._marks[root] = tempfile.mkstemp(files.PART_END, files.PART_START, root)
            os.close(handle)
        return self._marks[root]


def _dataset(
    feed: Any, here: dict[str, str], setup: Setup, share: ray_cluster.Share, workers: tuple[int, int], sent: Any
) -> Any:
    """The dataset: a task beside the command draws jobs, a pool of actors answers each. Every row is a block."""
    data = ray_cluster.quiet_data()
    pool = data.ActorPoolStrategy(
        min_size=workers[0],
        max_size=workers[1],
        max_tasks_in_flight_per_actor=CALLS + 1,
        max_concurrent_calls_per_actor=CALLS,
        enable_true_multi_threading=True,
    )
    drawn = data.from_items([0], override_num_blocks=1).map_batches(
        draw, fn_args=(feed,), batch_size=1, num_cpus=0, label_selector=here
    )
    return drawn.map_batches(
        Worker,
        fn_constructor_args=(setup, feed, sent),
        batch_size=1,
        batch_format="numpy",
        compute=pool,
        num_cpus=share.cpus,
        num_gpus=share.gpus,
    )
