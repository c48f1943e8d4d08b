"""Run the Cog server without Docker.

The server checks inputs against the schema that `cog build` writes. Here Cog's own inspection of the predictor makes
the schema. The server runs in a temporary directory, which is deleted when it stops.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
PREDICTOR = "predict.py:Predictor"
AS_IN_COG_YAML = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_ARENA_MAX": "1"}
"""Unless the environment says otherwise; cog.yaml tells why."""


class CogServer:
    """A server process on a free loopback port, for a `with` block.

    `predictor` is "file.py:Class" below `root`. `env` adds environment variables. `log` receives each line of output
    at once. RuntimeError if the server stops or is not ready within `timeout` seconds.

    `url` is empty until the server listens.

    Attributes inside the block: `url`; `health`, the answer of /health-check after setup, which may be a failed one;
    `lines`, the output so far; `pid`; `folder`, the working directory, with the server's temporary files in tmp/.
    """

    def __init__(
        self,
        root: Path = ROOT,
        predictor: str = PREDICTOR,
        env: Mapping[str, str] | None = None,
        log: TextIO | None = None,
        timeout: float = 300,
    ) -> None:
        self.root, self.predictor, self.env, self.log, self.timeout = root, predictor, dict(env or {}), log, timeout
        self.lines: list[str] = []
        self.health: dict[str, Any] = {}
        self.url = ""
        self._listening = threading.Event()

    def __enter__(self) -> "CogServer":
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seesr-cog-")))
            (self.folder / "tmp").mkdir()
            (self.folder / ".cog").mkdir()
            (self.folder / ".cog/openapi_schema.json").write_text(json.dumps(schema(self.root, self.predictor)))
            process = self._start()
            stack.callback(_stop, process)
            self.pid = process.pid
            self._wait(process)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> subprocess.Popen[str]:
        env = os.environ | {
            "PYTHONPATH": _python_path(self.root),
            # The server starts its worker as plain `python`, which must be this one.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "COG_PREDICT_TYPE_STUB": str(self.root / self.predictor),
            "PORT": "0",
            "LOG_FORMAT": "console",
            "NO_COLOR": "1",
            "PYTHONWARNINGS": "ignore::DeprecationWarning",  # Cog's own: it prefers the names of a later version
            "HF_HUB_OFFLINE": "1",
            **{name: os.environ.get(name, value) for name, value in AS_IN_COG_YAML.items()},
            "TMPDIR": str(self.folder / "tmp"),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"],
            cwd=self.folder,
            env=env | self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()
        return process

    def _read(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self.lines.append(line)
                if self.log is not None:
                    print(line, end="", file=self.log, flush=True)
                if found := re.search(r"Starting coglet server on [\d.]+:(\d+)", line):
                    self.url = f"http://127.0.0.1:{found[1]}"
                    self._listening.set()

    def _wait(self, process: subprocess.Popen[str]) -> None:
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            if process.poll() is not None:
                raise RuntimeError(f"the Cog server stopped:\n{''.join(self.lines)}")
            if self._listening.wait(0.05):
                self.health = self.get("/health-check")
                if self.health.get("status") in ("READY", "SETUP_FAILED"):
                    return
                time.sleep(0.05)
        raise RuntimeError(f"the Cog server was not ready after {self.timeout:.0f} s:\n{''.join(self.lines)}")

    def get(self, path: str) -> dict[str, Any]:
        """The JSON answer to a GET, whatever its status."""
        return self.send("GET", path)[1]

    def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """One request with a JSON body: (HTTP status, answer)."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30 if method == "GET" else 3600) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            return error.code, json.loads(text) if text.startswith("{") else {"detail": text}

    def predict(self, **inputs: object) -> tuple[int, dict[str, Any]]:
        """One prediction: (HTTP status, answer). A failed prediction has status 200 and an `error`.

        The server is busy for a moment after it has answered, so a 409 is retried for 5 s.
        """
        end = time.monotonic() + 5
        while (answer := self.send("POST", "/predictions", {"input": inputs}))[0] == 409 and time.monotonic() < end:
            time.sleep(0.05)
        return answer

    def setup_error(self) -> str:
        """The last line that setup logged: why it failed."""
        logs = str(self.health.get("setup", {}).get("logs", "")).strip().splitlines()
        return logs[-1] if logs else "setup failed and logged nothing"


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _python_path(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def schema(root: Path = ROOT, predictor: str = PREDICTOR) -> dict[str, Any]:
    """The OpenAPI document of a predictor. It is made in a subprocess, since Cog imports the predictor for it."""
    code = "import sys; from scripts.cog_server import print_schema; print_schema(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore::DeprecationWarning", "-c", code, predictor],
        env=os.environ | {"PYTHONPATH": _python_path(root, ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"Cog cannot read {predictor}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def print_schema(predictor: str) -> None:
    """Print the OpenAPI document of "file.py:Class", whose module must be importable."""
    from cog._inspector import create_predictor  # type: ignore[import-not-found]

    path, name = predictor.split(":")
    info = create_predictor(Path(path).stem, name)
    schemas: dict[str, Any] = {"Output": info.output.json_type()}
    fields = sorted(info.inputs.values(), key=lambda field: field.order)
    properties = {field.name: _property(field, schemas) for field in fields}
    required = [field.name for field in fields if field.default is None and not properties[field.name].get("nullable")]
    schemas["Input"] = {"title": "Input", "type": "object", "properties": properties, "required": required}
    about = {"openapi": "3.0.2", "info": {"title": "Cog", "version": "0.1.0"}, "paths": {"/predictions": {"post": {}}}}
    print(json.dumps({**about, "components": {"schemas": schemas}}))


def _property(field: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """One input as `cog build` writes it. An enumeration goes to `schemas`."""
    from cog._adt import Repetition  # type: ignore[import-not-found]

    found: dict[str, Any] = {"x-order": field.order}
    if field.choices:
        kind = field.type.primitive.json_type()["type"]
        title = {"title": field.name, "description": "An enumeration."}
        schemas[field.name] = {**title, "enum": list(field.choices), "type": kind}
        found["allOf"] = [{"$ref": f"#/components/schemas/{field.name}"}]
    else:
        found |= {"title": field.name.replace("_", " ").title(), **field.type.json_type()}
    if field.type.repetition in (Repetition.OPTIONAL, Repetition.OPTIONAL_REPEATED):
        found |= {"nullable": True, "default": None}
    if field.default is not None:
        found["default"] = field.type.json_encode(field.default)
    limits = {"description": field.description, "minimum": field.ge, "maximum": field.le, "pattern": field.regex}
    found |= {name: value for name, value in limits.items() if value is not None}
    # Cog holds limits as floats; `cog build` writes whole ones without ".0", and the server reads only those exactly.
    return {k: int(v) if k in ("minimum", "maximum") and v == int(v) else v for k, v in found.items()}
