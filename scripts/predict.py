"""What `cog predict` does, without Docker: start the Cog server, send one request and write the resulting file."""

import argparse
import base64
import json
import math
import mimetypes
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.cog_server import CogServer, schema
from seesr.settings import format_of

# As base64 104 MB. The rest of a request's 100 MiB (104.9 MB) is for the other inputs.
MAX_FILE = 78_000_000
KINDS = {"integer": "an integer", "number": "a number", "boolean": "a boolean (true or false)"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/predict", description="What `cog predict` does, without Docker.")
    inputs = "an input of README.md's table; image=@FILE sends a file, image=https://... a URL"
    parser.add_argument("-i", dest="inputs", action="append", default=[], metavar="NAME=VALUE", help=inputs)
    output = "file to write (default: output.<its format>); its ending, if it has one, chooses output_format"
    parser.add_argument("-o", dest="output", metavar="FILE", help=output)
    report = "print one JSON object: output, width, height, bytes, seconds and metrics"
    parser.add_argument("--json", action="store_true", help=report)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.perf_counter()
    try:
        path, metrics = predict(arguments.inputs, arguments.output)
    except (ValueError, RuntimeError, OSError, KeyboardInterrupt) as error:
        sys.exit(f"predict: {str(error) or 'interrupted'}")
    width, height, size = metrics["width"], metrics["height"], path.stat().st_size
    seconds = round(time.perf_counter() - start, 1)
    if arguments.json:
        found = {"output": str(path), "width": width, "height": height, "bytes": size, "seconds": seconds}
        print(json.dumps(found | {"metrics": metrics}))
    else:
        print(f"{path}  {width} x {height}  {size / 1e3:.0f} kB  {seconds} s")


def predict(pairs: Sequence[str], output: str | None) -> tuple[Path, dict[str, Any]]:
    """Start the server and send one request: (path, metrics). The file is written whole or not at all.

    ValueError for a fault that is found before the server starts, RuntimeError for a failed prediction.
    """
    check_output(output)
    document = schema()
    inputs = choose_format(read_inputs(pairs, document), output, document)
    with CogServer(log=sys.stderr) as server:
        if server.health["status"] != "READY":
            raise RuntimeError(server.setup_error())
        status, answer = server.predict(**inputs)
    kind, content = read_answer(status, answer)
    ending = mimetypes.guess_extension(kind, strict=False) or ""  # webp is not standard yet
    path = Path(output or f"output{ending}")
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(content)
        return temporary.replace(path), answer["metrics"]
    finally:
        temporary.unlink(missing_ok=True)


def check_output(output: str | None) -> None:
    """Raise ValueError if no file can be written there."""
    folder, name = os.path.split(output or "output")
    if output and (not name or os.path.isdir(output)):
        raise ValueError(f"-o must name a file, got the folder {output}; name a file in it, such as out.png")
    if output and os.path.exists(output) and not os.path.isfile(output):
        raise ValueError(f"-o must name a file, got the device {output}; name another, such as out.png")
    try:
        tempfile.NamedTemporaryFile(prefix=f".{name}.", dir=folder or ".").close()
    except OSError as error:
        came = f"{folder or '.'} ({error.strerror})"
        advice = "make it, or name another with -o"
        raise ValueError(f"the result needs a folder that can be written, got {came}; {advice}") from None


def choose_format(inputs: Mapping[str, Any], output: str | None, document: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with the output_format that the ending of `output` names. ValueError if it cannot be that."""
    choices = document["components"]["schemas"].get("output_format", {}).get("enum")
    chosen = format_of(output or "", choices) if choices else None
    if chosen is None:
        return dict(inputs)
    if (asked := inputs.get("output_format", chosen)) != chosen:
        raise ValueError(
            f"-o {output} asks for {chosen}, but output_format is {asked}: change one, or leave output_format out"
        )
    return {**inputs, "output_format": chosen}


def read_inputs(pairs: Sequence[str], document: Mapping[str, Any]) -> dict[str, Any]:
    """`name=value` pairs -> JSON inputs. @file becomes a data URI. List inputs may repeat. ValueError names a fault."""
    known = document["components"]["schemas"]["Input"]["properties"]
    inputs: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"an input must be name=value, got {pair!r}")
        if name not in known:
            raise ValueError(f"there is no input {name!r}; the inputs are {', '.join(known)}")
        declared = known[name].get("items", known[name])
        parsed = read_file(name, value) if declared.get("format") == "uri" else _parse(name, value, declared)
        if known[name].get("type") == "array":
            inputs.setdefault(name, []).append(parsed)
        elif name in inputs:
            raise ValueError(f"{name} takes one value, got several")
        else:
            inputs[name] = parsed
    return inputs


def read_file(name: str, value: str) -> str:
    """@file as a data URI; a URL or a data URI as it is. ValueError if there is no such file, or a too large one."""
    if value.startswith(("http://", "https://", "data:")):
        return value
    if not value.startswith("@"):
        file = value if os.path.isfile(value) else "FILE"
        raise ValueError(
            f"{name} must be @FILE, a URL or a data URI, got {value[:60]!r}; {name}=@{file} sends the file"
        )
    path = Path(os.path.expanduser(value[1:]))
    try:
        if (size := path.stat().st_size) > MAX_FILE:
            limit = f"a request holds at most {MAX_FILE / 1e6:.0f} MB of files"
            raise ValueError(f"{name}: {path} has {size / 1e6:.1f} MB, but {limit}; make it smaller or send its URL")
        content = path.read_bytes()
    except OSError as error:
        came = f"{path} ({error.strerror})"
        raise ValueError(
            f"{name} must be a file that can be read, got {came}; check its path and permissions"
        ) from None
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _parse(name: str, value: str, declared: Mapping[str, Any]) -> Any:
    if value.startswith("@"):
        raise ValueError(f"{name} takes no file, got {value!r}; write the value itself")
    if (kind := declared.get("type")) not in KINDS:
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = None
    if not _fits(parsed, kind):
        raise ValueError(f"{name} must be {KINDS[kind]}, got {value!r}")
    return parsed


def _fits(value: object, kind: str) -> bool:
    if isinstance(value, bool) or kind == "boolean":
        return isinstance(value, bool) and kind == "boolean"
    if isinstance(value, float):
        return value.is_integer() if kind == "integer" else math.isfinite(value)
    return isinstance(value, int)


def read_answer(status: int, answer: Mapping[str, Any]) -> tuple[str, bytes]:
    """(MIME type, content) of the file that a prediction returned. RuntimeError with its message if it failed."""
    if answer.get("status") != "succeeded":
        detail = answer.get("detail")
        if isinstance(detail, list):
            detail = "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in detail)
        raise RuntimeError(str(answer.get("error") or detail or f"HTTP {status}: {answer}"))
    output = answer.get("output")
    if not isinstance(output, str) or not output.startswith("data:"):
        came = f"a list of {len(output)}" if isinstance(output, list) else repr(str(output)[:80])
        raise RuntimeError(f"the predictor must return one file, got {came}; call its HTTP API instead (docs/api.md)")
    head, _, body = output.partition(",")
    return head.removeprefix("data:").split(";")[0], base64.b64decode(body)


if __name__ == "__main__":
    main()
