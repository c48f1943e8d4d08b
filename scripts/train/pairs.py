"""Crops with a teacher's results in memory and in files, and the batches that are drawn from them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.train.data import Batch, tags_of
from seesr.color_fix import low_frequencies


@dataclass(frozen=True)
class Pair:
    """Pixels (H, W, 3) uint8 of a crop; `small` is (h, w, 3). The last two are upscales of `small`."""

    truth: np.ndarray
    small: np.ndarray
    control: np.ndarray
    teacher: np.ndarray

    @property
    def scale(self) -> int:
        return len(self.truth) // len(self.small)


NAMES = [field.name for field in fields(Pair)]


def write_shard(pairs: Sequence[Pair], path: Path) -> None:
    """One array per image, as the small images of 4x and 8x differ in size."""
    arrays = {f"{index}.{name}": getattr(pair, name) for index, pair in enumerate(pairs) for name in NAMES}
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)


def read_pairs(folder: Path, count: int) -> list[Pair]:
    """The first `count` pairs in `folder`, in the order of the files. Raises RuntimeError where there are fewer."""
    pairs: list[Pair] = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            held = sum(name.endswith(".truth") for name in arrays.files)
            pairs += [Pair(**{name: arrays[f"{index}.{name}"] for name in NAMES}) for index in range(held)]
        if len(pairs) >= count:
            return pairs[:count]
    raise RuntimeError(f"{folder} holds {len(pairs)} pairs, {count} were asked for; run scripts.train.teacher first")


@dataclass(frozen=True)
class TargetBatch(Batch):
    """Pixels are compared with `target`, contrast, grain and patches with `texture`; both are as `truth`."""

    target: Tensor
    texture: Tensor

    def to(self, device: torch.device) -> "TargetBatch":
        moved = super().to(device)
        target, texture = self.target.to(device), self.texture.to(device)
        return TargetBatch(moved.truth, moved.control, moved.small, moved.tags, target, texture)


def of_original(batch: Batch) -> TargetBatch:
    """The truth as both target and texture"""
    return TargetBatch(batch.truth, batch.control, batch.small, batch.tags, batch.truth, batch.truth)


class Pairs:
    """Pairs and the batches drawn from them.

    The texture is the teacher's result with the colours of the input, the target the mean of that and the truth.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.of_scale = {scale: [pair for pair in pairs if pair.scale == scale] for scale in {p.scale for p in pairs}}

    def batch(self, random: np.random.Generator, size: int, count: int) -> TargetBatch:
        """`count` crops of `size` pixels of one scale"""
        same = self.of_scale[self.pairs[int(random.integers(len(self.pairs)))].scale]
        crops = [crop(same[int(random.integers(len(same)))], random, size) for _ in range(count)]
        truth, small, control, teacher = (stack([getattr(pair, name) for pair in crops]) for name in NAMES)
        teacher = teacher + low_frequencies(control - teacher)
        tags = [tags_of(pair.truth) for pair in crops]
        return TargetBatch(truth, control, small / 2 + 0.5, tags, (teacher + truth) / 2, teacher)


def crop(pair: Pair, random: np.random.Generator, size: int) -> Pair:
    """The part of `size` pixels at the busier of two places, mirrored and turned at random"""
    side = size // pair.scale
    places = [[int(random.integers(length - side + 1)) for length in pair.small.shape[:2]] for _ in range(2)]
    turns, mirror = int(random.integers(4)), random.random() < 0.5

    def cut(pixels: np.ndarray, place: list[int]) -> np.ndarray:
        times = len(pixels) // len(pair.small)
        top, left = (start * times for start in place)
        return pixels[top : top + side * times, left : left + side * times]

    def turned(pixels: np.ndarray) -> np.ndarray:
        result = np.rot90(cut(pixels, chosen), turns)
        return np.ascontiguousarray(result[:, ::-1] if mirror else result)

    chosen = max(places, key=lambda place: float(np.abs(np.diff(cut(pair.teacher, place).astype(int), axis=1)).mean()))
    return Pair(**{name: turned(getattr(pair, name)) for name in NAMES})


def stack(images: Sequence[np.ndarray]) -> Tensor:
    """B of (H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]"""
    stacked = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]).float() / 127.5 - 1
    return stacked.contiguous(memory_format=torch.channels_last)
