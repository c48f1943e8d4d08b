"""What the logs say: which model the setup has loaded, and the progress of a prediction."""

import re
from collections.abc import Mapping
from typing import NamedTuple

LOADED = re.compile(r"Loaded (\S+) on (\w+),")
"""Name and device of the model, in the log of the setup."""

LINE = re.compile(r"^\s*(\d+)%\s*\|.+?\|\s*(\d+)/(\d+)(?:.*, ([\w ]+)\])?")
"""A line of progress, as both official clients of Replicate find it; seesr.progress adds the stage at its end."""

STAGES = {
    "start": "Starting",
    "tag": "Tagging",
    "text": "Prompt",
    "encode": "Encoding",
    "denoise": "Denoising",
    "decode": "Decoding",
    "color": "Colours",
    "resize": "Resizing",
    "file": "Writing",
}
"""Stages in the order they happen; resizing happens before encoding too."""


class Progress(NamedTuple):
    share: float
    stage: str


def stage_title(stage: str) -> str:
    """A stage in plain words; one that is not ours as it is."""
    return STAGES.get(stage, stage.capitalize())


def read_progress(logs: str) -> Progress | None:
    """The last progress of a log; None if it has none."""
    for line in reversed(logs.splitlines()):
        if found := LINE.match(line):
            done, total = int(found[2]), int(found[3])
            return Progress(min(1.0, done / total) if total else 0.0, found[4] or "")
    return None


def in_order(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage in the order of STAGES, then others."""
    known = [*STAGES]
    return dict(sorted(seconds.items(), key=lambda row: known.index(row[0]) if row[0] in known else len(known)))
