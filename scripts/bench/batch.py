"""What it gains that scripts/upscale reads and writes while the model computes: images an hour, and CPU seconds.

    .venv/bin/python -m scripts.bench.batch                       40 photographs, made from examples/
    .venv/bin/python -m scripts.bench.batch --from FOLDER --threads 1

The photographs have sides of 64 to 256 pixels, are PNG, JPEG, TIFF and WebP, and some have 16 bits. Rounds without and
with overlap take turns, with one model, which is loaded before. Results go to a temporary folder.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from seesr import images
from seesr.batch import work
from seesr.batch.find import Inputs
from seesr.batch.job import Job, Options
from seesr.batch.local import LocalEngine
from seesr.batch.naming import Naming
from seesr.batch.plan import Plan
from seesr.batch.report import Report
from seesr.images import OpenedImage
from seesr.pipeline import SeeSR
from seesr.settings import OutputFormat, Settings

if TYPE_CHECKING:
    from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIDES = (64, 256)
FORMATS: tuple[OutputFormat, ...] = ("png", "jpg", "tiff", "webp")


@dataclass(frozen=True)
class Photograph:
    """What images.save_image writes: 8 bits, and 16 where they are kept."""

    image: "Image.Image"
    pixels: np.ndarray | None


def write_photographs(folder: Path, source: Path, count: int) -> None:
    """`count` files of mixed sizes, formats and depths, made from the photographs in `source`; always the same."""
    opened = [image for image in map(_open, sorted(source.iterdir())) if image is not None]
    draw = random.Random(0)
    for number in range(count):
        size, kind = (draw.randint(*SIDES), draw.randint(*SIDES)), FORMATS[number % len(FORMATS)]
        image = images.resize(opened[number % len(opened)].rgb, size)
        deep = np.asarray(image).astype(np.uint16) * 257 if number % 5 == 0 else None
        photograph, path = Photograph(image, deep), folder / f"{number:03}.{kind}"
        images.save_image(OpenedImage(image), photograph, path, Settings(output_format=kind))


def _open(path: Path) -> OpenedImage | None:
    try:
        return images.open_image(path)
    except ValueError:  # a text beside the photographs
        return None


def run(seesr: SeeSR, folder: Path, settings: Settings, overlap: bool) -> tuple[float, float, int]:
    """Upscale a folder: seconds, CPU seconds and images."""
    with tempfile.TemporaryDirectory() as out:
        options = Options(
            paths=[str(folder)], out=out, settings=settings, bundle=ROOT / "weights/tiny", name="{stem}_{ext}"
        )
        naming = Naming(options)
        engine, inputs = LocalEngine(options, overlap, seesr), Inputs(options, naming)
        with Report(Path(out, "report.jsonl")) as report:
            plan = Plan(options, inputs, naming, {out: report}, engine.model)
            start, cpu = time.perf_counter(), time.process_time()
            rows = [report.append(row) for row in engine.run(plan.jobs())]
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if failed := [row["error"] for row in rows if "error" in row]:
        raise RuntimeError(f"{len(failed)} photographs failed: {failed[0]}")
    return seconds, cpu, len(rows)


def shares(seesr: SeeSR, folder: Path, settings: Settings) -> dict[str, float]:
    """How the CPU seconds of one round divide. No more than reading and writing can be won by overlap."""
    seconds = dict.fromkeys(("reading", "computing", "writing"), 0.0)
    with tempfile.TemporaryDirectory() as out:
        for path in sorted(folder.iterdir()):
            job, start = Job(str(path), f"{out}/{path.name}", out, path.stat().st_size), time.process_time()
            opened = work.read(job, settings)
            read = time.process_time()
            result = work.upscale(seesr, opened, settings)
            computed = time.process_time()
            work.write(job, opened, result, settings)
            for name, spent in zip(
                seconds, (read - start, computed - read, time.process_time() - computed), strict=True
            ):
                seconds[name] += spent
    return {name: spent / sum(seconds.values()) for name, spent in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, default=ROOT / "examples", help="folder of photographs")
    parser.add_argument("--count", type=int, default=40, help="photographs")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the results")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seesr = SeeSR.load(ROOT / "weights/tiny")
    settings = Settings(num_inference_steps=1, seed=0, output_format=arguments.format)
    print(f"{arguments.count} photographs, {torch.get_num_threads()} threads of torch, results as {arguments.format}")
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name), arguments.source, arguments.count)
        run(seesr, Path(name), settings, True)  # kernels are built for new shapes
        divided = shares(seesr, Path(name), settings)
        print("CPU seconds:", ", ".join(f"{name} {share:.1%}" for name, share in divided.items()))
        found = {overlap: list[tuple[float, float, int]]() for overlap in (False, True)}
        for _ in range(arguments.rounds):
            for overlap, rounds in found.items():
                rounds.append(run(seesr, Path(name), settings, overlap))
    for overlap, rounds in found.items():
        print(line("with overlap" if overlap else "without overlap", rounds))


def line(name: str, rounds: Sequence[tuple[float, float, int]]) -> str:
    """A row of the table: the median of the rounds, and the range of the images an hour."""
    speeds = sorted(3600 * count / seconds for seconds, _, count in rounds)
    seconds, cpu = (statistics.median(values) for values in list(zip(*rounds, strict=True))[:2])
    speed = f"{statistics.median(speeds):8,.0f} images an hour ({speeds[0]:,.0f} to {speeds[-1]:,.0f})"
    return f"{name:16} {speed}   {seconds:6.1f} s   {cpu:6.1f} CPU seconds"


if __name__ == "__main__":
    main()
