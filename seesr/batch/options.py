"""The command line: files, folders and addresses, and every Cog input as an option."""

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from seesr.batch.job import Options
from seesr.settings import Settings, format_of

INPUTS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("inputs.json").read_text(encoding="utf-8"))
ENGINES = ("local", "ray", "replicate")
ONLY_FOR = {
    "ray_address": ("ray",),
    "concurrency": ("ray", "replicate"),
    "bundle": ("local", "ray"),
    **dict.fromkeys(("model", "deployment", "budget"), ("replicate",)),
}
DESCRIPTION = """\
Upscale photographs: files, folders with all below, patterns, addresses such as s3://bucket/folder.
Results stand beside their inputs as NAME_upscaled.png, or under --out. report.jsonl gets a line per image.
Run it again to go on where it stopped: what is done is skipped."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"upscale: {message}\n")


def parse(arguments: Sequence[str]) -> Options:
    """The command line, checked. Exits with 2 and one sentence where something is wrong."""
    parser = _parser()
    found = vars(parser.parse_intermixed_args(_joined(arguments)))
    given = {row["name"]: found.pop(row["name"]) for row in INPUTS}
    given = {name: value for name, value in given.items() if value is not None}
    for name, engines in ONLY_FOR.items():
        if found[name] is not None and found["engine"] not in engines:
            wanted = f"--{name.replace('_', '-')} needs --engine {' or '.join(engines)}"
            parser.error(f"{wanted}, got --engine {found['engine']}")
    try:
        given |= _format(found["output"], given)
        _check_places(found)
        return Options(settings=Settings(**given), given=given, **found)
    except ValueError as error:
        parser.error(str(error))


def _parser() -> Parser:
    parser = Parser(
        prog="upscale",
        usage="%(prog)s PATH... [--out DIR | -o FILE] [--engine local|ray|replicate] [options]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="a file, a folder, a quoted pattern, or an address")
    add("--out", metavar="DIR", help="folder for the results; the structure of folders is kept")
    add("-o", "--output", metavar="FILE", help="file for the result of one image; its ending chooses the format")
    add("--name", metavar="TEMPLATE", help='name of a result, such as "{stem}_x{scale:g}"; also {ext}, of the input')
    add("--force", action="store_true", help="do again what is done")
    add("--fail-fast", action="store_true", help="stop at the first image that fails")
    add("--dry-run", action="store_true", help="only list what would be done, with seconds and dollars per card")
    add("--json", action="store_true", help="print one JSON object per image, and a last one with the summary")
    add("--report", type=Path, metavar="FILE", help="where the report goes (default: report.jsonl with the results)")
    engines = parser.add_argument_group("engines")
    add = engines.add_argument
    add("--engine", choices=ENGINES, default="local", help="this machine (default), Ray, or a model on Replicate")
    add(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="the model's folder (default: SEESR_WEIGHTS, the full one, the embedded)",
    )
    add("--gpu", metavar="CARD", help="whose tiles to use, as SEESR_GPU; for replicate, the hardware of the model")
    add("--concurrency", type=_concurrency, metavar="MIN [MAX]", help="Ray: workers; Replicate: requests in flight")
    add("--ray-address", metavar="ADDRESS", help="of a running Ray cluster (default: one is started here)")
    add("--model", metavar="OWNER/NAME[:VERSION]", help="a model on Replicate")
    add("--deployment", metavar="OWNER/NAME", help="a deployment on Replicate")
    add(
        "--budget",
        type=_number(float, 0, math.inf),
        metavar="DOLLARS",
        help="Replicate: what predictions of this run may cost; setup and idle time of private models come on top",
    )
    inputs = parser.add_argument_group("inputs of the model")
    for row in INPUTS:
        _add_input(inputs, row)
    return parser


def _add_input(group: Any, row: dict[str, Any]) -> None:
    """One Cog input as an option; not given, it is None."""
    option, kind = f"--{row['name'].replace('_', '-')}", row["type"]
    text = row["description"].replace("%", "%%")
    if row["default"] not in (None, "", False):
        text += f" (default: {row['default']})"
    if kind == "boolean":
        group.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif "choices" in row:
        group.add_argument(option, choices=row["choices"], help=text)
    elif kind == "string":
        group.add_argument(option, metavar="TEXT", help=text)
    else:
        to = int if kind == "integer" else float
        check = _number(to, row.get("minimum", -math.inf), row.get("maximum", math.inf))
        group.add_argument(option, type=check, metavar="N" if to is int else "X", help=text)


def _number(to: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    wanted = "a whole number" if to is int else "a number"
    limits = f" of at least {low:g}" if high == math.inf else f" between {low} and {high}"

    def read(text: str) -> float:
        try:
            value = to(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {wanted}{limits}, got {text!r}")
        return value

    return read


def _joined(arguments: Sequence[str]) -> list[str]:
    """Without what argparse misreads: `--concurrency 1 4` is one word, and no path after `--` begins with a dash."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    paths = [f"./{path}" if path.startswith("-") else path for path in arguments[end + 1 :]]
    text = "\0".join(["", *arguments[:end], *paths])
    return re.sub(r"\0--concurrency\0(\d+)(?:\0(\d+))?(?=\0|$)", r"\0--concurrency=\1,\2", text).split("\0")[1:]


def _concurrency(text: str) -> tuple[int, int]:
    low, _, high = text.partition(",")
    if not low.isdecimal() or not 1 <= int(low) <= int(high or low):
        raise argparse.ArgumentTypeError(f"must be one or two numbers from 1 up, MIN and MAX, got {text!r}")
    return int(low), int(high or low)


def _format(output: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The output_format that the ending of -o asks for. ValueError where --output-format asks for another."""
    choices = next(row["choices"] for row in INPUTS if row["name"] == "output_format")
    chosen = format_of(output or "", choices)
    asked = given.get("output_format")
    if chosen and asked not in (None, chosen):
        raise ValueError(f"-o {output} asks for {chosen}, but --output-format is {asked}: change one, or leave it out")
    return {"output_format": chosen} if chosen else {}


def _check_places(found: dict[str, Any]) -> None:
    output = found["output"]
    if output is None:
        return
    for name in ("out", "name"):
        if found[name] is not None:
            raise ValueError(f"-o names the result of one image, and --{name} does so for several; give one of them")
    if output.endswith("/") or Path(output).is_dir():
        raise ValueError(f"-o must name a file, got the folder {output}; give --out {output} for all results there")
