"""One image by a prediction on Replicate: send it, run the prediction, fetch the result, tell about it in a row."""

import base64
import hashlib
import io
import logging
import mimetypes
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx

from seesr import images, sizes
from seesr.batch import files, work
from seesr.batch.api import ENDED, RefusedError, check_answer
from seesr.batch.job import Job, Row, StoppedError
from seesr.batch.predictions import Predictions
from seesr.batch.retry import ServiceError, sentence
from seesr.settings import Settings

if TYPE_CHECKING:
    from replicate.prediction import Prediction

log = logging.getLogger(__name__)

MAX_DATA_URI = 256_000
"""Bytes of a file that travels inside the request. Larger ones go through the Files API."""

MAX_UPLOAD = 100_000_000
"""Bytes that the Files API takes."""

SEEDS = 2**53
DOWNLOADS = 3
"""How often the address of a result is asked for when downloading is refused."""


@dataclass(eq=False)
class RemoteImage:
    """One job. `inputs` go with the image; `price` is in dollars a second, 0 if not known; `estimate` in dollars."""

    job: Job
    predictions: Predictions
    settings: Settings
    inputs: Mapping[str, Any]
    price: float
    estimate: float
    unanswered: bool = False  # whether Replicate could not be reached
    _prediction: "Prediction | None" = None
    _retries: int = 0
    _size: int = 0
    _read: Row = field(default_factory=Row)

    @property
    def succeeded(self) -> bool:
        """Whether the prediction has a result."""
        return self._prediction is not None and self._prediction.status == "succeeded"

    @property
    def dollars(self) -> float:
        """What the prediction cost, if there was one."""
        return cost_of(self._prediction, self.price, self.estimate) if self._prediction else 0.0

    def run(self) -> Row:
        """Do it. A fault of this image becomes the row's error.

        Raises StoppedError for a fault of all images, and CanceledError when the run is stopped.
        """
        start = monotonic()
        try:
            row = self._upscale()
        except (ValueError, RefusedError, ServiceError) as error:
            if isinstance(error, RefusedError) and error.status in (401, 402, 403):
                raise StoppedError(str(error)) from None
            self.unanswered = isinstance(error, ServiceError)
            row = work.failed(self.job, ValueError(" ".join(str(error).split())))
        else:
            row["seconds"] = round(monotonic() - start, 3)
        if self.price:
            row["cost"] = self.dollars
        return row | self._read | Row(retries=self._retries)

    def _upscale(self) -> Row:
        work.check_name(self.job)
        self._check_size()
        image, upload = self._send()
        seed = secrets.randbelow(SEEDS) if self.settings.seed is None else self.settings.seed
        try:
            inputs = {**self.inputs, "image": image, "seed": seed}
            self._prediction = prediction = self.predictions.create(inputs, self._count_retry)
            self.predictions.finish(prediction, self._count_retry)
        finally:
            if upload:
                self._delete(upload)
        metrics = prediction.metrics or {}
        self._retries += sum((metrics.get("recoveries") or {}).values())
        if not self.succeeded:
            raise ValueError(why_failed(prediction))
        self._fetch(prediction)
        row = Row(input=self.job.input, output=self.job.output, output_bytes=self._size, seed=metrics.get("seed", seed))
        return row | Row(tags=metrics.get("tags", [])) | self._result_size(metrics)

    def _check_size(self) -> None:
        if self.job.bytes > MAX_UPLOAD:
            limit = f"at most {MAX_UPLOAD / 1e6:.0f} MB for Replicate, got {self.job.bytes / 1e6:.1f} MB"
            raise ValueError(f"image must have {limit}; make it smaller")
        if self.job.size:
            scale = self.settings.scale(self.job.size)
            sizes.working_size(self.job.size, scale, process_size=1)

    def _send(self) -> tuple[str, str | None]:
        """A data URI; or the address of an upload, and its id."""
        content, name = work.read_input(self.job.input), os.path.basename(self.job.input)
        self._read = Row(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if len(content) <= MAX_DATA_URI:
            return f"data:{kind};base64,{base64.b64encode(content).decode()}", None
        about: Any = {"filename": f"image{os.path.splitext(name)[1][:20]}", "content_type": kind}
        create = self.predictions.client.files.create
        file = self.predictions.retry.call(lambda: create(io.BytesIO(content), **about), self._count_retry)
        return file.urls["get"], file.id

    def _delete(self, upload: str) -> None:
        try:
            self.predictions.client.files.delete(upload)
        except (RefusedError, httpx.TransportError) as error:
            log.info("An uploaded file stays until Replicate deletes it, after a day: %s.", sentence(error))

    def _fetch(self, prediction: "Prediction") -> None:
        """Write the result. A refused download may have expired: the prediction is asked for its address again."""
        ask = self.predictions.retry.call
        for left in reversed(range(DOWNLOADS)):
            try:
                return ask(lambda: self._download(prediction.output), self._count_retry)
            except RefusedError as error:
                if not left:
                    text = f"the result of prediction {prediction.id} cannot be downloaded (HTTP {error.status})"
                    raise ValueError(f"{text}; it is kept for an hour only: run this again") from None
            self._count_retry()
            ask(prediction.reload, self._count_retry)

    def _download(self, url: object) -> None:
        if not isinstance(url, str) or not url.startswith("http"):
            raise ValueError(f"the model must return one file, got {str(url)[:80]!r}: name a model of this project")
        with self.predictions.results.stream("GET", url) as answer:
            check_answer(answer)
            try:
                with files.write_whole(self.job.output) as file:
                    for block in answer.iter_bytes():
                        file.write(block)
                    self._size = file.tell()
            except OSError as error:
                raise work.unwritable(self.job.output, error) from None

    def _result_size(self, metrics: Mapping[str, Any]) -> Row:
        if "width" in metrics and "height" in metrics:
            return Row(width=metrics["width"], height=metrics["height"])
        try:
            with files.open_binary(self.job.output) as file:
                size = images.read_size(file)
        except OSError as error:
            raise work.unwritable(self.job.output, error) from None
        return Row(width=size[1], height=size[0]) if size else Row()

    def _count_retry(self) -> None:
        self._retries += 1


def cost_of(prediction: "Prediction", price: float, estimate: float) -> float:
    """Dollars: the estimate if it may have run and Replicate does not tell for how long."""
    if (seconds := (prediction.metrics or {}).get("predict_time")) is not None:
        return price * float(seconds)
    never_ran = prediction.status in ENDED and prediction.started_at is None
    return 0.0 if never_ran else estimate


def why_failed(prediction: "Prediction") -> str:
    """The model's own sentence if it has one, without what the Cog server sets before it."""
    if prediction.error:
        return re.sub(r"^(Prediction failed: )+(\w+: )?", "", prediction.error)
    ended = "was canceled" if prediction.status == "canceled" else "failed without a reason"
    return f"prediction {prediction.id} {ended}: run this again"
