"""Count the kernels of the real model, and of the networks that published measurements ran, for seesr/cost.json.

A kernel's FLOPs and bytes are found by running it at several sizes on the meta device. Kernels of about the same
arithmetic intensity are added up: a roofline takes the same side for all of them.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor

from scripts.bench import random_bundle
from scripts.bench.flops import FlopCounter
from scripts.bench.memory import weight_bytes
from seesr.bundle import Components, build_empty
from seesr.color_fix import match_color
from seesr.cost import COUNTED, Counted, Kernel
from seesr.denoise import embed_control_image, run_controlnet_unet
from seesr.memory import MemoryModel
from seesr.tiling import tile_grid
from seesr.vae import tiling, tiny, vae_scale_factor
from seesr.vae.attention import WINDOW, mid_block
from seesr.vae.tiling import Direction

from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

Result = TypeVar("Result")
Work = list[tuple[int, int]]
"""FLOPs and bytes of kernels in the order they run."""

SIDES = (32, 64, 128)
"""Latent pixels. Coefficients are exact between the last two; the first finds halos."""

DIGITS = 5


class KernelOrder(Counter[tuple[int, int]]):
    """FlopCounter's counter, which also keeps the order."""

    def __init__(self) -> None:
        super().__init__()
        self.order: Work = []

    def __setitem__(self, kernel: tuple[int, int], count: int) -> None:
        self.order.append(kernel)
        super().__setitem__(kernel, count)


class Measuring:
    """Runs functions on the meta device and notes their kernels in `work`."""

    def __init__(self) -> None:
        self._counter, kernels = FlopCounter(), KernelOrder()
        self._counter.kernels, self.work = kernels, kernels.order

    def __call__(self, run: Callable[..., Result], *arguments: Any) -> Result:
        with torch.inference_mode(), torch.device("meta"), self._counter:
            return run(*arguments)


def work_of(run: Callable[..., object], *arguments: Any) -> Work:
    """The kernels of `run`."""
    measuring = Measuring()
    measuring(run, *arguments)
    return measuring.work


def count() -> Counted:
    """Everything that cost.json holds."""
    components = random_bundle.build()
    kernels: dict[str, list[Kernel]] = {}
    for direction in ("encode", "decode"):
        kernels |= count_vae(components.vae, direction) | count_tiny(components.tiny_vae, direction)
    kernels |= count_networks(components) | count_sd15() | count_others(components)
    memory = MemoryModel.of(components.controlnet, components.vae, components.memory_constants)
    merged = {name: merge(rows) for name, rows in kernels.items()}
    return Counted(weight_bytes(components), components.process_size, memory, merged)


def write(counted: Counted) -> None:
    """Replace cost.json, one kernel a line."""
    text = json.dumps(asdict(counted), separators=(",", ":"))
    text = text.replace("],[", "],\n[").replace(',"', ',\n"').replace("[[", "[\n[")
    COUNTED.write_text(f"{text}\n", encoding="utf-8")


def count_networks(components: Components) -> dict[str, list[Kernel]]:
    """ControlNet and UNet together, and the ControlNet's embedding of the control image of one tile."""
    unet, controlnet, dtype = components.unet, components.controlnet, components.unet.dtype
    text = torch.empty(1, 77, unet.config["cross_attention_dim"], device="meta")
    tokens = torch.empty(1, 145, components.tagger.model.config.token_dim, device="meta")

    def denoise(batch: int, side: int) -> Work:
        latent = torch.empty(batch, unet.config["in_channels"], side, side, device="meta")
        control = embed(side).expand(batch, -1, -1, -1)
        return work_of(lambda: run_controlnet_unet(controlnet, unet, latent, 999, control, text, tokens))

    def embed(side: int) -> Tensor:
        factor = vae_scale_factor(components.vae)
        image = torch.empty(1, 3, side * factor, side * factor, dtype=dtype, device="meta")
        return embed_control_image(controlnet, image)

    return {
        "denoise": fit_batches(denoise),
        "embed": fit_sides([work_of(embed, side) for side in SIDES]),
    }


def count_sd15() -> dict[str, list[Kernel]]:
    """UNet and ControlNet of Stable Diffusion 1.5 as diffusers' documentation timed them."""
    config: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
    built: tuple[Any, Any] = (
        build_empty(lambda: UNet2DConditionModel(sample_size=64, **config)),
        build_empty(lambda: ControlNetModel(**config)),
    )
    unet, controlnet = (model.to("meta", torch.float16) for model in built)

    def inputs(batch: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        shapes = ((batch, 4, side, side), (batch, 77, 768), (batch, 3, 8 * side, 8 * side))
        latent, text, image = (torch.empty(shape, dtype=torch.float16, device="meta") for shape in shapes)
        return latent, text, image

    def run_unet(batch: int, side: int) -> Work:
        latent, text, _ = inputs(batch, side)
        return work_of(lambda: unet(latent, torch.tensor(1), text))

    def run_controlnet(batch: int, side: int) -> Work:
        latent, text, image = inputs(batch, side)
        return work_of(lambda: controlnet(latent, torch.tensor(1), text, image))

    return {"sd15 unet": fit_batches(run_unet), "sd15 controlnet": fit_batches(run_controlnet)}


def count_vae(vae: Any, direction: Direction) -> dict[str, list[Kernel]]:
    """Untiled but for its middle block; the middle block, whole and in windows; inner and border tiles; statistics."""
    coder, width = getattr(vae, f"{direction}r"), vae.config["block_out_channels"][-1]
    encoding, factor = direction == "encode", vae_scale_factor(vae)

    def whole(side: int) -> Work:
        shape = (3, side * factor, side * factor) if encoding else (vae.config["latent_channels"], side, side)
        source = torch.empty(1, *shape, dtype=vae.dtype, device="meta")
        return work_of(lambda: (tiling.encode if encoding else tiling.decode)(vae, source))

    def middle(side: int, stride: int | None) -> Work:
        hidden = torch.empty(1, width, side, side, dtype=vae.dtype, device="meta")
        return work_of(lambda: mid_block(coder.mid_block, hidden, stride))

    middles = [middle(side, 1) for side in SIDES]
    wholes = [without(whole(side), part) for side, part in zip(SIDES, middles, strict=True)]
    inner, statistics = zip(*(count_tile(vae, direction, side, side) for side in SIDES), strict=True)
    corner = [count_tile(vae, direction, side, 0)[0] for side in SIDES]
    large = 8 * WINDOW  # a large latent of 64 windows
    return {
        f"{direction} whole": fit_sides(wholes),
        f"{direction} middle": fit_sides(middles),
        f"{direction} window": scale(middle(large, None), large**2, 64),
        f"{direction} inner": fit_sides(inner, halos=2),
        f"{direction} border": fit_sides(corner, halos=1),
        f"{direction} statistics": fit_sides(statistics),
    }


def count_tiny(vae: Any, direction: Direction) -> dict[str, list[Kernel]]:
    """The small autoencoder, stage by stage: each has one halo."""
    channels, rows = 3 if direction == "encode" else vae.config["latent_channels"], []
    for stage in tiny.stages(vae, direction):
        layers = torch.nn.Sequential(*stage.layers)
        shapes = [(1, channels, side * stage.scale, side * stage.scale) for side in SIDES]
        works = [work_of(layers, torch.empty(shape, dtype=vae.dtype, device="meta")) for shape in shapes]
        rows += [kernel._replace(halo=stage.halo) for kernel in fit_sides(works)]
        channels = vae.config["block_out_channels"][0]
    return {f"tiny {direction}": rows}


def count_tile(vae: Any, direction: Direction, side: int, start: int) -> tuple[Work, Work]:
    """A tile of `side` from `start` on, both ways, in a map of three sides; and the measuring of its statistics."""
    factor = vae_scale_factor(vae) if direction == "encode" else 1
    channels = 3 if direction == "encode" else vae.config["block_out_channels"][-1]
    source = torch.empty(1, channels, 3 * side * factor, 3 * side * factor, dtype=vae.dtype, device="meta")
    running = tiling.start_tile(vae, direction, source, ((start, start + side), (start, start + side)))
    ran, measured = Measuring(), Measuring()
    statistics: tiling.Statistics | None = None
    while not isinstance(measure := ran(tiling.resume, running, statistics), tiling.Tile):
        statistics = tiling.merge_stats([measured(measure)])
    return ran.work, measured.work


def count_others(components: Components) -> dict[str, list[Kernel]]:
    """What does not depend on the size (tags, text), and what only moves memory, by the pixel."""
    tagger, dtype, length = components.tagger.model, components.unet.dtype, components.tokenizer.model_max_length
    input_size, side, tile = tagger.config.image_size, 256, 64
    count = len(tile_grid((side, side), tile))

    def tag() -> Tensor:
        return tagger.logits(tagger.tokens(torch.empty(1, 3, input_size, input_size, dtype=dtype)))

    def blend() -> Tensor:
        grid = tile_grid((side, side), tile)
        return grid.blend(torch.empty(1, 4, tile, tile) for _ in grid.offsets)

    def match() -> Tensor:
        image = torch.empty(1, 3, 8 * side, 8 * side)
        return match_color(image, image, "wavelet", 8 * tile)

    return {
        "tag": scale(work_of(tag), 1),
        "text": scale(work_of(lambda: components.text_encoder(torch.empty(1, length, dtype=torch.int64))), 1),
        "blend": scale(work_of(blend), count * tile**2, count),
        "color": scale(work_of(match), side**2),
    }


def without(work: Work, part: Work) -> Work:
    """`work` without the kernels of `part`, which run one after the other within it."""
    start = next(i for i in range(len(work)) if work[i : i + len(part)] == part)
    return work[:start] + work[start + len(part) :]


def scale(work: Work, pixels: float, runs: float = 1) -> list[Kernel]:
    """Kernels of `pixels` latent pixels, by the pixel; their number is that of one of `runs` runs."""
    return [Kernel(1 / runs, 0, moved / pixels, flops / pixels, 0, 0) for flops, moved in work]


def fit_batches(run: Callable[[int, int], Work]) -> list[Kernel]:
    """Networks of one resolution: `run` takes a batch and a side. Exact for tiles of 64 in any batch."""
    rows, (small, large) = [], (32**2, 64**2)
    for (_, fewer), (more, moved), (less, _) in zip(run(2, 64), run(8, 64), run(8, 32), strict=True):
        per_pixel = (moved - fewer) / (6 * large)
        attention = max(0.0, (more / large - less / small) / 8 / (large - small))
        rows.append(
            Kernel(1, moved - per_pixel * 8 * large, per_pixel, more / 8 / large - attention * large, attention, 0)
        )
    return rows


def fit_sides(works: Sequence[Work], halos: int = 0) -> list[Kernel]:
    """Kernels over squares of SIDES, which have a halo on so many sides of an axis."""
    rows = []
    for found in zip(*works, strict=True):
        margin = _margin([flops or moved for flops, moved in found]) if halos else 0.0
        (less, fewer), (more, moved) = found[1:]
        small, large = ((side + margin) ** 2 for side in SIDES[1:])
        per_pixel = (moved - fewer) / (large - small)
        attention = 0.0 if halos else max(0.0, (more / large - less / small) / (large - small))
        flops = more / large - attention * large
        rows.append(Kernel(1, moved - per_pixel * large, per_pixel, flops, attention, margin / (halos or 1)))
    return rows


def _margin(values: Sequence[float]) -> float:
    """The m of a (side + m)² + b through three values at SIDES."""
    matrix = torch.tensor([[side**2, side, 1] for side in SIDES], dtype=torch.float64)
    square, linear, _ = torch.linalg.solve(matrix, torch.tensor(values, dtype=torch.float64)).tolist()
    return linear / (2 * square) if square > 1e-6 * max(values) / SIDES[-1] ** 2 else 0.0


def merge(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Add up kernels of about the same arithmetic intensity, with and without weights."""
    bins: dict[Any, list[Kernel]] = {}
    for kernel in kernels:
        bins.setdefault(_bin(kernel), []).append(kernel)
    return sorted((_sum(group) for group in bins.values()), key=lambda row: -row.flops - row.attention_flops)


def _bin(kernel: Kernel) -> tuple[Any, ...]:
    flops, moved = kernel.flops + 64**2 * kernel.attention_flops, kernel.bytes
    intensity = round(2 * math.log2(flops / moved)) if flops and moved > 0 else None
    weights = round(math.log2(kernel.fixed_bytes / moved) / 3) if kernel.fixed_bytes > moved > 0 else moved > 0
    return flops > 0, intensity, weights, kernel.attention_flops > 0


def _sum(group: Sequence[Kernel]) -> Kernel:
    halos = sum(row.halo * (row.bytes + row.flops) for row in group)
    totals = [float(sum(values)) for values in zip(*group, strict=True)][:-1]
    halo = halos / sum(row.bytes + row.flops for row in group) if halos else 0.0
    return Kernel(*(float(f"{value:.{DIGITS}g}") for value in (*totals, halo)))
