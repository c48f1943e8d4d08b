"""Jobs on their way to the workers of Ray: an actor beside the command, from which a task of Ray Data draws them."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray

Batch = dict[str, Any]
"""Columns by name, as Ray Data passes them."""


class Feed:
    """Jobs by index, from the command to `draw`, and what workers tell about them. Only `take` waits.

    It holds only the jobs under way, so a run of a million needs no more memory than one of a hundred.
    """

    def __init__(self) -> None:
        self._jobs: dict[int, str] = {}
        self._attempts: Counter[int] = Counter()
        self._working: set[int] = set()
        self._number = 0
        self._closed = self._stopped = False
        self._changed = asyncio.Event()
        self._last_sign, self._has_begun = time.monotonic(), False

    async def put(self, jobs: list[str], done: list[int]) -> None:
        """Jobs take the next indices; those in `done` are forgotten."""
        self._jobs.update(enumerate(jobs, self._number))
        self._number += len(jobs)
        for index in done:
            self._jobs.pop(index, None)
            self._attempts.pop(index, None)
        self._changed.set()

    async def close(self, stop: bool = False) -> None:
        """No job comes any more. `stop`: and those under way are given up."""
        self._closed, self._stopped = True, self._stopped or stop
        self._changed.set()

    async def take(self, first: int) -> list[str]:
        """The jobs from index `first` on, once there are some. None at the end."""
        while first >= self._number and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        return [self._jobs.get(index, "") for index in range(first, self._number)]

    async def begin(self, index: int) -> int:
        """A worker begins a job: how often it was begun before, or -1 where it shall not be done."""
        await self.sign()
        if self._stopped or index not in self._jobs:
            return -1
        self._working.add(index)
        self._attempts[index] += 1
        return self._attempts[index] - 1

    async def end(self, index: int) -> None:
        """A worker is through with a job."""
        await self.sign()
        self._working.discard(index)

    async def sign(self) -> bool:
        """A worker starts or makes progress. Whether it shall go on."""
        self._last_sign, self._has_begun = time.monotonic(), True
        return not self._stopped

    async def silence(self) -> tuple[float, bool]:
        """Seconds since a worker made progress, and whether one has ever started."""
        return time.monotonic() - self._last_sign, self._has_begun

    async def is_at_work(self) -> bool:
        """Whether a worker has begun a job and not ended it."""
        return bool(self._working)


def draw(_: Batch, feed: Any) -> Iterator[Batch]:
    """A row for each job of a Feed, as they come. Runs as one task of Ray Data, which passes rows on at once."""
    index = 0
    while jobs := ray.get(feed.take.remote(index)):
        for job in jobs:
            yield {"index": [index], "job": [job]}
            index += 1
