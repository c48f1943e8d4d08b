"""A Cog server: predictions over HTTP, with progress by a webhook on loopback."""

import contextlib
import http.server
import ipaddress
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from scripts.page import calls
from scripts.page.job import Health, Job, send, with_files
from scripts.predict import read_file

RETRY = 0.5
"""Seconds between two attempts at a server that is busy or away."""

GRACE = 5.0
"""Seconds that a server has to answer a cancellation."""

SENTENCES = {
    "READY": "Ready",
    "BUSY": "Working",
    "STARTING": "The server is starting",
    "UNKNOWN": "The server is starting",
    "SETUP_FAILED": "The server's setup failed",
    "DEFUNCT": "The server has stopped working",
    "UNHEALTHY": "The server has stopped working",
}


class CogClient:
    """`address` gives the server's URL, empty while it has none: a server that was started again has another port.

    `stopped` is what to do where the server has stopped working.
    """

    name = "Cog server"

    def __init__(self, address: Callable[[], str], stopped: str = "restart it") -> None:
        self.address, self.stopped = address, stopped
        self._jobs: dict[str, Job] = {}
        self._reports = ""

    @contextlib.contextmanager
    def listening(self) -> Iterator["CogClient"]:
        """Within the block the server's reports about progress arrive, on a free loopback port."""
        jobs = self._jobs

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                news = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
                if job := jobs.get(self.path.removeprefix("/")):
                    job.logs = news.get("logs") or job.logs
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...  # type: ignore[override]

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.1], daemon=True).start()
        self._reports = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def document(self) -> dict[str, Any]:
        status, answer, _ = self._send("GET", "/openapi.json", timeout=10)
        if status != 200:
            raise ValueError(f"{self.address()}/openapi.json answers HTTP {status}: {answer.get('detail', '')}")
        return answer

    def health(self) -> Health:
        try:
            _, answer, _ = self._send("GET", "/health-check", timeout=3)
        except OSError as error:
            return Health(False, f"The server does not answer ({error})")
        status, setup = str(answer.get("status")), answer.get("setup") or {}
        logs = str(setup.get("logs") or "")
        sentence = SENTENCES.get(status, f"The server says {status}")
        if status == "SETUP_FAILED":
            sentence = f"{sentence}: {(logs.strip().splitlines() or ['it logged nothing'])[-1]}"
        if status in ("DEFUNCT", "UNHEALTHY"):
            sentence = f"{sentence}; {self.stopped}"
        return Health(status in ("READY", "BUSY"), sentence, logs)

    def start(self, job: Job) -> None:
        threading.Thread(target=self._run, args=[job], daemon=True).start()

    def cancel(self, job: Job) -> None:
        """The server is told again until it ends: the request itself may reach it a little later."""
        job.cancelled.set()
        end = time.monotonic() + GRACE
        while not job.ended.is_set() and time.monotonic() < end:
            job.note = "Cancelling"
            if job.status == "running":
                with contextlib.suppress(OSError):
                    self._send("POST", f"/predictions/{job.id}/cancel", timeout=GRACE)
            job.ended.wait(RETRY)
        job.end("canceled")

    def calls(self, job: Job, ending: str) -> dict[str, str]:
        return calls.for_cog(self.address(), job, ending)

    def _send(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> tuple[int, Any, Any]:
        if not (address := self.address()):
            raise OSError("it is starting")
        return send(method, address + path, body, timeout=timeout)

    def _run(self, job: Job) -> None:
        self._jobs[job.id] = job
        try:
            self._predict(job)
        except ValueError as error:
            job.end("failed", str(error))
        except Exception as error:  # the page must hear of the end, whatever it was
            job.end("failed", f"{type(error).__name__}: {error}")
        finally:
            del self._jobs[job.id]

    def _predict(self, job: Job) -> None:
        """Ask until the server takes the job, then wait for its answer. To hang up is to cancel."""
        body: dict[str, Any] = {"input": with_files(job, lambda name, path: read_file(name, f"@{path}"))}
        if is_loopback(self.address()):  # a server elsewhere cannot reach this port
            body |= {"webhook": f"{self._reports}/{job.id}", "webhook_events_filter": ["start", "logs"]}
        while not job.cancelled.is_set():
            health = self.health()
            if not health.ready:
                job.note = f"{health.sentence}: waiting for it"
                job.cancelled.wait(RETRY)
                continue
            job.status, job.note = "running", ""
            if job.cancelled.is_set():  # while the server was asked for its health
                break
            try:
                status, answer, _ = self._send("PUT", f"/predictions/{job.id}", body)
            except OSError as error:
                found = f"the server stopped answering while it worked on this ({error})"
                return job.end("failed", f"{found}; run again as soon as it is back")
            if status != 409:
                return job.take(status, answer)
            job.status, job.note = "waiting", "The server is busy with another request: waiting for it"
            job.cancelled.wait(RETRY)
        return job.end("canceled")


def is_loopback(address: str) -> bool:
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(address: str) -> str:
    """The URL of a server without its last slash. ValueError if it is none."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--url must be the address of a Cog server, such as http://127.0.0.1:5000, got {address!r}")
    return address.rstrip("/")
