"""One request of the playground, and the HTTP that its clients share."""

import base64
import http.client
import json
import re
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from scripts.predict import read_answer

Status = Literal["waiting", "running", "succeeded", "failed", "canceled"]
PREFIX = re.compile(r"^(Prediction failed: )*(ValueError: |RuntimeError: )?")
"""What the Cog server puts before the model's own sentence."""


Files = Mapping[str, Path | list[Path]]


class Output(NamedTuple):
    """A file that a model returned, as it came."""

    kind: str
    """MIME type."""
    content: bytes


class Health(NamedTuple):
    """`ready` says whether the server takes requests; a busy one does. `logs` are those of its setup."""

    ready: bool
    sentence: str
    logs: str = ""


@dataclass
class Job:
    """A request under way: its inputs, and its files by input, in a list where the input takes a list.

    `note` says what it waits for, `error` in one sentence why it failed.
    """

    inputs: Mapping[str, Any]
    files: Files
    id: str = field(default_factory=lambda: secrets.token_hex(13))
    status: Status = "waiting"
    note: str = ""
    logs: str = ""
    error: str = ""
    outputs: list[Output] = field(default_factory=list)
    text: str = ""
    """The output of a model that returns no file."""
    metrics: dict[str, Any] = field(default_factory=dict)
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def end(self, status: Status, error: str = "") -> None:
        """The first end counts."""
        if not self.ended.is_set():
            self.status, self.error = status, error
            self.ended.set()

    def take(self, status: int, answer: Mapping[str, Any]) -> None:
        """End with the answer of the server."""
        self.logs = answer.get("logs") or self.logs
        self.metrics = dict(answer.get("metrics") or {})
        if answer.get("status") == "canceled":
            return self.end("canceled")
        if answer.get("status") != "succeeded":
            return self.end("failed", error_of(status, answer))
        output = answer.get("output")
        try:
            found = [fetch(item) for item in (output if isinstance(output, list) else [output])]
        except (OSError, http.client.HTTPException) as error:
            return self.end("failed", f"the result cannot be fetched ({error}); run again")
        self.outputs = [item for item in found if item is not None]
        self.text = "" if self.outputs else output if isinstance(output, str) else json.dumps(output, indent=2)
        return self.end("succeeded")


class Client(Protocol):
    """A server with the model on it."""

    name: str

    def document(self) -> dict[str, Any]:
        """The OpenAPI document. OSError or ValueError if there is none."""
        ...

    def health(self) -> Health: ...

    def start(self, job: Job) -> None:
        """Run a job in a thread of its own, whatever happens to it."""
        ...

    def cancel(self, job: Job) -> None: ...

    def calls(self, job: Job, ending: str) -> dict[str, str]:
        """The same request as code, by language. `ending` is that of the result's file."""
        ...


def with_files(job: Job, encode: Callable[[str, Path], str]) -> dict[str, Any]:
    """The inputs of a job as they are sent: every file as what `encode` makes of the input's name and the path."""
    files = {
        name: [encode(name, path) for path in paths] if isinstance(paths, list) else encode(name, paths)
        for name, paths in job.files.items()
    }
    return files | dict(job.inputs)


def send(
    method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float | None = 30
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """One request with a JSON body, or with bytes: (HTTP status, answer, headers). OSError if nothing answers."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, read_json(response.read()), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, read_json(error.read()), dict(error.headers)
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {str(error).strip() or type(error).__name__}") from None


def read_json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        found = content.decode(errors="replace")[:300]
    return found if isinstance(found, dict) else {"detail": found}


def error_of(status: int, answer: Mapping[str, Any]) -> str:
    """The server's sentence about a request that did not succeed."""
    try:
        read_answer(status, answer)
    except RuntimeError as error:
        return PREFIX.sub("", str(error)).strip()
    return f"HTTP {status}"


def fetch(item: Any) -> Output | None:
    """The file behind an item of a model's output; None if the item is no file.

    OSError or HTTPException if it cannot be had.
    """
    if not isinstance(item, str):
        return None
    if item.startswith("data:"):
        head, _, body = item.partition(",")
        return Output(head.removeprefix("data:").partition(";")[0], base64.b64decode(body))
    if not item.startswith(("http://", "https://")):
        return None
    with urllib.request.urlopen(item, timeout=600) as response:
        return Output(response.headers.get_content_type(), response.read())
