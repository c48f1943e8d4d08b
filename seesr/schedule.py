"""The noise schedule: forward noising, the clean latent behind a model output, and one ancestral (DDPM) step."""

from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """What sampling needs of a DDPMScheduler, with its randomness and its x0 in the caller's hands.

    Diffusers' own `step` draws its noise inside and hides x0; SeeSR injects noise, and steering acts on x0.
    Source: Ho et al. 2020 (arXiv 2006.11239), equations 4, 7 and 15, with the `fixed_small` variance.
    """

    scheduler: DDPMScheduler

    @property
    def last(self) -> int:
        """The noisiest timestep, where an upscale starts: 999."""
        return len(self.scheduler.alphas_cumprod) - 1

    def timesteps(self, steps: int) -> list[int]:
        """Trailing spacing: 1 -> [999], 2 -> [999, 499], 4 -> [999, 749, 499, 249]."""
        self.scheduler.set_timesteps(steps)
        return self.scheduler.timesteps.tolist()

    def add_noise(self, latent: Tensor, noise: Tensor, t: int) -> Tensor:
        """(B, C, h, w), (B, C, h, w) -> (B, C, h, w) as noisy as step `t` expects it"""
        kept = self._kept(t)
        return kept**0.5 * latent + (1 - kept) ** 0.5 * noise

    def predict_x0(self, latent: Tensor, output: Tensor, t: int) -> Tensor:
        """(B, C, h, w), (B, C, h, w) -> (B, C, h, w): the clean latent that the model's `output` at `t` stands for"""
        kept = self._kept(t)
        kind = self.scheduler.config["prediction_type"]
        if kind == "epsilon":
            return (latent - (1 - kept) ** 0.5 * output) / kept**0.5
        if kind == "v_prediction":
            return kept**0.5 * latent - (1 - kept) ** 0.5 * output
        if kind == "sample":
            return output
        raise RuntimeError(f"prediction_type must be epsilon, v_prediction or sample, the scheduler says {kind!r}")

    def step(self, latent: Tensor, x0: Tensor, t: int, previous: int, noise: Tensor) -> Tensor:
        """(B, C, h, w) three times -> (B, C, h, w): from `t` to the less noisy timestep `previous` (0 or more)

        The last step needs no call: its mean is x0 and its variance 0.
        """
        a, p = self._kept(t), self._kept(previous)
        b = 1 - a / p
        mean = p**0.5 * b / (1 - a) * x0 + (a / p) ** 0.5 * (1 - p) / (1 - a) * latent
        return mean + ((1 - p) / (1 - a) * b) ** 0.5 * noise

    def _kept(self, t: int) -> float:
        """The share of the signal's variance that is left at `t` (alpha-bar)."""
        return self.scheduler.alphas_cumprod[t].to(torch.float64).item()
