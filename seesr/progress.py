"""How far a request is: its predicted work by stage, and a bar in the log that Replicate's clients read."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from tqdm import tqdm

from seesr.memory import TilePlan
from seesr.settings import Settings
from seesr.sizes import Size

OnProgress = Callable[[float, str], None]
"""Called with the share of the work that is done, in [0, 1] and never falling, and with the stage under way."""

FILE_SHARE = 0.02  # of the work: writing the file, after SeeSR.upscale
SECONDS_BETWEEN_LINES = 0.5


def predicted_work(flops: Mapping[str, float], latent: Size, settings: Settings, plan: TilePlan) -> dict[str, float]:
    """FLOPs by stage for a `latent` size, from bundle.json's `flops`: those of a tag, else per latent pixel."""
    fast = {way: f"tiny_{way}" for way in ("encode", "decode") if getattr(plan, way).fast}
    grid = plan.grid(latent)
    passes = settings.num_inference_steps * settings.particles * settings.branches
    amounts = {
        "tag": 1,
        "encode": math.prod(plan.encode_size(latent)),
        "denoise": len(grid) * math.prod(grid.tile) * passes,
        "decode": math.prod(latent),
    }
    return {stage: amount * flops.get(fast.get(stage, stage), 0.0) for stage, amount in amounts.items()}


class Progress:
    """The share of the `work` done, given to `report`. `work` holds FLOPs by stage; other stages weigh nothing."""

    def __init__(self, work: Mapping[str, float], report: OnProgress | None) -> None:
        self._work, self._report = work, report
        self._done: dict[str, float] = {}

    def set(self, stage: str, share: float) -> None:
        """`share` of the stage is done, in [0, 1]. A stage that runs again waits until it is as far as before."""
        self._done[stage] = max(share, self._done.get(stage, 0.0))
        if self._report is not None:
            done = sum(work * self._done.get(name, 0.0) for name, work in self._work.items())
            self._report((1 - FILE_SHARE) * done / (sum(self._work.values()) or 1.0), stage)


class ProgressBar:
    """An OnProgress that prints one bar of whole percents for images in turn, at most two lines a second.

    `work` is that of each image, in any unit.
    Every line ends with a newline and begins with its percentage: both official clients of Replicate look for that.
    """

    def __init__(self, work: Sequence[float] = (1,), stream: TextIO | None = None) -> None:
        self._work, self._stream, self._finished = work, stream or sys.stdout, 0
        self._start, self._printed, self._shown = time.monotonic(), float("-inf"), (-1, "")
        self(0.0, "start")

    def __call__(self, share: float, stage: str) -> None:
        done = sum(self._work[: self._finished]) + share * sum(self._work[self._finished : self._finished + 1])
        percent, now = int(100 * done / sum(self._work)), time.monotonic()
        if (percent, stage) != self._shown and (percent == 100 or now - self._printed >= SECONDS_BETWEEN_LINES):
            self._shown, self._printed = (percent, stage), now
            form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, " + stage + "]"
            bar = tqdm.format_meter(percent, 100, now - self._start, ncols=60, ascii=True, bar_format=form)
            print(bar, file=self._stream, flush=True)

    def finish_image(self) -> None:
        """An image's file is written: the next image begins."""
        self._finished += 1
        self(0.0, "file")
