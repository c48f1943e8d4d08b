"""The lines of a report.jsonl: read them, and tell them from those of another file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seesr.batch import files
from seesr.batch.job import StoppedError

START = b'{"input": '
"""Of each line."""

_ADVICE = "move it away or give another --report or --out"


def lines(name: str | Path) -> Iterator[bytes]:
    """The lines of a file; none where it is not there. Raises StoppedError."""
    try:
        with files.open_binary(str(name)) as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoppedError(f"{name} cannot be read ({error.strerror or error}); {_ADVICE}") from None


def row_of(line: bytes) -> dict[str, Any] | None:
    """A line of a report; None for one that no run has written."""
    try:
        row = json.loads(line)
        bytes.fromhex(row.get("sha256", ""))
        return row if all(isinstance(name, str) for name in (row["input"], row.get("output", ""))) else None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def is_cut(line: bytes) -> bool:
    """Whether a run that was killed while it wrote may have left this line."""
    return line[-1:] != b"\n" and (line.startswith(START) or START.startswith(line)) and row_of(line) is None


def check(name: str | Path) -> None:
    """Raise StoppedError for a file that begins as no report does: nobody may change it."""
    first = next(lines(name), b"")
    if row_of(first) is None and not is_cut(first):
        raise StoppedError(f"{name} is no report of this command; {_ADVICE}")
