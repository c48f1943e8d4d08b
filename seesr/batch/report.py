"""report.jsonl: a line for each image that is done or failed."""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from seesr.batch import files, lock, rows
from seesr.batch.job import Job, Options, Row, StoppedError
from seesr.batch.options import INPUTS
from seesr.settings import Settings

log = logging.getLogger(__name__)

NAME = "report.jsonl"
SECONDS_BETWEEN_COPIES = 60.0  # to an address
COPY_SHARE = 0.01  # of the time, at most


class Known(NamedTuple):
    """What the newest row of a result says, as far as a later run asks."""

    length: int
    """Of the input, in bytes."""
    modified: float | None
    sha256: bytes
    settings: int
    """Their hash_of."""
    model: str
    """Its model_key."""
    output: str
    output_bytes: int | None


def settings_of(asked: Settings) -> dict[str, Any]:
    """The Cog inputs beside the image, by name."""
    return {row["name"]: getattr(asked, row["name"]) for row in INPUTS}


def path_of(root: str, options: Options) -> Path:
    """The report that the jobs of a root belong to."""
    return options.report or Path(NAME if files.is_address(root) else os.path.join(root, NAME))


def reports_of(roots: Iterable[str], options: Options) -> dict[str, "Report"]:
    """The report of each root. Roots that are one folder share one."""
    groups: dict[str, list[str]] = {}
    for root in roots:
        groups.setdefault(os.path.realpath(path_of(root, options)), []).append(root)
    reports = [Report(path_of(group[0], options), group) for group in groups.values()]
    return {root: report for report in reports for root in report.roots}


class Report:
    """The report of some roots. From the start of the block to its end it and the roots that are folders are locked.

    Its rows name files below its folder relative to that. Roots that are addresses get a copy of it, at times and at
    the end; rows that only a copy has are added at the start. Raises StoppedError where another run holds a lock,
    where a folder cannot be written, or for a file that is no report.
    """

    def __init__(self, path: Path, roots: Sequence[str] = ()) -> None:
        self.path, self.roots = path.absolute(), roots
        self.folder = os.path.dirname(self.path)
        self.outputs: set[str] = set()
        self._known: dict[str, tuple[Known, ...]] = {}
        """Results of each input."""
        self._copies = [files.join(root, NAME) for root in roots if files.is_address(root)]
        self._next_copy = time.monotonic() + SECONDS_BETWEEN_COPIES

    def __enter__(self) -> "Report":
        with ExitStack() as stack:
            folder = self.folder
            try:
                for folder, name in self._locks():
                    os.makedirs(folder, exist_ok=True)
                    stack.enter_context(lock.locked(Path(folder, name)))
                folder = self.folder
                self._check()
                self._file = stack.enter_context(self.path.open("ab", buffering=0))
                self._mend(self._learn(rows.lines(self.path)))
                self._learn(line for line in self._missing() if self._file.write(line))
            except OSError as error:
                wanted = f"the report needs a folder that can be written, got {folder} ({error.strerror})"
                raise StoppedError(f"{wanted}; name one by --out") from None
            self._held = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        with suppress(OSError):  # the storage may be gone
            if self.path.stat().st_size:
                self._copy()
            else:
                self.path.unlink()
        self._held.close()

    def _locks(self) -> Iterator[tuple[str, str]]:
        """Folders and the names of locks in them, each once: of the report, and of the roots."""
        names = [(self.folder, f".{self.path.stem}.lock")]
        names += [(root, lock.NAME) for root in self.roots if not files.is_address(root)]
        yield from {(os.path.realpath(folder), name): (folder, name) for folder, name in names}.values()

    def _check(self) -> None:
        for name in (self.path, *self._copies):
            rows.check(name)

    def _missing(self) -> Iterator[bytes]:
        """Lines that only a copy has: all if the report was lost, or those of another machine."""
        for copy in self._copies:
            ours = {hash(line) for line in rows.lines(self.path)}
            yield from (line for line in rows.lines(copy) if hash(line) not in ours)

    def _copy(self) -> None:
        start = time.monotonic()
        for copy in self._copies:
            try:
                with self.path.open("rb") as ours, files.write_whole(copy) as file:
                    shutil.copyfileobj(ours, file)
            except Exception as error:  # such as a storage's own: a run does not end for want of a copy
                log.warning("%s cannot be copied to %s (%s).", self.path, copy, error)
        end = time.monotonic()
        self._next_copy = end + max(SECONDS_BETWEEN_COPIES, (end - start) / COPY_SHARE)

    def append(self, row: Row) -> Row:
        """Write a row as it then stands in the report. It is on the disk when this returns. Raises StoppedError."""
        written = row.copy()
        for key in ("input", "output"):
            if name := written.get(key):
                written[key] = self.relative(name)
        line = json.dumps({"input": "", **written}).encode() + b"\n"
        try:
            self._write(line)
        except OSError as error:
            advice = "make room or bring its storage back, then run again"
            raise StoppedError(f"{self.path} cannot be written ({error.strerror}); {advice}") from None
        if time.monotonic() >= self._next_copy:
            self._copy()
        return written

    def _write(self, line: bytes) -> None:
        """Append all of a line or nothing."""
        file = self._file.fileno()
        before = os.fstat(file)
        if not os.path.samestat(os.stat(self.path), before):
            raise FileNotFoundError(errno.ENOENT, "another file has its place")
        try:
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, before.st_size)
            raise

    def is_done(self, job: Job, settings: int, model: str | None) -> bool:
        """Whether the newest row of the job's result says that it needs no work. May read the input.

        `settings` is their hash_of, `model` a model_key. None: the model does not count.
        """
        known = self._of(job.input, job.output)
        if known is None or known.length != job.bytes or known.settings != settings or model not in (None, known.model):
            return False
        same = known.modified is not None and known.modified == job.modified
        try:
            if not same and hashlib.sha256(files.read(job.input)).digest() != known.sha256:
                return False
            whole = known.output_bytes
            return files.exists(job.output) if whole is None else files.stat(job.output).bytes == whole
        except OSError:
            return False

    def is_by_another(self, input: str, output: str, settings: int, model: str) -> bool:
        """Whether another model made this result with the same settings."""
        known = self._of(input, output)
        return known is not None and known.settings == settings and known.model != model

    def _of(self, input: str, output: str) -> Known | None:
        """What is known of a result."""
        output = self.relative(output)
        return next((known for known in self._known.get(self.relative(input), ()) if known.output == output), None)

    def relative(self, name: str) -> str:
        """A path below the report's folder as the rows name it; any other name as it is."""
        start = os.path.join(self.folder, "")
        return name[len(start) :] if name.startswith(start) else name

    def _mend(self, last: bytes) -> None:
        """Bring the last line to its end, or cut it off where it is of a run that was killed while it wrote it."""
        if rows.is_cut(last):
            os.ftruncate(self._file.fileno(), os.fstat(self._file.fileno()).st_size - len(last))
        elif not last.endswith(b"\n"):
            self._file.write(b"\n")

    def load(self) -> None:
        """Read what earlier runs did. A run that only looks needs no more."""
        self._check()
        self._learn(chain(rows.lines(self.path), self._missing()))

    def _learn(self, lines: Iterable[bytes]) -> bytes:
        """Take in lines; the last one."""
        line = b""
        for line in lines:
            if (row := rows.row_of(line)) is None:
                continue
            name, output = row["input"], row.get("output", "")
            if output:
                self.outputs.add(os.path.join(self.folder, output))
            if "error" in row:
                self._known.pop(name, None)
            elif output and row.keys() >= {"bytes", "sha256", "settings", "model"}:
                key = hash_of(row["settings"]), model_key(row["model"])
                sha256 = bytes.fromhex(row["sha256"])
                known = Known(row["bytes"], row.get("modified"), sha256, *key, output, row.get("output_bytes"))
                self._known[name] = (*(one for one in self._known.get(name, ()) if one.output != output), known)
        return line

    def adopt(self, path: Path) -> set[str]:
        """Learn of results that only the report of another folder names; the paths of all that it names."""
        other = Report(path)
        other._learn(rows.lines(path))
        for name, results in other._known.items():
            input = self.relative(os.path.join(other.folder, name))
            moved = {self.relative(os.path.join(other.folder, one.output)): one for one in results}
            ours = {one.output: one for one in self._known.get(input, ())}
            self._known[input] = tuple(one._replace(output=output) for output, one in (moved | ours).items())
        self.outputs |= other.outputs
        return other.outputs


def hash_of(settings: dict[str, Any]) -> int:
    """Equal for equal settings, within one process."""
    return hash(json.dumps(settings, sort_keys=True))


def model_key(model: str) -> str:
    """Row.model without the name of a bundle's folder, which tells nothing of its files."""
    return sys.intern(model.rpartition("@")[2])
