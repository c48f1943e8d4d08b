"""The page's end of scripts/page/toolbox.py."""

import json
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from scripts.cog_server import ROOT

ENDED = "the page's helper process has ended; start scripts/playground again"
MAIN_PYTHON = ROOT / ".venv/bin/python"


class ToolboxProcess:
    """The toolbox, for a `with` block. With `predictor` it also keeps a Cog server running.

    `url` is the server's, empty while it has none; `document` its OpenAPI document, empty until it has started once;
    `reason` says why it stopped last.
    """

    def __init__(self, predictor: str | None = None, python: Path = MAIN_PYTHON) -> None:
        self.command = [str(python), "-m", "scripts.page.toolbox"]
        self.command += ["--serve", "--predictor", predictor] if predictor else []
        self.url, self.reason, self.document, self.ended = "", "", dict[str, Any](), False
        self._lock, self._waiting = threading.Lock(), dict[int, Future[Any]]()
        self._number = 0

    def __enter__(self) -> "ToolboxProcess":
        # A session of its own: Ctrl-C in the terminal ends the page, and then the closed pipe ends this process.
        self._process = subprocess.Popen(
            self.command, cwd=ROOT, text=True, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def ask(self, what: str, timeout: float = 300, **arguments: Any) -> Any:
        """The answer of a method of toolbox.Tools. ValueError with its sentence, RuntimeError if it has ended."""
        return self.tell(what, **arguments).result(timeout)

    def tell(self, what: str, **arguments: Any) -> Future[Any]:
        """The same without waiting for the answer."""
        future: Future[Any] = Future()
        with self._lock:
            self._number += 1
            self._waiting[self._number] = future
            line = json.dumps({"id": self._number, "do": what, "with": arguments})
            assert self._process.stdin is not None
            try:
                print(line, file=self._process.stdin, flush=True)
            except (OSError, ValueError):
                raise RuntimeError(ENDED) from None
        return future

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "server" in message:
                self._note(message["server"])
                continue
            future = self._waiting.pop(message["id"])
            if "error" in message:
                future.set_exception(ValueError(message["error"]))
            else:
                future.set_result(message["answer"])
        self.ended = True
        for future in self._waiting.values():
            future.set_exception(RuntimeError(ENDED))

    def _note(self, server: dict[str, Any]) -> None:
        self.document = server.get("document") or self.document
        self.url, self.reason = server["url"], server["reason"] or self.reason
