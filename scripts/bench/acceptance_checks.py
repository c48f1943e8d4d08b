"""The checks of scripts.bench.acceptance: each returns what it found, or raises where that is not right."""

import contextlib
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.bench import benchmark
from scripts.dry_run import DTYPES
from seesr import cost, hardware, images
from seesr.pipeline import Result, SeeSR
from seesr.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "weights/tiny"

LEVELS = {"fp32": 1, "fp16": 4}
"""How far a card may be from a CPU, of 255 levels."""

GOLDEN = {"fp32": 1e-4, "fp16": 2e-2}
"""How far from upstream's recorded outputs, as a share of the largest value. A CPU: 2e-6 in fp32, 4e-3 in fp16."""

RECOVERED_RMS = 0.6
"""Levels by which smaller tiles may change an image. Another seed changes it by 0.6 to 1.7."""

SMALL_CARD = 16e9
ONE_STEP = Settings(num_inference_steps=1, seed=0)

Found = dict[str, Any]


def judge(found: float, limit: float, text: str) -> Found:
    """What a check found. Raises AssertionError if it is above `limit`, or NaN."""
    if not found <= limit:
        raise AssertionError(f"{text}; at most {limit} is allowed")
    return {"text": text, "found": found}


def run_python(*arguments: str) -> list[str]:
    """The lines that this Python prints in ROOT. Raises RuntimeError if it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=200)
    if done.returncode:
        raise RuntimeError(" / ".join([*done.stdout.splitlines(), *done.stderr.splitlines()][-5:]))
    return done.stdout.splitlines()


def gpu_tests() -> Found:
    """All tests marked gpu, by pytest."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    last = run_python("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files)[-1]
    return judge(" passed" not in last or " skipped" in last, 0, last.strip("= "))


def golden_parity(device: str, dtype: str) -> Found:
    """Everything that upstream's outputs were recorded of."""
    from scripts.bench import parity  # whose import unpacks the recorded outputs

    shares = {case: error / largest for case, (error, largest) in parity.errors(device, DTYPES[dtype]).items()}
    worst = max(shares, key=lambda case: math.inf if math.isnan(shares[case]) else shares[case])
    text = f"{len(shares)} outputs, the worst is {shares[worst]:.1e} of the largest value away: {worst}"
    return judge(shares[worst], GOLDEN[dtype], text) | {"shares": shares}


def as_on_a_cpu(device: str, dtype: str) -> Found:
    """The embedded bundle on the examples. Float32 is computed exactly, not as TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours = upscale_examples(SeeSR.load(TINY, device, DTYPES[dtype]))
    return compare(ours, cpu_results(), LEVELS[dtype])


def seed_repeats(device: str) -> Found:
    """The embedded bundle on an example, twice."""
    seesr = SeeSR.load(TINY, device)
    return compare(upscale_examples(seesr, 1), upscale_examples(seesr, 1), 0)


@cache
def cpu_results() -> list[Result]:
    return upscale_examples(SeeSR.load(TINY, "cpu"))


def upscale_examples(seesr: SeeSR, count: int | None = None) -> list[Result]:
    """The first `count` of them, or all, in the tiles that cards take."""
    paths = sorted((ROOT / "examples").glob("*.jpg"))[:count]
    settings = Settings(num_inference_steps=2, seed=1, latent_tiled_size=64)
    return [seesr.upscale(images.open_image(path), settings) for path in paths]


def compare(ours: Sequence[Result], theirs: Sequence[Result], limit: float) -> Found:
    levels = max(float(np.abs(difference(*pair)).max()) for pair in zip(ours, theirs, strict=True))
    return judge(levels, limit, f"{len(ours)} image(s), at most {levels:.0f} of 255 levels apart")


def difference(ours: Result, theirs: Result) -> np.ndarray:
    """(H, W, 3), levels"""
    return np.asarray(ours.image).astype(float) - np.asarray(theirs.image)


def recovery(device: str) -> Found:
    """Out of memory for real: the plan takes the whole card for its own, the allocator gives half of what it needs."""
    seesr, image = SeeSR.load(TINY, device), benchmark.synthetic_image(512, 512).rgb
    held = held_memory(device)
    wanted = seesr.upscale(image, ONE_STEP)
    needed = hardware.take_peak_memory(device) - held
    with limited(device, held + needed / 2):
        found = seesr.upscale(image, ONE_STEP)
    rms = float(np.sqrt(np.mean(difference(wanted, found) ** 2)))
    recovered = any(name.startswith("out of memory") for name in found.recoveries)
    text = f"{needed / 2e9:.2f} of {needed / 1e9:.2f} GB: {found.recoveries}, {found.plan}; RMS {rms:.2f} levels"
    return judge(rms if recovered else math.inf, RECOVERED_RMS, text)


def small_card(seesr: SeeSR) -> Found:
    """2048 x 2048 -> 8192 x 8192 where the plan and the allocator have what a card of SMALL_CARD has."""
    size, device = SMALL_CARD - cost.CUDA_CONTEXT, seesr.device
    seesr.memory_limit = int(hardware.USABLE_SHARE * (size - held_memory(device)))
    try:
        with limited(device, size):
            result = seesr.upscale(benchmark.synthetic_image(2048, 2048).rgb, ONE_STEP)
    finally:
        seesr.memory_limit = None
    peak, seconds = hardware.take_peak_memory(device) / 1e9, sum(result.timings.values())
    return {"text": f"{seconds:.1f} s, {peak:.1f} GB at the peak, recoveries {result.recoveries}, {result.plan}"}


def held_memory(device: str) -> int:
    """Bytes that tensors hold on a GPU. The measuring of its peak begins anew."""
    hardware.free_cached_memory()
    hardware.take_peak_memory(device)
    return hardware.take_peak_memory(device)


@contextlib.contextmanager
def limited(device: str, size: float) -> Iterator[None]:
    """Within the block this process's allocator takes at most `size` bytes of a GPU."""
    hardware.free_cached_memory()
    hardware.limit_memory(device, size)
    try:
        yield
    finally:
        hardware.limit_memory(device, None)
