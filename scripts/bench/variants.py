"""One change at a time against the state before, in one run: which of them is worth keeping on this card.

    .venv/bin/python -m scripts.bench.variants --json variants.json        full-size random weights, 1024 -> 4096
    .venv/bin/python -m scripts.bench.variants --bundle weights/tiny --sides 64 --only channels_last "batch 2"

The state before and the change take turns. "first" is the first upscale with the change, compiling included. "levels"
is how far the two results differ at most. Every row is printed and written as it comes.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scripts.bench import benchmark
from scripts.bench.upstream_tiling import UpstreamTiling
from seesr import hardware, images
from seesr.pipeline import Result, SeeSR
from seesr.settings import Settings
from seesr.vae.padding import memory_format

from diffusers.models.attention_processor import AttnProcessor2_0

WINS = 0.95
"""A change is worth keeping where it takes at most this share of the seconds."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Latent tiles at once."""
STAGES = ("encode", "denoise", "decode")
COLUMNS = ("change", "sides", "first", "before", "after", "ratio", *STAGES, "levels", "keep")

Variant = Callable[[SeeSR], AbstractContextManager[SeeSR]]
"""Within the block, the SeeSR with the change. It shares the weights of the one before."""


def networks(seesr: SeeSR) -> list[nn.Module]:
    """Those that take the time"""
    found = (seesr.components.unet, seesr.components.controlnet, seesr.components.vae, seesr.components.tiny_vae)
    return [network for network in found if network is not None]


@contextmanager
def channels_last(seesr: SeeSR) -> Iterator[SeeSR]:
    """All convolutions. Afterwards each has its own order again: on a CPU the VAE's decoder has this one already."""
    weights = [weight for network in networks(seesr) for weight in network.parameters() if weight.dim() == 4]
    before = [memory_format(weight) for weight in weights]
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield seesr
    finally:
        for weight, order in zip(weights, before, strict=True):
            weight.data = weight.data.contiguous(memory_format=order)


@contextmanager
def compiled(mode: str, seesr: SeeSR) -> Iterator[SeeSR]:
    """UNet and ControlNet by torch.compile; a later block of the same mode finds what was compiled."""
    models: list[Any] = [seesr.components.unet, seesr.components.controlnet]
    for model in models:
        key = f"compiled {mode}"
        if key not in model.__dict__:
            model.__dict__[key] = torch.compile(model.forward, mode=mode)
        model.forward = model.__dict__[key]
    try:
        yield seesr
    finally:
        for model in models:
            del model.forward


@contextmanager
def torch_attention(seesr: SeeSR) -> Iterator[SeeSR]:
    """PyTorch's attention in the VAE and the text and self-attention of the UNet, where xformers was used"""
    models = [network for network in networks(seesr) if hasattr(network, "attn_processors")]
    before = [dict(network.attn_processors) for network in models]  # type: ignore[arg-type]
    for network, processors in zip(models, before, strict=True):
        changed = {name: AttnProcessor2_0() if is_xformers(kept) else kept for name, kept in processors.items()}
        network.set_attn_processor(changed)  # type: ignore[operator]
    try:
        yield seesr
    finally:
        for network, processors in zip(models, before, strict=True):
            network.set_attn_processor(processors)  # type: ignore[operator]


def is_xformers(processor: object) -> bool:
    return "XFormers" in type(processor).__name__


@contextmanager
def batch(tiles: int, seesr: SeeSR) -> Iterator[SeeSR]:
    """`tiles` latent tiles at once"""
    before = seesr.profile
    seesr.profile = replace(before, tile_batch=tiles)
    try:
        yield seesr
    finally:
        seesr.profile = before


@contextmanager
def upstream(tile: int, overlap: int, seesr: SeeSR) -> Iterator[SeeSR]:
    """The tiling of cswry/SeeSR. The change then is a loss: this is what our tiling saves."""
    yield UpstreamTiling(seesr.components, seesr.profile, seesr.device, (tile, overlap))


def variants(seesr: SeeSR) -> dict[str, Variant]:
    """By name, those that this device and these weights can have, the most promising first"""
    on_card = seesr.device.startswith("cuda")
    found: dict[str, Variant] = {"channels_last": channels_last}
    processors = [each for network in networks(seesr) for each in getattr(network, "attn_processors", {}).values()]
    if any(is_xformers(processor) for processor in processors):
        found["torch attention"] = torch_attention
    found |= {f"batch {tiles}": partial(batch, tiles) for tiles in BATCHES}
    found |= {"upstream 320/4": partial(upstream, 320, 4), "upstream 96/32": partial(upstream, 96, 32)}
    if on_card:
        found["compile"] = partial(compiled, "max-autotune-no-cudagraphs")
        found["compile, CUDA graphs"] = partial(compiled, "reduce-overhead")
    return found


def compare(seesr: SeeSR, name: str, change: Variant, side: int, settings: Settings, runs: int) -> dict[str, Any]:
    """One change at one size: median seconds before and after, in turns, and by how many levels the results differ"""
    image = benchmark.synthetic_image(side, side)
    before, after = [], []
    with change(seesr) as changed:
        first = timed(changed, image, settings)[0]
    result = kept = timed(seesr, image, settings)[1]
    for _ in range(runs):
        seconds, kept = timed(seesr, image, settings)
        before.append((seconds, kept.timings))
        with change(seesr) as changed:
            seconds, result = timed(changed, image, settings)
        after.append((seconds, result.timings))

    def ratio(stage: str) -> float:
        ours, theirs = (statistics.median(times[stage] for _, times in taken) for taken in (after, before))
        return round(ours / theirs, 3)

    seconds = [statistics.median(value for value, _ in taken) for taken in (before, after)]
    levels = np.abs(np.asarray(kept.image).astype(int) - np.asarray(result.image)).max()
    row = {"change": name, "sides": f"{side} -> {round(side * settings.scale_factor)}", "first": round(first, 3)}
    row |= {"before": round(seconds[0], 3), "after": round(seconds[1], 3), "ratio": round(seconds[1] / seconds[0], 3)}
    row |= {stage: ratio(stage) for stage in STAGES} | {"levels": int(levels), "keep": seconds[1] <= WINS * seconds[0]}
    return row | {"plan": str(result.plan), "recoveries": result.recoveries}


def timed(seesr: SeeSR, image: images.OpenedImage, settings: Settings) -> tuple[float, Result]:
    hardware.synchronize(seesr.device)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = seesr.upscale(image, settings)
    hardware.synchronize(seesr.device)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle to run (default: the real structure, random values)")
    parser.add_argument("--only", nargs="+", metavar="CHANGE", help="these changes (default: all that can be had)")
    parser.add_argument("--sides", type=int, nargs="+", default=[1024], help="input sides in pixels")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--fast-vae", action="store_true", help="with the small autoencoder")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each, in turns")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    arguments = parser.parse_args()
    seesr = benchmark.load(argparse.Namespace(bundle=arguments.bundle, count=False, gpu=None))
    known = variants(seesr)
    if unknown := [name for name in arguments.only or () if name not in known]:
        parser.error(f"--only takes {', '.join(map(repr, known))} on this device, got {unknown[0]!r}")
    settings = Settings(num_inference_steps=arguments.steps, fast_vae=arguments.fast_vae, seed=0)
    print(f"{seesr.components.name} on {hardware.card_name(seesr.device)}, {arguments.steps} step(s)\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    rows: list[dict[str, Any]] = []
    for side, name in itertools.product(arguments.sides, arguments.only or known):
        try:
            rows.append(compare(seesr, name, known[name], side, settings, arguments.runs))
        except RuntimeError as error:  # out of memory is one
            rows.append({"change": name, "sides": str(side), "error": str(error).splitlines()[0]})
            hardware.free_cached_memory()
        print(f"| {' | '.join(str(rows[-1].get(column, '')) for column in COLUMNS)} |", flush=True)
        if "error" in rows[-1]:
            print(f"{name} failed: {rows[-1]['error']}", file=sys.stderr, flush=True)
        if arguments.json:
            part = arguments.json.with_name(f"{arguments.json.name}.part")
            part.write_text(json.dumps(rows, indent=2) + "\n")
            os.replace(part, arguments.json)
    sys.exit(1 if any("error" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
