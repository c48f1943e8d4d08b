#!/usr/bin/env python3
"""Seconds, FLOPs, bytes and peak memory of every stage of an upscale, of the real model's size or of any bundle.

    scripts/benchmark.py --count --gpu a40-large             work on any card, counted on this machine in a minute
    scripts/benchmark.py --bundle weights/tiny --sides 128   timed here
    scripts/benchmark.py --reference-tiles                   the reference's way beside ours, and the ratio

Without --bundle the networks have the real structure and random values, so nothing is downloaded. Counted work and
predicted memory hold for any device; seconds are of the machine that runs this.
"""

import argparse
import contextlib
import io
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import full_size
import numpy as np
import torch
import work
from reference_way import ReferenceWay

from seesr import hardware, images, weights
from seesr.memory import LiveBytes, Plan, VaeTiles
from seesr.pipeline import SeeSR
from seesr.settings import Settings

OVERHEAD = 0.5e9
"""What CUDA itself takes of a card."""


def main() -> None:
    arguments = read_arguments()
    logging.disable(logging.WARNING)
    rows = list(results(arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle to run (default: the real structure, random values)")
    parser.add_argument("--gpu", choices=[*hardware.GPUS, "cpu"], help="whose tiles (default: this machine's)")
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 512, 1024, 2048], help="input sides in pixels")
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tile", type=int, nargs="+", default=[0], help="latent tiles instead of the profile's")
    parser.add_argument("--overlap", type=int, default=0, help="its overlap; 0 is an eighth of it")
    parser.add_argument(
        "--runs",
        type=int,
        default=3,
        help="timed runs behind each median, after one that warms up and measures what tensors hold",
    )
    parser.add_argument("--count", action="store_true", help="count only: nothing is computed or timed")
    parser.add_argument("--reference-tiles", action="store_true", help="the reference's way too, and the ratios to it")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--profile", type=Path, metavar="TRACE", help="write a torch profiler trace of one upscale")
    return parser.parse_args()


def results(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure, print and hand on one case after the other."""
    ours = load(arguments)
    ways = {"ours": ours}
    if arguments.reference_tiles:
        ways["reference"] = ReferenceWay(ours.parts, ours.profile, ours.device)
    timed = not arguments.count
    ceilings = measure_ceilings(ours.device, ours.dtype) if timed else None
    for side, steps, tile in itertools.product(arguments.sides, arguments.steps, arguments.tile):
        settings = Settings(
            num_inference_steps=steps,
            scale_factor=arguments.scale,
            seed=0,
            latent_tiled_size=tile,
            latent_tiled_overlap=arguments.overlap,
        )
        found = {name: case(way, side, settings, arguments, ceilings) for name, way in ways.items()}
        if len(found) > 1:
            print(ratios(found), flush=True)
        yield from found.values()
    if arguments.profile and timed:
        settings = Settings(num_inference_steps=arguments.steps[0], scale_factor=arguments.scale, seed=0)
        trace(ours, picture_of(arguments.sides[0]), settings, arguments.profile)


def load(arguments: argparse.Namespace) -> SeeSR:
    device = "meta" if arguments.count else hardware.device()
    profile = hardware.profile(hardware.device())
    if arguments.gpu:
        profile = hardware.CPU if arguments.gpu == "cpu" else hardware.GPUS[arguments.gpu]
    dtype = profile.dtype if device != "cpu" else torch.float32
    if arguments.bundle is None:
        return SeeSR(full_size.build(device, dtype), profile, device)
    seesr = SeeSR(weights.load(arguments.bundle, hardware.device(), dtype), profile, hardware.device())
    return work.dry(seesr) if arguments.count else seesr


def case(
    seesr: SeeSR, side: int, settings: Settings, arguments: argparse.Namespace, ceilings: tuple[float, float] | None
) -> dict[str, Any]:
    """One size, one number of steps, one way: its row of the JSON, printed as a table."""
    padded = work.padded_size(seesr, (side, side), settings.scale_factor)
    plan = plan_of(seesr, padded, settings)
    counted = work.of_upscale(work.dry(seesr), (side, side), settings, plan)
    peaks = {} if isinstance(seesr, ReferenceWay) else seesr.memory.peaks(padded, settings, plan)
    seconds: dict[str, float] = {}
    held = None
    if not arguments.count:
        seconds, held = time_stages(seesr, picture_of(side), settings, arguments.runs)
    stages = {
        name: {
            "seconds": seconds.get(name),
            "flops": counted[name].flops if name in counted else 0,
            "bytes": counted[name].bytes if name in counted else 0,
            "peak": peaks.get("denoise" if name in ("ControlNet", "UNet") else name),
            "roofline": ceilings and name in counted and counted[name].seconds(*ceilings),
        }
        for name in [*work.STAGES, *(name for name in seconds if name not in work.STAGES)]
    }
    row = {
        "model": seesr.parts.name,
        "way": "the reference's" if isinstance(seesr, ReferenceWay) else "ours",
        "device": seesr.device,
        "profile": seesr.profile.name,
        "side": side,
        "result": round(side * settings.scale_factor),
        "steps": settings.num_inference_steps,
        "plan": asdict(plan),
        "tiles": len(plan.grid((padded[0] // seesr.factor, padded[1] // seesr.factor))),
        "stages": stages,
        "held": held,
        "ceilings": ceilings,
    }
    print(table(row, str(plan)), flush=True)
    return row


def plan_of(seesr: SeeSR, padded: tuple[int, int], settings: Settings, gone: Sequence[torch.nn.Module] = ()) -> Plan:
    """What the profile's card would run with, `gone` not being on it; on the device itself, what is free decides."""
    if isinstance(seesr, ReferenceWay) or seesr.device != "meta":
        return seesr.plan(padded, settings)
    profile = seesr.profile
    tile = settings.latent_tiled_size or profile.latent_tile
    overlap = settings.latent_tiled_overlap or (-(-tile // 8) if settings.latent_tiled_size else profile.overlap)
    wanted = Plan(tile, overlap, profile.tile_batch, VaeTiles(profile.vae_tile), VaeTiles(profile.vae_tile))
    there = [model for model in models(seesr.parts) if model not in gone]
    held = sum(p.numel() * p.itemsize for model in there for p in model.parameters())
    free = int(0.9 * (profile.memory * 1e9 - held - OVERHEAD)) if profile.memory else 2**62
    return seesr.memory.fit(padded, settings, wanted, free)


def models(parts: weights.Parts) -> list[torch.nn.Module]:
    return [parts.unet, parts.controlnet, parts.vae, parts.text_encoder, parts.tagger.model]


def picture_of(side: int) -> images.Picture:
    """A smooth picture with a fine pattern and noise."""
    y, x = np.mgrid[0:side, 0:side]
    base = np.stack([x * 255 / side, y * 255 / side, (x // 8 + y // 8) % 2 * 200], axis=2)
    noise = np.random.default_rng(0).normal(0, 8, base.shape)
    return images.Picture(images.from_pixels(np.clip(base + noise, 0, 255).astype(np.uint8)))


def time_stages(seesr: SeeSR, picture: images.Picture, settings: Settings, runs: int) -> tuple[dict[str, float], int]:
    """Median seconds of each stage over `runs` warm runs, the device waited for at every border.

    And the most bytes that tensors hold at one time beside the weights, which the run that warms up tells.
    """
    with LiveBytes() as live, contextlib.redirect_stdout(io.StringIO()):
        seesr.upscale(picture.rgb, settings)
    found: list[dict[str, float]] = []
    for _ in range(runs):
        clock = {"ControlNet": 0.0, "UNet": 0.0}

        def add(name: str, sign: int, clock: dict[str, float] = clock) -> None:
            hardware.synchronize(seesr.device)
            clock[name] += sign * time.perf_counter()

        around = {name: (lambda name=name: add(name, -1), lambda name=name: add(name, 1)) for name in clock}
        with work.watch(seesr.parts, around), contextlib.redirect_stdout(io.StringIO()):
            result = seesr.upscale(picture.rgb, settings)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            images.save_image(picture, result.image, Path(folder) / "out.png", settings)
        file = time.perf_counter() - start
        stages = dict(result.timings)
        stages["blend"] = stages.pop("denoise") - sum(clock.values())
        found.append(stages | clock | {"file": file})
    return {name: statistics.median(one[name] for one in found) for name in found[0]}, live.peak


def measure_ceilings(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """FLOPs per second of a large matrix product, and bytes per second of a large copy: the best that can be had."""
    side, length = (8192, 2**30) if device.startswith("cuda") else (1536, 2**27)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(length, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    product = _best(device, lambda: left @ right)
    copied = _best(device, lambda: target.copy_(source))
    return 2 * side**3 / product, 2 * length / copied


def _best(device: str, run: Callable[[], Any], runs: int = 5) -> float:
    seconds = []
    for _ in range(runs + 1):
        hardware.synchronize(device)
        start = time.perf_counter()
        run()
        hardware.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def table(row: Mapping[str, Any], plan: str) -> str:
    head = (
        f"{row['model']}, {row['way']}: {row['side']} -> {row['result']}, {row['steps']} step(s), {row['tiles']} tiles"
    )
    lines = [
        f"\n{head}\n{plan}",
        "| stage | seconds | TFLOP | GB moved | peak GB | TFLOP/s | of the roofline |",
        "|" + "---|" * 7,
    ]
    for name, stage in [*row["stages"].items(), ("all", total(row))]:
        seconds, peak, roofline = stage["seconds"], stage["peak"], stage["roofline"]
        cells = [
            name,
            "" if seconds is None else f"{seconds:.3f}",
            f"{stage['flops'] / 1e12:.3f}" if stage["flops"] else "",
            f"{stage['bytes'] / 1e9:.2f}" if stage["bytes"] else "",
            f"{peak / 1e9:.2f}" if peak else "",
            f"{stage['flops'] / seconds / 1e12:.3f}" if seconds and stage["flops"] else "",
            f"{roofline / seconds:.0%}" if seconds and roofline else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if row["held"]:
        lines.append(f"Tensors held at most {row['held'] / 1e9:.2f} GB beside the weights (measured).")
    if row["ceilings"]:
        product, copy = row["ceilings"]
        lines.append(f"Measured ceilings: {product / 1e12:.2f} TFLOP/s in a product, {copy / 1e9:.1f} GB/s in a copy.")
    return "\n".join(lines)


def total(row: Mapping[str, Any]) -> dict[str, Any]:
    """All stages together; the peak is the worst stage's."""
    stages = row["stages"].values()
    sums = {key: sum(stage[key] or 0 for stage in stages) or None for key in ("seconds", "roofline")}
    counts = {key: sum(stage[key] for stage in stages) for key in ("flops", "bytes")}
    return sums | counts | {"peak": max((stage["peak"] or 0 for stage in stages), default=0)}


def ratios(found: Mapping[str, Mapping[str, Any]]) -> str:
    ours, theirs = total(found["ours"]), total(found["reference"])
    parts = [f"{key} {ours[key] / theirs[key]:.3f}" for key in ("flops", "bytes", "seconds") if theirs[key]]
    if found["ours"]["held"]:
        parts.append(f"memory held {found['ours']['held'] / found['reference']['held']:.3f}")
    return f"Ours to the reference's way: {', '.join(parts)}"


def trace(seesr: SeeSR, picture: images.Picture, settings: Settings, path: Path) -> None:
    """One warm upscale under torch's profiler; `path` opens in a browser's tracing page or in Perfetto."""
    with contextlib.redirect_stdout(io.StringIO()):
        seesr.upscale(picture.rgb, settings)
        with torch.profiler.profile() as profiler:  # whatever activities this machine has
            seesr.upscale(picture.rgb, settings)
    profiler.export_chrome_trace(str(path))
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


if __name__ == "__main__":
    main()
