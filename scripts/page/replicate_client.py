"""A model on Replicate: predictions by its HTTP API, with progress by polling."""

import mimetypes
import os
import re
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.page import calls
from scripts.page.job import Health, Job, send, with_files
from scripts.predict import read_file

BASE = "https://api.replicate.com"
POLL = 1.0
"""Seconds between two questions about a prediction."""

MAX_DATA_URI = 256_000
"""Bytes of a file up to which Replicate advises a data URI. Larger ones are uploaded."""

NOTES = {"starting": "Replicate is starting a machine"}


class ReplicateClient:
    """`model` is OWNER/NAME, or OWNER/NAME:VERSION. ValueError if it is neither, or without a token.

    The environment gives REPLICATE_API_TOKEN, and REPLICATE_BASE_URL for another address.
    """

    def __init__(self, model: str) -> None:
        found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([0-9a-f]{64}))?", model)
        if not found:
            raise ValueError(f"--model must be OWNER/NAME or OWNER/NAME:VERSION, got {model!r}")
        token = os.environ.get("REPLICATE_API_TOKEN", "")
        if not token:
            raise ValueError("--model needs REPLICATE_API_TOKEN: make a token on Replicate's account page and set it")
        self.name, self.version = found[1], found[2] or ""
        self.base = os.environ.get("REPLICATE_BASE_URL", BASE).rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {token}"}

    def document(self) -> dict[str, Any]:
        path = f"/models/{self.name}/versions/{self.version}" if self.version else f"/models/{self.name}"
        status, answer, _ = self._send("GET", path)
        if status != 200:
            raise ValueError(f"Replicate answers HTTP {status} about {self.name}: {answer.get('detail', answer)}")
        version = answer if self.version else answer.get("latest_version")
        if not version:
            raise ValueError(f"{self.name} has no version yet: push one with scripts/deploy push {self.name}")
        self.version = version["id"]
        return version["openapi_schema"]

    def health(self) -> Health:
        return Health(True, "On Replicate")

    def start(self, job: Job) -> None:
        threading.Thread(target=self._run, args=[job], daemon=True).start()

    def cancel(self, job: Job) -> None:
        job.note = "Cancelling"
        job.cancelled.set()

    def calls(self, job: Job, ending: str) -> dict[str, str]:
        return calls.for_replicate(self.base, f"{self.name}:{self.version}", job, ending)

    def _send(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        return send(method, f"{self.base}/v1{path}", body, self._headers | dict(headers or {}), timeout=60)

    def _run(self, job: Job) -> None:
        try:
            self._predict(job)
        except ValueError as error:
            job.end("failed", str(error))
        except OSError as error:
            job.end("failed", f"Replicate does not answer ({error}); run again")
        except Exception as error:  # the page must hear of the end, whatever it was
            job.end("failed", f"{type(error).__name__}: {error}")

    def _predict(self, job: Job) -> None:
        """Create the prediction and ask for it until it has ended; cancel it once if that is wanted."""
        body = {"version": self.version, "input": with_files(job, self._upload)}
        status, answer = self._patiently(job, "POST", "/predictions", body)
        told = False
        while status < 400 and answer.get("status") in ("starting", "processing"):
            job.status, job.logs = "running", answer.get("logs") or ""
            if job.cancelled.is_set():
                if not told:
                    self._send("POST", f"/predictions/{answer['id']}/cancel")
                told = True
                time.sleep(POLL)
            else:
                job.note = NOTES.get(answer["status"], "")
                job.cancelled.wait(POLL)
            status, answer = self._patiently(job, "GET", f"/predictions/{answer['id']}")
        job.take(status, answer)

    def _patiently(self, job: Job, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """A request that is repeated while Replicate asks to slow down."""
        while True:
            status, answer, headers = self._send(method, path, body)
            if status != 429 or job.cancelled.is_set():
                return status, answer
            seconds = float(headers.get("Retry-After") or 5)
            job.note = f"Replicate asks to wait {seconds:.0f} s"
            job.cancelled.wait(seconds)

    def _upload(self, name: str, path: Path) -> str:
        """A file as a data URI, or the address where Replicate keeps a larger one. ValueError if it refuses it."""
        if path.stat().st_size <= MAX_DATA_URI:
            return read_file(name, f"@{path}")
        boundary, kind = secrets.token_hex(16), mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        quoted = path.name.replace("\\", "_").replace('"', "_")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="content"; filename="{quoted}"\r\n'
        body = f"{head}Content-Type: {kind}\r\n\r\n".encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        status, answer, _ = self._send("POST", "/files", body, headers)
        if status not in (200, 201):
            raise ValueError(f"Replicate does not take the file {path.name}: {answer.get('detail', f'HTTP {status}')}")
        return answer["urls"]["get"]
