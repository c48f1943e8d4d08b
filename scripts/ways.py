#!/usr/bin/env python3
"""Several ways to do one thing, side by side: how far from the plain way, how long, how much memory.

    scripts/ways.py vae --bundle weights/tiny      ways to tile the VAE, on a photograph enlarged to --side
    scripts/ways.py vae                            the same with the real structure and random values
    scripts/ways.py wavelet --side 8192            ways to give a picture the colours of another
    scripts/ways.py freed                          what a card would do with the text encoder's and tagger's memory

Tables are Markdown. Errors of decoding are in levels of 255, unclipped; of encoding, shares of the RMS of the mean.
Nothing is warmed up. Peaks are of what a way makes, not of what it is given.
"""

import argparse
import itertools
import math
import resource
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary, WeakValueDictionary

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import benchmark
import full_size
import numpy as np
import pywt
import reference_way
import torch
import work
from torch import Tensor
from torch.nn import functional as F

from seesr import hardware, images, vae_tiling, weights
from seesr.color_fix import LEVELS, match_color
from seesr.memory import FusedAttention, LiveBytes, skeleton
from seesr.pipeline import SeeSR
from seesr.settings import Settings

PHOTOGRAPH = Path(__file__).resolve().parent.parent / "tests/data/astronaut.jpg"
TIMES = ("seconds", "CPU seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["vae", "wavelet", "freed"])
    parser.add_argument("--bundle", type=Path, help="whose VAE (default: the real structure, random values)")
    parser.add_argument("--side", type=int, help="of the picture in pixels (1024 for a bundle, else 512; wavelet 2048)")
    parser.add_argument("--tile", type=int, help="in latent pixels (64 for a bundle, else 32)")
    parser.add_argument("--way", nargs="+", choices=["decode", "encode"], default=["decode", "encode"])
    parser.add_argument("--runs", type=int, default=1, help="timed runs behind each median")
    arguments = parser.parse_args()
    side, tile = (1024, 64) if arguments.bundle else (512, 32)
    with torch.inference_mode():
        if arguments.what == "wavelet":
            return compare_colours(arguments.side or 2048, arguments.runs)
        if arguments.what == "freed":
            return compare_plans()
        vae = load(arguments.bundle)
        for way in arguments.way:
            compare_tilings(vae, way, arguments.side or side, arguments.tile or tile, arguments.runs)


def load(bundle: Path | None) -> Any:
    """A VAE in float32: a bundle's, or of the real size with random values."""
    if bundle:
        return weights.load(bundle, hardware.device(), torch.float32).vae
    torch.manual_seed(0)
    vae = weights.build_empty(lambda: weights.build_vae(full_size.VAE))
    return full_size._randomize(vae.to_empty(device=hardware.device()).float())


def compare_tilings(vae: Any, way: str, side: int, tile: int, runs: int) -> None:
    """Print the table of `way`, "encode" or "decode", for a picture of `side` pixels."""
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    part = images.to_tensor(images.resize(images.open_image(PHOTOGRAPH).rgb, (side, side))) * 2 - 1
    encoded = vae_tiling.encode(vae, part.to(vae.device)).chunk(2, dim=1)[0]
    part, unit = (part.to(vae.device), encoded.square().mean().sqrt()) if way == "encode" else (encoded, 1 / 127.5)
    count = vae_tiling.tile_count((side // factor, side // factor), tile)
    print(f"\n{way} {side} x {side} pixels in {count} tiles of {tile} latent pixels on {vae.device}\n")
    print_row("way", "largest error", "RMS error", *TIMES, "GB of tensors", "GB to and from host")
    print_row(*["---"] * 7)
    plain, dry, shape = None, skeleton(vae), part.to("meta")
    for name, run in tilings(way, tile, factor, count).items():
        Movable.moved = 0
        result, *seconds = timed(lambda run=run: run(vae, part), runs)
        moved = Movable.moved / runs
        result = result.chunk(2, dim=1)[0] if way == "encode" else result
        plain = result if plain is None else plain
        difference = ((result - plain) / unit).double()
        with FusedAttention(), LiveBytes() as live:  # on the meta device: as much memory, nothing computed
            run(dry, shape)
        found = difference.abs().max(), difference.square().mean().sqrt()
        peaks = live.peak / 1e9, moved / 1e9
        print_row(name, *(f"{error:.2g}" for error in found), *seconds, *(f"{peak:.3f}" for peak in peaks))
    if plain is not None:
        print(f"\nThe untiled result's own standard deviation is {plain.std() / unit:.2f} in the errors' unit.")


def print_row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def timed(run: Callable[[], Tensor], runs: int) -> tuple[Tensor, str, str]:
    """The last result, and the medians that TIMES names."""
    result, seconds = torch.empty(0), []
    for _ in range(runs):
        del result
        start = time.perf_counter(), time.process_time()
        result = run()
        hardware.synchronize(str(result.device))
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    clock, processor = (f"{statistics.median(column):.2f}" for column in zip(*seconds, strict=True))
    return result, clock, processor


def tilings(way: str, tile: int, factor: int, count: int) -> dict[str, Callable[[Any, Tensor], Tensor]]:
    """By name: from a VAE, and a picture or latent, to moments or a picture."""
    ours, side = getattr(vae_tiling, way), tile * factor if way == "encode" else tile
    boxes = {"ENCODE": (tile * factor, 32), "DECODE": (tile, 11)}
    settling = [together for together in (32, 16, 8, 4, 2, 1) if together < count]
    return {
        "untiled": ours,
        "all tiles wait in memory": lambda vae, part: ours(vae, part, tile),
        "all tiles wait in host memory": mock.patch.multiple(vae_tiling, Piece=Movable, _advance=take_turn)(
            lambda vae, part: ours(vae, part, tile)
        ),
        **{f"{n} of {count} settle the statistics": lambda vae, part, n=n: ours(vae, part, tile, n) for n in settling},
        **{
            f"two passes, {reduce.__name__}, first at {n} tiles' size": lambda vae,
            part,
            n=n,
            reduce=reduce: two_passes(ours, vae, part, reduce(part, side * math.isqrt(n)), tile)
            for reduce in (bilinear, nearest)
            for n in (1, 4, 9)
            if n < count
        },
        "boxes with statistics of their own": mock.patch.dict(vars(reference_way), boxes)(
            lambda vae, part: reference_way.through_vae(vae, way, part)
        ),
    }


class Movable(vae_tiling.Piece):
    """A piece whose tensor can go to host memory, as a numpy array, and come back; `moved` counts the bytes."""

    moved = 0
    turn: "WeakValueDictionary[int, Movable]" = WeakValueDictionary()
    """Where new pieces are noted, as long as they live."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        Movable.turn[id(self)] = self

    def leave(self) -> None:
        if self.hidden.untyped_storage().nbytes() == self.hidden.nbytes:  # a view holds nothing of its own
            array = np.empty(self.hidden.shape, np.float32)
            if not self.hidden.is_meta:
                torch.from_numpy(array).copy_(self.hidden)
            vars(self).update(hidden=None, away=(array, self.hidden.device))
            Movable.moved += array.nbytes

    def come_back(self) -> None:
        if "away" in vars(self):
            array, device = vars(self).pop("away")
            vars(self).update(hidden=torch.from_numpy(array).to(device, copy=True))
            Movable.moved += array.nbytes


ADVANCE, PIECES = vae_tiling._advance, WeakKeyDictionary[Any, WeakValueDictionary[int, Movable]]()


def take_turn(tile: vae_tiling.Wait, pooled: Any) -> Any:
    """vae_tiling._advance, but a tile's tensors are there only from here until its share is measured."""
    Movable.turn = pieces = PIECES.setdefault(tile, WeakValueDictionary())
    list(map(Movable.come_back, pieces.values()))  # no name here may keep a piece alive
    found = ADVANCE(tile, pooled)
    if isinstance(found, vae_tiling.Piece):
        return found

    def measure() -> vae_tiling.Statistics:
        share = found()
        for piece in pieces.values():
            piece.leave()
        return share

    return measure


def two_passes(ours: Callable[..., Tensor], vae: Any, part: Tensor, reduced: Tensor, tile: int) -> Tensor:
    """Statistics from the whole of `reduced`, as one tile; then the tiles of `part` one by one."""
    settled: list[vae_tiling.Statistics] = []

    def measure(start: Any, result: Tensor, size: tuple[int, int], *_: Any) -> None:
        for piece in vae_tiling._in_step([start(((0, size[0]), (0, size[1])))], settled):
            vae_tiling._place(piece, result)

    def follow(start: Any, result: Tensor, size: tuple[int, int], *_: Any) -> None:
        for core in itertools.product(*(vae_tiling._spans(length, tile) for length in size)):
            vae_tiling._place(vae_tiling._alone(start(core), settled), result)

    with mock.patch.object(vae_tiling, "_run", measure):
        ours(vae, reduced, 1)
    with mock.patch.object(vae_tiling, "_run", follow):
        return ours(vae, part, tile)


def bilinear(part: Tensor, side: int) -> Tensor:
    """(1, C, H, W) -> (1, C, side, side), antialiased where it is a picture"""
    return F.interpolate(part, (side, side), mode="bilinear", antialias=part.shape[1] == 3)


def nearest(part: Tensor, side: int) -> Tensor:
    """(1, C, H, W) -> (1, C, side, side): every n-th pixel, then each channel's mean and deviation as before"""
    reduced = F.interpolate(part, (side, side), mode="nearest-exact")
    (deviation, mean), (wanted, at) = (torch.std_mean(x, dim=(2, 3), keepdim=True) for x in (reduced, part))
    return (reduced - mean) / deviation * wanted + at


def compare_colours(side: int, runs: int) -> None:
    """Print the table of the colour fixes of two pictures of `side` pixels, each in a process of its own."""
    print(f"\n{side} x {side} pixels, {2 * 12 * side**2 / 1e9:.2f} GB given\n")
    print_row("way", "largest difference", *TIMES, "GB of tensors", "GB of numpy", "GB the process grew")
    print_row(*["---"] * 7)
    with tempfile.TemporaryDirectory() as folder:
        for name in COLOURS:
            if "stationary" in name and (side > 2048 or side % 2**LEVELS):
                continue  # it takes the memory of 16 pictures at least
            with get_context("spawn").Pool(1) as pool:
                print_row(name, *pool.apply(colour, (name, side, runs, Path(folder) / "plain.npy")))


@torch.inference_mode()
def colour(name: str, side: int, runs: int, file: Path) -> list[str]:
    """The cells of one way; the first writes its picture to `file`, what should equal it is compared to it."""
    torch.manual_seed(0)
    image, control = torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result, *seconds = timed(lambda: COLOURS[name](image, control), runs)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    difference = ""
    if not file.exists():
        np.save(file, result.numpy())
    elif name.startswith("wavelet"):
        rows = zip(*(picture[0].swapaxes(0, 1) for picture in (result.numpy(), np.load(file, "r"))), strict=True)
        difference = f"{max(np.abs(found - plain).max() for found, plain in rows):.1g}"
    del result
    tracemalloc.start()
    with LiveBytes() as live:
        COLOURS[name](image, control)
    peaks = live.peak, tracemalloc.get_traced_memory()[1], grown
    return [difference, *seconds, *(f"{peak / 1e9:.2f}" for peak in peaks)]


def compare_plans() -> None:
    """Print where a plan of the real model changes if text encoder and tagger leave the card before it is made."""
    parts = full_size.build()
    spare = [parts.text_encoder, parts.tagger.model]
    print(f"{sum(p.numel() * p.itemsize for model in spare for p in model.parameters()) / 1e9:.2f} GB would be free.\n")
    print_row("card", "result", "particles", "with them", "without them")
    print_row(*["---"] * 5)
    cases = list(itertools.product(hardware.GPUS, (512, 1024, 2048), (1, 2, 4), (1, 4, 16)))
    changed = 0
    for name, side, steps, particles in cases:
        settings = Settings(num_inference_steps=steps, use_kds=particles > 1, num_particles=particles, seed=0)
        seesr = SeeSR(parts, hardware.GPUS[name], "meta")
        padded = work.padded_size(seesr, (side, side), settings.scale_factor)
        kept, freed = (str(benchmark.plan_of(seesr, padded, settings, gone)) for gone in ([], spare))
        if kept != freed:
            print_row(name, str(4 * side), str(particles), kept, freed)
            changed += 1
    print(f"\nThe plan changes in {changed} of {len(cases)} cases.")


def split(image: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 3, H, W) -> its high and its low frequencies, the same shape each: StableSR's way"""
    line = image.new_tensor([0.25, 0.5, 0.25])
    kernel, high = torch.outer(line, line).expand(3, 1, 3, 3), torch.zeros_like(image)
    for radius in (2**level for level in range(LEVELS)):
        low = F.conv2d(F.pad(image, (radius,) * 4, mode="replicate"), kernel, groups=3, dilation=radius)
        high += image - low
        image = low
    return high, image


def stationary(image: Tensor, control: Tensor) -> Tensor:
    """PyWavelets' transform without decimation (db2, periodic): the approximation of the difference moves"""
    bands = pywt.swt2((control - image).numpy(), "db2", LEVELS, axes=(-2, -1), trim_approx=True)
    bands[1:] = [tuple(np.zeros_like(part) for part in details) for details in bands[1:]]
    return torch.from_numpy(pywt.iswt2(bands, "db2", axes=(-2, -1))).add_(image).clamp_(0, 1)


COLOURS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "two splits by dilated convolutions": lambda image, control: (split(image)[0] + split(control)[1]).clamp_(0, 1),
    "wavelet, strips of 512 rows": lambda image, control: match_color(image, control, "wavelet", 512),
    "wavelet, whole": lambda image, control: match_color(image, control, "wavelet", image.shape[2]),
    "dwt": lambda image, control: match_color(image, control, "dwt"),
    "stationary transform": stationary,
}


if __name__ == "__main__":
    main()
