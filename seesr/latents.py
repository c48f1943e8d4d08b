"""Images to latents and back: posterior sampling, scaling, and the fallback to float32."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seesr import hardware
from seesr.context import UpscaleContext
from seesr.denoise import is_finite
from seesr.memory import VaeTilePlan
from seesr.schedule import Schedule
from seesr.vae import tiling, tiny, vae_scale_factor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentCodec:
    """The VAE, or the small autoencoder, in the tiles of a context's plan. Latents outside are scaled and float32."""

    vae: Any
    tiny_vae: Any = None

    def vae_of(self, plan: VaeTilePlan) -> Any:
        """The autoencoder that runs by `plan`."""
        return self.tiny_vae if plan.fast else self.vae

    def prepare_latents(self, control_image: Tensor, schedule: Schedule, context: UpscaleContext) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> noisy latents (N, C, h, w) at the first timestep, one per particle"""
        config = self.vae_of(context.plan.encode).config
        shape = (context.settings.particles, config["latent_channels"], *context.latent_size)
        noise = context.draw("init", shape)
        if context.settings.start_point == "noise":
            return noise
        encoded, posterior_noise = self._encode(control_image, context), context.draw("vae", shape)
        if not context.plan.encode.fast:  # else there is no posterior; its noise was drawn so that a seed's others stay
            mean, logvar = encoded.chunk(2, dim=1)
            # A sample of the posterior, as upstream takes it; its mode would be a little smoother.
            encoded = mean + (logvar.clamp(-30, 20) / 2).exp() * posterior_noise
        latents = (encoded - (config["shift_factor"] or 0.0)) * config["scaling_factor"]
        return schedule.add_noise(latents, noise, schedule.start)

    def decode(self, latent: Tensor, context: UpscaleContext) -> Tensor:
        """(1, C, h, w), scaled -> (1, 3, H, W) in [0, 1], float32"""
        config = self.vae_of(context.plan.decode).config  # TAESD's latents are scaled already: its factor is 1
        latent = latent / config["scaling_factor"] + (config["shift_factor"] or 0.0)
        return self._run_checked("decode", latent, context).div_(2).add_(0.5).clamp_(0, 1)

    def run_vae(
        self, direction: tiling.Direction, source: Tensor, plan: VaeTilePlan, report: tiling.Report = lambda _: None
    ) -> Tensor:
        """Encode or decode `source`, of any dtype, in the tiles of `plan` and the VAE's dtype; as seesr.vae does."""
        vae, encoding = self.vae_of(plan), direction == "encode"
        if plan.fast:
            return (tiny.encode if encoding else tiny.decode)(vae, source.to(vae.dtype), plan.tile, report)
        run = tiling.encode if encoding else tiling.decode
        return run(vae, source.to(vae.dtype), plan.tile, plan.stats_tiles, report)

    def _encode(self, control_image: Tensor, context: UpscaleContext) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> the posterior's moments (1, 2C, h, w), or latents (1, C, h, w), float32

        A large image is encoded at half its size or less: at the first timestep latents weigh 0.07 beside the noise.
        """
        size = context.plan.encode_size(context.latent_size)
        if size == context.latent_size:
            return self._run_checked("encode", control_image.mul(2).sub_(1), context)
        sides = [side * vae_scale_factor(self.vae) for side in size]
        source = F.interpolate(control_image, sides, mode="bilinear", antialias=True, align_corners=False)
        moments = self._run_checked("encode", source.mul_(2).sub_(1), context)
        return F.interpolate(moments, context.latent_size, mode="bicubic", align_corners=False)

    def _run_checked(self, direction: tiling.Direction, source: Tensor, context: UpscaleContext) -> Tensor:
        """The result in float32; where half precision overflows, run again in float32 and log a warning."""
        plan = context.plan.encode if direction == "encode" else context.plan.decode
        report, vae = partial(context.progress.set, direction), self.vae_of(plan)
        result = self.run_vae(direction, source, plan, report).float()
        if not is_finite(result) and vae.dtype != torch.float32:
            log.warning("The VAE overflowed in %s (%s): running again in float32.", vae.dtype, direction)
            context.recoveries[f"overflow in {direction}"] += 1
            with hardware.in_float32(vae):
                result = self.run_vae(direction, source, plan).float()
        if not is_finite(result):
            raise RuntimeError(f"the VAE's result is not finite ({direction}); the bundle or the latent is damaged")
        return result
