#!/usr/bin/env python3
"""What an upscale should cost on each card: seconds, memory and dollars, from counted work and published rates.

    scripts/estimate.py --size 1024x768 --scale 4 --steps 2 --gpu t4
    scripts/estimate.py --table         the table in README.md, beside what was asked for
    scripts/estimate.py --calibrate     the same model on this CPU against what it takes, and its error

Nothing here was measured on a GPU. Each kernel takes as long as its arithmetic or its memory traffic would at a card's
published peak, whichever is longer, and the networks together as long as that divided by an assumed efficiency.
"""

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import benchmark
import full_size
import torch
import work

from seesr import hardware, weights
from seesr.memory import Plan
from seesr.pipeline import SeeSR
from seesr.settings import Settings

EFFICIENCY = 0.45
"""Share of the roofline that eager PyTorch in fp16 is assumed to reach in these networks; not measured."""

HOST_PIXELS = 36e6
"""Pixels per second that reading, resizing and writing a PNG take on the host: one core of the developers' machine."""

LAUNCH = 6e-6
"""Seconds that the host needs to start one kernel: an assumption; it is what small pictures wait for."""


@dataclass(frozen=True)
class Card:
    """Published rates: dense fp16 tensor FLOPs and bytes per second, Replicate's dollars per second (None: not sold).

    Sources, read in November 2026. Rates: NVIDIA's data sheets (T4, 2019; V100 SXM2, 2020; A40, 2022; L40S, 2023;
    A100 80GB SXM, 2021; H100 SXM, 2023), without sparsity. Prices: replicate.com/pricing.
    """

    flops: float
    bandwidth: float
    price: float | None


CARDS = {
    "t4": Card(65e12, 320e9, 0.000225),
    "v100": Card(125e12, 900e9, None),
    "a40-large": Card(149.7e12, 696e9, 0.000725),
    "l40s": Card(362e12, 864e9, 0.000975),
    "a100-large": Card(312e12, 2039e9, 0.001400),
    "h100": Card(989e12, 3350e9, 0.001525),
}

ASKED = {"a40-large": (4, 8, 15), "t4": (6, 12, 25), "v100": (8, 15, 35)}
"""Seconds that the customer expected for results of 2048, 4096 and 8192 a side."""


@dataclass(frozen=True)
class Estimate:
    """`vram` is in bytes, weights included."""

    seconds: float
    vram: float
    dollars: float | None
    plan: str


def main() -> None:
    arguments = read_arguments()
    logging.disable(logging.WARNING)
    if arguments.calibrate:
        print(calibrate(arguments.bundle))
        return
    model = Model(full_size.build())
    if arguments.table:
        print(table(model, arguments.steps))
        return
    width, height = arguments.size
    settings = Settings(num_inference_steps=arguments.steps, scale_factor=arguments.scale, cfg_scale=arguments.cfg)
    print(f"Predicted, not measured; {EFFICIENCY:.0%} of the roofline assumed.")
    print("| card | seconds | VRAM, GB | dollars per image | runs with |\n|---|---|---|---|---|")
    for name in [arguments.gpu] if arguments.gpu else CARDS:
        found = model.estimate(name, (height, width), settings)
        price = "not sold" if found.dollars is None else f"{found.dollars:.4f}"
        print(f"| {name} | {found.seconds:.1f} | {found.vram / 1e9:.1f} | {price} | {found.plan} |", flush=True)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=(1024, 1024), metavar="WIDTHxHEIGHT", help="the input's")
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cfg", type=float, default=1.0, help="cfg_scale; above 1 each step costs twice as much")
    parser.add_argument("--gpu", choices=CARDS, help="one card only")
    parser.add_argument("--table", action="store_true", help="the table in README.md")
    parser.add_argument("--calibrate", action="store_true", help="how far off the model is on this CPU")
    parser.add_argument("--bundle", type=Path, default=Path("weights/tiny"), help="what --calibrate runs")
    return parser.parse_args()


def size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, such as 1024x768, got {text!r}")
    return int(width), int(height)


class Model:
    """`parts` without values, on the meta device. What cards share is counted once."""

    def __init__(self, parts: weights.Parts) -> None:
        self.parts = parts
        self.weights = sum(p.numel() * p.itemsize for model in benchmark.models(parts) for p in model.parameters())
        self._seesr = SeeSR(parts, hardware.CPU, "meta")
        self._known: dict[tuple[tuple[int, int], Settings, Plan], list[work.Work]] = {}

    def estimate(self, gpu: str, size: tuple[int, int], settings: Settings) -> Estimate:
        """For an input of `size` (height, width) on one of CARDS.

        Raises ValueError where the result is too large, for the limit or for the card.
        """
        card, seesr = CARDS[gpu], self._seesr
        seesr.profile = hardware.GPUS[gpu]
        padded = work.padded_size(seesr, size, settings.scale_factor)
        plan = benchmark.plan_of(seesr, padded, settings)
        key = (size, settings, plan)
        if key not in self._known:
            self._known[key] = list(work.of_upscale(seesr, size, settings, plan).values())
        stages = self._known[key]
        seconds = sum(max(stage.seconds(card.flops, card.bandwidth) / EFFICIENCY, launches(stage)) for stage in stages)
        seconds += padded[0] * padded[1] / HOST_PIXELS
        vram = self.weights + benchmark.OVERHEAD + max(seesr.memory.peaks(padded, settings, plan).values())
        return Estimate(seconds, vram, None if card.price is None else card.price * seconds, str(plan))


def launches(stage: work.Work) -> float:
    return LAUNCH * sum(stage.kernels.values())


def table(model: Model, steps: int) -> str:
    """For README.md: results of 2048, 4096 and 8192 a side by card, and what the customer expected."""
    lines = [
        "| `SEESR_GPU` | VRAM | tiles at once | 2048² | 4096² | 8192² | asked for |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, profile in hardware.GPUS.items():
        cells = []
        for side in (512, 1024, 2048):
            found = model.estimate(name, (side, side), Settings(num_inference_steps=steps))
            price = "" if found.dollars is None else f", ${found.dollars:.4f}"
            cells.append(f"{found.seconds:.1f} s{price}, {found.vram / 1e9:.0f} GB")
        asked = ", ".join(f"{seconds} s" for seconds in ASKED.get(name, ())) or ""
        lines.append(f"| `{name}` | {profile.memory} GB | {profile.tile_batch} | {' | '.join(cells)} | {asked} |")
    return "\n".join(lines)


def calibrate(bundle: Path, sides: tuple[int, ...] = (64, 128, 192), runs: int = 3) -> str:
    """The model on this CPU: its efficiency is fitted to the first side, its error is that of the others."""
    seesr = SeeSR.load(bundle, device="cpu")
    ceilings = benchmark.measure_ceilings("cpu", torch.float32)
    lines = ["| side | roofline, s | measured, s | predicted, s | error |", "|---|---|---|---|---|"]
    efficiency = None
    for side, roofline, measured in _calibration(seesr, sides, runs, ceilings):
        efficiency = efficiency or roofline / measured
        predicted = roofline / efficiency
        error = f"{predicted / measured - 1:+.0%}"
        lines.append(f"| {side} | {roofline:.3f} | {measured:.3f} | {predicted:.3f} | {error} |")
    lines.append(
        f"{efficiency:.0%} of this CPU's roofline, fitted to the first row; the others' errors are the model's."
    )
    return "\n".join(lines)


def _calibration(
    seesr: SeeSR, sides: tuple[int, ...], runs: int, ceilings: tuple[float, float]
) -> Iterator[tuple[int, float, float]]:
    for side in sides:
        settings = Settings(num_inference_steps=4, seed=0)
        padded = work.padded_size(seesr, (side, side), settings.scale_factor)
        counted = work.of_upscale(work.dry(seesr), (side, side), settings, seesr.plan(padded, settings))
        with contextlib.redirect_stdout(io.StringIO()):
            seconds, _ = benchmark.time_stages(seesr, benchmark.picture_of(side), settings, runs)
        yield side, sum(w.seconds(*ceilings) for w in counted.values()), sum(seconds[name] for name in counted)


if __name__ == "__main__":
    main()
