"""The documents: their commands run, their links lead somewhere, and inputs and errors are the code's."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts.cog_server import schema
from seesr.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
README, API, ANSWER = ROOT / "README.md", ROOT / "docs/api.md", ROOT / "docs/answer.md"
DOCUMENTS = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "scripts/train/README.md",
    ROOT / "examples/CREDITS.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
OPTION = re.compile(r"--?[A-Za-z][\w-]*")
RUNS_PYTEST = ("scripts/test", "scripts/check")
"""Options that these do not know go to pytest."""

Program = tuple[str, ...]


def blocks(document: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(document.read_text(encoding="utf-8")) if found == language]


def code(document: Path) -> Iterator[str]:
    """Lines of fenced code, continued ones joined, and inline code."""
    text = document.read_text(encoding="utf-8")
    for _, block in FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    for inline in INLINE.findall(FENCE.sub("", text)):
        yield " ".join(inline.split())


def commands(document: Path) -> Iterator[tuple[Program, list[str]]]:
    """(program, arguments) of every command that starts with `scripts/` or `.venv/bin/python`.

    The program is a script's path, or "-m" and a module. Words after `&&`, `|` or `;` are not looked at.
    """
    for line in code(document):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # not a shell's line
            continue
        while words and re.fullmatch(r"\$|[A-Z_]+=.*", words[0]):
            words.pop(0)
        end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
        words = words[:end]
        if words[:2] == [".venv/bin/python", "-m"]:
            yield tuple(words[1:3]), words[3:]
        elif words[:1] == [".venv/bin/python"]:
            yield (words[1],), words[2:]
        elif words and re.fullmatch(r"scripts/\w+", words[0]) and not (ROOT / words[0]).is_dir():
            yield (words[0],), words[1:]


def runnable() -> Iterator[Program]:
    """Every program in scripts/: by its path those directly there, as a module the others."""
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        if "__main__" in path.read_text(encoding="utf-8"):
            inside = path.relative_to(ROOT)
            yield (str(inside),) if path.parent.name == "scripts" else ("-m", ".".join(inside.with_suffix("").parts))


COMMANDS = [(document, *command) for document in DOCUMENTS if document.is_file() for command in commands(document)]
PROGRAMS = sorted({*runnable(), *(program for _, program, _ in COMMANDS)})


def run_help(program: Program) -> subprocess.CompletedProcess[str]:
    """From another folder than the project's"""
    if program[0] == "-m":
        command = [sys.executable, *program]
    else:
        command = [*([sys.executable] if program[0].endswith(".py") else []), str(ROOT / program[0])]
    folder = tempfile.gettempdir()
    return subprocess.run([*command, "--help"], cwd=folder, capture_output=True, text=True, check=False, timeout=300)


@cache
def helps() -> dict[Program, subprocess.CompletedProcess[str]]:
    """What every program answers to --help, run once, two at a time."""
    programs = [*PROGRAMS, ("-m", "pytest")]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(programs, pool.map(run_help, programs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_every_command_exists_and_has_a_help_text(program: Program) -> None:
    done = helps()[program]
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_is_in_the_help_text_of_its_command(document: Path) -> None:
    for place, program, arguments in COMMANDS:
        text = helps()[program].stdout
        if program[0] in RUNS_PYTEST:
            text += helps()["-m", "pytest"].stdout
        for word in arguments if place == document else []:
            if option := OPTION.match(word):
                assert re.search(rf"(?<![\w-]){option[0]}(?![\w-])", text), f"{' '.join(program)} has no {option[0]}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_in_code_exists(document: Path) -> None:
    for line in code(document):
        for path in re.findall(r"(?<![\w./-])(?:docs|examples|ram|scripts|seesr|tests|weights/tiny)/[\w./-]*", line):
            assert (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (document.parent / name).resolve() if name else document
        assert place.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("document", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name)
def test_documents_are_short(document: Path) -> None:
    lines = document.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (150 if document == README else 100)


def table(document: Path, title: str) -> list[list[str]]:
    """The cells of the table whose first column is called `title`, without its head."""
    lines = document.read_text(encoding="utf-8").splitlines()
    rows = lines[next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |")) + 2 :]
    end = next((i for i, line in enumerate(rows) if not line.startswith("|")), len(rows))
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[:end]]


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    return schema(ROOT, "predict.py:Predictor")["components"]["schemas"]


def default_of(declared: dict[str, Any]) -> str:
    value = declared.get("default", "required")
    if value is None:
        return "random"
    return json.dumps(value) if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def range_of(declared: dict[str, Any], schemas: dict[str, Any]) -> str:
    if "allOf" in declared:
        return ", ".join(schemas[declared["allOf"][0]["$ref"].rsplit("/", 1)[1]]["enum"])
    if "minimum" in declared:
        low, high = declared["minimum"], declared.get("maximum")
        return f"{low:.16g} or more" if high is None else f"{low:.16g} to {high:.16g}"
    return "true, false" if declared["type"] == "boolean" else "file" if declared.get("format") == "uri" else "text"


def test_the_table_of_inputs_is_the_schema_s(schemas: dict[str, Any]) -> None:
    declared = sorted(schemas["Input"]["properties"].items(), key=lambda item: item[1]["x-order"])
    wanted = [[f"`{name}`", default_of(field) or "empty", range_of(field, schemas)] for name, field in declared]
    rows = table(README, "input")
    assert [row[:3] for row in rows] == wanted
    assert all(len(cell.split()) <= 15 for row in rows for cell in row)


@pytest.mark.parametrize("document", [README, API], ids=lambda path: path.name)
def test_inputs_in_examples_are_legal(document: Path, schemas: dict[str, Any]) -> None:
    bodies = [
        json.loads(body) for block in blocks(document, "sh") for body in re.findall(r"-d '(.*?)'", block, re.DOTALL)
    ]
    examples = [body["input"] for body in bodies]
    examples += [json.loads(line) for line in code(document) if line.startswith("{") and line.endswith("}")]
    assert examples
    for inputs in examples:
        assert inputs.keys() <= schemas["Input"]["properties"].keys()
        Settings(**{name: value for name, value in inputs.items() if name != "image"})


def strings() -> list[str]:
    """Every string of the program, f-strings in their literal pieces."""
    files = [ROOT / "predict.py", *(ROOT / "seesr").rglob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize(("document", "title"), [(README, "question or message"), (ANSWER, "`error` or `detail`")])
def test_quoted_messages_are_the_program_s(document: Path, title: str) -> None:
    known = strings()
    cells = [row[0] for row in table(document, title) if "HTTP" not in row[1]]
    quoted = [message for cell in cells for message in INLINE.findall(cell)]
    assert quoted
    for message in quoted:
        for piece in filter(None, (piece.strip(" ()") for piece in message.split("..."))):
            assert any(piece in string for string in known), message


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_examples_compile(document: Path) -> None:
    for block in blocks(document, "python"):
        compile(block, document.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize(
    "example", [block for block in blocks(README, "python") if "from seesr import" in block], ids=["library"]
)
def test_library_examples_run(example: str, tmp_path: Path) -> None:
    for name in ("weights", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(ROOT / "examples/animal.jpg") as small, Image.open(tmp_path / "out.png") as result:
        assert result.size == (4 * small.width, 4 * small.height)
