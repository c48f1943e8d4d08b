"""The real Cog server without Docker, and a `cog predict` on top of it.

`cog build` writes the schema that the server validates inputs by; here it is made from Cog's own reading of the
predictor, in a temporary working directory that goes away with the server.
"""

import argparse
import base64
import json
import mimetypes
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
PREDICTOR = "predict.py:Predictor"


class CogServer:
    """A server process on a free loopback port, inside a `with` block. `health` is its state once it has set up.

    `env` joins the process's environment; `log` receives the server's output line by line as it comes.
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
        self._listening = threading.Event()

    def __enter__(self) -> "CogServer":
        self._folder = tempfile.TemporaryDirectory(prefix="seesr-cog-")
        work = Path(self._folder.name)
        (work / ".cog").mkdir()
        (work / "tmp").mkdir()
        try:
            (work / ".cog/openapi_schema.json").write_text(json.dumps(schema(self.root, self.predictor)))
            self._start(work)
            self._wait()
        except BaseException:  # whatever went wrong, Ctrl-C too: no process and no folder stays behind
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._folder.cleanup()

    def _start(self, work: Path) -> None:
        path, name = self.predictor.split(":")
        search = [str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(search),
            # The server starts its worker as plain `python`: it must be this one.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "COG_PREDICT_TYPE_STUB": f"{self.root / path}:{name}",
            "PORT": "0",
            "LOG_FORMAT": "console",
            "NO_COLOR": "1",
            "PYTHONWARNINGS": "ignore",  # what libraries say about each other on import
            "HF_HUB_OFFLINE": "1",
            # Where others use the cores too, threads that spin cost ten times as long.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            "TMPDIR": str(work / "tmp"),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "cog.server.http", "--host", "127.0.0.1"],
            cwd=work,
            env=env | self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if self.log is not None:
                print(line, end="", file=self.log, flush=True)
            if found := re.search(r"Starting coglet server on [\d.]+:(\d+)", line):
                self.url = f"http://127.0.0.1:{found[1]}"
                self._listening.set()

    def _wait(self) -> None:
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"the Cog server stopped by itself:\n{''.join(self.lines)}")
            if self._listening.wait(0.05):
                self.health = self.get("/health-check")
                if self.health.get("status") in ("READY", "SETUP_FAILED"):
                    return
                time.sleep(0.05)
        raise RuntimeError(f"the Cog server was not ready after {self.timeout:.0f} s:\n{''.join(self.lines)}")

    def get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.loads(error.read() or b"{}")

    def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """One request as it is: HTTP status and answer."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", **(headers or {})},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=3600) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text.startswith(b"{") else {"detail": text.decode(errors="replace")}

    def predict(self, **inputs: object) -> tuple[int, dict[str, Any]]:
        """A prediction. The server frees its slot a moment after it answers, so 409 is tried again for a while."""
        end = time.monotonic() + 5
        while True:
            status, answer = self.send("POST", "/predictions", {"input": inputs})
            if status != 409 or time.monotonic() > end:
                return status, answer
            time.sleep(0.05)

    def setup_error(self) -> str:
        """Why setup failed, in one line."""
        logs = str(self.health.get("setup", {}).get("logs", "")).strip().splitlines()
        return logs[-1] if logs else "setup failed without a word"


def schema(root: Path = ROOT, predictor: str = PREDICTOR) -> dict[str, Any]:
    """The OpenAPI document of a predictor, made in a process of its own because it imports the predictor."""
    command = [sys.executable, __file__, "schema", str(root), predictor]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Cog can't read {predictor}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def build_schema(root: Path, predictor: str) -> dict[str, Any]:
    sys.path.insert(0, str(root))
    from cog._inspector import create_predictor  # type: ignore[import-not-found]

    path, name = predictor.split(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        info = create_predictor(Path(path).stem, name)
    properties: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Output": info.output.json_type()}
    required = []
    for field in sorted(info.inputs.values(), key=lambda item: item.order):
        properties[field.name] = _property(field, schemas)
        if field.default is None and not properties[field.name].get("nullable"):
            required.append(field.name)
    schemas["Input"] = {"title": "Input", "type": "object", "properties": properties, "required": required}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {"/predictions": {"post": {}}},
        "components": {"schemas": schemas},
    }


def _property(field: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """One input as `cog build` writes it; an enumeration goes to `schemas` and is referred to."""
    from cog._adt import Repetition  # type: ignore[import-not-found]

    found: dict[str, Any] = {"x-order": field.order}
    if field.choices:
        schemas[field.name] = {
            "title": field.name,
            "description": "An enumeration.",
            "enum": list(field.choices),
            "type": field.type.primitive.json_type()["type"],
        }
        found["allOf"] = [{"$ref": f"#/components/schemas/{field.name}"}]
    else:
        found |= {"title": field.name.replace("_", " ").title(), **field.type.json_type()}
    optional = field.type.repetition in (Repetition.OPTIONAL, Repetition.OPTIONAL_REPEATED)
    if optional:
        found["nullable"] = True
    if field.default is not None or optional:
        found["default"] = None if field.default is None else field.type.json_encode(field.default)
    limits = {"description": field.description, "minimum": field.ge, "maximum": field.le, "pattern": field.regex}
    return found | {name: value for name, value in limits.items() if value is not None}


def read_inputs(pairs: Sequence[str], document: Mapping[str, Any]) -> dict[str, Any]:
    """`name=value` pairs as JSON inputs: @file becomes a data URI, a repeated name a list. ValueError names a fault."""
    known = document["components"]["schemas"]["Input"]["properties"]
    inputs: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"an input must be name=value, got {pair!r}")
        if name not in known:
            raise ValueError(f"there is no input {name!r}; the inputs are {', '.join(known)}")
        parsed = _parse(name, value, known[name])
        if known[name].get("type") == "array":
            inputs.setdefault(name, []).append(parsed)
        elif name in inputs:
            raise ValueError(f"{name} takes one value, got several")
        else:
            inputs[name] = parsed
    return inputs


def _parse(name: str, value: str, declared: Mapping[str, Any]) -> Any:
    if value.startswith("@"):
        path = Path(value[1:])
        if not path.is_file():
            raise ValueError(f"{name} names the file {path}, which does not exist")
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    kind = declared.get("items", declared).get("type")
    if kind not in ("integer", "number", "boolean"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(f"{name} must be a {kind}, got {value!r}") from None


def main() -> None:
    if sys.argv[1:2] == ["schema"]:
        print(json.dumps(build_schema(Path(sys.argv[2]), sys.argv[3])))
        return
    parser = argparse.ArgumentParser(prog="scripts/predict", description="What `cog predict` does, without Docker.")
    parser.add_argument("-i", dest="inputs", action="append", default=[], metavar="NAME=VALUE", help="@file for files")
    parser.add_argument("-o", dest="output", type=Path, help="where the result goes (default: output.<its format>)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.perf_counter()
    try:
        path = predict(arguments.inputs, arguments.output)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"predict: {error}")
    except KeyboardInterrupt:
        sys.exit("predict: interrupted")
    print(f"{path}  {picture_size(path)}{path.stat().st_size / 1e3:.0f} kB  {time.perf_counter() - start:.1f} s")


def predict(pairs: Sequence[str], output: Path | None) -> Path:
    """Start the server, send one request, write its file whole or not at all. RuntimeError has the server's words."""
    inputs = read_inputs(pairs, schema())
    with CogServer(log=sys.stderr) as server:
        if server.health["status"] != "READY":
            raise RuntimeError(server.setup_error())
        status, answer = server.predict(**inputs)
        if answer.get("status") != "succeeded":
            raise RuntimeError(reason(status, answer))
        head, _, body = str(answer.get("output")).partition(",")
        if not head.startswith("data:"):
            raise RuntimeError(f"the server says it succeeded, but its output is {head[:80]!r} and no file")
    kind = head.removeprefix("data:").split(";")[0]
    mimetypes.add_type("image/webp", ".webp")
    path = output or Path(f"output{mimetypes.guess_extension(kind) or ''}")
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(base64.b64decode(body))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def reason(status: int, answer: Mapping[str, Any]) -> str:
    """The server's own words of why there is no result."""
    detail = answer.get("detail")
    if isinstance(detail, list):
        return "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in detail)
    return str(answer.get("error") or detail or f"HTTP {status}: {answer}")


def picture_size(path: Path) -> str:
    """ "512 x 512  " of a PNG, read off its header; nothing for other formats."""
    head = path.read_bytes()[:24]
    if head[:8] != b"\x89PNG\r\n\x1a\n":
        return ""
    width, height = struct.unpack(">II", head[16:24])
    return f"{width} x {height}  "


if __name__ == "__main__":
    main()
