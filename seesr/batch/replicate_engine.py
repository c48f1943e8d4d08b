"""Images by a model on Replicate: several predictions in flight, each paid once, within a budget."""

import logging
import re
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import replicate
from replicate.version import Version, Versions

from seesr.batch.api import NAME, connect, latest_version, price
from seesr.batch.budget import Budget
from seesr.batch.job import CanceledError, Job, Options, Row, StoppedError
from seesr.batch.predictions import Predictions
from seesr.batch.remote import RemoteImage
from seesr.batch.retry import CheckedTransport, Retry

log = logging.getLogger(__name__)
IN_FLIGHT = 8
FIRST_PATIENCE = 20.0  # seconds of trying to reach Replicate at all

Running = dict[Future[Row], tuple[RemoteImage, float]]
"""What each image in flight runs for, and what it was estimated to cost."""


class ReplicateEngine:
    """Does jobs by `options.model` or `options.deployment`.

    Attributes: `model`, OWNER/NAME:VERSION; `budget`, with the dollars spent.
    """

    def __init__(self, options: Options) -> None:
        """Check names, token and budget, and ask for the version. Raises StoppedError."""
        check_names(options.model, options.deployment)
        self.options, settings = options, options.settings
        self.in_flight = options.concurrency[1] if options.concurrency else IN_FLIGHT
        given = {name: value for name, value in options.given.items() if value is not None}
        self.inputs: dict[str, Any] = given | {"output_format": settings.output_format}
        try:
            client = connect(CheckedTransport(), {"Prefer": "respond-async"})
            name, version, hardware = resolve(client, options)
            check_inputs(name, version, ["image", "seed", *self.inputs])
        except RuntimeError as error:
            raise StoppedError(str(error)) from None
        self.model, self.price = f"{name}:{version.id}", price(hardware)
        if not self.price:
            unknown = f"needs a price, and none is known for {hardware or 'the hardware of a model'}: name the hardware"
            unknown += " by --gpu (t4, l40s, a100-large, h100), as the model's page shows it"
            if options.budget is not None:
                raise StoppedError(f"--budget {unknown}")
            log.warning("The cost is not shown: it %s.", unknown)
        self.budget = Budget(options.budget, self.price, hardware.removeprefix("gpu-"), settings)
        own_seeds = settings.seed is None
        self.predictions = Predictions(client, version.id, options.deployment, self.in_flight, own_seeds)
        self._unanswered = 0

    @property
    def cost(self) -> float | None:
        """See Engine. Without setup and idle time, which private models and deployments pay too."""
        return self.budget.spent if self.price else None

    def run(self, jobs: Iterable[Job]) -> Generator[Row, None, None]:
        """See Engine. An interrupt cancels the predictions that run and passes on after the rows of the others."""
        running: Running = {}
        pool = ThreadPoolExecutor(self.in_flight, "replicate")
        try:
            yield from self._run(jobs, running, pool)
        except (KeyboardInterrupt, SystemExit, StoppedError):
            self.predictions.stop.set()
            while running:
                yield from self._ended(running)
            raise
        finally:
            self.predictions.stop.set()
            pool.shutdown()
            for image, _ in running.values():
                self.budget.pay(image.dollars)
            self.predictions.results.close()

    def _run(self, jobs: Iterable[Job], running: Running, pool: ThreadPoolExecutor) -> Iterator[Row]:
        for job in jobs:
            estimate = self.budget.estimate(job)
            while len(running) == self.in_flight or (running and not self._allows(running, estimate)):
                yield from self._ended(running)
            if not self._allows(running, estimate):
                raise StoppedError(self.budget.used_up())
            cost = self.price, self.budget.correction * estimate
            image = RemoteImage(job, self.predictions, self.options.settings, self.inputs, *cost)
            running[pool.submit(image.run)] = image, estimate
        while running:
            yield from self._ended(running)

    def _allows(self, running: Running, estimate: float) -> bool:
        return self.budget.allows(estimate + sum(other for _, other in running.values()))

    def _ended(self, running: Running) -> Iterator[Row]:
        """Wait for images. StoppedError if the run can't go on, and not again once it is stopped."""
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            image, estimate = running.pop(future)
            try:
                row = future.result()
            except CanceledError:
                continue
            except StoppedError:
                if self.predictions.stop.is_set():
                    continue
                raise
            finally:
                self.budget.pay(image.dollars, estimate if image.succeeded else 0)
            yield row
            self._unanswered = self._unanswered + 1 if image.unanswered else 0
            if self._unanswered >= self.in_flight and not self.predictions.stop.is_set():
                raise StoppedError(f"{self._unanswered} images in a row got no answer: {row.get('error')}")


def check_names(model: str | None, deployment: str | None) -> None:
    """Raise StoppedError unless one of the two is given, and well."""
    if bool(model) == bool(deployment):
        came = "both" if model else "neither"
        raise StoppedError(f"--engine replicate needs --model OWNER/NAME or --deployment OWNER/NAME, got {came}")
    if model and not re.fullmatch(f"{NAME}/{NAME}(:[0-9a-f]{{64}})?", model):
        raise StoppedError(f"--model must be OWNER/NAME or OWNER/NAME:VERSION in lower case, got {model!r}")
    if deployment and not re.fullmatch(f"{NAME}/{NAME}", deployment):
        raise StoppedError(f"--deployment must be OWNER/NAME in lower case, got {deployment!r}")


def resolve(client: replicate.Client, options: Options) -> tuple[str, Version, str]:
    """OWNER/NAME and version of what will run, and its hardware: "" if not known. RuntimeError if there is none."""
    ask = Retry(threading.Event(), FIRST_PATIENCE).call
    if deployment := options.deployment:
        if (release := ask(lambda: client.deployments.get(deployment)).current_release) is None:
            raise RuntimeError(f"the deployment {deployment} has no release: run scripts/deploy deployment first")
        name, id, hardware = release.model, release.version, release.configuration.hardware
    else:
        (name, _, id), hardware = (options.model or "").partition(":"), options.gpu or ""
    version = ask(lambda: Versions(client, model=name).get(id) if id else latest_version(client, name))
    return name, version, hardware


def check_inputs(model: str, version: Version, names: Iterable[str]) -> None:
    """Raise RuntimeError unless the model has all these inputs: the server ignores others in silence."""
    known = version.openapi_schema["components"]["schemas"]["Input"]["properties"]
    if missing := [name for name in names if name not in known]:
        raise RuntimeError(
            f"{model} must be a model of this project, and version {version.id[:12]} has no input "
            f"{', '.join(missing)}: name another, or push it again (scripts/deploy push)"
        )
