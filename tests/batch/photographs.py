"""Small photographs for runs of many, and what a run did with them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.jpg"))


def write_photographs(folder: Path, names: Iterable[str], side: int = 24) -> list[Path]:
    """Files of these names, each of another size of about `side`, cut from the examples."""
    paths = []
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(EXAMPLES[number % len(EXAMPLES)]) as image:
            image.crop((number, 0, number + side + number % 3, side + number % 2)).save(path)
        paths.append(path)
    return paths


def rows(folder: Path) -> list[dict[str, Any]]:
    """The report of a folder; every line must be whole."""
    text = (folder / "report.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
