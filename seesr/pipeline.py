"""SeeSR: the steps of one upscale, in the order they happen."""

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor
from torch.nn import functional as F

from seesr import hardware, images, vae_tiling, weights
from seesr.color_fix import match_color
from seesr.prompts import PromptEncoder
from seesr.schedule import Schedule
from seesr.settings import Settings
from seesr.tiling import TileGrid, tile_grid

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

MAX_OUTPUT_PIXELS = 8192 * 8192

Noise = Callable[[str, tuple[int, ...]], Tensor]
"""`noise(name, shape)` -> standard normal float32; names are "init", "vae", "step0", "step1", ..."""


@dataclass
class Clock:
    """Seconds per stage, with the GPU's work waited for."""

    device: str
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        hardware.synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Result:
    """One upscale: the picture (RGB), what the tagger saw, the seed used, seconds per stage, tiles per step."""

    image: "Image.Image"
    tags: list[str]
    prompt: str
    seed: int
    timings: dict[str, float]
    tiles: int


@dataclass(frozen=True)
class Conditions:
    """What steers the models: text (1, 77, D), image tokens (1, L, Di), and a negative text where guidance acts."""

    text: Tensor
    tokens: Tensor
    negative_text: Tensor | None


class EmbedOnce(ControlNetConditioningEmbedding):
    """ControlNet's picture embedding that lets an already embedded picture pass, so that steps can share it."""

    def forward(self, conditioning: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], or (B, C, h, w) embedded -> (B, C, h, w)"""
        if conditioning.shape[1] == self.conv_out.out_channels:
            return conditioning
        return super().forward(conditioning)


class SeeSR:
    """SeeSR on SD-Turbo, or on any bundle of the same classes. Source: cswry/SeeSR, test_seesr_turbo.py.

    Models run in the bundle's dtype on `device`; latents between them stay in float32.
    """

    def __init__(self, parts: weights.Parts, profile: hardware.Profile, device: str = "cpu") -> None:
        self.parts = parts
        self.profile = profile
        self.device = device
        self.schedule = Schedule(parts.scheduler)
        self.prompts = PromptEncoder(parts.tokenizer, parts.text_encoder)
        self.factor = 2 ** (len(parts.vae.config["block_out_channels"]) - 1)
        """Picture pixels per latent pixel: 8 for SD-Turbo."""
        parts.controlnet.controlnet_cond_embedding.__class__ = EmbedOnce

    @classmethod
    def load(
        cls, bundle: str | Path, device: str | None = None, dtype: torch.dtype | None = None, gpu: str | None = None
    ) -> "SeeSR":
        """Open a bundle directory straight to `device` ("cuda", "cpu"; None: a GPU where there is one).

        `dtype` None means fp16 on a GPU and fp32 on the CPU. `gpu` names the profile the image was built for; what
        the card really is wins. Raises RuntimeError naming the file and tensor that is missing or wrong.
        """
        device = device or hardware.device()
        profile = hardware.profile(device, gpu)
        parts = weights.load(Path(bundle), device, dtype or profile.dtype)
        attention = hardware.use_fast_attention(device, parts.unet, parts.controlnet, parts.vae)
        log.info("Loaded %s on %s (tiles of %s, attention by %s).", parts.name, device, profile.name, attention)
        return cls(parts, profile, device)

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.unet.dtype

    @torch.inference_mode()
    def upscale(self, image: "Image.Image", settings: Settings, noise: Noise | None = None) -> Result:
        """An RGB picture of any size -> the same picture, exactly round(scale_factor * side) pixels each way.

        The tagger sees the picture as it came. The working picture is the input resized once, its short side at
        least the bundle's process size, and padded by its edge pixels to what the models need.
        """
        settings = replace(settings, seed=secrets.randbits(32) if settings.seed is None else settings.seed)
        clock = Clock(self.device)
        image = image.convert("RGB")
        target, working = working_size((image.height, image.width), settings.scale_factor, self.parts.process_size)
        with clock.stage("tag"):
            tags, tokens = self.parts.tagger(images.to_tensor(image).to(self.device))
            log.info("Tags: %s", ", ".join(tags) or "(none)")
        with clock.stage("text"):
            prompt = self.prompts.compose(tags, settings.user_prompt, settings.positive_prompt)
            text = self.encode_text(prompt)
            negative = self.encode_text(settings.negative_prompt) if settings.cfg_scale > 1 else None
        control = images.to_tensor(images.resize(image, working)).to(self.device)
        padded = self._pad(control)
        grid = self.tiles(padded, settings)
        draw = noise or seeded_noise(settings.seed)
        with clock.stage("encode"):
            latent = self._start(padded, settings, draw)
        with clock.stage("denoise"):
            latent = self._denoise(latent, padded, Conditions(text, tokens, negative), settings, draw, grid)
        with clock.stage("decode"):
            result = self.decode(latent)[:, :, : working[0], : working[1]]
        with clock.stage("color"):
            result = match_color(result, control, settings.color_fix)
        with clock.stage("resize"):
            picture = images.resize(images.to_image(result), target)
        assert settings.seed is not None
        return Result(picture, tags, prompt, settings.seed, clock.seconds, len(grid))

    def encode_text(self, prompt: str) -> Tensor:
        """str -> (1, 77, D)"""
        return self.prompts.encode(prompt)

    @torch.inference_mode()
    def predict_noise(
        self, latent: Tensor, t: int, control: Tensor, text: Tensor, tokens: Tensor, conditioning_scale: float = 1.0
    ) -> Tensor:
        """One ControlNet and UNet call: (B, C, h, w), t, (B, 3, H, W) in [0, 1] -> (B, C, h, w) in float32

        `text` (1 or B, 77, D) and `tokens` (1 or B, L, Di) are shared by the batch where they hold one. `control`
        may also be the ControlNet's embedding of the picture. The output is what the scheduler's prediction_type
        says: noise for SD-Turbo.
        """
        batch = len(latent)
        latent = latent.to(self.device, self.dtype)
        context = tuple(states.to(self.device, self.dtype).expand(batch, -1, -1) for states in (text, tokens))
        step = torch.tensor(t, device=self.device)
        taps, middle = self.parts.controlnet(
            latent,
            step,
            encoder_hidden_states=context,
            controlnet_cond=control.to(self.device, self.dtype),
            conditioning_scale=conditioning_scale,
            return_dict=False,
        )
        output = self.parts.unet(
            latent,
            step,
            encoder_hidden_states=context,
            down_block_additional_residuals=taps,
            mid_block_additional_residual=middle,
            return_dict=False,
        )
        return output[0].float()

    @torch.inference_mode()
    def sample(
        self,
        control: Tensor,
        text: Tensor,
        tokens: Tensor,
        settings: Settings,
        noise: Noise | None = None,
        negative_text: Tensor | None = None,
        grid: TileGrid | None = None,
    ) -> Tensor:
        """(1, 3, H, W) in [0, 1], H and W multiples of `factor` -> the clean latent (1, C, h, w), float32, scaled

        `noise` is asked for every draw; without it draws come in that order from one CPU generator seeded by
        `settings.seed`, so a seed gives the same picture on every device. `negative_text` acts above cfg_scale 1;
        without it the settings' negative_prompt does.
        `grid` replaces the tiles and blend weights that the settings would give (parity with the reference's).
        """
        if control.shape[2] % self.factor or control.shape[3] % self.factor:
            raise ValueError(
                f"control must have sides that are multiples of {self.factor}, got {tuple(control.shape[2:])}; pad it"
            )
        control = control.to(self.device)
        draw = noise or seeded_noise(settings.seed)
        negative = None
        if settings.cfg_scale > 1:
            negative = self.encode_text(settings.negative_prompt) if negative_text is None else negative_text
        conditions = Conditions(text, tokens, negative)
        latent = self._start(control, settings, draw)
        return self._denoise(latent, control, conditions, settings, draw, grid or self.tiles(control, settings))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """(1, C, h, w), scaled -> (1, 3, H, W) in [0, 1], float32"""
        vae = self.parts.vae
        latent = latent / vae.config["scaling_factor"] + (vae.config["shift_factor"] or 0.0)
        return (self._vae(vae_tiling.decode, latent.to(self.device)) / 2 + 0.5).clamp(0, 1)

    def tiles(self, control: Tensor, settings: Settings) -> TileGrid:
        """The latent tiles for a padded control picture (B, 3, H, W): the request's, else the hardware's."""
        size = (control.shape[2] // self.factor, control.shape[3] // self.factor)
        tile = settings.latent_tiled_size or self.profile.latent_tile
        overlap = settings.latent_tiled_overlap
        if overlap > tile // 2:
            raise ValueError(
                f"latent_tiled_overlap must be at most half of this machine's tile ({tile}), got {overlap}; "
                "lower it, or set latent_tiled_size too"
            )
        return tile_grid(size, tile, overlap)

    def _start(self, control: Tensor, settings: Settings, draw: Noise) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> the noisy latent (1, C, h, w) that denoising starts from"""
        vae = self.parts.vae
        shape = (1, vae.config["latent_channels"], control.shape[2] // self.factor, control.shape[3] // self.factor)
        start = draw("init", shape).to(self.device, torch.float32)
        if settings.start_point == "noise":
            return start
        moments = self._vae(vae_tiling.encode, 2 * control - 1)
        mean, logvar = moments.chunk(2, dim=1)
        # The posterior's sample, as upstream; its mode would be a little smoother.
        posterior = mean + (logvar.clamp(-30, 20) / 2).exp() * draw("vae", shape).to(self.device, torch.float32)
        latent = (posterior - (vae.config["shift_factor"] or 0.0)) * vae.config["scaling_factor"]
        return self.schedule.add_noise(latent, start, self.schedule.last)

    def _vae(self, run: Callable[[Any, Tensor, int], Tensor], part: Tensor) -> Tensor:
        """Encode or decode, in float32 out; where half precision overflows, once more in float32, which is said."""
        vae: Any = self.parts.vae
        result = run(vae, part.to(vae.dtype), self.profile.vae_tile).float()
        if not result.isfinite().all() and vae.dtype != torch.float32:
            log.warning("The VAE overflowed in %s (%s): doing it again in float32.", vae.dtype, run.__name__)
            dtype = vae.dtype
            try:
                result = run(vae.to(torch.float32), part.float(), self.profile.vae_tile)
            finally:
                vae.to(dtype)
        if not result.isfinite().all():
            raise RuntimeError(f"the VAE's result is not finite ({run.__name__}); the bundle or the latent is damaged")
        return result

    def _denoise(
        self,
        latent: Tensor,
        control: Tensor,
        conditions: Conditions,
        settings: Settings,
        draw: Noise,
        grid: TileGrid,
    ) -> Tensor:
        steps = self.schedule.timesteps(settings.num_inference_steps)
        pictures = [grid.crop(control, offset, self.factor) for offset in grid.offsets]
        if len(steps) > 1:
            embed = self.parts.controlnet.controlnet_cond_embedding
            pictures = [embed(picture.to(self.dtype)) for picture in pictures]
        for i, t in enumerate(steps):
            tiles = [grid.crop(latent, offset) for offset in grid.offsets]
            output = grid.blend(self._predict_tiles(tiles, pictures, t, conditions, settings))
            x0 = self.schedule.predict_x0(latent, output, t)
            if i == len(steps) - 1:
                return x0
            step_noise = draw(f"step{i}", tuple(latent.shape)).to(self.device, torch.float32)
            latent = self.schedule.step(latent, x0, t, steps[i + 1], step_noise)
        raise AssertionError("timesteps() returned no step")

    def _predict_tiles(
        self, tiles: list[Tensor], pictures: list[Tensor], t: int, conditions: Conditions, settings: Settings
    ) -> Iterator[Tensor]:
        """Model outputs of all tiles, a batch at a time; with guidance each tile takes a second, negative branch."""
        negative = conditions.negative_text
        for first in range(0, len(tiles), self.profile.tile_batch):
            batch = slice(first, first + self.profile.tile_batch)
            latent, picture = torch.cat(tiles[batch]), torch.cat(pictures[batch])
            text = conditions.text
            if negative is not None:
                text = torch.cat([states.expand(len(latent), -1, -1) for states in (negative, text)])
                latent, picture = latent.repeat(2, 1, 1, 1), picture.repeat(2, 1, 1, 1)
            output = self.predict_noise(latent, t, picture, text, conditions.tokens, settings.conditioning_scale)
            if negative is not None:
                away, toward = output.chunk(2)
                output = away + settings.cfg_scale * (toward - away)
            yield from output.split(1)

    def _pad(self, picture: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, 3, H', W'), grown right and down by its edge pixels

        to multiples of `factor`, and to the bundle's process size where a long thin picture was not enlarged so far.
        """
        wanted = (max(side, self.parts.process_size) for side in picture.shape[2:])
        bottom, right = (
            -(-to // self.factor) * self.factor - side for to, side in zip(wanted, picture.shape[2:], strict=True)
        )
        return F.pad(picture, (0, right, 0, bottom), mode="replicate")


def seeded_noise(seed: int | None) -> Noise:
    """Draws from one CPU generator, in the order they are asked for; None draws a seed."""
    generator = torch.Generator().manual_seed(secrets.randbits(32) if seed is None else seed)
    return lambda name, shape: torch.randn(shape, generator=generator)


def working_size(size: tuple[int, int], scale: float, process_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the input -> the target (height, width) and the size to work at.

    The target is round(scale * side). Both are the same unless the target's short side is below `process_size`; then
    the working picture is larger by one factor, but no longer than 8 * `process_size` or the target itself (what a
    long thin picture's short side then lacks is padded). Raises ValueError for a target of more than MAX_OUTPUT_PIXELS.
    """
    target = (max(1, round(scale * size[0])), max(1, round(scale * size[1])))
    if target[0] * target[1] > MAX_OUTPUT_PIXELS:
        raise ValueError(
            f"the result may have at most {MAX_OUTPUT_PIXELS / 1e6:.0f} megapixels (8192 x 8192), "
            f"scale_factor {scale:g} would give {target[1]} x {target[0]}; lower it or make the image smaller"
        )
    short, long = sorted(target)
    grow = min(max(1.0, process_size / short), max(1.0, 8 * process_size / long))
    if grow == 1.0:
        return target, target
    return target, (math.ceil(target[0] * grow - 1e-6), math.ceil(target[1] * grow - 1e-6))
