"""What a run tells while it works, and at its end."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

from seesr.batch.find import shown
from seesr.batch.job import Row

MOST_FAILED = 20  # failed images that the summary names
SECONDS_BETWEEN_LINES = 60.0  # where no terminal shows a bar


class Progress:
    """A bar in megapixels of results on a terminal, else a line a minute; and the numbers of the summary.

    `total` gives the megapixels of all results as far as they are known, `cost` the dollars so far (Engine.cost).
    """

    def __init__(
        self,
        images: int,
        total: Callable[[], float],
        cost: Callable[[], float | None] = lambda: None,
        stream: TextIO | None = None,
    ) -> None:
        self._images, self._total, self._cost, self._stream = images, total, cost, stream or sys.stderr
        self._start = self._told = time.monotonic()
        self.done, self.megapixels, self.retries = 0, 0.0, 0
        self.failed: list[tuple[str, str]] = []
        self.failures = 0
        self._slowest = ("", 0.0)
        self._is_terminal = self._stream.isatty()
        form = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} MP [{elapsed}<{remaining}, {postfix}]"
        self._bar = tqdm(
            total=0.0, file=self._stream, bar_format=form, mininterval=0, disable=not self._is_terminal, leave=False
        )

    def add(self, row: Row) -> None:
        """An image is done or failed."""
        self.retries += row.get("retries", 0)
        if "error" in row:
            self.failures += 1
            if len(self.failed) < MOST_FAILED:
                self.failed.append((row.get("input", ""), row["error"]))
        else:
            self.done += 1
            self.megapixels += row.get("width", 0) * row.get("height", 0) / 1e6
            if (seconds := row.get("seconds", 0.0)) > self._slowest[1]:
                self._slowest = (row.get("input", ""), seconds)
        self._show()

    def close(self) -> None:
        self._bar.close()

    def summary(self, skipped: int) -> dict[str, Any]:
        """The numbers of the run, ready for JSON."""
        seconds = time.monotonic() - self._start
        found: dict[str, Any] = {"images": self._images, "done": self.done, "skipped": skipped}
        found |= {"failed": self.failures, "megapixels": round(self.megapixels, 3), "seconds": round(seconds, 1)}
        found |= {"megapixels_per_second": round(self.megapixels / seconds, 4) if seconds else 0.0}
        found |= {"images_per_hour": round(3600 * self.done / seconds, 1) if seconds else 0.0, "retries": self.retries}
        if self._slowest[0]:
            found["slowest"] = {"input": self._slowest[0], "seconds": self._slowest[1]}
        cost = self._cost()
        return found if cost is None else found | {"cost": round(cost, 4)}

    def _show(self) -> None:
        done, cost = self.done + self.failures, self._cost()
        dollars = "" if cost is None else f", ${cost:.2f}"
        self._bar.total = max(self._total(), self.megapixels)
        self._bar.set_postfix_str(f"{self.done} done, {self.failures} failed{dollars}", refresh=False)
        self._bar.update(self.megapixels - self._bar.n)
        if not self._is_terminal and time.monotonic() - self._told >= SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            took = self._told - self._start
            total = self._total()
            left = took * (total - self.megapixels) / self.megapixels if self.megapixels else 0
            of = f"{self.megapixels:.1f} of {total:.1f} megapixels"
            counts = f"{done} of {self._images} images, {self.failures} failed"
            minutes = f"{took / 60:.0f} minutes, {left / 60:.0f} left"
            print(f"upscale: {of}, {counts}, {minutes}{dollars}", file=self._stream)


def summary_lines(found: dict[str, Any], failed: list[tuple[str, str]]) -> tuple[str, list[str]]:
    """The summary in words: for stdout, and the sentences on failed images for stderr."""
    line = f"{found['done']} of {found['images']} images done in {found['seconds']:g} s"
    if found["skipped"]:
        line += f", {found['skipped']} skipped that were done before (--force does them again)"
    if found["done"]:
        rate = f"{found['megapixels_per_second']:g} a second, {found['images_per_hour']:g} images an hour"
        line += f"; {found['megapixels']:g} megapixels, {rate}"
        slowest = found.get("slowest")
        line += f"; slowest {shown(slowest['input'])}, {slowest['seconds']:g} s" if slowest else ""
    if "cost" in found:
        line += f"; ${found['cost']:g}"
    sentences = [f"{shown(name)}: {error}" for name, error in failed]
    if found["failed"] > len(failed):
        sentences.append(f"and {found['failed'] - len(failed)} more, which the report names")
    if found["failed"]:
        sentences.append(f"{found['failed']} of {found['images']} images failed")
    return line, sentences


class BarHandler(logging.Handler):
    """Logs warnings above the bar, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._told:
            self._told.add(text)
            tqdm.write(f"upscale: {text}", file=sys.stderr)


def say(text: str) -> None:
    """A sentence for the user beside the results."""
    print(f"upscale: {text}", file=sys.stderr, flush=True)
