"""Write the pairs that scripts.train.distill learns from: damaged crops with the results of a teacher and of a bundle.

    .venv/bin/python -m scripts.train.teacher --pairs 2000 --out work-distill/pairs

The teacher is Real-ESRGAN x4plus (Wang et al. 2021, BSD-3), about 0.9 s per crop of 64 pixels on one core. A run that was
stopped continues with the same command. Needs the packages of `scripts/setup eval`.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.eval import photographs
from scripts.eval.methods import real_esrgan, resize
from scripts.train.data import Batch, Photographs, read_listing, to_pixels
from scripts.train.model import Bundle
from seesr import bundle as bundles
from seesr import hardware

ROOT = Path(__file__).resolve().parents[2]
SIDE, SHARD = 256, 25
"""Pixels of a crop's side, and crops per file."""
KEYS = ("truth", "control", "small", "teacher", "shipped")
FLAT, TRIES = 4.0, 4
"""A crop whose neighbours differ less is drawn again, up to TRIES times. One in seven is kept all the same."""


@dataclass(frozen=True)
class Pair:
    """Pixels (H, W, 3) uint8 of a crop; `small` is (h, w, 3). `teacher` and `shipped` are upscales of `small`."""

    truth: np.ndarray
    control: np.ndarray
    small: np.ndarray
    teacher: np.ndarray
    shipped: np.ndarray


class Teachers:
    """What upscales the crops: the teacher, and the bundle whose results the new one shall stay near to."""

    def __init__(self, bundle: Path, device: str, teacher: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.teacher = teacher or real_esrgan(4)
        self.bundle = Bundle(bundles.load(bundle)).to(device)

    def pair(self, batch: Batch) -> Pair:
        """A Batch of one -> its Pair; at 8x the teacher's result is resized"""
        small = to_pixels(batch.small * 2 - 1)
        truth, control = to_pixels(batch.truth), to_pixels(batch.control)
        teacher = resize(self.teacher(small), truth.shape[:2])
        return Pair(truth, control, small, teacher, to_pixels(self.bundle.upscale(batch, 1)))


def draw(crops: Photographs, random: np.random.Generator, size: int = SIDE) -> Batch:
    """A Batch of one crop, mostly not a nearly flat one"""
    batch = crops.batch(random, size, 1)
    for _ in range(TRIES - 1):
        if roughness(batch.truth) >= FLAT or random.random() < 1 / 7:
            break
        batch = crops.batch(random, size, 1)
    return batch


def roughness(image: Tensor) -> float:
    """(B, 3, H, W) in [-1, 1] -> mean difference of horizontal neighbours, in levels of 255"""
    return image.diff(dim=3).abs().mean().item() * 127.5


def write_pairs(
    crops: Photographs, teachers: Teachers, count: int, out: Path, seed: int, size: int = SIDE, shard: int = SHARD
) -> None:
    """Write the shards of `count` pairs that `out` lacks. A shard depends on its number and the seed only."""
    out.mkdir(parents=True, exist_ok=True)
    for number in range(-(-count // shard)):
        path, start = out / f"{seed}-{number:04d}.npz", time.monotonic()
        if path.exists():
            continue
        pairs = []
        for index in range(min(shard, count - number * shard)):
            random = np.random.default_rng([seed, number, index])
            pairs.append(teachers.pair(draw(crops, random, size)))
        write_shard(pairs, path)
        print(f"{path.name}: {(time.monotonic() - start) / len(pairs):.2f} s per pair", flush=True)


def write_shard(pairs: list[Pair], path: Path) -> None:
    """One array of objects per field, as the small images of 4x and 8x differ in size."""
    arrays = {}
    for index, pair in enumerate(pairs):
        arrays |= {f"{index}.{key}": getattr(pair, key) for key in KEYS}
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)


def read_pairs(folder: Path) -> list[Pair]:
    """All pairs in `folder`, by file. Raises RuntimeError where there is none."""
    pairs = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            count = len(arrays.files) // len(KEYS)
            pairs += [Pair(*(arrays[f"{index}.{key}"] for key in KEYS)) for index in range(count)]
    if not pairs:
        raise RuntimeError(f"{folder} has no pairs; run scripts.train.teacher --out {folder} first")
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "weights/tiny", help="the bundle to stay near to")
    parser.add_argument("--pairs", type=int, default=2000, help="how many; more may be asked for later")
    parser.add_argument("--out", type=Path, default=ROOT / "work-distill/pairs", help="their folder")
    parser.add_argument("--photographs", type=Path, default=photographs.FROM_DEBIAN, help="their folder")
    parser.add_argument("--seed", type=int, default=1, help="of crops and damage")
    parser.add_argument("--device", default=hardware.device(), help="of the bundle; the teacher runs on the CPU")
    arguments = parser.parse_args()
    entries = read_listing()
    photographs.fetch_debian(entries, arguments.photographs)
    torch.set_grad_enabled(False)
    teachers = Teachers(arguments.bundle, arguments.device)
    write_pairs(Photographs(arguments.photographs, entries), teachers, arguments.pairs, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
