"""report.jsonl: a line for each image that is done or failed, and the lock that keeps a second run away."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from seesr.batch import files
from seesr.batch.job import Job, Options, Row, StoppedError
from seesr.settings import Settings

log = logging.getLogger(__name__)

NAME = "report.jsonl"
LIBRARY_ONLY = ("start_point", "conditioning_scale")
"""Fields of Settings that are no Cog inputs."""


class Known(NamedTuple):
    """What the newest row of an input says, as far as a later run asks."""

    length: int
    """Of the input, in bytes."""
    modified: float | None
    sha256: bytes
    done_by: int
    """A hash of the settings and the model."""
    output: str


def settings_of(asked: Settings) -> dict[str, Any]:
    """The Cog inputs beside the image, by name."""
    return {field.name: getattr(asked, field.name) for field in fields(asked) if field.name not in LIBRARY_ONLY}


def path_of(root: str, options: Options) -> Path:
    """The report that the jobs of a root belong to."""
    return options.report or Path(NAME if files.is_address(root) else os.path.join(root, NAME))


def outputs_in(path: Path) -> set[str]:
    """The paths of all results that a report names. Rows that cannot be read are left out."""
    folder = os.path.dirname(path.absolute())
    return {os.path.join(folder, row["output"]) for row in _rows(path) if "output" in row}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            yield from (row for row in map(_row, file) if row is not None)
    except FileNotFoundError:
        return


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of a report; None for one that no run has written."""
    try:
        row = json.loads(line)
        bytes.fromhex(row.get("sha256", ""))
        return row if all(isinstance(name, str) for name in (row["input"], row.get("output", ""))) else None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


class Report:
    """One report, locked from the start of the block to its end.

    Its rows name files below its folder relative to that. Raises StoppedError where another run holds the lock, or
    where the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.folder = os.path.dirname(self.path)
        self.outputs: set[str] = set()
        self._known: dict[str, Known] = {}
        self._lock = Lock(self.path.with_name(f".{path.stem}.lock"))

    def __enter__(self) -> "Report":
        try:
            os.makedirs(self.folder, exist_ok=True)
            self._lock.take()
            self._file = self.path.open("ab", buffering=0)
            self._mend()
            self.load()
        except OSError as error:
            self._lock.free()
            wanted = f"the report needs a folder that can be written, got {self.folder} ({error.strerror})"
            raise StoppedError(f"{wanted}; name one by --out") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._file.close()
        with suppress(OSError):  # the storage may be gone
            if not self.path.stat().st_size:
                self.path.unlink()
        self._lock.free()

    def append(self, row: Row) -> Row:
        """Write a row as it then stands in the report. It is on the disk when this returns. Raises StoppedError."""
        written = row.copy()
        for key in ("input", "output"):
            if name := written.get(key):
                written[key] = self.relative(name)
        line = json.dumps(written).encode() + b"\n"
        try:
            self._write(line)
        except OSError as error:
            advice = "make room or bring its storage back, then run again"
            raise StoppedError(f"{self.path} cannot be written ({error.strerror}); {advice}") from None
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

    def is_done(self, job: Job, done_by: int | None) -> bool:
        """Whether the newest row of the job's input says that it needs no work. May read the input.

        `done_by` None: settings and model do not count.
        """
        known = self._known.get(self.relative(job.input))
        if known is None or (known.length, known.output) != (job.bytes, self.relative(job.output)):
            return False
        if done_by is not None and known.done_by != done_by:
            return False
        same = known.modified is not None and known.modified == job.modified
        try:
            if not same and hashlib.sha256(files.read(job.input)).digest() != known.sha256:
                return False
            return files.exists(job.output)
        except OSError:
            return False

    def relative(self, name: str) -> str:
        """A path below the report's folder as the rows name it; any other name as it is."""
        start = os.path.join(self.folder, "")
        return name[len(start) :] if name.startswith(start) else name

    def _mend(self) -> None:
        """Bring the last line to its end, or cut it off: it may be the one that was written when a run was killed."""
        with self.path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start, tail = end, b""
            while start and b"\n" not in tail:
                length = min(start, 2**16)
                start = file.seek(start - length)
                tail = file.read(length) + tail
        last = tail.rpartition(b"\n")[2]
        if last and _row(last):
            os.write(self._file.fileno(), b"\n")
        elif last:
            os.ftruncate(self._file.fileno(), end - len(last))

    def load(self) -> None:
        """Read what earlier runs did. A run that only looks needs no more."""
        for row in _rows(self.path):
            name = row.get("input", "")
            self._known.pop(name, None)
            if "output" in row:
                self.outputs.add(os.path.join(self.folder, row["output"]))
            if "error" not in row and row.keys() >= {"bytes", "sha256", "settings", "model", "output"}:
                done_by = hash_of(row["settings"], row["model"])
                sha256 = bytes.fromhex(row["sha256"])
                self._known[name] = Known(row["bytes"], row.get("modified"), sha256, done_by, row["output"])


def hash_of(settings: dict[str, Any], model: str) -> int:
    """Equal for equal settings and models, within one process."""
    return hash((json.dumps(settings, sort_keys=True), model))


def check_free(folder: Path) -> None:
    """Raise StoppedError if another process holds the lock of a folder's report."""
    path = folder / f".{Path(NAME).stem}.lock"
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise held_error(path, file) from None
    os.close(file)


def held_error(path: Path, file: int) -> StoppedError:
    """Why no run starts while another holds the lock at `path`, which is open as `file`. Closes it."""
    holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
    os.close(file)
    return StoppedError(f"{path.parent} is in work by {holder}; wait for its end, or work in another folder")


class Lock:
    """A file that one process at a time holds. It says who does, and goes when it is freed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self) -> None:
        """Raises StoppedError that says who holds it, OSError where no file can be written."""
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise held_error(self.path, file) from None
            except OSError as error:  # a storage without locks
                log.warning("%s cannot be locked (%s): see that no other run works there.", self.path, error.strerror)
            same = False
            with suppress(FileNotFoundError):  # its holder may have freed it in between
                same = os.path.samestat(os.stat(self.path), os.fstat(file))
            if not same:
                os.close(file)
                continue
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
            self._file = file

    def free(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
