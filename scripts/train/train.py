"""Train the embedded bundle on photographs, in stages, and write it.

    .venv/bin/python -m scripts.train.train                                   all stages, from the structured start
    .venv/bin/python -m scripts.train.train --start BUNDLE --refine 4500 --work NEW     one more stage on a bundle

Photographs are fetched first. A run that was stopped continues with the same command: every iteration seeds its own
random numbers, so it ends with the same weights. The last two stages need the packages of `scripts/setup eval`.
"""

import argparse
import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from scripts.bundle_writer import save
from scripts.eval import metrics, photographs
from scripts.eval.degradation import SCALE
from scripts.train import losses
from scripts.train.data import TAGS, UNSURE, Photographs, read_listing, to_pixels
from scripts.train.model import LATENT_CHANNELS, POSITIVE, Bundle
from scripts.train.structured_start import calibrate, connect
from seesr import bundle as bundles
from seesr import hardware
from seesr.bundle import Components

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("vae", "tagger", "joint", "features", "refine")
FLOOR = 0.05
"""How many dB of the lowest gain of its start the refine stage may lose."""


@dataclass(frozen=True)
class Plan:
    """Iterations of the stages, and sizes of their batches."""

    vae: int = 3500
    tagger: int = 1500
    joint: int = 14000
    features: int = 26000
    refine: int = 16000
    batch: int = 4
    crop: int = 80
    refine_batch: int = 2
    refine_crop: int = 128
    """Larger and fewer: a small crop is mostly border, a real image is not."""
    seed: int = 7
    report: int = 500
    """Iterations between two validations, each with a checkpoint."""
    validation_crop: int = 256


@dataclass(frozen=True)
class Stage:
    """`prepare` runs before the first iteration, `report` validates and may keep the weights as the best."""

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Bundle, Any, np.random.Generator], Tensor]
    draw: Callable[[np.random.Generator], Any]
    rate: float
    report: Callable[[], None]
    prepare: Callable[[], None] = lambda: None


class Training:
    """One run: the networks, their running average, and the checkpoint in `folder` that it continues from.

    `start` is a bundle to begin with instead of the structured start.
    """

    def __init__(
        self,
        plan: Plan,
        train: Photographs,
        validate: Photographs,
        tokenizer: Any,
        folder: Path,
        start: Components | None = None,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(plan.seed)
        self.device = torch.device(device)
        self.plan, self.train, self.folder, self.start = plan, train, folder, start
        self.validation = validate.validation(plan.validation_crop)
        self.bundle = Bundle(tokenizer)
        self.tagged = validate.tag_batch(np.random.default_rng(1), self.bundle.ram.config.image_size, 96)
        self.average: dict[str, Tensor] = {}
        self.adversary = losses.Adversary()
        self.done: dict[str, int] = dict.fromkeys(STAGES, 0)
        self.best, self.floor = -math.inf, -math.inf
        self.measured: dict[str, Any] = {}
        """The latest validation, for bundle.json."""
        self.optimizer: dict[str, Any] | None = None
        self.running = ""
        """The stage of `average` and `optimizer`; empty between stages."""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "last.pt").is_file():
            self._restore(torch.load(folder / "last.pt", map_location="cpu", weights_only=True))
        elif start is not None:
            self.bundle.adopt(start)
        self.move(self.device)

    def move(self, device: torch.device) -> None:
        """Everything that training changes, to `device`."""
        self.bundle.move(device)
        self.adversary.to(device)
        self.average = {name: value.to(device) for name, value in self.average.items()}

    def run(self) -> None:
        """All stages of the plan, from where the checkpoint is."""
        for stage in self._stages():
            total = getattr(self.plan, stage.name)
            if total and not self.done[stage.name]:
                stage.prepare()
            self._run_stage(stage, total)

    def _stages(self) -> list[Stage]:
        plan, train, bundle = self.plan, self.train, self.bundle
        # Loaded before the first stage: a missing package ends the run at once.
        distance = losses.FeatureLoss(self.device) if plan.features or plan.refine else None
        features = functools.partial(losses.joint_loss, distance=distance)
        refine = functools.partial(features, distance_weight=losses.REFINE_FEATURE_WEIGHT, adversary=self.adversary)
        vae, ram = bundle.vae, bundle.ram
        if self.start:  # its UNet was trained with these image tokens: only the tag head is trained
            ram.swin.requires_grad_(False)
            ram.image_proj.requires_grad_(False)
        tagger = [parameter for parameter in ram.parameters() if parameter.requires_grad]
        joint = [*bundle.unet.parameters(), *bundle.controlnet.parameters(), *vae.decoder.parameters()]
        crops = functools.partial(train.batch, size=plan.crop, count=plan.batch)
        larger = functools.partial(train.varied_batch, size=plan.refine_crop, count=plan.refine_batch)
        tagged = functools.partial(train.tag_batch, size=ram.config.image_size, count=4 * plan.batch)
        return [
            Stage("vae", [*vae.parameters()], losses.vae_loss, crops, 1.5e-3, self._report_vae, self._calibrate),
            Stage("tagger", tagger, losses.tagger_loss, tagged, 1e-3, self._report_tagger),
            Stage("joint", joint, losses.joint_loss, crops, 1e-3, self._report, self._connect),
            Stage("features", joint, features, crops, 6e-4, self._report),
            Stage("refine", joint, refine, larger, 4e-4, self._report, self._set_floor),
        ]

    def _run_stage(self, stage: Stage, total: int) -> None:
        """AdamW with a warm-up and a cosine; the averaged weights at the end; a checkpoint at every report."""
        name, trained = stage.name, stage.parameters
        if self.done[name] > total or (self.done[name] == total and self.running == name):
            raise RuntimeError(
                f"the checkpoint in {self.folder} is {self.done[name]} iterations into {name}, {total} were asked for; "
                "ask for more, or remove it"
            )
        if self.done[name] == total:
            return
        self.running = name
        optimizer = torch.optim.AdamW(trained, lr=stage.rate, betas=(0.9, 0.99), weight_decay=1e-4)
        if self.optimizer is not None:
            optimizer.load_state_dict(self.optimizer)
        names = {parameter: key for key, parameter in self.bundle.named_parameters()}
        self.average = self.average or {names[p]: p.detach().clone() for p in trained}
        started, history = time.monotonic(), []
        for iteration in range(self.done[name], total):
            random = np.random.default_rng([self.plan.seed, STAGES.index(name), iteration])
            torch.manual_seed(int(random.integers(2**31)))
            cosine = 0.01 + 0.495 * (1 + math.cos(math.pi * iteration / total))
            for group in optimizer.param_groups:
                group["lr"] = stage.rate * min(1, (iteration + 1) / 60) * cosine
            loss = stage.loss(self.bundle, stage.draw(random).to(self.device), random)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 0.5)
            optimizer.step()
            decay = min(0.998, (1 + iteration) / (10 + iteration))
            for parameter in trained:
                self.average[names[parameter]].lerp_(parameter.detach(), 1 - decay)
            history.append(loss.item())
            self.done[name] = iteration + 1
            if (iteration + 1) % self.plan.report == 0 and iteration + 1 < total:
                pace, recent = (time.monotonic() - started) / len(history), np.mean(history[-500:])
                print(f"{name} {iteration + 1}/{total} loss {recent:.4f} {pace * 1e3:.0f} ms", flush=True)
                self._swap()
                stage.report()
                self._swap()
                self._save("last.pt", optimizer)
        self._swap()
        self.average, self.optimizer, self.running = {}, None, ""
        stage.report()
        self._save("last.pt", None)

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the weights in training and their running average."""
        parameters = dict(self.bundle.named_parameters())
        for name, value in self.average.items():
            kept = parameters[name].detach().clone()
            parameters[name].copy_(value)
            value.copy_(kept)

    @torch.no_grad()
    def _calibrate(self) -> None:
        vae: Any = self.bundle.vae
        image = self.train.batch(np.random.default_rng(self.plan.seed), 96, 8).truth.to(self.device)
        calibrate(vae.encoder.conv_norm_out, lambda: vae.encode(image))
        calibrate(vae.decoder.conv_norm_out, lambda: vae.decode(vae.encode(image).latent_dist.mode()))

    @torch.no_grad()
    def _connect(self) -> None:
        """Latents to mean 0 and deviation 1; the last layer of the UNet fitted to return the colours of the input."""
        bundle = self.bundle
        self.move(torch.device("cpu"))  # least squares over a few numbers
        batch = self.train.batch(np.random.default_rng(self.plan.seed + 1), 96, 96)
        moments: Any = bundle.vae.encode(batch.truth)
        mean = moments.latent_dist.mode()
        bundle.shift, bundle.scale = mean.mean().item(), 1 / mean.std().item()
        connect(bundle.unet, (mean - bundle.shift) * bundle.scale, batch.control)
        control, text = batch.control[:16], bundle.text_states([POSITIVE] * 16)
        tokens = bundle.tokens(batch.small[:16])
        torch.manual_seed(self.plan.seed)
        latent = torch.randn(16, LATENT_CHANNELS, 24, 24)
        norm: Any = bundle.unet.conv_norm_out
        calibrate(norm, lambda: bundle.x0(latent, 999, control, text, tokens), channels=8)
        self.move(self.device)

    @torch.no_grad()
    def _report_vae(self) -> None:
        vae: Any = self.bundle.vae
        images = [batch.truth for batch in self.validation]
        results = [vae.decode(vae.encode(image.to(self.device)).latent_dist.mode()).sample.cpu() for image in images]
        values = [metrics.psnr(to_pixels(a), to_pixels(b)) for a, b in zip(results, images, strict=True)]
        print(f"  PSNR of the VAE {np.mean(values):.2f} dB", flush=True)

    @torch.no_grad()
    def _report_tagger(self) -> None:
        """Share of right answers per tag, on photographs that training does not see."""
        logits = self.bundle.ram.logits(self.bundle.tokens(self.tagged.images.to(self.device))).cpu()
        targets = self.tagged.targets
        known = targets != UNSURE
        right = ((logits > 0) == targets) & known
        shares = zip(TAGS, (right.sum(0) / known.sum(0)).tolist(), strict=True)
        print("  right: " + ", ".join(f"{tag} {share:.0%}" for tag, share in shares), flush=True)
        later = STAGES[STAGES.index("tagger") + 1 :]
        if not any(self.done[name] or getattr(self.plan, name) for name in later):
            self._save("best.pt", None)

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
        self.best, self.floor = -math.inf, float(self._measure()[0].min()) - FLOOR

    def _report(self) -> None:
        """Keeps the best weights.

        In the refine stage: the lowest BRISQUE of the checkpoints whose gains are above the floor. In the features
        stage: the latest, since features cost a little PSNR. Before: the highest sum of gains.
        """
        gains, fall = self._measure()
        told = ", ".join(f"{gain:+.3f}" for gain in gains)
        print(f"  1, 2, 4 steps over bicubic: {told} dB, BRISQUE {-fall:+.2f} at 4 steps", flush=True)
        self.measured = {"gain_db": gains.round(3).tolist(), "brisque_below_bicubic": round(fall, 2)}
        refine, features = self.done["refine"], self.done["features"]
        value = fall if refine else float(gains.sum())
        if (value > self.best and gains.min() >= self.floor) or (features and not refine):
            self.best = value
            self._save("best.pt", None)

    def _save(self, name: str, optimizer: torch.optim.Optimizer | None) -> None:
        temporary = self.folder / f"{name}.part"
        state = {
            "models": self.bundle.state_dict(),
            "average": self.average if name == "last.pt" else {},
            "optimizer": optimizer.state_dict() if optimizer else None,
            "adversary": self.adversary.state(),
            **{key: getattr(self, key) for key in ("done", "running", "best", "floor", "measured")},
            "scale": self.bundle.scale,
            "shift": self.bundle.shift,
            "thresholds": self.bundle.tagger.thresholds.tolist(),
        }
        torch.save(state, temporary)
        os.replace(temporary, self.folder / name)

    def _restore(self, state: dict[str, Any]) -> None:
        self.bundle.load_state_dict(state["models"])
        self.average, self.optimizer = state["average"], state["optimizer"]
        self.adversary.restore(state["adversary"])
        for key in ("running", "best", "floor", "measured"):
            setattr(self, key, state[key])
        self.bundle.scale, self.bundle.shift = state["scale"], state["shift"]
        self.bundle.tagger.thresholds = torch.tensor(state["thresholds"])
        self.done |= state["done"]
        print(f"Continuing after {self.done}", flush=True)


def export(
    training: Training, entries: Sequence[Mapping[str, str]], out: Path, before: dict[str, Any] | None = None
) -> None:
    """Write the best checkpoint as a bundle, in fp16. Its bundle.json credits the photographs (`entries`).

    `before` is the bundle.json of the bundle that training started from. Raises RuntimeError without a checkpoint.
    """
    if not (training.folder / "best.pt").is_file():
        raise RuntimeError(f"{training.folder} has no checkpoint to export yet; train first")
    state = torch.load(training.folder / "best.pt", map_location="cpu", weights_only=True)
    bundle = training.bundle.to("cpu")
    bundle.tagger.thresholds = torch.tensor(state["thresholds"])
    bundle.load_state_dict(state["models"])
    bundle.vae.register_to_config(scaling_factor=state["scale"], shift_factor=state["shift"])
    command, already = "scripts.train.train", {}
    if before:
        plan, already = vars(training.plan), before["iterations"]
        asked = " ".join(f"--{stage} {plan[stage]}" for stage in STAGES if plan[stage])
        command = f"{before['trained_by']}; then {command} --start it {asked} --seed {plan['seed']}"
    components = Components(
        unet=bundle.unet,
        controlnet=bundle.controlnet,
        vae=bundle.vae,
        text_encoder=bundle.text,
        tokenizer=bundle.tokenizer,
        tagger=bundle.tagger,
        scheduler=bundle.schedule.scheduler,
        name="SeeSR-tiny",
        process_size=64,
        least_scale=SCALE,
    )
    info = {
        "kind": "tiny",
        "trained_by": command,
        "iterations": {stage: number + already.get(stage, 0) for stage, number in state["done"].items()},
        "validation": state["measured"] or (before or {}).get("validation", {}),
        "licences": {"weights": "CC-BY-SA-4.0", "tokenizer": "MIT (CLIP)"},
        "photographs": [{key: entry[key] for key in ("file", "credit", "licence")} for entry in entries],
    }
    save(components, out, info, replace=True)
    print(f"Wrote {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, default=photographs.FROM_DEBIAN, help="their folder")
    parser.add_argument("--work", type=Path, default=ROOT / "work-train", help="checkpoints; a new run continues them")
    parser.add_argument("--out", type=Path, default=ROOT / "weights/tiny", help="the bundle to write")
    parser.add_argument("--start", type=Path, help="start from a bundle, run only the stages that are given")
    parser.add_argument("--export-only", action="store_true", help="write the best checkpoint so far, train nothing")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of crops, damage and noise")
    parser.add_argument("--device", default=hardware.device(), help="default: a GPU where there is one")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    for stage in STAGES:
        parser.add_argument(f"--{stage}", type=int, help=f"iterations of the {stage} stage ({getattr(Plan, stage)})")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder, entries = arguments.photographs, read_listing()
    held_out = [entry | {"file": f"{entry['package']}/{entry['path']}"} for entry in photographs.listed("validate")]
    photographs.fetch_debian([*entries, *held_out], folder)
    asked = {stage: getattr(arguments, stage) for stage in STAGES if getattr(arguments, stage) is not None}
    iterations = (dict.fromkeys(STAGES, 0) if arguments.start else {}) | asked
    training = Training(
        plan=Plan(**iterations, seed=arguments.seed),
        train=Photographs(folder, entries),
        validate=Photographs(folder, held_out),
        tokenizer=CLIPTokenizer.from_pretrained(ROOT / "weights/tiny/tokenizer", local_files_only=True),
        folder=arguments.work,
        start=bundles.load(arguments.start) if arguments.start else None,
        device=arguments.device,
    )
    if not arguments.export_only:
        training.run()
    before = json.loads((arguments.start / "bundle.json").read_text()) if arguments.start else None
    export(training, entries, arguments.out, before)


if __name__ == "__main__":
    main()
