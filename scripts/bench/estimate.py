"""What an upscale should cost on each card: seconds, memory and dollars, from counted work and published rates.

    .venv/bin/python -m scripts.bench.estimate --size 1024x768 --scale 4 --steps 2 --gpu t4
    .venv/bin/python -m scripts.bench.estimate --table        every card at three sizes

No number here was measured on a GPU. Each kernel takes as long as its arithmetic or its memory traffic at the card's
published peak, whichever is longer. The sum is divided by one assumed efficiency.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.bench import flops, memory, random_bundle
from seesr import hardware
from seesr.bundle import Components
from seesr.memory import TilePlan
from seesr.pipeline import SeeSR
from seesr.settings import Settings
from seesr.sizes import Size

EFFICIENCY = 0.45
"""Share of the roofline that eager PyTorch in fp16 is assumed to reach in these networks; not measured."""

HOST_PIXELS = 36e6
"""Pixels per second that reading, resizing and writing a PNG take on the host: measured on one CPU core."""

LAUNCH = 6e-6
"""Seconds that the host needs to start one kernel: an assumption. Small images wait for it."""


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

EXPECTED = {"a40-large": (4, 8, 15), "t4": (6, 12, 25), "v100": (8, 15, 35)}
"""Seconds that the customer expected for results of 2048, 4096 and 8192 a side."""


@dataclass(frozen=True)
class Estimate:
    """`vram` is in bytes, weights included."""

    seconds: float
    vram: float
    dollars: float | None
    plan: TilePlan


class CostModel:
    """Estimates for `components` without values. Work that cards share is counted once."""

    def __init__(self, components: Components) -> None:
        self._seesr = SeeSR(components, hardware.CPU, "meta")
        self._weights = memory.weight_bytes(components)
        self._counted: dict[tuple[Size, Settings, TilePlan], Mapping[str, flops.FlopCounter]] = {}

    def estimate(self, gpu: str, size: Size, settings: Settings) -> Estimate:
        """For an input of `size` (height, width) on one of CARDS.

        Raises ValueError where the result is too large, for the limit or for the card.
        """
        card, seesr = CARDS[gpu], self._seesr
        seesr.profile = hardware.GPUS[gpu]
        padded = seesr.sizes(size, settings.scale_factor)[2]
        plan = memory.plan_for_card(seesr.memory, seesr.profile, self._weights, padded, settings)
        key = (size, settings, plan)
        if key not in self._counted:
            self._counted[key] = flops.count_upscale(seesr, size, settings, plan)
        seconds = padded[0] * padded[1] / HOST_PIXELS
        for count in self._counted[key].values():
            launches = LAUNCH * sum(count.kernels.values())
            seconds += max(count.roofline(card.flops, card.bandwidth) / EFFICIENCY, launches)
        vram = self._weights + memory.CUDA_CONTEXT + max(seesr.memory.peaks(padded, settings, plan).values())
        return Estimate(seconds, vram, None if card.price is None else card.price * seconds, plan)


def table(model: CostModel, steps: int) -> str:
    """Markdown: results of 2048, 4096 and 8192 a side by card, and what the customer expected."""
    lines = [
        "| `SEESR_GPU` | VRAM | tiles at once | 2048² | 4096² | 8192² | expected |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, profile in hardware.GPUS.items():
        cells = []
        for side in (512, 1024, 2048):
            estimate = model.estimate(name, (side, side), Settings(num_inference_steps=steps))
            price = "" if estimate.dollars is None else f", ${estimate.dollars:.4f}"
            cells.append(f"{estimate.seconds:.1f} s{price}, {estimate.vram / 1e9:.0f} GB")
        expected = ", ".join(f"{seconds} s" for seconds in EXPECTED.get(name, ()))
        lines.append(f"| `{name}` | {profile.memory} GB | {profile.tile_batch} | {' | '.join(cells)} | {expected} |")
    return "\n".join(lines)


def rows(model: CostModel, cards: Sequence[str], size: Size, settings: Settings) -> str:
    """Markdown: one input on each of `cards`."""
    lines = ["| card | seconds | VRAM, GB | dollars per image | plan |", "|---|---|---|---|---|"]
    for name in cards:
        estimate = model.estimate(name, size, settings)
        price = "not sold" if estimate.dollars is None else f"{estimate.dollars:.4f}"
        lines.append(f"| {name} | {estimate.seconds:.1f} | {estimate.vram / 1e9:.1f} | {price} | {estimate.plan} |")
    return "\n".join(lines)


def parse_size(text: str) -> Size:
    """ "WIDTHxHEIGHT" -> (height, width)"""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, such as 1024x768, got {text!r}")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=(1024, 1024), metavar="WIDTHxHEIGHT", help="the input's")
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cfg", type=float, default=1.0, help="cfg_scale; above 1 each step costs twice as much")
    parser.add_argument("--gpu", choices=CARDS, help="one card only")
    parser.add_argument("--table", action="store_true", help="every card at three sizes")
    arguments = parser.parse_args()
    model = CostModel(random_bundle.build())
    if arguments.table:
        print(table(model, arguments.steps))
        return
    settings = Settings(num_inference_steps=arguments.steps, scale_factor=arguments.scale, cfg_scale=arguments.cfg)
    print(f"Predicted, not measured. Assumed efficiency: {EFFICIENCY:.0%} of the roofline.")
    print(rows(model, [arguments.gpu] if arguments.gpu else list(CARDS), arguments.size, settings))


if __name__ == "__main__":
    main()
