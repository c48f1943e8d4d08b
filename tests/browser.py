"""A real browser for tests, and the playground that it opens."""

import contextlib
import os
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
OPTIONS += ["--disable-sync", "--no-first-run", "--disable-quic"]
OPTIONS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a webcam, and leave to use it


@dataclass(frozen=True)
class Playground:
    """A running scripts/playground."""

    url: str
    process: subprocess.Popen[str]


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium as the system has it. Skips where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a browser: {', '.join(NAMES)} is not there (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


@contextlib.contextmanager
def open_playground(*arguments: str, **env: str) -> Iterator[Playground]:
    """scripts/playground as a user starts it, at any free port."""
    command = [str(ROOT / "scripts/playground"), "--port", "0", "--no-browser", *arguments]
    process = subprocess.Popen(
        command, env=os.environ | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines: list[str] = []
    found: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if match := re.match(r"Playground: (http\S+)", line):
                found.put(match[1])
        found.put("")  # it has ended

    threading.Thread(target=read, daemon=True).start()
    try:
        url = found.get(timeout=180)
        assert url, "".join(lines)
        yield Playground(url, process)
    finally:
        process.terminate()
        process.wait(30)
