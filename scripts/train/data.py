"""Photographs in memory, and the batches that training draws from them."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from scripts.eval.degradation import damage, degrade, shrink
from seesr import images

TAGS = ("black and white", "bright", "dark", "green", "warm colors")
"""What the prompts of training say of a crop: the tags of the embedded bundle."""
KINDS = ((4, False, 0.78), (8, False, 0.09), (4, True, 0.1), (8, True, 0.03))
"""Scale, whether the small image is clean, and share of the batches."""
FLAT = 0.08
"""Share of the crops that are wholly or partly flat."""


def read_listing() -> list[dict[str, str]]:
    """A dict of release, package, file, credit and licence per photograph, by package, then by file."""
    groups = json.loads(Path(__file__).with_name("photographs.json").read_text(encoding="utf-8"))
    packages = list(dict.fromkeys(group["package"] for group in groups))
    entries = [
        {key: group[key] for key in ("release", "package", "credit", "licence")}
        | {"file": "/".join((group["package"], group["folder"], name))}
        for group in groups
        for name in group["files"]
    ]
    return sorted(entries, key=lambda entry: (packages.index(entry["package"]), entry["file"]))


class Photographs:
    """Photographs, reduced to at most `side` pixels, which removes camera blur.

    A package is drawn in proportion to the square root of its number of photographs, so that a large one of mostly
    landscapes does not dominate. Raises RuntimeError if a file of `entries` is missing in `folder`.
    """

    def __init__(self, folder: Path, entries: Iterable[Mapping[str, str]], side: int = 1440) -> None:
        self.items: list[tuple[np.ndarray, np.ndarray]] = []
        """Pixels (H, W, 3) uint8, and the same at half size."""
        packages: list[str] = []
        for entry in entries:
            path = folder / entry["file"]
            if not path.is_file():
                raise RuntimeError(f"{path} is missing; remove {folder / entry['package']} to have it fetched again")
            rgb = images.open_image(path).rgb
            share = min(1.0, side / max(rgb.size))
            pixels = np.asarray(images.resize(rgb, (int(rgb.height * share), int(rgb.width * share))))
            self.items.append((pixels, halve(pixels)))
            packages.append(entry["package"])
        shares = np.array([packages.count(package) ** -0.5 for package in packages])
        self.shares = shares / shares.sum()

    def crop(self, random: np.random.Generator, size: int) -> tuple[np.ndarray, list[str]]:
        """One (size, size, 3) uint8 crop and its tags.

        At full or half resolution, rotated and mirrored at random; mostly the busier of two candidates.
        """
        pixels, half = self.items[int(random.choice(len(self.items), p=self.shares))]
        if random.random() < 0.4 and min(half.shape[:2]) >= size:
            pixels = half
        candidates = []
        for _ in range(2 if random.random() < 0.6 else 1):
            top, left = (int(random.integers(side - size + 1)) for side in pixels.shape[:2])
            candidates.append(pixels[top : top + size, left : left + size])
        chosen = max(candidates, key=lambda crop: float(np.abs(np.diff(crop.astype(np.float32), axis=1)).mean()))
        turned = np.rot90(chosen, int(random.integers(4)))
        return np.ascontiguousarray(turned[:, ::-1] if random.random() < 0.5 else turned), tags_of(chosen)

    def batch(self, random: np.random.Generator, size: int, count: int) -> "Batch":
        """One of KINDS for the whole batch; some of its crops are flat."""
        crops = [self.crop(random, size) for _ in range(count)]
        truth = [flatten(pixels, random) if random.random() < FLAT else pixels for pixels, _ in crops]
        scale, clean, _ = KINDS[int(random.choice(len(KINDS), p=[share for _, _, share in KINDS]))]
        small = [shrink(pixels, scale) if clean else damage(pixels, scale, random) for pixels in truth]
        return make_batch(truth, small, [tags for _, tags in crops])

    def validation(self, side: int) -> list["Batch"]:
        """Two crops of `side` pixels along the diagonal of each photograph, with fixed damage."""
        random, batches = np.random.default_rng(11), []
        for (pixels, _), place in itertools.product(self.items, (0.3, 0.7)):
            top, left = (int((length - side) * place) for length in pixels.shape[:2])
            crop = np.ascontiguousarray(pixels[top : top + side, left : left + side])
            batches.append(make_batch([crop], [degrade(crop, random)], [[]]))
        return batches


@dataclass(frozen=True)
class Batch:
    """`truth` and `control` (B, 3, H, W) in [-1, 1], `small` (B, 3, h, w) in [0, 1], tags per image."""

    truth: Tensor
    control: Tensor
    small: Tensor
    tags: list[list[str]]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.truth.to(device), self.control.to(device), self.small.to(device), self.tags)


def make_batch(truth: list[np.ndarray], small: list[np.ndarray], tags: list[list[str]]) -> Batch:
    """(H, W, 3) and (h, w, 3) uint8 each -> a Batch whose `control` is `small` resized to `truth`"""
    opened = [images.from_pixels(pixels) for pixels in small]
    resized = [images.to_tensor(images.resize(image, truth[0].shape[:2])) for image in opened]
    stacked = torch.stack([torch.from_numpy(pixels).permute(2, 0, 1) for pixels in truth]).float() / 127.5 - 1
    truths, controls = (
        image.contiguous(memory_format=torch.channels_last) for image in (stacked, torch.cat(resized) * 2 - 1)
    )
    return Batch(truths, controls, torch.cat([images.to_tensor(image) for image in opened]), tags)


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


def tags_of(pixels: np.ndarray) -> list[str]:
    """(H, W, 3) uint8 -> those of TAGS that its light and colours show"""
    mean = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean()
    spread = (pixels.max(2).astype(int) - pixels.min(2)).mean()
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))  # a hue is 0 to 179
    vivid = (saturation > 50) & (value > 30)
    green, warm = (hue >= 33) & (hue <= 85) & vivid, ((hue >= 165) | (hue <= 30)) & vivid
    shown = (spread <= 4, mean >= 185, mean <= 50, green.mean() >= 0.45, warm.mean() >= 0.45)
    return [tag for tag, is_shown in zip(TAGS, shown, strict=True) if is_shown]
