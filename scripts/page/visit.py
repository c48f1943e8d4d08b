"""One visit of the page: the images given, the request under way, and the last results."""

import mimetypes
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.page.job import Job, Output

KEPT = 12
"""Results of a visit that stay for comparing; older ones are deleted, but none of the newest request."""

ENDINGS = {"image/jpeg": ".jpg", "image/webp": ".webp", "image/tiff": ".tiff"}


@dataclass(frozen=True)
class Source:
    """An image that was given; its size is upright, in pixels. `shown` is what a browser can show of it."""

    path: Path
    width: int = 0
    height: int = 0
    shown: str = ""


@dataclass(frozen=True)
class Result:
    """A file that the model returned for `source`, if it was given one, to the request `job`.

    `shown` holds paths of what the page shows of it; empty if it is no image.
    """

    number: int
    about: str
    path: Path
    source: Source | None
    job: Job
    metrics: Mapping[str, Any]
    shown: Mapping[str, Any]
    cards: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A request under way, with the images and forecasts that it was sent with."""

    job: Job
    sources: list[Source]
    forecasts: list[dict[str, Any]]
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def predicted(self) -> float | None:
        """Seconds for all images; None if they are not known for each."""
        known = [found["seconds"] for found in self.forecasts if found.get("seconds") is not None]
        return sum(known) if known and len(known) == len(self.forecasts) else None


@dataclass
class Visit:
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="visit-")))
    sources: list[Source] = field(default_factory=list)
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    run: Run | None = None
    count: int = 0

    def new_folder(self) -> Path:
        """For the next result. Its number is `count`."""
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir(parents=True)
        return folder

    def add(self, result: Result) -> None:
        self.results.append(result)
        while len(self.results) > KEPT and self.results[0].job is not result.job:
            shutil.rmtree(self.results.pop(0).path.parent, ignore_errors=True)

    def result(self, number: int | None) -> Result | None:
        return next((result for result in self.results if result.number == number), None)

    def label(self, result: Result) -> str:
        """A result in a few words: its number, that in which the results of the visit differ, and its seed."""
        stems = {other.source.path.stem for other in self.results if other.source}
        words = [result.source.path.stem] if result.source and len(stems) > 1 else []
        inputs = [other.job.inputs for other in self.results]
        for name, value in result.job.inputs.items():
            if name != "seed" and any(name not in other or other[name] != value for other in inputs):
                words.append(f"{name.replace('_', ' ')} {value}")
        words += [f"seed {result.metrics['seed']}"] if "seed" in result.metrics else []
        text = f"{result.number}: {', '.join(words) or 'result'}"
        return text if len(text) <= 70 else f"{text[:69]}…"

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def file_name(source: Source | None, metrics: Mapping[str, Any], number: int, output: Output) -> str:
    """What a result is called when it is saved: photo-seed7.png."""
    stem = re.sub(r"[^\w.-]+", "-", source.path.stem) if source else "result"
    ending = ENDINGS.get(output.kind) or mimetypes.guess_extension(output.kind) or ".bin"
    return f"{stem}-seed{metrics['seed']}{ending}" if "seed" in metrics else f"{stem}-{number}{ending}"


def metrics_of(metrics: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Those of the output of this number, from 0: BatchPredictor's names of the second end in _2."""
    ends = re.compile(r"_\d+$")
    if number:
        suffix = f"_{number + 1}"
        return {name.removesuffix(suffix): value for name, value in metrics.items() if name.endswith(suffix)}
    return {name: value for name, value in metrics.items() if not ends.search(name)}
