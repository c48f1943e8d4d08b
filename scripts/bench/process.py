"""Run programs and measure them: seconds, memory at the peak, disk; and a table of these."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Finished:
    """A program that succeeded: the lines that it printed, its seconds, and its memory at the peak in bytes."""

    lines: list[str]
    seconds: float
    memory: int


@dataclass(frozen=True)
class Row:
    """A line of the table. `memory`, at its peak, and `disk` are in bytes."""

    stage: str
    seconds: float
    memory: int
    disk: int
    result: str


def run_python(
    arguments: Sequence[str],
    root: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> Finished:
    """Run this Python with `arguments` in `root`, further variables in its environment; `log` gets what it prints.

    Each line is passed to `on_line` at once. RuntimeError if it fails. Its memory is at least what this process holds,
    since Linux counts from the fork on.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    try:
        with log.open("w") as file:
            for line in process.stdout:
                print(line, end="", file=file, flush=True)
                lines.append(line.rstrip("\n"))
                on_line(lines[-1])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        process.terminate()  # a process that has ended is left alone
        process.wait()
    if process.returncode:
        last = lines[-1] if lines else "it printed nothing"
        raise RuntimeError(f"{arguments[0]} ended with {process.returncode}: {last} (all that it printed: {log})")
    return Finished(lines, time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def peak_memory(pid: int) -> int:
    """Bytes that a process and its descendants held, each at its peak; where Linux's /proc is missing, hold now."""
    total = 0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        status = Path(f"/proc/{process.pid}/status")
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        total += int(found[1]) * 1024 if found else process.memory_info().rss
    return total


def disk_usage(folder: Path) -> int:
    """Bytes of disk that the files below a folder take, hard links counted once."""
    blocks: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            status = Path(parent, name).lstat()
            blocks[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(blocks.values())


def gigabytes(size: float) -> str:
    """Bytes in words."""
    return f"{size / 1e9:.2f} GB"


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| stage | seconds | peak RAM | disk | what came of it |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (row.stage, f"{row.seconds:.1f}", gigabytes(row.memory), gigabytes(row.disk), row.result)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
