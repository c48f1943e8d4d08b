"""Write the pairs that scripts.train.distill learns from: damaged crops with the results of a teacher.

    .venv/bin/python -m scripts.train.teacher --pairs 2000 --out work-distill/pairs

The teacher is Real-ESRGAN x4plus (Wang et al. 2021, BSD-3), about 0.9 s per crop of 64 pixels on one core. A run that
was stopped continues with the same command. On a CPU it runs in ncnn, else in torch, from the same file (33 MB).
"""

import argparse
import time
from pathlib import Path

import numpy as np

from scripts.eval import photographs
from scripts.eval.methods import Method, real_esrgan, real_esrgan_file, resize
from scripts.train.data import Batch, Photographs, read_listing, to_pixels
from scripts.train.pairs import Pair, write_shard
from scripts.train.rrdb import torch_teacher
from scripts.train.train import ROOT
from seesr import hardware

SIDE, SHARD = 256, 25
"""Pixels of a crop's side, and crops per file."""
FLAT, TRIES = 4.0, 4
"""A crop whose neighbours differ by fewer levels is drawn again, up to TRIES draws in all; one in seven is kept."""


def draw(crops: Photographs, random: np.random.Generator, size: int) -> Batch:
    """A Batch of one crop, mostly not a nearly flat one"""
    batch = crops.batch(random, size, 1)
    for _ in range(TRIES - 1):
        if batch.truth.diff(dim=3).abs().mean().item() * 127.5 >= FLAT or random.random() < 1 / 7:
            break
        batch = crops.batch(random, size, 1)
    return batch


def make_pair(batch: Batch, teacher: Method) -> Pair:
    """A Batch of one -> its Pair. `teacher` upscales 4 times; at 8x its result is resized."""
    small, truth = to_pixels(batch.small * 2 - 1), to_pixels(batch.truth)
    taught = resize(teacher(small), truth.shape[:2])
    return Pair(truth, small, to_pixels(batch.control), taught)


def write_pairs(
    crops: Photographs,
    teacher: Method,
    count: int,
    out: Path,
    seed: int,
    size: int = SIDE,
    shard: int = SHARD,
) -> None:
    """Write the files that `out` lacks of `count` pairs, `shard` in each. Seed and number decide what a file holds."""
    out.mkdir(parents=True, exist_ok=True)
    for number in range(-(-count // shard)):
        path, started = out / f"{seed}-{number:04d}.npz", time.monotonic()
        if path.exists():
            continue
        randoms = [np.random.default_rng([seed, number, index]) for index in range(shard)]
        write_shard([make_pair(draw(crops, random, size), teacher) for random in randoms], path)
        print(f"{path.name}: {(time.monotonic() - started) / shard:.2f} s per pair", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="how many there shall be, rounded up to files of 25")
    parser.add_argument("--out", type=Path, default=ROOT / "work-distill/pairs", help="their folder")
    parser.add_argument("--photographs", type=Path, default=photographs.FROM_DEBIAN, help="their folder")
    parser.add_argument("--seed", type=int, default=1, help="of crops and damage")
    parser.add_argument("--teacher", type=Path, help="realesrgan-x4plus.bin; default: that of the installed package")
    parser.add_argument("--device", default=hardware.device(), help="default: a GPU where there is one")
    arguments = parser.parse_args()
    entries = read_listing()
    photographs.fetch_debian(entries, arguments.photographs)
    crops = Photographs(arguments.photographs, entries)
    if arguments.device == "cpu" and not arguments.teacher:
        teacher = real_esrgan(4)
    else:
        teacher = torch_teacher(arguments.teacher or real_esrgan_file(), arguments.device)
    write_pairs(crops, teacher, arguments.pairs, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
