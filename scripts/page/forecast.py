"""What a request will take: the size of its result, seconds on this machine, seconds and dollars on Replicate."""

import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from scripts.page.log import LOADED
from seesr import hardware, sizes
from seesr.cost import CARDS, HOST_PIXELS, estimate
from seesr.locate import default_bundle, is_bundle
from seesr.memory import TilePlan
from seesr.progress import predicted_work
from seesr.settings import Settings
from seesr.sizes import Size
from seesr.vae import vae_scale_factor

WARM_UP = Settings(num_inference_steps=2, scale_factor=8, seed=0)
"""What SeeSR.warm_up runs, on an image of an eighth of its sides."""

CPU_SHARE = 0.4
"""Of the rate of a matrix product, what networks reach on a CPU: 0.37 to 0.51 with the embedded bundle on one core."""

PROFILE = re.compile(r"profile ([\w-]+)\.")
STAGE = re.compile(r"\b(\w+): (\d+\.\d+) s$", re.MULTILINE)
NAMES = {field.name for field in dataclasses.fields(Settings)}


class Forecast:
    """Work by stage from the constants of `bundle`, divided by what the server did per second before.

    The server's warm-up gives the first rates, every request better ones.
    """

    def __init__(self, bundle: Path) -> None:
        info, vae = (json.loads((bundle / name).read_text()) for name in ("bundle.json", "vae/config.json"))
        self.name, self.flops, self.process_size = info["name"], info["flops"], info["process_size"]
        self.least_scale = info.get("least_scale", 1)
        self.factor = vae_scale_factor(SimpleNamespace(config=vae))
        self.profile = hardware.CPU
        self.rates: dict[str, float] = {}
        """FLOPs per second by stage."""

    def target(self, size: Size, settings: Settings) -> Size:
        """The size of the result. ValueError if it is too large."""
        scale = settings.scale(size)
        return sizes.working_size(size, scale, process_size=1)[0]

    def seconds(self, size: Size, settings: Settings) -> float | None:
        """None while nothing is known about the server's speed."""
        if not self.rates:
            return None
        mean = sum(self.rates.values()) / len(self.rates)
        running = sum(work / self.rates.get(stage, mean) for stage, work in self.work(size, settings).items())
        return running + math.prod(self.target(size, settings)) / HOST_PIXELS

    def work(self, size: Size, settings: Settings) -> dict[str, float]:
        """FLOPs by stage."""
        scale = settings.scale(size)
        limit = self.profile.output_pixels
        _, working = sizes.working_size(size, scale, self.process_size, limit, self.least_scale)
        padded = sizes.padded_size(working, self.process_size, self.factor)
        latent = (padded[0] // self.factor, padded[1] // self.factor)
        return predicted_work(self.flops, latent, settings, TilePlan.wanted(self.profile, settings))

    def learn(self, size: Size, settings: Settings, seconds: Mapping[str, float]) -> None:
        """Take over the rates of a request that took so many `seconds` by stage."""
        for stage, work in self.work(size, settings).items():
            if work and seconds.get(stage):
                self.rates[stage] = work / seconds[stage]

    def read_setup(self, logs: str) -> None:
        """The rates of the warm-up that the server's setup logged, if it has loaded this bundle.

        A large model has none on a CPU: its rate is a share of this machine's.
        """
        loaded, chosen = LOADED.search(logs), PROFILE.search(logs)
        if loaded is None or loaded[1] != self.name:
            return
        self.profile = hardware.GPUS.get(chosen[1] if chosen else "", hardware.CPU)
        side = sizes.MIN_TILE * self.factor // 8
        self.learn((side, side), WARM_UP, {stage: float(found) for stage, found in STAGE.findall(logs)})
        if not self.rates and self.profile is hardware.CPU:
            self.rates["denoise"] = CPU_SHARE * matrix_rate()


def matrix_rate(side: int = 1024) -> float:
    """FLOPs per second of a matrix product on this CPU."""
    matrix, best = torch.rand(side, side), float("inf")
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def choose_bundle(root: Path) -> Path:
    """The bundle that a server of this project loads: SEESR_WEIGHTS, the full one, or the embedded one."""
    asked = os.environ.get("SEESR_WEIGHTS")
    return root / asked if asked and is_bundle(root / asked) else default_bundle(root)


def read_settings(inputs: Mapping[str, Any]) -> Settings:
    """Those inputs that this model knows. ValueError if one is out of range."""
    return Settings(**{name: value for name, value in inputs.items() if name in NAMES})


def on_replicate(size: Size, settings: Settings) -> list[dict[str, Any]]:
    """Predicted seconds and dollars of the full model on every card that Replicate sells, slowest first.

    A card on which the result does not fit has an `error` instead.
    """
    rows: list[dict[str, Any]] = []
    for name, card in CARDS.items():
        if card.price is None:
            continue
        try:
            found = estimate(name, size, settings)
            rows.append({"card": name, "seconds": found.seconds, "dollars": found.dollars})
        except ValueError as error:
            rows.append({"card": name, "error": str(error)})
    return rows
