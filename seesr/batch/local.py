"""The engine of this machine: one model, and threads that read and write while it computes."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from seesr.batch import work
from seesr.batch.job import CanceledError, Job, Options, Row, bundle_id

if TYPE_CHECKING:
    from seesr.pipeline import Result, SeeSR

P = ParamSpec("P")
T = TypeVar("T")
READERS, WRITERS = 2, 2
AHEAD = 32.0  # megapixels of inputs that are read ahead: at most 0.4 GB, with 16 bits and alpha
MOST_AHEAD = 64  # images that are read ahead
UNKNOWN = 12.0  # megapixels that an image of unknown size counts as
BEHIND = 64.0  # megapixels of results that wait to be written: at most 0.6 GB with 16 bits


class LocalEngine:
    """See seesr.batch.job.Engine. `overlap` False reads, computes and writes one after the other.

    `seesr` is the bundle's model where it is loaded already.
    """

    cost = None

    def __init__(self, options: Options, overlap: bool = True, seesr: "SeeSR | None" = None) -> None:
        self._options, self._overlap, self._seesr = options, overlap, seesr
        self._bundle = work.choose_bundle(options.bundle)
        self.model = bundle_id(self._bundle)
        self._rows: queue.SimpleQueue[Row | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._behind = Allowance(BEHIND if overlap else 0)

    def run(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """See Engine. After an interrupt, or an error, it gives the rows of files that are whole, then raises it."""
        thread = threading.Thread(target=self._work, args=[jobs], name="upscale")
        thread.start()
        stopped: BaseException | None = None
        try:
            while True:
                try:
                    row = self._rows.get()
                except (KeyboardInterrupt, SystemExit) as error:
                    row = error
                if row is None:
                    break
                if isinstance(row, BaseException):
                    stopped = stopped or row
                    self._stop()
                else:
                    yield row
        finally:
            self._stop()
            thread.join()
        if stopped is not None:
            raise stopped

    def _work(self, jobs: Iterable[Job]) -> None:
        """What the thread of the model does. The queue gets rows, errors, and None at the end."""
        readers, writers = ThreadPoolExecutor(READERS), ThreadPoolExecutor(WRITERS)
        try:
            self._upscale_all(self._read_ahead(jobs, readers), writers)
        except CanceledError:
            pass
        except BaseException as error:  # goes to the main thread
            self._rows.put(error)
        readers.shutdown(cancel_futures=True)
        writers.shutdown()
        self._rows.put(None)

    def _upscale_all(self, reading: "Iterator[tuple[Job, Future[work.Opened]]]", writers: ThreadPoolExecutor) -> None:
        seesr, settings = self._seesr, self._options.settings
        for job, future in reading:
            try:
                opened = future.result()
                seesr = seesr or work.load(self._bundle, self._options.gpu)
                result = work.upscale(seesr, opened, settings, self._check)
            except ValueError as error:
                self._rows.put(work.failed(job, error))
                if self._options.fail_fast:
                    return
                continue
            megapixels = result.image.width * result.image.height / 1e6
            self._behind.take(megapixels)
            self._check()
            self._start(writers, self._write, job, opened, result, megapixels)

    def _read_ahead(
        self, jobs: Iterable[Job], readers: ThreadPoolExecutor
    ) -> "Iterator[tuple[Job, Future[work.Opened]]]":
        """Each job with its image, which is being read; at most AHEAD megapixels of them, or one, are held."""
        waiting: deque[tuple[Job, Future[work.Opened], float]] = deque()
        limit, held = (AHEAD if self._overlap else 0), 0.0
        for job in jobs:
            megapixels = job.size[0] * job.size[1] / 1e6 if job.size else UNKNOWN
            while waiting and (held + megapixels > limit or len(waiting) == MOST_AHEAD):
                first, future, size = waiting.popleft()
                yield first, future
                held -= size
            self._check()
            waiting.append((job, self._start(readers, work.read, job, self._options.settings), megapixels))
            held += megapixels
        yield from ((job, future) for job, future, _ in waiting)

    def _write(self, job: Job, opened: work.Opened, result: "Result", megapixels: float) -> None:
        try:
            self._rows.put(work.write(job, opened, result, self._options.settings, self._check))
        except CanceledError:
            pass
        except ValueError as error:
            self._rows.put(work.failed(job, error))
        except BaseException as error:  # goes to the main thread
            self._rows.put(error)
        finally:
            self._behind.give_back(megapixels)

    def _start(
        self, pool: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **more: P.kwargs
    ) -> "Future[T]":
        """Call a function by a thread of the pool; at once where nothing overlaps."""
        if self._overlap:
            return pool.submit(function, *args, **more)
        future: Future[T] = Future()
        try:
            future.set_result(function(*args, **more))
        except Exception as error:  # as a thread of a pool does
            future.set_exception(error)
        return future

    def _check(self, *_: object) -> None:
        if self._stopped.is_set():
            raise CanceledError

    def _stop(self) -> None:
        self._stopped.set()
        self._behind.open()


class Allowance:
    """Holds back who takes more than `limit` in all; who takes while nothing is taken gets any amount."""

    def __init__(self, limit: float) -> None:
        self._limit, self._taken = limit, 0.0
        self._changed = threading.Condition()

    def take(self, amount: float) -> None:
        """Waits until so much is left, or `open` was called."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + amount <= self._limit)
            self._taken += amount

    def give_back(self, amount: float) -> None:
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()

    def open(self) -> None:
        """From now on nobody waits."""
        with self._changed:
            self._limit = float("inf")
            self._changed.notify_all()
