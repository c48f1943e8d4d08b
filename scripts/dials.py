"""What scripts/evaluate.py tries for `use_kds` and `fidelity`: steering against what the same runs give without it, and
the ways a fidelity dial could go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from seesr import images, kds
from seesr.pipeline import Result, SeeSR
from seesr.run import Noise
from seesr.schedule import Schedule
from seesr.settings import Settings

COUNTS, USUAL_COUNT = (2, 4, 8, 16), 4
BANDWIDTHS, USUAL = (0.1, 0.3, 0.6, 0.8), 0.3
RUNS = max(COUNTS)

Steer = Callable[[Tensor, float], Tensor]
"""(N, C, h, w) clean latents, bandwidth -> (N, C, h, w)"""


@dataclass(frozen=True)
class Trial:
    """A method's result (H, W, 3) uint8, what it took, and how far a second one with other seeds is (RMS, levels)."""

    method: str
    picture: np.ndarray
    seconds: float
    spread: float | None = None


Trials = Callable[[np.ndarray, np.ndarray], Iterator[Trial]]
"""The small picture (h, w, 3) and the true one (H, W, 3), uint8 -> one Trial per method; few may use the true one."""


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a.astype(np.float32) - b).mean()))


def pixels(result: Result) -> np.ndarray:
    return np.asarray(result.image)


class Runs:
    """Runs of one picture that differ in their seed only: settings.seed and those that follow it."""

    def __init__(self, seesr: SeeSR, small: np.ndarray, settings: Settings, count: int = RUNS) -> None:
        assert settings.seed is not None
        seeds = range(settings.seed, settings.seed + count)
        results = [seesr.upscale(images.from_pixels(small), replace(settings, seed=seed)) for seed in seeds]
        self.pictures = np.stack([pixels(result) for result in results])
        self._timings = [result.timings for result in results]

    def seconds(self, count: int) -> float:
        """What `count` runs in one request would take: the networks and the decoder each time, the rest once."""
        each = sum(timings["denoise"] + timings["decode"] for timings in self._timings[:count])
        return each + sum(s for stage, s in self._timings[0].items() if stage not in ("denoise", "decode"))

    def mean(self, first: int, count: int) -> np.ndarray:
        return self.pictures[first : first + count].astype(np.float32).mean(0).round().astype(np.uint8)

    def nearest(self, first: int, count: int) -> np.ndarray:
        """The one of `count` runs that is nearest their mean."""
        own = self.pictures[first : first + count]
        middle = own.astype(np.float32).mean(0)
        return own[int(np.argmin([rms(middle, one) for one in own]))]

    def trial(self, name: str, pick: Callable[[int, int], np.ndarray], count: int) -> Trial:
        picture = pick(0, count)
        again = rms(picture, pick(count, count)) if 2 * count <= len(self.pictures) else None
        return Trial(name, picture, self.seconds(count), again)


def noise_of(seed: int) -> Noise:
    """Noise for an ensemble whose runs get what Runs gives them: the one numbered n what seed + n draws."""
    generators: list[torch.Generator] = []

    def noise(_: str, shape: tuple[int, ...]) -> Tensor:
        if not generators:
            generators.extend(torch.Generator().manual_seed(seed + n) for n in range(shape[0]))
        return torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])

    return noise


def steer_once(seesr: SeeSR, small: np.ndarray, settings: Settings) -> Result:
    assert settings.seed is not None
    return seesr.upscale(images.from_pixels(small), settings, noise_of(settings.seed))


def steered(seesr: SeeSR, seed: int, scale: int, every: tuple[int, ...]) -> Trials:
    """Kernel density steering against one run, the mean of the same N runs, and the one of them nearest that mean."""

    def trials(small: np.ndarray, _: np.ndarray) -> Iterator[Trial]:
        for steps in every:
            plain = Settings(num_inference_steps=steps, scale_factor=scale, seed=seed)
            runs, name = Runs(seesr, small, plain), named(steps)
            yield runs.trial(f"{name}: 1 run", runs.mean, 1)
            for count in COUNTS:
                yield runs.trial(f"{name}: mean of {count}", runs.mean, count)
                yield runs.trial(f"{name}: nearest of {count}", runs.nearest, count)
                for bandwidth in BANDWIDTHS:
                    yield _steered(seesr, small, f"{name}: kds {count}, {bandwidth}", count, bandwidth, plain)

    return trials


def _steered(seesr: SeeSR, small: np.ndarray, name: str, count: int, bandwidth: float, plain: Settings) -> Trial:
    assert plain.seed is not None
    settings = replace(plain, use_kds=True, num_particles=count, bandwidth=bandwidth)
    result, again = steer_once(seesr, small, settings), None
    if bandwidth == USUAL and 2 * count <= RUNS:
        other = steer_once(seesr, small, replace(settings, seed=plain.seed + count))
        again = rms(pixels(result), pixels(other))
    return Trial(name, pixels(result), sum(result.timings.values()), again)


def named(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


as_it_is = kds.steer


def other_scale(rule: Callable[[Tensor], Tensor]) -> Steer:
    """Steering by another rule for what bandwidth 1 means.

    `rule` maps the root mean square distances (pairs, places) between different runs to that distance, for all places
    or each one.
    """

    def steer(x0: Tensor, bandwidth: float) -> Tensor:
        places = x0.float().flatten(2)
        squared = (places[:, None] - places[None]).square().mean(2)
        first, second = torch.triu_indices(len(x0), len(x0), 1)
        scale = bandwidth * rule(squared[first, second].sqrt())
        weight = torch.exp(squared / (-2 * scale.square().clamp(min=1e-12)))
        weight = weight / weight.sum(1, keepdim=True)
        return torch.einsum("ijl,jcl->icl", weight, places).unflatten(2, x0.shape[2:])

    return steer


def strength(share: float) -> Steer:
    return lambda x0, bandwidth: as_it_is(x0, bandwidth, strength=share)


def patches(side: int) -> Steer:
    return lambda x0, bandwidth: as_it_is(x0, bandwidth, patch=side)


VARIANTS: dict[str, Callable[[int, int], Steer]] = {
    "as it is: patch 1, all the way, every step": lambda _step, _steps: as_it_is,
    "patch 2": lambda _step, _steps: patches(2),
    "patch 4": lambda _step, _steps: patches(4),
    "half the way": lambda _step, _steps: strength(0.5),
    "rising to all the way": lambda step, steps: strength((step + 1) / steps),
    "only the last step": lambda step, steps: strength(float(step == steps - 1)),
    "only the first step": lambda step, _steps: strength(float(step == 0)),
    "never: only the choice at the end": lambda _step, _steps: strength(0),
    "bandwidth of each place's own median": lambda _step, _steps: other_scale(lambda d: 2 * d.median(0).values),
    "bandwidth of each place's nearest pair": lambda _step, _steps: other_scale(lambda d: 2 * d.amin(0)),
    "bandwidth of the largest tenth": lambda _step, _steps: other_scale(lambda d: 2 * d.flatten().quantile(0.9)),
    "bandwidth of the mean square": lambda _step, _steps: other_scale(lambda d: 2 * d.square().mean().sqrt()),
    "bandwidth 1 is 1, whatever the spread": lambda _step, _steps: other_scale(lambda d: d.new_tensor(1.0)),
    "bandwidth 1 is 0.1, whatever the spread": lambda _step, _steps: other_scale(lambda d: d.new_tensor(0.1)),
}
"""Name -> how a step of so many steers."""


def variants(seesr: SeeSR, seed: int, scale: int, every: tuple[int, ...], count: int = USUAL_COUNT) -> Trials:
    """Other ways of steering `count` particles, also where they start from noise alone and so differ more."""

    def trials(small: np.ndarray, _: np.ndarray) -> Iterator[Trial]:
        for start in ("lr", "noise"):
            for steps in every:
                plain = Settings(num_inference_steps=steps, scale_factor=scale, seed=seed, start_point=start)  # type: ignore[arg-type]
                runs, name = Runs(seesr, small, plain, 2 * count), f"{named(steps)} from {start}"
                yield runs.trial(f"{name}: 1 run", runs.mean, 1)
                yield runs.trial(f"{name}: mean of {count}", runs.mean, count)
                yield runs.trial(f"{name}: nearest of {count}", runs.nearest, count)
                for title, variant in VARIANTS.items():
                    with _steering(variant, steps):
                        settings = replace(plain, use_kds=True, num_particles=count, bandwidth=USUAL)
                        result = steer_once(seesr, small, settings)
                    yield Trial(f"{name}: {title}", pixels(result), sum(result.timings.values()))

    return trials


@contextmanager
def _steering(variant: Callable[[int, int], Steer], steps: int) -> Iterator[None]:
    """Within the block the pipeline steers as `variant` says, by the number of its call."""
    calls = iter(range(steps))
    kds.steer = lambda x0, bandwidth: variant(next(calls), steps)(x0, bandwidth)  # type: ignore[assignment]
    try:
        yield
    finally:
        kds.steer = as_it_is


def known_modes(seesr: SeeSR, seed: int, count: int = 8, patch: int = 4) -> Trials:
    """An ensemble whose modes are known: latents of the true picture, where a model would have been of two minds.

    Each run has at every patch the truth or, one time in four, the same other thing (one spread away), and noise of a
    fifth of the spread of its own. What a real model's runs would look like if they agreed in most places.
    """

    def trials(_: np.ndarray, truth: np.ndarray) -> Iterator[Trial]:
        picture = images.to_tensor(images.from_pixels(truth))
        cell = seesr.factor * patch
        picture = picture[:, :, : picture.shape[2] // cell * cell, : picture.shape[3] // cell * cell]
        vae = seesr.parts.vae
        with torch.inference_mode():
            moments: Any = vae.encode(picture * 2 - 1)
            clean = moments.latent_dist.mean * vae.config["scaling_factor"]
        random = torch.Generator().manual_seed(seed)
        spread = clean.std(dim=(0, 2, 3), keepdim=True)
        cells = (clean.shape[2] // patch, clean.shape[3] // patch)
        other = torch.randn(1, clean.shape[1], *cells, generator=random) * spread
        wrong = (torch.rand(count, 1, *cells, generator=random) < 0.25).float()
        shift = torch.nn.functional.interpolate(other * wrong, scale_factor=patch)
        runs = clean + shift + 0.2 * spread * torch.randn(count, *clean.shape[1:], generator=random)
        ways = {
            "the truth through the VAE": clean,
            "1 run": runs[:1],
            f"mean of {count}": runs.mean(0, keepdim=True),
            f"nearest of {count}": chosen(runs),
        }
        for side in (1, 2, 4):
            for bandwidth in BANDWIDTHS:
                ways[f"kds {count}, {bandwidth}, patch {side}"] = chosen(kds.steer(runs, bandwidth, patch=side))
        for name, latent in ways.items():
            result = np.asarray(images.to_image(seesr.decode(latent)))
            yield Trial(f"known modes: {name}", grow(result, truth.shape[:2]), 0)

    return trials


def two_modes(seed: int, count: int = 8) -> str:
    """Markdown: how far from the nearer of two modes each choice is, by their distance and the runs' own noise.

    Every place is at one mode in seven runs of ten and else at the other, as a picture that must decide.
    """
    lines = ["| modes apart | noise | nearest | mean | " + " | ".join(f"kds, {b}" for b in BANDWIDTHS) + " |"]
    lines.append("|---" * (4 + len(BANDWIDTHS)) + "|")
    for apart in (2.0, 1.0):
        for noise in (0.2, 0.3):
            random = torch.Generator().manual_seed(seed)
            side = torch.where(torch.rand(count, 1, 32, 32, generator=random) < 0.7, apart / 2, -apart / 2)
            runs = side + noise * torch.randn(count, 4, 32, 32, generator=random)
            ways = [chosen(runs), runs.mean(0, keepdim=True), *(chosen(kds.steer(runs, b)) for b in BANDWIDTHS)]
            off = [
                torch.minimum((way - apart / 2).square().mean(1), (way + apart / 2).square().mean(1)).mean().sqrt()
                for way in ways
            ]
            lines.append(f"| {apart:g} | {noise:g} | " + " | ".join(f"{value:.3f}" for value in off) + " |")
    return "\n".join(lines)


def chosen(runs: Tensor) -> Tensor:
    return runs[[kds.nearest_to_mean(runs)]]


def grow(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rows and columns that a crop took away, by repeating the edge."""
    bottom, right = (to - side for to, side in zip(size, picture.shape[:2], strict=True))
    return np.pad(picture, ((0, bottom), (0, right), (0, 0)), mode="edge")


@dataclass(frozen=True)
class LaterStart(Schedule):
    """The reference's `start_steps`: less noise on the input's latent, and evenly spaced steps from there."""

    start: int = 999

    @property
    def last(self) -> int:
        return self.start

    def timesteps(self, steps: int) -> list[int]:
        return [round((self.start + 1) * (steps - i) / steps) - 1 for i in range(steps)]


FIDELITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


def dialled(seesr: SeeSR, seed: int, scale: int, every: tuple[int, ...]) -> Trials:
    """The dial, and the other ways that it could have gone: conditioning scale, later start, mixing with the input."""

    def trials(small: np.ndarray, truth: np.ndarray) -> Iterator[Trial]:
        control = np.asarray(images.resize(images.from_pixels(small), truth.shape[:2])).astype(np.float32)
        for steps in every:
            base, name = Settings(num_inference_steps=steps, scale_factor=scale, seed=seed), named(steps)

            def run(settings: Settings) -> tuple[np.ndarray, float]:
                result = seesr.upscale(images.from_pixels(small), settings)
                return pixels(result), sum(result.timings.values())

            for fidelity in FIDELITIES:
                yield Trial(f"{name}: fidelity {fidelity:g}", *run(replace(base, fidelity=fidelity)))
            neutral = run(base)[0]
            for gain in (1.5, 1.25, 1.0, 0.75, 0.5):
                mixed = (control + gain * (neutral - control)).round().clip(0, 255).astype(np.uint8)
                yield Trial(f"{name}: mixing, {gain:g} of the difference", mixed, 0)
            for strength in (1.5, 1.2, 1.0, 0.8, 0.5):
                yield Trial(
                    f"{name}: conditioning_scale {strength:g}", *run(replace(base, conditioning_scale=strength))
                )
            usual = seesr.schedule
            for start in (999, 749, 499, 249):
                seesr.schedule = LaterStart(usual.scheduler, start)
                yield Trial(f"{name}: start at {start}", *run(base))
            seesr.schedule = usual

    return trials


def plot(path: Path, panels: dict[str, dict[str, list[float]]], x: tuple[float, ...], label: str) -> None:
    """Curves over `x`, a panel per quantity: title -> curve's name -> values. PNG."""
    drawn = np.hstack([_panel(title, curves, x, label) for title, curves in panels.items()])
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), drawn, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise RuntimeError(f"the plot could not be written to {path}")


def _panel(title: str, curves: dict[str, list[float]], x: tuple[float, ...], label: str) -> np.ndarray:
    height, width, (left, right, top, bottom) = 280, 340, (62, 16, 34, 46)
    picture = np.full((height, width, 3), 255, np.uint8)
    values = [value for curve in curves.values() for value in curve]
    low, high = min(values), max(values)
    low, high = (low - 0.06 * (high - low), high + 0.06 * (high - low)) if high > low else (low - 1, high + 1)

    def place(at: float, value: float) -> tuple[int, int]:
        across, up = (at - x[0]) / (x[-1] - x[0]), (value - low) / (high - low)
        return round(left + across * (width - left - right)), round(height - bottom - up * (height - top - bottom))

    def write(text: str, at: tuple[int, int], size: float = 0.4, colour: tuple[int, int, int] = (0, 0, 0)) -> None:
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)

    for at in x:
        foot = place(at, low)
        cv2.line(picture, foot, place(at, high), (230, 230, 230), 1)
        write(f"{at:g}", (foot[0] - 8, foot[1] + 16))
    for value in np.linspace(low, high, 5)[1:-1]:
        line = place(x[0], value)
        cv2.line(picture, line, place(x[-1], value), (230, 230, 230), 1)
        write(f"{value:.4g}", (6, line[1] + 4))
    for number, (name, curve) in enumerate(curves.items()):
        colour = ((180, 90, 20), (40, 40, 200), (40, 140, 40), (140, 40, 140))[number % 4]
        points = [place(at, value) for at, value in zip(x, curve, strict=True)]
        cv2.polylines(picture, [np.array(points)], False, colour, 2, cv2.LINE_AA)
        for point in points:
            cv2.circle(picture, point, 3, colour, -1, cv2.LINE_AA)
        write(name, (left + 8 + 80 * number, height - 8), 0.4, colour)
    write(title, (left, 20), 0.45)
    write(label, (4, height - 8))
    return picture
