"""The noise schedule: forward noising, the clean latent behind a model output, and one ancestral (DDPM) step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler


@dataclass(frozen=True)
class Schedule:
    """What sampling needs of a DDPMScheduler. Its own `step` draws noise and hides x0; here the caller has both.

    Source: Ho et al. 2020 (arXiv 2006.11239), equations 4, 7 and 15, with the `fixed_small` variance.
    """

    scheduler: DDPMScheduler

    @property
    def start(self) -> int:
        """The noisiest timestep, where an upscale starts: 999."""
        return len(self.scheduler.alphas_cumprod) - 1

    def timesteps(self, steps: int) -> list[int]:
        """Trailing spacing: 1 -> [999], 2 -> [999, 499], 4 -> [999, 749, 499, 249]."""
        self.scheduler.set_timesteps(steps)
        return self.scheduler.timesteps.tolist()

    def add_noise(self, latent: Tensor, noise: Tensor, t: int) -> Tensor:
        """(B, C, h, w), (B, C, h, w) -> (B, C, h, w) as noisy as step `t` expects it"""
        alpha_bar = self._alpha_bar(t)
        return alpha_bar**0.5 * latent + (1 - alpha_bar) ** 0.5 * noise

    def predict_x0(self, latent: Tensor, output: Tensor, t: int) -> Tensor:
        """(B, C, h, w), (B, C, h, w) -> (B, C, h, w): the clean latent by the model's `output` at `t`"""
        alpha_bar = self._alpha_bar(t)
        kind = self.scheduler.config["prediction_type"]
        if kind == "epsilon":
            return (latent - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5
        if kind == "v_prediction":
            return alpha_bar**0.5 * latent - (1 - alpha_bar) ** 0.5 * output
        if kind == "sample":
            return output
        raise RuntimeError(f"prediction_type must be epsilon, v_prediction or sample, the scheduler says {kind!r}")

    def step(self, latent: Tensor, x0: Tensor, t: int, previous: int, noise: Tensor) -> Tensor:
        """(B, C, h, w) three times -> (B, C, h, w): from `t` to the less noisy timestep `previous` (0 or more)"""
        a, p = self._alpha_bar(t), self._alpha_bar(previous)
        b = 1 - a / p
        mean = p**0.5 * b / (1 - a) * x0 + (a / p) ** 0.5 * (1 - p) / (1 - a) * latent
        return mean + ((1 - p) / (1 - a) * b) ** 0.5 * noise

    def _alpha_bar(self, t: int) -> float:
        """The signal's share of the variance at `t`."""
        return self.scheduler.alphas_cumprod[t].to(torch.float64).item()
