"""Seconds, FLOPs, bytes and peak memory of every stage of an upscale.

    .venv/bin/python -m scripts.bench.benchmark --count --gpu a40-large            count the work, compute nothing
    .venv/bin/python -m scripts.bench.benchmark --bundle weights/tiny --sides 128  time it on this machine
    .venv/bin/python -m scripts.bench.benchmark --count --reference-tiles          upstream's tiling too, and the ratios

Without --bundle the networks have the real structure and random values; nothing is downloaded. Counted work and
predicted memory hold for any device. Seconds are of the machine that runs this.
"""

import argparse
import contextlib
import io
import itertools
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from scripts.bench import flops, memory, random_bundle
from scripts.bench.upstream_tiling import UpstreamTiling
from scripts.dry_run import TensorMemoryTracker
from seesr import bundle, hardware, images
from seesr.memory import TilePlan
from seesr.pipeline import Result, SeeSR
from seesr.progress import OnProgress
from seesr.settings import Settings
from seesr.sizes import Size

Ceilings = tuple[float, float]
"""FLOPs per second and bytes per second."""


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure and print one case after the other; yield its row of the JSON file."""
    seesr = load(arguments)
    tilings = {"ours": seesr}
    if arguments.reference_tiles:
        tilings["upstream"] = UpstreamTiling(seesr.components, seesr.profile, seesr.device)
    runs = 0 if arguments.count else arguments.runs
    ceilings = measure_ceilings(seesr.device, seesr.dtype) if runs else None
    for side, steps, tile in itertools.product(arguments.sides, arguments.steps, arguments.tile):
        options = {"latent_tiled_size": tile, "latent_tiled_overlap": arguments.overlap, "fast_vae": arguments.fast_vae}
        settings = Settings(num_inference_steps=steps, scale_factor=arguments.scale, seed=0, **options)
        rows = {name: measure_case(model, name, side, settings, runs, ceilings) for name, model in tilings.items()}
        if len(rows) > 1:
            print(ratios(rows), flush=True)
        yield from rows.values()
    if arguments.profile and runs:
        settings = Settings(num_inference_steps=arguments.steps[0], scale_factor=arguments.scale, seed=0)
        trace(seesr, synthetic_image(arguments.sides[0], arguments.sides[0]), settings, arguments.profile)


def load(arguments: argparse.Namespace) -> SeeSR:
    device = hardware.device()
    profile = hardware.profile(device)
    if arguments.gpu:
        profile = hardware.CPU if arguments.gpu == "cpu" else hardware.GPUS[arguments.gpu]
    if arguments.bundle is None and arguments.count:
        device = "meta"
    dtype = torch.float32 if device == "cpu" and not arguments.count else profile.dtype
    if device == "cpu":
        hardware.keep_freed_memory()
    components = (
        bundle.load(arguments.bundle, device, dtype) if arguments.bundle else random_bundle.build(device, dtype)
    )
    hardware.use_fast_attention(device, components.unet, components.controlnet, components.vae)
    seesr = SeeSR(components, profile, device)
    return flops.without_values(seesr) if arguments.count and device != "meta" else seesr


def measure_case(
    seesr: SeeSR, tiling: str, side: int, settings: Settings, runs: int, ceilings: Ceilings | None
) -> dict[str, Any]:
    """The row of one size, one number of steps, one tiling; printed as a table too."""
    padded = seesr.sizes((side, side), settings.scale_factor)[2]
    plan = choose_plan(seesr, padded, settings)
    counts = flops.count_upscale(flops.without_values(seesr), (side, side), settings, plan)
    peaks = {} if tiling == "upstream" else seesr.memory.peaks(padded, settings, plan)
    timed = time_stages(seesr, synthetic_image(side, side), settings, runs) if runs else None
    seconds = timed.seconds if timed else {}
    stages = {}
    for name in dict.fromkeys([*flops.STAGES, *seconds]):
        count = counts.get(name, flops.FlopCounter())
        stages[name] = {
            "seconds": seconds.get(name),
            "flops": count.flops,
            "bytes": count.bytes,
            "peak": peaks.get("denoise" if name in ("ControlNet", "UNet") else name),
            "roofline": ceilings and name in counts and count.roofline(*ceilings),
        }
    row = {
        "model": seesr.components.name,
        "tiling": tiling,
        "device": seesr.device,
        "profile": seesr.profile.name,
        "side": side,
        "result": round(side * settings.scale_factor),
        "steps": settings.num_inference_steps,
        "plan": str(plan),
        "tiles": len(plan.grid((padded[0] // seesr.vae_scale_factor, padded[1] // seesr.vae_scale_factor))),
        "stages": stages,
        "held": timed and max(timed.held.values()),
        "processor": timed and timed.used,
        "ceilings": ceilings,
    }
    print(table(row), flush=True)
    return row


def choose_plan(seesr: SeeSR, padded: Size, settings: Settings) -> TilePlan:
    """What the model runs with here; on the meta device, what an empty card of its profile would run with."""
    if seesr.device != "meta" or isinstance(seesr, UpstreamTiling):
        return seesr.plan(padded, settings)
    weights = memory.weight_bytes(seesr.components)
    return memory.plan_for_card(seesr.memory, seesr.profile, weights, padded, settings)


def synthetic_image(height: int, width: int, seed: int = 0) -> images.OpenedImage:
    """A smooth image with a fine pattern and noise."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / width, y * 255 / height, (x // 8 + y // 8) % 2 * 200], axis=2)
    noise = np.random.default_rng(seed).normal(0, 8, base.shape)
    return images.OpenedImage(images.from_pixels(np.clip(base + noise, 0, 255).astype(np.uint8)))


class Stopwatch:
    """Sums the seconds of its `with` blocks. The device is waited for at both ends."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, 0.0

    def __enter__(self) -> None:
        hardware.synchronize(self.device)
        self.seconds -= time.perf_counter()

    def __exit__(self, *_: object) -> None:
        hardware.synchronize(self.device)
        self.seconds += time.perf_counter()


@dataclass(frozen=True)
class Timed:
    """Warm upscales: median seconds by stage, and the most bytes that tensors held beside the weights, by stage.

    "file" is writing the result as a file. "denoise" is "ControlNet", "UNet" and "blend" in `seconds`. `used` is what
    the last upscale took of this machine's processor: seconds of all threads, those in the kernel, page faults.
    """

    seconds: dict[str, float]
    held: dict[str, int]
    used: tuple[float, float, int]
    result: Result


def time_stages(seesr: SeeSR, image: images.OpenedImage, settings: Settings, runs: int) -> Timed:
    """`runs` timed upscales after one that warms up and tells the bytes."""
    with watch_memory(seesr.device) as (note, held), contextlib.redirect_stdout(io.StringIO()):
        result = seesr.upscale(image.rgb, settings, on_progress=note)
    measured: list[dict[str, float]] = []
    used = (0.0, 0.0, 0)
    for _ in range(runs):
        watches = {name: Stopwatch(seesr.device) for name in ("ControlNet", "UNet", "file")}
        before = processor()
        with flops.watch_networks(seesr.components, watches), contextlib.redirect_stdout(io.StringIO()):
            result = seesr.upscale(image.rgb, settings)
        seconds, kernel, faults = (after - start for after, start in zip(processor(), before, strict=True))
        used = (seconds, kernel, int(faults))
        networks = watches["ControlNet"].seconds + watches["UNet"].seconds
        with tempfile.TemporaryDirectory() as folder, watches["file"]:
            images.save_image(image, result.image, Path(folder) / "out.png", settings)
        stages = dict(result.timings)
        stages["blend"] = stages.pop("denoise") - networks
        measured.append(stages | {name: watch.seconds for name, watch in watches.items()})
    medians = {name: statistics.median(run[name] for run in measured) for name in measured[0]}
    return Timed(medians, held, used, result)


def processor() -> tuple[float, float, int]:
    """Of this process so far: seconds of all threads, of these in the kernel, and page faults"""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime, found.ru_stime, found.ru_minflt


@contextlib.contextmanager
def watch_memory(device: str) -> Iterator[tuple[OnProgress, dict[str, int]]]:
    """An OnProgress for one upscale within the block, and what it fills: the bytes that tensors held, by stage.

    A GPU's allocator tells them, the workspace of kernels included; elsewhere every tensor is watched.
    """
    held: dict[str, int] = {}
    if device.startswith("cuda"):
        hardware.take_peak_memory(device)
        before = hardware.take_peak_memory(device)

        def note(_: float, stage: str) -> None:
            held[stage] = max(held.get(stage, 0), hardware.take_peak_memory(device) - before)

        yield note, held
        return
    with TensorMemoryTracker() as tracker:

        def note_tracked(_: float, stage: str) -> None:
            held[stage] = max(held.get(stage, 0), tracker.peak)
            tracker.peak = tracker.now

        yield note_tracked, held


def measure_ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """The rates of a large matrix product and of a large copy: the best that can be had."""

    def fastest(code: str, **tensors: torch.Tensor) -> float:
        timer = Timer(code, globals=tensors, num_threads=torch.get_num_threads())
        return min(timer.timeit(1).mean for _ in range(5))

    side, length = (8192, 2**30) if device.startswith("cuda") else (1536, 2**27)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source, target = (torch.ones(length, dtype=torch.uint8, device=device) for _ in range(2))
    product, copy = fastest("a @ b", a=left, b=right), fastest("a.copy_(b)", a=target, b=source)
    return 2 * side**3 / product, 2 * length / copy


def table(row: Mapping[str, Any]) -> str:
    """Markdown."""

    def cell(value: float | None, unit: float, digits: int) -> str:
        return f"{value / unit:.{digits}f}" if value else ""

    sizes = f"{row['side']} -> {row['result']}, {row['steps']} step(s), {row['tiles']} tiles"
    lines = [
        f"\n{row['model']}, tiling: {row['tiling']}, {sizes}\n{row['plan']}",
        "| stage | seconds | TFLOP | GB moved | peak GB | TFLOP/s | of the roofline |",
        "|" + "---|" * 7,
    ]
    for name, stage in [*row["stages"].items(), ("all", total(row))]:
        seconds, roofline = stage["seconds"], stage["roofline"]
        cells = [
            *(name, cell(seconds, 1, 3), cell(stage["flops"], 1e12, 3), cell(stage["bytes"], 1e9, 2)),
            *(cell(stage["peak"], 1e9, 2), cell(seconds and stage["flops"] / seconds, 1e12, 3)),
            f"{roofline / seconds:.0%}" if seconds and roofline else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if row["held"]:
        product, copy = row["ceilings"]
        lines.append(f"Tensors held at most {row['held'] / 1e9:.2f} GB beside the weights (measured).")
        seconds, kernel, faults = row["processor"]
        used = f"{seconds:.1f} s of all threads, {kernel:.1f} s of these in the kernel, {faults} page faults"
        lines.append(f"Processor of this machine, last run: {used}.")
        lines.append(f"Measured ceilings: {product / 1e12:.2f} TFLOP/s in a product, {copy / 1e9:.1f} GB/s in a copy.")
    return "\n".join(lines)


def total(row: Mapping[str, Any]) -> dict[str, Any]:
    """All stages together; the peak is the worst stage's."""
    stages = row["stages"].values()
    sums = {key: sum(stage[key] or 0 for stage in stages) or None for key in ("seconds", "roofline")}
    counts = {key: sum(stage[key] for stage in stages) for key in ("flops", "bytes")}
    return sums | counts | {"peak": max((stage["peak"] or 0 for stage in stages), default=0)}


def ratios(rows: Mapping[str, Mapping[str, Any]]) -> str:
    ours, upstream = total(rows["ours"]), total(rows["upstream"])
    parts = [f"{key} {ours[key] / upstream[key]:.3f}" for key in ("flops", "bytes", "seconds") if upstream[key]]
    if rows["ours"]["held"]:
        parts.append(f"memory held {rows['ours']['held'] / rows['upstream']['held']:.3f}")
    return f"Ours as a share of upstream's tiling: {', '.join(parts)}"


def trace(seesr: SeeSR, image: images.OpenedImage, settings: Settings, path: Path) -> None:
    """One warm upscale under torch's profiler; a browser's tracing page or Perfetto opens `path`."""
    with contextlib.redirect_stdout(io.StringIO()):
        seesr.upscale(image.rgb, settings)
        with torch.profiler.profile() as profiler:  # whatever activities this machine has
            seesr.upscale(image.rgb, settings)
    profiler.export_chrome_trace(str(path))
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle to run (default: the real structure, random values)")
    parser.add_argument("--gpu", choices=[*hardware.GPUS, "cpu"], help="whose tiles (default: this machine's)")
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 512, 1024, 2048], help="input sides in pixels")
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tile", type=int, nargs="+", default=[0], help="latent tiles instead of the profile's")
    parser.add_argument("--overlap", type=int, default=0, help="their overlap; 0 is an eighth of the tile")
    parser.add_argument("--fast-vae", action="store_true", help="with the small autoencoder")
    parser.add_argument("--runs", type=int, default=3, help="timed runs behind each median, after one to warm up")
    parser.add_argument("--count", action="store_true", help="count only: nothing is computed or timed")
    parser.add_argument("--reference-tiles", action="store_true", help="upstream's tiling too, and the ratios to it")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--profile", type=Path, metavar="TRACE", help="write a torch profiler trace of one upscale")
    arguments = parser.parse_args()
    rows = list(measure(arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
