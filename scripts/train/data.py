"""Photographs in memory, and the batches that training draws from them."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.eval.degradation import damage, degrade, shrink
from seesr import images

LISTING = Path(__file__).with_name("photographs.json")

SHOWN, NOT_SHOWN, UNSURE = 1, 0, -1
TAGS = ("black and white", "bright", "dark", "green", "warm colors")
LIGHT = {"dark": (50, 75), "bright": (185, 160)}
"""Mean luma, of 255: from the first value on the tag is SHOWN, from the second on it is NOT_SHOWN."""
GREY = (4, 14)
"""Mean difference of the largest and smallest colour channel, of 255: the same two limits for "black and white"."""
HUES = {"warm colors": (165, 30), "green": (33, 85)}
"""First and last hue of saturated pixels, in OpenCV's units of 2 degrees."""
HUE_SHARES = (0.45, 0.25)
"""Share of the pixels in HUES: the same two limits."""
KINDS = ((4, False, 0.78), (8, False, 0.09), (4, True, 0.1), (8, True, 0.03))
"""Scale, whether the small image is clean, and share of the batches in the refine stage."""
FLAT = 0.08
"""Share of the crops in the refine stage that are wholly or partly flat."""


def read_listing(path: Path = LISTING) -> list[dict[str, str]]:
    """One entry per photograph (release, package, file, credit, licence), by package, then by file."""
    groups = json.loads(path.read_text(encoding="utf-8"))
    packages = list(dict.fromkeys(group["package"] for group in groups))
    entries = [
        {key: group[key] for key in ("release", "package", "credit", "licence")}
        | {"file": "/".join((group["package"], group["folder"], name))}
        for group in groups
        for name in group["files"]
    ]
    return sorted(entries, key=lambda entry: (packages.index(entry["package"]), entry["file"]))


@dataclass(frozen=True)
class Photograph:
    """Pixels (H, W, 3) uint8, and the same at half size."""

    pixels: np.ndarray
    half: np.ndarray


class Photographs:
    """Photographs, reduced to at most `side` pixels, which removes camera blur.

    A package is drawn in proportion to the square root of its number of photographs, so that a large one of mostly
    landscapes does not dominate. Raises RuntimeError if a file of `entries` is missing in `folder`.
    """

    def __init__(self, folder: Path, entries: Iterable[Mapping[str, str]], side: int = 1440) -> None:
        self.items: list[Photograph] = []
        packages: list[str] = []
        for entry in entries:
            path = folder / entry["file"]
            if not path.is_file():
                raise RuntimeError(f"{path} is missing; remove {folder / entry['package']} to have it fetched again")
            rgb = images.open_image(path).rgb
            share = min(1.0, side / max(rgb.size))
            pixels = np.asarray(images.resize(rgb, (int(rgb.height * share), int(rgb.width * share))))
            self.items.append(Photograph(pixels, halve(pixels)))
            packages.append(entry["package"])
        shares = np.array([packages.count(package) ** -0.5 for package in packages])
        self.shares = shares / shares.sum()

    def draw(self, random: np.random.Generator) -> Photograph:
        return self.items[int(random.choice(len(self.items), p=self.shares))]

    def crop(self, random: np.random.Generator, size: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """One (size, size, 3) crop and the numbers of its tags.

        At full or half resolution, rotated and mirrored at random; mostly the busier of two candidates.
        """
        photograph = self.draw(random)
        pixels = photograph.pixels
        if random.random() < 0.4 and min(photograph.half.shape[:2]) >= size:
            pixels = photograph.half
        candidates = []
        for _ in range(2 if random.random() < 0.6 else 1):
            top, left = (int(random.integers(side - size + 1)) for side in pixels.shape[:2])
            candidates.append(pixels[top : top + size, left : left + size])
        chosen = max(candidates, key=lambda crop: float(np.abs(np.diff(crop.astype(np.float32), axis=1)).mean()))
        turned = np.rot90(chosen, int(random.integers(4)))
        shown = tuple(number for number, answer in enumerate(tags_of(chosen).values()) if answer == SHOWN)
        return np.ascontiguousarray(turned[:, ::-1] if random.random() < 0.5 else turned), shown

    def batch(self, random: np.random.Generator, size: int, count: int) -> "Batch":
        crops = [self.crop(random, size) for _ in range(count)]
        small = [degrade(pixels, random) for pixels, _ in crops]
        return make_batch([pixels for pixels, _ in crops], small, [tags for _, tags in crops])

    def varied_batch(self, random: np.random.Generator, size: int, count: int) -> "Batch":
        """One of KINDS for the whole batch; some of its crops are flat."""
        crops = [self.crop(random, size) for _ in range(count)]
        truth = [flatten(pixels, random) if random.random() < FLAT else pixels for pixels, _ in crops]
        scale, clean, _ = KINDS[int(random.choice(len(KINDS), p=[share for _, _, share in KINDS]))]
        small = [shrink(pixels, scale) if clean else damage(pixels, scale, random) for pixels in truth]
        return make_batch(truth, small, [tags for _, tags in crops])

    def tag_batch(self, random: np.random.Generator, size: int, count: int) -> "TagBatch":
        """`count` images of `size` x `size` pixels with their tags."""
        found = [random_image(self.draw(random).half, random) for _ in range(count)]
        tensors = (images.to_tensor(images.from_pixels(pixels)) for pixels, _ in found)
        resized = [F.interpolate(image, (size, size), mode="bilinear", align_corners=False) for image in tensors]
        return TagBatch(torch.cat(resized), torch.tensor([list(tags.values()) for _, tags in found]))

    def validation(self, side: int) -> list["Batch"]:
        """Two crops of `side` pixels along the diagonal of each photograph, with fixed damage."""
        random, batches = np.random.default_rng(11), []
        for pixels, place in ((item.pixels, place) for item in self.items for place in (0.3, 0.7)):
            top, left = (int((length - side) * place) for length in pixels.shape[:2])
            crop = np.ascontiguousarray(pixels[top : top + side, left : left + side])
            batches.append(make_batch([crop], [degrade(crop, random)], [()]))
        return batches


@dataclass(frozen=True)
class Batch:
    """`truth` and `control` (B, 3, H, W) in [-1, 1], `small` (B, 3, h, w) in [0, 1], tag numbers per image."""

    truth: Tensor
    control: Tensor
    small: Tensor
    tags: list[tuple[int, ...]]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.truth.to(device), self.control.to(device), self.small.to(device), self.tags)


@dataclass(frozen=True)
class TagBatch:
    """`images` (B, 3, S, S) in [0, 1]; `targets` (B, T) of SHOWN, NOT_SHOWN and UNSURE."""

    images: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "TagBatch":
        return TagBatch(self.images.to(device), self.targets.to(device))


def make_batch(truth: list[np.ndarray], small: list[np.ndarray], tags: list[tuple[int, ...]]) -> Batch:
    """(H, W, 3) and (h, w, 3) uint8 each -> a Batch whose `control` is `small` resized to `truth`"""
    opened = [images.from_pixels(pixels) for pixels in small]
    resized = [images.to_tensor(images.resize(image, truth[0].shape[:2])) for image in opened]
    whole = torch.stack([torch.from_numpy(pixels).permute(2, 0, 1) for pixels in truth]).float() / 127.5 - 1
    channels_last = {"memory_format": torch.channels_last}
    return Batch(
        whole.contiguous(**channels_last),
        (torch.cat(resized) * 2 - 1).contiguous(**channels_last),
        torch.cat([images.to_tensor(image) for image in opened]),
        tags,
    )


def to_pixels(image: Tensor) -> np.ndarray:
    """(1, 3, H, W) in [-1, 1] -> (H, W, 3) uint8"""
    return ((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()


def halve(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H // 2, W // 2, 3) uint8, by area"""
    even = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2]
    return even.reshape(even.shape[0] // 2, 2, -1, 2, 3).mean((1, 3)).astype(np.uint8)


def flatten(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(S, S, 3) uint8 -> the same size: one colour, a linear gradient, or the crop partly covered by one colour"""
    size = len(pixels)
    extremes = (np.zeros(3), np.full(3, 255.0), random.uniform(0, 255, 3), random.uniform(0, 255, 3))
    first, last = (extremes[int(random.integers(len(extremes)))] for _ in range(2))
    kind = random.integers(3)
    if kind == 1:
        angle, along = random.uniform(0, 2 * math.pi), np.linspace(-0.5, 0.5, size)
        place = (math.cos(angle) * along[:, None] + math.sin(angle) * along + 0.71).clip(0, 1.42)[..., None] / 1.42
        return (first + (last - first) * place).round().astype(np.uint8)
    covered = pixels.copy()
    edge = 0 if kind == 0 else int(random.integers(size // 4, size))
    covered[edge:] = first.round().astype(np.uint8)
    return np.ascontiguousarray(np.rot90(covered, int(random.integers(4))))


def tags_of(pixels: np.ndarray) -> dict[str, int]:
    """(H, W, 3) uint8 -> SHOWN, NOT_SHOWN or UNSURE per tag of TAGS, from the pixels alone"""
    mean = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean()
    spread = (pixels.max(2).astype(int) - pixels.min(2)).mean()
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    found = {
        "dark": answer(-mean, *(-limit for limit in LIGHT["dark"])),
        "bright": answer(mean, *LIGHT["bright"]),
        "black and white": answer(-spread, *(-limit for limit in GREY)),
    }
    for tag, (first, last) in HUES.items():
        inside = (hue >= first) & (hue <= last) if first < last else (hue >= first) | (hue <= last)
        found[tag] = answer((inside & (saturation > 50) & (value > 30)).mean(), *HUE_SHARES)
    return {tag: found[tag] for tag in TAGS}


def answer(value: float, shown: float, not_shown: float) -> int:
    return SHOWN if value >= shown else NOT_SHOWN if value <= not_shown else UNSURE


def random_image(pixels: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, dict[str, int]]:
    """Part of a photograph, reduced and noisy, with changed light and colours -> (h, w, 3) uint8 and its tags

    Sometimes grey, dark, bright or tinted.
    """
    height, width = pixels.shape[:2]
    sides = [max(8, int(side * random.uniform(0.15, 1))) for side in (height, width)]
    top, left = (int(random.integers(whole - side + 1)) for whole, side in zip((height, width), sides, strict=True))
    part = pixels[top : top + sides[0], left : left + sides[1]]
    size = tuple(int(32 * 8**share) for share in random.uniform(0, 1, 2))
    light = cv2.resize(part, size, interpolation=cv2.INTER_AREA).astype(np.float32) * random.uniform(0.8, 1.15)
    kind = random.random()
    if kind < 0.15:
        light = np.repeat(light.mean(2, keepdims=True), 3, axis=2)
    if 0.08 < kind < 0.25:
        light *= random.uniform(0.1, 0.4)
    elif 0.25 < kind < 0.4:
        light = 255 - (255 - light) * random.uniform(0.2, 0.6)
    elif kind > 0.6:
        light *= random.uniform(0.5, 1.4, 3)
    clean = light.clip(0, 255).astype(np.uint8)
    noise = random.normal(0, random.uniform(0, 6), (*clean.shape[:2], 1 if kind < 0.15 else 3))
    return (clean + noise).clip(0, 255).astype(np.uint8), tags_of(clean)
