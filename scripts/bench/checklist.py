"""Checks and measurements one after the other: each result is in a file at once, and no later run makes it again."""

import hashlib
import json
import os
import platform
import subprocess
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from scripts.bundle_writer import sha256
from seesr import hardware
from seesr.bundle import read_json

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = ("torch", "diffusers", "transformers", "xformers", "numpy")

CHECK, DONE = "check", ("passed", "measured")


@dataclass(frozen=True)
class Item:
    """`run` returns what it found, a sentence as "text" among it; it raises any error if it fails.

    `kind` is "check", or what is measured. `seconds` is predicted. `blocked` says why the item can't run here.
    """

    name: str
    kind: str
    seconds: float
    run: Callable[[], dict[str, Any]]
    blocked: str = ""


@dataclass
class Checklist:
    """Rows of items by name in `rows`: kind, status ("passed", "measured", "failed" or "not run"), text and findings.

    `path` keeps a run for every `environment`. Items start within `limit` seconds only if they should end within them.
    """

    path: Path | None
    environment: Mapping[str, Any]
    device: str
    limit: float
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._pace: dict[str, float] = defaultdict(lambda: 1.0)  # of the latest item of a kind
        self._runs: list[dict[str, Any]] = read(self.path) if self.path and self.path.exists() else []
        known = next((run for run in self._runs if run["environment"] == self.environment), None)
        if known is None:
            self._runs.append({"environment": self.environment, "rows": self.rows})
        else:
            self.rows = known["rows"]
        self._write()

    def run(self, items: Sequence[Item]) -> bool:
        """Run the items that no run has done yet -> whether none of `items` has failed."""
        stopped = ""
        for item in items:
            if self.rows.get(item.name, {}).get("status") in DONE:
                print(f"{item.name}: done before", flush=True)
                continue
            self.rows[item.name] = row = {"kind": item.kind} | self._run(item, stopped)
            self._write()
            print(f"{item.name}: {row['status']}. {row['text']}", flush=True)
            if row["status"] == "failed" and not hardware.responds(self.device):
                stopped = "the GPU stopped working"
        return all(self.rows[item.name]["status"] != "failed" for item in items)

    def _run(self, item: Item, stopped: str) -> dict[str, Any]:
        left = self.limit - (time.monotonic() - self._start)
        expected = item.seconds * self._pace[item.kind]
        if expected > left:
            stopped = stopped or f"time: about {expected:.0f} s are needed, {max(0, left):.0f} s are left"
        if stopped or item.blocked:
            return {"status": "not run", "text": item.blocked or stopped}
        print(f"{item.name}: about {expected:.0f} s of {left:.0f} s left", flush=True)
        start = time.monotonic()
        try:
            found = {"status": "passed" if item.kind == CHECK else "measured"} | item.run()
        except Exception as error:  # the other items must have their turn, whatever it was
            sentence = " ".join(f"{type(error).__name__}: {error}".split())
            return {"status": "failed", "text": sentence, "traceback": traceback.format_exc()}
        took = time.monotonic() - start
        if item.kind != CHECK:  # checks are unlike each other
            self._pace[item.kind] = max(1.0, took / item.seconds)
        return found | {"took": took}

    def _write(self) -> None:
        """The file is replaced whole or not at all."""
        if self.path is None:
            return
        with tempfile.TemporaryDirectory(prefix=f".{self.path.name}-", dir=self.path.parent) as folder:
            whole = Path(folder) / self.path.name
            whole.write_text(json.dumps({"runs": self._runs}, indent=1) + "\n", encoding="utf-8")
            os.replace(whole, self.path)


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a file. Raises ValueError if it is none of a Checklist."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        if all(isinstance(run["environment"], dict) and isinstance(run["rows"], dict) for run in runs):
            return runs
        raise TypeError("its runs have no rows")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no results of this command ({error}); name another file, or remove it"
        ) from None


def environment(device: str, bundle: Path | None) -> dict[str, str]:
    """What results depend on: the card, versions, the commit, the code itself, and the bundle (None: random weights).

    Raises RuntimeError where there is no bundle.
    """
    found = {"device": device, "card": hardware.card_name(device), "python": platform.python_version()}
    found |= dict.fromkeys(PACKAGES, "none")
    found |= {known.name: known.version for known in distributions() if known.name in PACKAGES}
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    code = hashlib.sha256()
    for path in sorted(path for folder in ("seesr", "ram", "scripts/bench") for path in (ROOT / folder).rglob("*.py")):
        code.update(path.read_bytes())
    weights = "random weights"
    if bundle is not None:
        weights = f"{read_json(bundle / 'bundle.json')['name']}, {sha256(bundle / 'bundle.json')[:8]}"
    return found | {"commit": git.stdout.strip() or "unknown", "code": code.hexdigest()[:12], "weights": weights}
