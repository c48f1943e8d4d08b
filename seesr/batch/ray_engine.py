"""Jobs by Ray Data: on all GPUs of this machine, or on a cluster."""

import logging
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

from seesr.batch import ray_bundle, ray_cluster, work
from seesr.batch.job import Job, Options, Row, StoppedError, bundle_id

if TYPE_CHECKING:
    from seesr.batch.ray_stream import Stream

log = logging.getLogger(__name__)


class RayEngine:
    """An Engine whose workers are actors of Ray, each with the model, on any number of nodes."""

    patience = 600.0
    """Seconds without a worker that makes progress, after which the run stops."""

    first_patience = 3600.0
    """The same until the first worker of a cluster starts: nodes may have to boot and to be set up."""

    quiet = 60.0
    """Seconds without a worker, after which a warning tells what is waited for."""

    most_at_once = 50_000
    """Jobs of a dataset. Ray Data keeps 2 kB on each for as long as it runs; then workers start anew."""

    cost = None

    grace = 15.0
    """Seconds that images under way get where the run is stopped."""

    def __init__(self, options: Options) -> None:
        self.options, self.bundle = options, work.choose_bundle(options.bundle)
        self.model = bundle_id(self.bundle)

    def run(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """As Engine.run. Ray is started, or connected to, with the first job.

        An interrupt while this waits stops the workers; rows of files that are whole are still given, then it rises.
        """
        source = iter(jobs)
        first = next(source, None)
        if first is None:
            return
        streams: list[Stream] = []
        try:
            with ray_cluster.connect(self.options.ray_address, ray_bundle.PACKAGES):
                while first is not None:
                    stream, part = self._start(chain([first], islice(source, self.most_at_once - 1)))
                    streams.append(stream)
                    try:
                        yield from self._rows(stream, part)
                    except (KeyboardInterrupt, SystemExit):
                        yield from stream.rest(self.grace)
                        raise
                    finally:
                        stream.stop(self.grace)
                    first = next(source, None)
        finally:
            for stream in streams:
                stream.tidy()

    def _start(self, source: Iterator[Job]) -> tuple["Stream", Iterator[Job]]:
        """Start workers, no more than there are jobs."""
        import ray  # imported here: it reads the environment that `connect` sets
        import torch

        from seesr.batch.ray_stream import Stream
        from seesr.batch.ray_worker import Setup

        options, threads = self.options, torch.get_num_threads()  # those of the local engine
        shared, sent = options.ray_address is not None, None
        share = ray_cluster.choose_share(options.gpu, threads, shared)
        places = ray_cluster.places(share)
        least, most = options.concurrency or (max(1, sum(places)),) * 2
        head = list(islice(source, most))
        workers = min(least, len(head)), min(most, len(head))
        if shared and (content := ray_bundle.pack(self.bundle)):
            sent = ray.put(content)
        setup = Setup(
            options.settings,
            self.bundle,
            self.model,
            options.gpu,
            share.gpus,
            threads,
            1 / max(1, *places),
            ray_bundle.code_id() if shared else None,
        )
        return Stream(setup, share, workers, sent, shared), chain(head, source)

    def _rows(self, stream: "Stream", source: Iterator[Job]) -> Iterator[Row]:
        """Keep the workers busy until all is done, or until the first error with --fail-fast, which ends `source`."""
        more, warned = True, False
        until_begun = self.first_patience if self.options.ray_address else self.patience
        while more or stream.waiting:
            while more and stream.room > 0:
                jobs = list(islice(source, stream.room))
                stream.put(jobs)
                more = bool(jobs)
            if not more:
                stream.close()
            for row in stream.rows(1.0):
                yield row
                if self.options.fail_fast and "error" in row:
                    yield from stream.rest(self.grace)
                    return
            silence, begun = stream.silence()
            if silence > (self.patience if begun else until_begun):
                raise StoppedError(stream.why_silent(silence))
            if silence > self.quiet and not begun and not warned:
                log.warning("Waiting for a worker: %s.", stream.why_silent(silence))
                warned = True
