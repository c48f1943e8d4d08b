"""One upscale under way: its noise, its clock, the sizes it runs with and what had to be done again."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from seesr import hardware
from seesr.memory import Plan, attempt
from seesr.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

Noise = Callable[[str, tuple[int, ...]], Tensor]
"""`noise(name, shape)` -> standard normal float32; names are "init", "vae", "step0", "step1", ..."""


class Draws:
    """Noise by name, each drawn once: a stage that is run again gets the same."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self._drawn: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._drawn:
            self._drawn[name] = self._noise(name, shape)
        return self._drawn[name]


@dataclass
class Run:
    """`size` is the latent's (height, width); `precision` is how far overflows have raised the denoiser's."""

    settings: Settings
    draw: Noise
    plan: Plan
    size: tuple[int, int]
    device: str
    seconds: dict[str, float] = field(default_factory=dict)
    recoveries: Counter[str] = field(default_factory=Counter)
    precision: int = 0

    def stage(self, name: str, work: Callable[[], T]) -> T:
        """`work`, timed and said; once more with smaller tiles where memory runs out."""
        with self._clock(name):
            result = attempt(name, work, lambda: self._shrink(name))
            hardware.synchronize(self.device)
        return result

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        log.info("%s: %.2f s", name, seconds)

    def _shrink(self, stage: str) -> bool:
        self.recoveries[f"out of memory in {stage}"] += 1
        smaller = self.plan.smaller(stage, self.size, self.settings.particles)
        if smaller is None:
            return False
        log.warning("Out of memory in the %s stage: trying again with %s.", stage, smaller)
        self.plan = smaller
        return True
