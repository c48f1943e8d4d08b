"""Denoising: batches of tiles through ControlNet and UNet, with guidance, steering and a fallback in precision."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seesr import hardware, kds
from seesr.context import UpscaleContext
from seesr.schedule import Schedule
from seesr.tiling import TileGrid

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditioning:
    """Text states (1, 77, D), image tokens (1, L, Di), and the negative prompt's text states, read by guidance only."""

    text: Tensor
    tokens: Tensor
    negative_text: Tensor | None


@dataclass(frozen=True)
class ConditioningCache:
    """The ControlNet's embeddings of the control image's tiles: of all tiles if `cache_all`, else of the latest."""

    controlnet: Any
    control_image: Tensor
    grid: TileGrid
    vae_scale_factor: int
    cache_all: bool
    cached: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    def __getitem__(self, tile: int) -> Tensor:
        """(1, C, th, tw): the embedding of a tile by its number, in the ControlNet's present dtype"""
        key = (tile, self.controlnet.dtype)
        if key not in self.cached:
            if not self.cache_all:
                self.cached.clear()
            image = self.grid.crop(self.control_image, self.grid.offsets[tile], self.vae_scale_factor)
            self.cached[key] = embed_control_image(self.controlnet, image)
        return self.cached[key]


@dataclass(frozen=True)
class Denoiser:
    """ControlNet, UNet and noise schedule. `vae_scale_factor` is image pixels per latent pixel."""

    controlnet: Any
    unet: Any
    schedule: Schedule
    vae_scale_factor: int

    def denoise(
        self,
        latents: Tensor,
        control_image: Tensor,
        conditioning: Conditioning,
        context: UpscaleContext,
        grid: TileGrid | None = None,
    ) -> Tensor:
        """(N, C, h, w) noisy latents at the first timestep, one per particle -> (1, C, h, w) clean, float32, scaled

        `control_image` is (1, 3, H, W) in [0, 1]. `grid` None means the plan's tiles. With use_kds the particles are
        steered, and the one nearest to their mean is the result.
        """
        settings = context.settings
        grid = grid or context.plan.grid(context.latent_size)
        timesteps = self.schedule.timesteps(settings.num_inference_steps)
        control = ConditioningCache(self.controlnet, control_image, grid, self.vae_scale_factor, len(timesteps) > 1)
        x0 = latents
        for i, t in enumerate(timesteps):
            output = self._predict(latents, t, control, conditioning, context, (i, len(timesteps)))
            x0 = self.schedule.predict_x0(latents, output, t)
            if settings.use_kds:
                x0 = kds.steer(x0, settings.bandwidth)
            if i + 1 < len(timesteps):  # the last step gives x0: its variance is 0
                noise = context.draw(f"step{i}", tuple(latents.shape))
                latents = self.schedule.step(latents, x0, t, timesteps[i + 1], noise)
        return x0[[kds.nearest_to_mean(x0)]] if len(x0) > 1 else x0

    def _predict(
        self,
        latents: Tensor,
        t: int,
        control: ConditioningCache,
        conditioning: Conditioning,
        context: UpscaleContext,
        step: tuple[int, int],
    ) -> Tensor:
        """The blended output (N, C, h, w) of `step`: its number, and how many there are.

        On NaN or inf: again with attention in float32, then with all in float32.
        """
        precision_fallbacks = [lambda *models: nullcontext(), hardware.attention_in_float32, hardware.in_float32]
        while True:
            with precision_fallbacks[context.precision](self.unet, self.controlnet):
                output = control.grid.blend(self._predict_tiles(latents, t, control, conditioning, context, step))
            if is_finite(output):
                return output
            if self.unet.dtype == torch.float32 or context.precision == len(precision_fallbacks) - 1:
                raise RuntimeError("the UNet's result is not finite; the bundle or the image's tags are damaged")
            context.precision += 1
            context.recoveries["overflow in denoise"] += 1
            fallback = precision_fallbacks[context.precision].__name__
            log.warning("The UNet overflowed in %s: running again with %s.", self.unet.dtype, fallback)

    def _predict_tiles(
        self,
        latents: Tensor,
        t: int,
        control: ConditioningCache,
        conditioning: Conditioning,
        context: UpscaleContext,
        step: tuple[int, int],
    ) -> Iterator[Tensor]:
        """Model outputs (N, C, th, tw) tile by tile. A job is one particle of one tile; a batch is several jobs."""
        settings, grid, batch_size = context.settings, control.grid, context.plan.tile_batch
        negative_text = conditioning.negative_text if settings.cfg_scale > 1 else None
        jobs = list(itertools.product(range(len(grid)), range(len(latents))))
        pending: list[Tensor] = []
        done = 0
        for batch in (jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)):
            latent = torch.cat([grid.crop(latents[[particle]], grid.offsets[tile]) for tile, particle in batch])
            embedding, text = torch.cat([control[tile] for tile, _ in batch]), conditioning.text
            if negative_text is not None:
                text = torch.cat([text.expand(len(batch), -1, -1) for text in (negative_text, conditioning.text)])
                latent, embedding = latent.repeat(2, 1, 1, 1), embedding.repeat(2, 1, 1, 1)
            output = run_controlnet_unet(
                self.controlnet, self.unet, latent, t, embedding, text, conditioning.tokens, settings.conditioning_scale
            )
            if negative_text is not None:
                pred_negative, pred_positive = output.chunk(2)
                output = pred_negative + settings.cfg_scale * (pred_positive - pred_negative)
            done += len(batch)
            context.progress.set("denoise", (step[0] + done / len(jobs)) / step[1])
            pending += output.split(1)
            while len(pending) >= len(latents):
                yield torch.cat(pending[: len(latents)])
                pending = pending[len(latents) :]


def embed_control_image(controlnet: Any, image: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, C, h, w): the ControlNet's embedding, on its device and in its dtype"""
    return controlnet.controlnet_cond_embedding.embed(image.to(controlnet.device, controlnet.dtype))


def run_controlnet_unet(
    controlnet: Any,
    unet: Any,
    latent: Tensor,
    t: int,
    control_embedding: Tensor,
    text: Tensor,
    tokens: Tensor,
    conditioning_scale: float = 1.0,
) -> Tensor:
    """(B, C, h, w) at timestep t -> (B, C, h, w), float32: ControlNet, then UNet, in their dtype

    `control_embedding` (B, C', h, w) is from `embed_control_image`, `text` (1 or B, 77, D), `tokens` (1 or B, L, Di).
    """
    device, dtype = unet.device, unet.dtype
    latent, control_embedding = latent.to(device, dtype), control_embedding.to(device, dtype)
    # The pair (text, tokens) is for image_attention.TextThenImageAttention, the embedding for ControlImageEmbedding.
    states = tuple(state.to(device, dtype).expand(len(latent), -1, -1) for state in (text, tokens))
    timestep = torch.tensor(t, device=device)
    down_block_res_samples, mid_block_res_sample = controlnet(
        latent, timestep, states, control_embedding, conditioning_scale, return_dict=False
    )
    output = unet(
        latent,
        timestep,
        states,
        down_block_additional_residuals=down_block_res_samples,
        mid_block_additional_residual=mid_block_res_sample,
        return_dict=False,
    )
    return output[0].float()


def is_finite(values: Tensor) -> bool:
    """Whether all values are finite. NaN and inf propagate through the sum, so no mask is allocated."""
    return bool(values.sum().isfinite())
