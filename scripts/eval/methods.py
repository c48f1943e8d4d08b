"""What evaluate.py compares: resampling, Real-ESRGAN, this model, its fidelity dial and its steering."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from scripts.eval.metrics import rms
from scripts.eval.peers import Method, real_esrgan
from seesr import images
from seesr.context import Noise
from seesr.kds import nearest_to_mean
from seesr.pipeline import Result, SeeSR
from seesr.settings import NEUTRAL_FIDELITY, Settings

FIDELITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Trial:
    """One method's result (H, W, 3) uint8. `spread` is the RMS difference from its result with other seeds, in levels.

    `baseline` names the method that its gain in PSNR is counted from.
    """

    method: str
    image: np.ndarray
    seconds: float
    baseline: str = "bicubic"
    spread: float | None = None


Trials = Callable[[np.ndarray], Iterator[Trial]]
"""The small image (h, w, 3) uint8 -> one Trial per method"""


def plain(seesr: SeeSR, settings: Settings, steps: Sequence[int], peers: bool = False) -> Trials:
    """Bicubic, Lanczos, Real-ESRGAN if `peers`, and this model. Gains are counted from bicubic."""
    scale = round(settings.scale_factor)

    def bicubic(small: np.ndarray) -> np.ndarray:
        return np.asarray(images.resize(images.from_pixels(small), (small.shape[0] * scale, small.shape[1] * scale)))

    def lanczos(small: np.ndarray) -> np.ndarray:
        return cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_LANCZOS4)

    def ours(count: int) -> Method:
        request = replace(settings, num_inference_steps=count)
        return lambda small: np.asarray(seesr.upscale(images.from_pixels(small), request).image)

    peer = {"Real-ESRGAN x4plus": real_esrgan(scale)} if peers else {}
    methods = {"bicubic": bicubic, "lanczos": lanczos, **peer} | {f"ours, {in_steps(n)}": ours(n) for n in steps}

    def trials(small: np.ndarray) -> Iterator[Trial]:
        for name, method in methods.items():
            start = time.perf_counter()
            result = method(small)
            yield Trial(name, result, time.perf_counter() - start)

    return trials


def fidelity(seesr: SeeSR, settings: Settings, steps: Sequence[int]) -> Trials:
    """The fidelity dial. Gains are counted from the neutral value."""

    def trials(small: np.ndarray) -> Iterator[Trial]:
        for count in steps:
            name = f"{in_steps(count)}: fidelity"
            for value in FIDELITIES:
                request = replace(settings, num_inference_steps=count, fidelity=value)
                result = seesr.upscale(images.from_pixels(small), request)
                neutral = f"{name} {NEUTRAL_FIDELITY:g}"
                yield Trial(f"{name} {value:g}", np.asarray(result.image), seconds_of(result), neutral)

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
            request, name = replace(settings, num_inference_steps=count), in_steps(count)
            baseline = f"{name}: nearest of {particles}"
            results = [seesr.upscale(image, replace(request, seed=seed + n)) for n in range(2 * particles)]
            runs = np.stack([np.asarray(result.image) for result in results])
            for title, pick in picks.items():
                chosen, other = pick(runs[:particles]), pick(runs[particles:])
                seconds = sum(map(seconds_of, results[: 1 if title == "1 run" else particles]))
                yield Trial(f"{name}: {title}", chosen, seconds, baseline, rms(chosen, other))
            steered, again = (
                seesr.upscale(image, replace(request, use_kds=True), particle_noise(first))
                for first in (seed, seed + particles)
            )
            chosen, other = np.asarray(steered.image), np.asarray(again.image)
            title = f"{name}: kds {particles}, {request.bandwidth}"
            yield Trial(title, chosen, seconds_of(steered), baseline, rms(chosen, other))

    return trials


def particle_noise(seed: int) -> Noise:
    """Noise for N particles: particle n draws what a plain run with seed + n draws."""
    generators: list[torch.Generator] = []

    def noise(_: str, shape: tuple[int, ...]) -> Tensor:
        if not generators:
            generators.extend(torch.Generator().manual_seed(seed + n) for n in range(shape[0]))
        return torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])

    return noise


def seconds_of(result: Result) -> float:
    return sum(result.timings.values())


def in_steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"
