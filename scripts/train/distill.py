"""Make a bundle crisper: continue it towards the mean of a teacher's results and the originals.

    .venv/bin/python -m scripts.train.distill --start weights/tiny --pairs 675 --iterations 4000 --out work-bundle

The pairs come from scripts.train.teacher; --original does without a teacher. Starts, stops and continues as
scripts.train.train does. Needs the packages of `scripts/setup eval`.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scripts.eval import metrics, photographs
from scripts.eval.metrics import DeepDistance
from scripts.train.data import Photographs, read_listing, to_pixels
from scripts.train.losses import (
    Adversary,
    contrast_l1,
    gradient_l1,
    grain_l1,
    harm,
    l1,
    predict,
    random_prompt,
    spectrum_l2,
)
from scripts.train.model import Bundle
from scripts.train.pairs import Pairs, TargetBatch, of_original, read_pairs
from scripts.train.train import ROOT, Plan, Training, export
from seesr import bundle as bundles
from seesr import hardware
from seesr.color_fix import low_frequencies
from seesr.settings import Settings

LEAST_GAIN, LEAST_WORST = 0.40, -0.2
"""PSNR over bicubic that a checkpoint must keep, in the mean and on each validation crop, dB."""
TEACHER = {"teacher": "BSD-3-Clause (Real-ESRGAN x4plus; Copyright (c) 2021, Xintao Wang)"}


@dataclass(frozen=True)
class DistillPlan(Plan):
    """The first `pairs` of the folder are used. With `original` the truth of fresh crops is the target."""

    batch: int = 4
    report: int = 500
    pairs: int = 675
    original: bool = False
    grain: float = 0.1
    """Weight of the grain. More lowers BRISQUE and raises the deep distance."""
    spectrum: float = 0.7
    """Weight of the spectrum of the grain. Without it a mesh takes the place of grain."""


class CrispLoss:
    """The loss behind the decoder and the colour fix. Five of six batches are the first step (t = 999).

    5 % of the batches take the negative prompt with the resized input as the target. `features` needs the packages of
    `scripts/setup eval`.
    """

    GRADIENT, FEATURES, CONTRAST, HARM, RAW, RECONSTRUCTION = 1.0, 0.15, 1.0, 1.0, 0.05, 0.3
    """Weights. FEATURES and HARM compare with the original; CONTRAST, grain, spectrum and critic with the texture."""
    FIRST = 0.83

    def __init__(
        self,
        device: torch.device,
        features: bool = True,
        grain: float = DistillPlan.grain,
        spectrum: float = DistillPlan.spectrum,
    ) -> None:
        self.grain, self.spectrum = grain, spectrum
        self.distance = DeepDistance(1, (0, 2, 4)).to(device) if features else None
        self.adversary = Adversary(device)
        self.state_dict, self.load_state_dict = self.adversary.state_dict, self.adversary.load_state_dict

    def __call__(self, bundle: Bundle, batch: TargetBatch, random: np.random.Generator) -> Tensor:
        """A batch -> a scalar; takes one step of the critic, except where the prompt is negative"""
        target, prompts = batch.target, [random_prompt(tags, random) for tags in batch.tags]
        if negative := random.random() < 0.05:
            target, prompts = batch.control, [Settings.negative_prompt] * len(prompts)
        raw = predict(bundle, batch, prompts, random, self.FIRST)
        result = raw + low_frequencies(batch.control - raw)
        loss = l1(result, target) + self.GRADIENT * gradient_l1(result, target) + self.RAW * l1(raw, target)
        if not negative:
            loss = loss + self.texture_loss(result, batch) + self.HARM * harm(result, batch)
        if random.random() < 0.1:
            part = batch.truth[:1]
            loss = loss + self.RECONSTRUCTION * l1(bundle.decode(bundle.encode(part)), part)
        return loss

    def texture_loss(self, result: Tensor, batch: TargetBatch) -> Tensor:
        """How far local contrast, grain and patches are from the texture, and features from the original"""
        loss = self.CONTRAST * contrast_l1(result, batch.texture) + self.grain * grain_l1(result, batch.texture)
        loss = loss + self.spectrum * spectrum_l2(result, batch.texture)
        if self.distance:
            loss = loss + self.FEATURES * self.distance(result, batch.truth)
        return loss + self.adversary(result, replace(batch, truth=batch.texture))


class CrispTraining(Training):
    """Validated at one step. The best has the lowest deep distance of those that keep LEAST_GAIN and LEAST_WORST."""

    stage, name, module = 6, "distill", "scripts.train.distill"

    @functools.cached_property
    def measure(self) -> metrics.Measures:
        return metrics.Measures()

    def _set_floor(self) -> None:
        self._validate()  # prints the numbers of the start

    def _validate(self) -> None:
        found = self._numbers()
        print(f"  {', '.join(f'{name} {value:g}' for name, value in found.items())}", flush=True)
        kept = found["gain_db"] >= LEAST_GAIN and found["worst_gain_db"] >= LEAST_WORST
        if self.done and kept and -found["deep_ratio"] > self.best:
            self.best = -found["deep_ratio"]
            self._write_best(found)

    def keep_last(self) -> None:
        """Make the weights of now the best checkpoint, whatever their numbers: for averages with the start."""
        self._swap()
        self._write_best(self._numbers())
        self._swap()

    def _numbers(self) -> dict[str, float]:
        """Means over the validation batches at one step, and the worst gain"""
        measure, ours, bicubic = self.measure, [], []
        for batch in self.validation:
            truth, resized = to_pixels(batch.truth), to_pixels(batch.control)
            ours.append(measure(to_pixels(self.bundle.upscale(batch, 1)), truth, resized))
            bicubic.append(measure(resized, truth, resized))
        gains = [a["psnr"] - b["psnr"] for a, b in zip(ours, bicubic, strict=True)]
        deep, base = (sum(row["distance"] for row in rows) for rows in (ours, bicubic))
        alone = {key: np.mean([row[key] for row in ours]) for key in ("brisque", "sharpness", "mesh")}
        numbers = {"gain_db": np.mean(gains), "worst_gain_db": min(gains), "deep_ratio": deep / base, **alone}
        return {name: round(float(value), 3) for name, value in numbers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=ROOT / "weights/tiny", help="the bundle to continue")
    parser.add_argument("--pairs", type=int, default=DistillPlan.pairs, help="how many of the folder's are used")
    parser.add_argument("--pairs-folder", type=Path, default=ROOT / "work-distill/pairs", help="their folder")
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=DistillPlan.batch, help="crops of 128 pixels per iteration")
    parser.add_argument("--rate", type=float, default=DistillPlan.rate, help="largest learning rate")
    parser.add_argument("--grain", type=float, default=DistillPlan.grain, help="weight of the grain in the loss")
    parser.add_argument("--spectrum", type=float, default=DistillPlan.spectrum, help="weight of its spectrum")
    parser.add_argument("--original", action="store_true", help="no teacher: fresh crops, the original as the target")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "work-distill/run", help="checkpoints; a new run continues them"
    )
    parser.add_argument("--out", type=Path, required=True, help="the bundle to write")
    parser.add_argument("--photographs", type=Path, default=photographs.FROM_DEBIAN, help="their folder")
    parser.add_argument("--export-only", action="store_true", help="write the best checkpoint so far, train nothing")
    parser.add_argument("--last", action="store_true", help="write the last weights instead of the best")
    parser.add_argument("--seed", type=int, default=DistillPlan.seed, help="of crops and noise")
    parser.add_argument("--device", default=hardware.device(), help="default: a GPU where there is one")
    arguments = parser.parse_args()
    training = start(arguments)
    if not arguments.export_only:
        training.run()
    if arguments.last:
        training.keep_last()
    before = bundles.read_json(arguments.start / "bundle.json")
    if not arguments.original:
        before["licences"] = {**before["licences"], **TEACHER}
    export(training, read_listing(), arguments.out, before)


def start(arguments: argparse.Namespace) -> CrispTraining:
    held_out = [entry | {"file": f"{entry['package']}/{entry['path']}"} for entry in photographs.listed("validate")]
    photographs.fetch_debian(held_out, arguments.photographs)
    given = vars(arguments)
    plan = DistillPlan(**{field.name: given[field.name] for field in fields(DistillPlan) if field.name in given})
    draw = functools.partial(draw_of(plan, arguments), size=plan.crop, count=plan.batch)
    validation = Photographs(arguments.photographs, held_out).validation(256)[::2]  # one crop of each
    loss = functools.partial(CrispLoss, grain=plan.grain, spectrum=plan.spectrum)
    components = bundles.load(arguments.start)
    return CrispTraining(plan, components, draw, validation, arguments.work, arguments.device, loss)


def draw_of(plan: DistillPlan, arguments: argparse.Namespace) -> Callable[..., TargetBatch]:
    """Random numbers, `size` and `count` -> a batch of pairs or, for `original`, of fresh crops of the photographs"""
    if not plan.original:
        return Pairs(read_pairs(arguments.pairs_folder, plan.pairs)).batch
    entries = read_listing()
    photographs.fetch_debian(entries, arguments.photographs)
    crops = Photographs(arguments.photographs, entries)
    return lambda random, size, count: of_original(crops.batch(random, size, count))


if __name__ == "__main__":
    main()
