"""The loss of the refine stage, and its parts."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.eval.grain import grain, local_moments, normalize, spectrum
from scripts.eval.metrics import DeepDistance
from scripts.train.data import Batch
from scripts.train.model import Bundle
from seesr.color_fix import low_frequencies
from seesr.settings import Settings

USER_WORDS = ("a photo", "sharp", "detailed", "old photograph", "portrait", "landscape", "text", "macro")


def l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean()


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    return l1(a.diff(dim=2), b.diff(dim=2)) + l1(a.diff(dim=3), b.diff(dim=3))


def contrast_l1(a: Tensor, b: Tensor) -> Tensor:
    """Difference of the standard deviations of 5 x 5 pixels. Without it, results are too smooth."""
    first, second = (local_moments(image, 5)[1].add(1e-5).sqrt() for image in (a, b))
    return l1(first, second)


def grain_l1(result: Tensor, truth: Tensor, region: int = 24) -> Tensor:
    """Difference of the statistics of fine grain, by regions of `region` pixels, at full and half size.

    The statistics are the strength of normalised luma and its correlation with neighbours in four directions, as in
    natural-scene statistics (Mittal et al. 2012). Texture that cannot be predicted can still be as rough as the
    original, and smooth areas stay smooth.
    """

    def statistics(image: Tensor) -> Tensor:
        fine = grain(image)
        here, below = fine[..., :-1, :], fine[..., 1:, :]
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


def spectrum_l2(result: Tensor, truth: Tensor) -> Tensor:
    """Squared difference of the spectra of fine grain.

    A mesh of one period can have all statistics of grain_l1. Its line in the spectrum no noise has.
    """
    return (spectrum(result) - spectrum(truth)).square().mean()


def harm(result: Tensor, batch: Batch) -> Tensor:
    """By how much the squared error of each image exceeds 96 % of the resized input's, relative to it; the mean.

    It keeps single images from losing PSNR for a gain in the mean of many.
    """
    ours, theirs = ((image - batch.truth).square().mean((1, 2, 3)) for image in (result, batch.control))
    return F.relu(ours / (theirs + 1e-4) - 0.96).mean()


class Adversary:
    """A small critic that learns to tell real patches of about 22 pixels from ours, and the loss that it gives.

    Hinge loss, spectral norm. It sees each image beside the resized input, both normalised by local contrast, so that
    fine grain counts as much as a strong edge. Only the direction of its gradient is used: the length is SHARE times
    that of the gradient of the L1 loss, so no weight needs tuning.
    """

    SHARE, WARM_UP, RATE = 0.08, 300, 5e-4

    def __init__(self, device: torch.device) -> None:
        shapes = ((6, 32, 4, 2), (32, 64, 4, 2), (64, 64, 3, 1), (64, 1, 3, 1))
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in shapes:
            conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=1)
            layers += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.critic = nn.Sequential(*layers[:-1]).to(device)
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), lr=self.RATE, betas=(0.5, 0.99))
        self.seen = 0

    def __call__(self, result: Tensor, batch: Batch) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> a loss of value 0 with the critic's gradient; the critic takes one step"""
        ours = result.detach().requires_grad_()
        control, real = self._normalized(batch.control), self._normalized(batch.truth)
        pair = torch.cat([self._normalized(ours), control], 1)
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
    def _normalized(image: Tensor) -> Tensor:
        return normalize(F.pad(image, (3, 3, 3, 3), mode="reflect"), 2 / 127.5)

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict(), "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen = state["seen"]


class RefineLoss:
    """The loss behind the decoder and the colour fix, where the user sees the result; the original is the target.

    60 % of the batches are the first step (t = 999). The others continue from the model's own x0 of that step with
    new noise of a later step, as in inference. 5 % take the negative prompt with the resized input as the target,
    which gives guidance a direction. `features` needs the packages of `scripts/setup eval`.
    """

    GRADIENT, RAW, FEATURES, CONTRAST, HARM, GRAIN, RECONSTRUCTION = 0.15, 0.1, 0.05, 0.3, 2.0, 0.1, 0.3
    """Weights. RAW is of the result before the colour fix, RECONSTRUCTION of the VAE's image of the original."""

    def __init__(self, device: torch.device, features: bool = True) -> None:
        # Of Lite1: the evaluation uses another network, Lite0.
        self.distance = DeepDistance(1, (0, 2, 4)).to(device) if features else None
        self.adversary = Adversary(device)
        self.state_dict, self.load_state_dict = self.adversary.state_dict, self.adversary.load_state_dict

    def __call__(self, bundle: Bundle, batch: Batch, random: np.random.Generator) -> Tensor:
        """A batch -> a scalar; takes one step of the critic, except where the prompt is negative"""
        target, prompts = batch.truth, [random_prompt(tags, random) for tags in batch.tags]
        if negative := random.random() < 0.05:
            target, prompts = batch.control, [Settings.negative_prompt] * len(prompts)
        raw = predict(bundle, batch, prompts, random)
        result = raw + low_frequencies(batch.control - raw)
        loss = l1(result, target) + self.GRADIENT * gradient_l1(result, target) + self.RAW * l1(raw, target)
        if self.distance:
            loss = loss + self.FEATURES * self.distance(result, target)
        if not negative:
            loss = loss + self.CONTRAST * contrast_l1(result, target) + self.HARM * harm(result, batch)
            loss = loss + self.GRAIN * grain_l1(result, target)
            loss = loss + self.adversary(result, batch)
        if random.random() < 0.25:
            part = batch.truth[:1]
            loss = loss + self.RECONSTRUCTION * l1(bundle.decode(bundle.encode(part)), part)
        return loss


def predict(
    bundle: Bundle, batch: Batch, prompts: list[str], random: np.random.Generator, first_share: float = 0.6
) -> Tensor:
    """One step of the model, with chance `first_share` the first -> (B, 3, H, W) in [-1, 1], before the colour fix"""
    text, tokens, first = bundle.text_states(prompts), bundle.tokens(batch.small), bundle.schedule.start
    latent = bundle.noisy(batch.control)
    t = first if random.random() < first_share else int(random.choice([749, 499, 499, 249]))
    if t < first:
        with torch.no_grad():
            x0 = bundle.x0(latent, first, batch.control, text, tokens)
            latent = bundle.schedule.add_noise(x0, torch.randn_like(x0), t)
    return bundle.decode(bundle.x0(latent, t, batch.control, text, tokens))


def random_prompt(tags: list[str], random: np.random.Generator) -> str:
    """The tags, a user prompt and the positive prompt, each left out at random."""
    kept = [tag for tag in tags if random.random() < 0.8]
    words = [str(random.choice(USER_WORDS))] if random.random() < 0.2 else []
    return ", ".join([*kept, *words, *([Settings.positive_prompt] if random.random() < 0.9 else [])])
