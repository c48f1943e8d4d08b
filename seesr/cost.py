"""Seconds, memory and dollars of an upscale with the real model, predicted at once for every card, without networks.

Each kernel takes as long as its arithmetic or its memory traffic at the card's published peak, whichever is longer. The
sum is divided by the share of that roofline which networks like these reached in published measurements, and no pass
is faster than the host starts its kernels. `.venv/bin/python -m scripts.bench.estimate` prints tables and errors; its
--count wrote cost.json, which holds the kernels. No number here was measured with this model on a GPU.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from seesr import hardware, sizes
from seesr.memory import MemoryModel, TilePlan, VaeTilePlan
from seesr.settings import Settings
from seesr.sizes import Size
from seesr.vae.attention import FULL_ATTENTION_MAX_PIXELS, WINDOW
from seesr.vae.tiling import Direction

COUNTED = Path(__file__).with_suffix(".json")

BANDWIDTH_SHARE = 0.7
"""Share of the roofline of blending and colours, which only move memory: an assumption."""

HOST_PIXELS = 36e6
"""Pixels per second that reading, resizing and writing a PNG take on the host: measured on one CPU core."""

CUDA_CONTEXT = 0.5e9
"""Bytes of a card that CUDA itself takes."""


@dataclass(frozen=True)
class Card:
    """Published rates: dense fp16 tensor FLOPs and bytes per second, Replicate's dollars per second (None: not sold).

    `networks` is the share of the roofline that ControlNet and UNet reach, and `basis` says where it comes from. `vae`
    is the VAE's: unmeasured, assumed to be the same. `launch` is the host's seconds per kernel; where no measurement
    decides it, it is that of the V100 (for the T4) or the A100. Sources, read in November 2026. Rates: NVIDIA's data
    sheets (T4, 2019; V100 SXM2, 2020; A40, 2022; L40S, 2023; A100 80GB SXM, 2021; H100 SXM, 2023), without sparsity.
    Prices: replicate.com/pricing.
    """

    flops: float
    bandwidth: float
    price: float | None
    networks: float
    vae: float
    launch: float
    basis: str


CARDS = {
    "t4": Card(65e12, 320e9, 0.000225, 0.28, 0.28, 52e-6, "fitted"),
    "v100": Card(125e12, 900e9, None, 0.45, 0.45, 52e-6, "fitted"),
    "a40-large": Card(149.7e12, 696e9, 0.000725, 0.42, 0.42, 46e-6, "interpolated between A100 and RTX 3090"),
    "l40s": Card(362e12, 864e9, 0.000975, 0.46, 0.46, 46e-6, "interpolated between A100 and RTX 4090"),
    "a100-large": Card(312e12, 2039e9, 0.001400, 0.39, 0.39, 46e-6, "fitted"),
    "h100": Card(989e12, 3350e9, 0.001525, 0.31, 0.31, 46e-6, "extrapolated from A100"),
}
"""`scripts.bench.estimate --errors` shows how shares follow from measurements, and what they miss."""

EXPECTED = {"a40-large": (4, 8, 15), "t4": (6, 12, 25), "v100": (8, 15, 35)}
"""Seconds that the customer expected for results of 2048, 4096 and 8192 a side."""


class Kernel(NamedTuple):
    """`number` kernels together: bytes per run, bytes and FLOPs per latent pixel, attention's FLOPs per squared pixel.

    `halo` is how far they reach beyond a tile, in latent pixels, on each side where it has a neighbour.
    """

    number: float
    fixed_bytes: float
    bytes: float
    flops: float
    attention_flops: float
    halo: float


@dataclass(frozen=True)
class Run:
    """The kernels called `name` over `batch` maps of `size`, `times` over; `halos`: sides with a halo, by axis."""

    name: str
    size: tuple[float, float] = (1, 1)
    batch: int = 1
    times: float = 1
    halos: tuple[float, float] = (0, 0)

    def work(self, kernels: Sequence[Kernel]) -> list[tuple[float, float]]:
        """FLOPs and bytes of each of `kernels`, once."""
        found = []
        for kernel in kernels:
            height, width = (side + kernel.halo * halos for side, halos in zip(self.size, self.halos, strict=True))
            area = height * width
            flops = kernel.flops + kernel.attention_flops * area
            found.append((self.batch * area * flops, kernel.fixed_bytes + self.batch * area * kernel.bytes))
        return found

    def roofline(self, kernels: Sequence[Kernel], flops: float, bandwidth: float) -> float:
        """Seconds of all times if each kernel takes as long as its arithmetic or its traffic, at these rates."""
        return self.times * sum(max(f / flops, b / bandwidth) for f, b in self.work(kernels))

    def seconds(self, kernels: Sequence[Kernel], card: Card) -> float:
        """The roofline at the card's share of it, or the time to start the kernels."""
        share = {
            "blend": BANDWIDTH_SHARE,
            "color": BANDWIDTH_SHARE,
            "encode": card.vae,
            "decode": card.vae,
            "tiny": card.vae,
        }
        running = self.roofline(kernels, card.flops, card.bandwidth) / share.get(self.name.split()[0], card.networks)
        return max(running, self.times * card.launch * sum(kernel.number for kernel in kernels))


@dataclass(frozen=True)
class Counted:
    """The real model: bytes of weights, smallest short side, memory, and kernels by the name of a Run."""

    weights: int
    process_size: int
    memory: MemoryModel
    kernels: Mapping[str, Sequence[Kernel]]


@cache
def read_counted() -> Counted:
    """cost.json, which `scripts.bench.estimate --count` writes."""
    found: dict[str, Any] = json.loads(COUNTED.read_text(encoding="utf-8"))
    kernels = {name: [Kernel(*row) for row in rows] for name, rows in found["kernels"].items()}
    memory = MemoryModel(**found["memory"] | {"encoder_layers": tuple(found["memory"]["encoder_layers"])})
    return Counted(found["weights"], found["process_size"], memory, kernels)


@dataclass(frozen=True)
class Estimate:
    """`vram` is in bytes, weights included."""

    seconds: float
    vram: float
    dollars: float | None
    plan: TilePlan


def estimate(gpu: str, size: Size, settings: Settings) -> Estimate:
    """For an input of `size` (height, width) and the real model on one of CARDS.

    Raises ValueError where the result is too large, for the limit or for the card.
    """
    card, profile, counted = CARDS[gpu], hardware.GPUS[gpu], read_counted()
    scale = settings.scale(size)
    _, working = sizes.working_size(size, scale, counted.process_size, profile.output_pixels)
    padded = sizes.padded_size(working, counted.process_size, counted.memory.vae_scale_factor)
    plan = plan_for_card(counted.memory, profile, counted.weights, padded, settings)
    latent = (padded[0] // counted.memory.vae_scale_factor, padded[1] // counted.memory.vae_scale_factor)
    running = sum(run.seconds(counted.kernels[run.name], card) for run in runs(latent, settings, plan))
    seconds = running + math.prod(padded) / HOST_PIXELS
    vram = counted.weights + CUDA_CONTEXT + max(counted.memory.peaks(padded, settings, plan).values())
    return Estimate(seconds, vram, None if card.price is None else card.price * seconds, plan)


def plan_for_card(
    model: MemoryModel, profile: hardware.Profile, weights: float, size: Size, settings: Settings
) -> TilePlan:
    """The plan that an empty card of `profile` runs with for a padded working image of `size`.

    `weights` is in bytes. Raises ValueError if no tiles are small enough.
    """
    free = int(hardware.USABLE_SHARE * (profile.memory * 1e9 - weights - CUDA_CONTEXT)) if profile.memory else 2**62
    return model.fit(size, settings, TilePlan.wanted(profile, settings), free)


def runs(latent: Size, settings: Settings, plan: TilePlan) -> list[Run]:
    """All that an upscale runs for a `latent` size."""
    grid, steps = plan.grid(latent), settings.num_inference_steps
    full, rest = divmod(len(grid) * settings.particles, plan.tile_batch)
    return [
        Run("tag"),
        Run("text", times=settings.branches),
        *vae_runs("encode", plan.encode_size(latent), plan.encode),
        Run("embed", grid.tile, times=len(grid)),
        Run("denoise", grid.tile, plan.tile_batch * settings.branches, full * steps),
        Run("denoise", grid.tile, rest * settings.branches, steps if rest else 0),
        Run("blend", grid.tile, settings.particles, len(grid) * steps),
        *vae_runs("decode", latent, plan.decode),
        Run("color", latent),
    ]


def vae_runs(direction: Direction, size: Size, plan: VaeTilePlan) -> list[Run]:
    """One direction of the VAE over a latent of `size`. A large latent's attention runs in windows."""
    if plan.fast:
        rows, columns = (-(-length // (plan.tile or length)) for length in size)
        halos = (2 - 2 / rows, 2 - 2 / columns)  # in the mean
        return [Run(f"tiny {direction}", (size[0] / rows, size[1] / columns), times=rows * columns, halos=halos)]
    middle = Run(f"{direction} middle", size)
    if (pixels := math.prod(size)) > FULL_ATTENTION_MAX_PIXELS:
        middle = Run(f"{direction} window", (WINDOW, WINDOW), times=pixels / WINDOW**2)
    if plan.tile == 0 or plan.tile >= max(size):
        return [Run(f"{direction} whole", size), middle]
    rows, columns = (-(-length // plan.tile) for length in size)
    count, inner = rows * columns, max(0, rows - 2) * max(0, columns - 2)
    tile, border = (size[0] / rows, size[1] / columns), count - inner
    halos = (2 * ((rows - 1) * columns - inner) / border, 2 * ((columns - 1) * rows - inner) / border)  # in the mean
    return [
        Run(f"{direction} inner", tile, times=inner, halos=(2, 2)),
        Run(f"{direction} border", tile, times=border, halos=halos),
        Run(f"{direction} statistics", tile, times=min(plan.stats_tiles or count, count)),
        middle,
    ]
