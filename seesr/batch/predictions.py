"""Predictions of one model on Replicate, by many threads. None is paid twice where that can be avoided."""

import logging
import re
import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import httpx

from seesr.batch.api import ENDED, RefusedError
from seesr.batch.job import CanceledError, StoppedError
from seesr.batch.retry import NEVER_SENT, Retry, ServiceError

if TYPE_CHECKING:
    import replicate
    from replicate.prediction import Prediction

log = logging.getLogger(__name__)
Inputs = dict[str, Any]
OnRetry = Callable[[], None]

STOPS = (401, 402, 403, 404)
"""Refusals of a new prediction that hold for every other too."""

PATIENCE = 600.0  # seconds of trying before one request is given up
LAST_PATIENCE = 10.0  # the same, for what is done while a run is stopped
LONGEST_PREDICTION = 3600.0  # seconds, waiting for a machine included


class Predictions:
    """Those of `version`, by the `deployment` OWNER/NAME if one is given, `in_flight` at a time.

    `own_seeds` says that no two images have the same seed. Setting `stop` cancels the predictions that run; `retry`
    repeats requests until then. `results` downloads: without the token, which other hosts must not see.
    """

    def __init__(
        self, client: "replicate.Client", version: str, deployment: str | None, in_flight: int, own_seeds: bool
    ) -> None:
        self.client, self.version, self.deployment = client, version, deployment
        self.in_flight, self.own_seeds = in_flight, own_seeds
        self.results = httpx.Client(timeout=httpx.Timeout(60, connect=10), follow_redirects=True)
        self.stop = threading.Event()
        self.retry, self._creating = Retry(self.stop, PATIENCE), Retry(self.stop, PATIENCE)
        self._stopping = Retry(threading.Event(), LAST_PATIENCE)
        self._known: set[str] = set()

    def finish(self, prediction: "Prediction", on_retry: OnRetry) -> None:
        """Wait until it has ended, well or not. Where an error is raised, it is canceled.

        Raises StoppedError for one of another version, ServiceError if Replicate does not answer, CanceledError when
        the run is stopped.
        """
        try:
            self._check_version(prediction)
            self._wait(prediction, on_retry)
        finally:
            if prediction.status not in ENDED:
                self._cancel(prediction)
        if prediction.status != "succeeded" and self.stop.is_set():  # it may have succeeded just before
            raise CanceledError

    def create(self, inputs: Inputs, on_retry: OnRetry) -> "Prediction":
        """A new prediction. Where an answer was lost, the one that Replicate may have made is looked for first.

        `inputs` hold an image and a seed. Raises StoppedError for a refusal that holds for all, RefusedError for one
        of these inputs, ServiceError if Replicate does not answer, CanceledError when the run is stopped.
        """
        lost = False
        by: Any = {"deployment": self.deployment} if self.deployment else {"version": self.version}

        def create() -> "Prediction":
            nonlocal lost
            if lost and (found := self._find(inputs)):
                return found
            try:
                return self.client.predictions.create(input=inputs, **by)
            except httpx.TransportError as error:
                lost = lost or not isinstance(error, NEVER_SENT)
                raise
            except RefusedError as error:
                lost = lost or error.status >= 500
                if error.status in STOPS:
                    raise StoppedError(str(error)) from None
                raise

        try:
            prediction = self._creating.call(create, on_retry)
        except CanceledError:
            if not lost or (found := self._find_at_last(inputs)) is None:
                raise
            prediction = found
        self._known.add(prediction.id)
        return prediction

    def _find(self, inputs: Inputs) -> "Prediction | None":
        """The prediction of these inputs among the newest 100, unless another image has it."""
        # Not client.predictions.list, which fails for statuses that are newer than the client. Where seeds differ, the
        # image is not compared: Replicate may show another address for it.
        names = ("seed",) if self.own_seeds else ("seed", "image")
        for found in self.client._request("GET", "/v1/predictions").json().get("results", []):
            theirs, usable = found.get("input") or {}, found.get("status") in ("starting", "processing", "succeeded")
            ours = found.get("version") == self.version and all(theirs.get(name) == inputs[name] for name in names)
            if usable and ours and found["id"] not in self._known:
                return self.client.predictions.get(found["id"])
        return None

    def _find_at_last(self, inputs: Inputs) -> "Prediction | None":
        """The same while the run is stopped: a prediction that nobody waits for must not go on."""
        try:
            return self._stopping.call(lambda: self._find(inputs))
        except (RefusedError, ServiceError) as error:
            log.warning("A prediction may have been created that goes on and costs money: %s.", error)
            return None

    def _check_version(self, prediction: "Prediction") -> None:
        version = prediction.version
        if re.fullmatch("[0-9a-f]{64}", version) and version != self.version:
            raise StoppedError(f"{self.deployment} now runs version {version}, not {self.version}: run this again")

    def _wait(self, prediction: "Prediction", on_retry: OnRetry) -> None:
        """Until it has ended, takes too long, or the run is stopped."""
        start = monotonic()
        while prediction.status not in ENDED and not self.stop.wait(self._poll_interval(monotonic() - start)):
            if monotonic() - start > LONGEST_PREDICTION:
                hours = LONGEST_PREDICTION / 3600
                log.warning("Prediction %s is canceled: still %s after %g h.", prediction.id, prediction.status, hours)
                return
            self.retry.call(prediction.reload, on_retry)

    def _poll_interval(self, waited: float) -> float:
        """Seconds until a prediction is looked at again: all at most 20 times a second, and ever less often."""
        shortest = self.client.poll_interval
        return max(shortest, self.in_flight * shortest / 10, min(waited / 10, 10))

    def _cancel(self, prediction: "Prediction") -> None:
        """Until it has ended: it may still succeed, and tells then what is paid."""
        end = monotonic() + LAST_PATIENCE
        try:
            self._stopping.call(prediction.cancel)
            self._stopping.call(prediction.reload)
            while prediction.status not in ENDED and monotonic() < end:
                sleep(self.client.poll_interval)
                self._stopping.call(prediction.reload)
        except (RefusedError, ServiceError) as error:
            log.warning("Prediction %s goes on and costs money: %s.", prediction.id, error)
