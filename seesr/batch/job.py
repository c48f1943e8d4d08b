"""What passes between the command, its engines and the report."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

from seesr.settings import Settings
from seesr.sizes import Size


class StoppedError(Exception):
    """Why the run as a whole cannot go on: a whole sentence for the user. A bad image is no reason."""


class CanceledError(BaseException):
    """Ends the work on an image of a run that is stopped. No handler of bad images takes it."""


@dataclass(frozen=True)
class Job:
    """One image to do. `input` and `output` are paths, or addresses such as s3://bucket/name.jpg."""

    input: str
    output: str
    root: str
    """The folder, or address of one, whose report.jsonl gets this job's row."""
    bytes: int
    modified: float | None = None
    """Seconds since 1970, None where the storage does not tell."""
    size: Size | None = None
    """(height, width) by the header of the input, None where it cannot be read."""


class Row(TypedDict, total=False):
    """A line of report.jsonl. An engine gives all but the last three; it gives `error`, or else what stands between."""

    input: str
    bytes: int
    sha256: str
    """Of the input."""
    error: str
    """Why there is no result: one sentence."""
    output: str
    output_bytes: int
    """Rows of earlier versions lack it."""
    width: int
    height: int
    seconds: float
    """From reading to the whole file."""
    tags: list[str]
    seed: int
    retries: int
    """How often a part ran again: for lack of memory or precision, after a dropped connection or a lost worker."""
    cost: float
    """Dollars, by the model on Replicate only."""
    modified: float | None
    settings: dict[str, Any]
    model: str
    """The bundle's name and hash, or the model and version on Replicate."""


@dataclass(frozen=True)
class Options:
    """The command line, checked. `settings` holds what every image is done with."""

    paths: list[str]
    settings: Settings = field(default_factory=Settings)
    given: dict[str, Any] = field(default_factory=dict)
    """The inputs that were given by name: what a request to Replicate holds beside the image."""
    out: str | None = None
    """The folder, or address of one, for all results. None: beside the inputs."""
    output: str | None = None
    """The file for the result of the only input."""
    report: Path | None = None
    """Where all rows go. None: to report.jsonl in each job's root; for an address here, and a copy there."""
    name: str | None = None
    engine: str = "local"
    force: bool = False
    fail_fast: bool = False
    json: bool = False
    dry_run: bool = False
    bundle: Path | None = None
    """None: the full bundle where it exists, else the embedded one."""
    gpu: str | None = None
    ray_address: str | None = None
    concurrency: tuple[int, int] | None = None
    """(least, most) workers of Ray, or requests in flight (the second)."""
    model: str | None = None
    deployment: str | None = None
    budget: float | None = None
    """Dollars."""


class Engine(Protocol):
    """Does jobs. One instance does one run."""

    model: str
    """What Row.model becomes. Known once the engine is made: results of another model are done again."""

    def __init__(self, options: Options) -> None:
        """Check what is needed. Raises StoppedError with one sentence."""
        ...

    @property
    def cost(self) -> float | None:
        """Dollars so far, those of work without a row too. None where nothing is paid or no price is known."""
        ...

    def run(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """Rows in any order, each as soon as its output is whole. `jobs` is drawn as they can be taken.

        Closing the iterator stops the run: no new job is taken, nothing half-written is left, workers end. Raises
        StoppedError where the run cannot go on.
        """
        ...


def bundle_id(bundle: Path) -> str:
    """The name of a bundle and the hash of its bundle.json, which holds the hashes of its files."""
    return f"{bundle.name}@{hashlib.sha256((bundle / 'bundle.json').read_bytes()).hexdigest()[:16]}"
