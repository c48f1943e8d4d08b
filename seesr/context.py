"""One upscale: its settings, noise, tile plan, timings and retries."""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from seesr import hardware
from seesr.memory import TilePlan, retry_on_oom
from seesr.progress import Progress
from seesr.settings import Settings
from seesr.sizes import Size

log = logging.getLogger(__name__)

T = TypeVar("T")
# noise(name, shape) -> standard normal float32; names are "init", "vae", "step0", "step1", ...
Noise = Callable[[str, tuple[int, ...]], Tensor]


def seeded_noise(seed: int | None) -> Noise:
    """Noise from one CPU generator, in the order it is asked for; None draws a seed."""
    generator = torch.Generator().manual_seed(secrets.randbits(32) if seed is None else seed)
    return lambda name, shape: torch.randn(shape, generator=generator)


@dataclass
class UpscaleContext:
    """The state of one upscale. `latent_size` is (height, width), `timings` is seconds per stage.

    `recoveries` counts what ran again. `precision` is how often an overflow has raised the denoiser's precision.
    """

    settings: Settings
    noise: Noise
    plan: TilePlan
    latent_size: Size
    device: str
    progress: Progress
    timings: dict[str, float] = field(default_factory=dict)
    recoveries: Counter[str] = field(default_factory=Counter)
    precision: int = 0
    drawn: dict[str, Tensor] = field(default_factory=dict)

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Noise of this name on the device, float32. It is drawn once: a retried stage gets the same noise."""
        if name not in self.drawn:
            self.drawn[name] = self.noise(name, shape)
        return self.drawn[name].to(self.device, torch.float32)

    def stage(self, name: str, work: Callable[[], T]) -> T:
        """Run `work`, timed and logged; on out-of-memory, shrink the plan and retry."""
        start = time.perf_counter()
        self.progress.set(name, 0.0)
        result = retry_on_oom(name, work, lambda: self._shrink(name))
        hardware.synchronize(self.device)
        self.progress.set(name, 1.0)
        seconds = time.perf_counter() - start
        self.timings[name] = self.timings.get(name, 0.0) + seconds
        log.info("%s: %.2f s", name, seconds)
        return result

    def _shrink(self, stage: str) -> bool:
        self.recoveries[f"out of memory in {stage}"] += 1
        plan = self.plan.shrink(stage, self.latent_size, self.settings.particles)
        if plan is None:
            return False
        log.warning("Out of memory in the %s stage: trying again with %s.", stage, plan)
        self.plan = plan
        return True
