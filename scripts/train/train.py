"""Continue the training of a bundle on photographs, and write the result.

    .venv/bin/python -m scripts.train.train --start weights/tiny --iterations 4500 --work work-train --out work-bundle

Photographs are fetched first. A run that was stopped continues with the same command: every iteration seeds its own
random numbers, so it ends with the same weights. Needs the packages of `scripts/setup eval`.
"""

import argparse
import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scripts.bundle_writer import save
from scripts.eval import metrics, photographs
from scripts.train.data import Batch, Photographs, read_listing, to_pixels
from scripts.train.losses import RefineLoss
from scripts.train.model import Bundle
from seesr import bundle as bundles
from seesr import hardware
from seesr.bundle import Components

ROOT = Path(__file__).resolve().parents[2]
STAGE = 4
"""Number of this stage in the seeds of the iterations, as in version 0.1.0."""
FLOOR = 0.05
"""How many dB below the lowest gain of the start a checkpoint may be."""


@dataclass(frozen=True)
class Plan:
    """What a run is. A checkpoint is continued by the same plan only."""

    iterations: int
    batch: int = 2
    crop: int = 128
    rate: float = 4e-4
    seed: int = 7
    report: int = 500
    """Iterations between two validations, each with a checkpoint."""


class Training:
    """One run: a bundle, the running average of its weights, and the checkpoint in `folder` that it continues from.

    `draw` makes the batch of an iteration from its random numbers, `loss` makes the loss on a device.
    """

    kind: type[Bundle] = Bundle
    stage, name, module = STAGE, "refine", "scripts.train.train"

    def __init__(
        self,
        plan: Plan,
        start: Components,
        draw: Callable[[np.random.Generator], Batch],
        validation: Sequence[Batch],
        folder: Path,
        device: str = "cpu",
        loss: Callable[[torch.device], Any] = RefineLoss,
    ) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.draw, self.validation, self.folder = plan, draw, validation, folder
        self.bundle = self.kind(start).to(device)
        self.loss = loss(self.bundle.device)
        self.trained = self.bundle.trained()
        self.average = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self.done, self.best, self.floor = 0, -math.inf, -math.inf
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "last.pt").is_file():
            self._restore(torch.load(folder / "last.pt", map_location="cpu", weights_only=True))

    def run(self) -> None:
        """AdamW with a warm-up and a cosine. Every report validates the averaged weights and writes a checkpoint."""
        if not self.done:
            self._set_floor()
        started, history = time.monotonic(), []
        for iteration in range(self.done, self.plan.iterations):
            history.append(self._step(iteration))
            self.done = iteration + 1
            if self.done % self.plan.report == 0 or self.done == self.plan.iterations:
                pace, recent = (time.monotonic() - started) / len(history), np.mean(history[-500:])
                print(f"{self.done}/{self.plan.iterations} loss {recent:.4f} {pace * 1e3:.0f} ms", flush=True)
                self._report()

    def _step(self, iteration: int) -> float:
        """One iteration -> its loss"""
        random = np.random.default_rng([self.plan.seed, self.stage, iteration])
        torch.manual_seed(int(random.integers(2**31)))
        cosine = 0.01 + 0.495 * (1 + math.cos(math.pi * iteration / self.plan.iterations))
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate * min(1, (iteration + 1) / 60) * cosine
        loss = self.loss(self.bundle, self.draw(random).to(self.bundle.device), random)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), 0.5)
        self.optimizer.step()
        decay = min(0.998, (1 + iteration) / (10 + iteration))
        for name, parameter in self.trained.items():
            self.average[name].lerp_(parameter.detach(), 1 - decay)
        return loss.item()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights in training and their running average."""
        for name, value in self.average.items():
            kept = self.trained[name].detach().clone()
            self.trained[name].copy_(value)
            value.copy_(kept)

    def _measure(self) -> tuple[np.ndarray, float]:
        """Mean gain in PSNR over bicubic at 1, 2 and 4 steps, and fall of BRISQUE at 4 (0 without its packages)"""
        score = metrics.brisque() or (lambda _: 0.0)
        gains, falls = [], []
        for batch in self.validation:
            truth, bicubic = to_pixels(batch.truth), to_pixels(batch.control)
            results = [to_pixels(self.bundle.upscale(batch, steps)) for steps in (1, 2, 4)]
            gains.append([metrics.psnr(result, truth) - metrics.psnr(bicubic, truth) for result in results])
            falls.append(score(bicubic) - score(results[-1]))
        return np.mean(gains, axis=0), float(np.mean(falls))

    def _set_floor(self) -> None:
        self.floor = float(self._measure()[0].min()) - FLOOR

    def _validate(self) -> None:
        """The best weights are the averaged ones with the lowest BRISQUE of those whose gains are above the floor."""
        gains, fall = self._measure()
        told = ", ".join(f"{gain:+.3f}" for gain in gains)
        print(f"  1, 2, 4 steps over bicubic: {told} dB, BRISQUE {-fall:+.2f} at 4 steps", flush=True)
        if fall > self.best and gains.min() >= self.floor:
            self.best = fall
            self._write_best({"gain_db": gains.round(3).tolist(), "brisque_below_bicubic": round(fall, 2)})

    def _write_best(self, measured: Mapping[str, Any]) -> None:
        self._write("best.pt", {"bundle": self.bundle.state_dict(), "done": self.done, "measured": measured})

    def _report(self) -> None:
        self._swap()
        self._validate()
        self._swap()
        values = {key: getattr(self, key) for key in ("done", "best", "floor", "average")}
        states = {key: getattr(self, key).state_dict() for key in ("bundle", "optimizer", "loss")}
        self._write("last.pt", {"plan": asdict(self.plan), **values, **states})

    def _write(self, name: str, state: dict[str, Any]) -> None:
        torch.save(state, self.folder / f"{name}.part")
        os.replace(self.folder / f"{name}.part", self.folder / name)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["plan"] != asdict(self.plan):
            raise RuntimeError(f"the checkpoint in {self.folder} is of {state['plan']}; ask for the same, or remove it")
        for name in ("bundle", "optimizer", "loss"):
            getattr(self, name).load_state_dict(state[name])
        self.average = {name: value.to(self.bundle.device) for name, value in state["average"].items()}
        for key in ("done", "best", "floor"):
            setattr(self, key, state[key])
        print(f"Continuing after {self.done} iterations", flush=True)


def read_best(folder: Path) -> dict[str, Any]:
    """The best checkpoint of a run. Raises RuntimeError where there is none."""
    if not (folder / "best.pt").is_file():
        raise RuntimeError(f"{folder} has no checkpoint as good as the start; train longer")
    return torch.load(folder / "best.pt", map_location="cpu", weights_only=True)


def export(training: Training, entries: Sequence[Mapping[str, str]], out: Path, before: Mapping[str, Any]) -> None:
    """Write the best checkpoint as a bundle, in fp16. Its bundle.json credits the photographs (`entries`).

    `before` is the bundle.json of the bundle that training started from. Raises RuntimeError without a checkpoint.
    """
    state = read_best(training.folder)
    training.bundle.to("cpu").load_state_dict(state["bundle"])
    plan, iterations, known = training.plan, before["iterations"], before["photographs"]
    credits = [{key: entry[key] for key in ("file", "credit", "licence")} for entry in entries]
    info = {
        "trained_by": f"{before['trained_by']}; then {state['done']} of {plan.iterations} iterations of "
        f"{training.module} with --seed {plan.seed}",
        "iterations": {**iterations, training.name: iterations.get(training.name, 0) + state["done"]},
        "validation": state["measured"],
        "photographs": [*known, *(credit for credit in credits if credit not in known)],
    }
    save(training.bundle.components, out, {**before, **info}, replace=True)
    print(f"Wrote {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=ROOT / "weights/tiny", help="the bundle to continue")
    parser.add_argument("--iterations", type=int, default=4500)
    parser.add_argument("--work", type=Path, default=ROOT / "work-train", help="checkpoints; a new run continues them")
    parser.add_argument("--out", type=Path, required=True, help="the bundle to write")
    parser.add_argument("--photographs", type=Path, default=photographs.FROM_DEBIAN, help="their folder")
    parser.add_argument("--export-only", action="store_true", help="write the best checkpoint so far, train nothing")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of crops, damage and noise")
    parser.add_argument("--device", default=hardware.device(), help="default: a GPU where there is one")
    arguments = parser.parse_args()
    folder, entries = arguments.photographs, read_listing()
    held_out = [entry | {"file": f"{entry['package']}/{entry['path']}"} for entry in photographs.listed("validate")]
    photographs.fetch_debian([*entries, *held_out], folder)
    plan = Plan(arguments.iterations, seed=arguments.seed)
    draw = functools.partial(Photographs(folder, entries).batch, size=plan.crop, count=plan.batch)
    validation = Photographs(folder, held_out).validation(256)
    training = Training(plan, bundles.load(arguments.start), draw, validation, arguments.work, arguments.device)
    if not arguments.export_only:
        training.run()
    export(training, entries, arguments.out, json.loads((arguments.start / "bundle.json").read_text()))


if __name__ == "__main__":
    main()
