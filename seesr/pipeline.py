"""SeeSR: the steps of one upscale, in the order they happen."""

import logging
import secrets
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seesr import bundle, hardware, images, sizes
from seesr.color_fix import match_color, set_fidelity
from seesr.context import Noise, UpscaleContext, seeded_noise
from seesr.denoise import Conditioning, Denoiser, embed_control_image, run_controlnet_unet
from seesr.latents import LatentCodec
from seesr.memory import MemoryModel, TilePlan
from seesr.progress import OnProgress, Progress, predicted_work
from seesr.prompts import PromptEncoder
from seesr.schedule import Schedule
from seesr.settings import NEUTRAL_FIDELITY, Settings
from seesr.sizes import Size
from seesr.tiling import TileGrid
from seesr.vae import vae_scale_factor

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

log = logging.getLogger(__name__)

CPU_WARM_UP_FLOPS = 1e12  # some ten seconds of a CPU core: more would cost more than it saves
FAST_VAE_ADVICE = "leave it off, or convert the bundle again with --tiny-vae"


@dataclass(frozen=True)
class Result:
    """One upscale: seconds per stage, `tiles` per step; `recoveries` counts what ran again, and why.

    `image` is RGB with 8 bits. `pixels` (H, W, 3) uint16 is there where the input and the output format have 16.
    """

    image: "Image.Image"
    tags: list[str]
    prompt: str
    seed: int
    timings: dict[str, float]
    tiles: int
    plan: TilePlan
    recoveries: dict[str, int]
    pixels: "np.ndarray | None" = None

    def metrics(self) -> dict[str, Any]:
        """The metrics of a prediction, ready for JSON."""
        metrics = {name: getattr(self, name) for name in ("seed", "tags", "tiles", "recoveries")}
        metrics |= {"width": self.image.width, "height": self.image.height}
        return metrics | {"plan": str(self.plan), "seconds": {name: round(s, 4) for name, s in self.timings.items()}}


class SeeSR:
    """SeeSR on SD-Turbo, or on any bundle of the same classes. Source: cswry/SeeSR, test_seesr_turbo.py.

    `memory_limit` is how many bytes an upscale may plan with; None means all that is free.
    """

    def __init__(self, components: bundle.Components, profile: hardware.Profile, device: str = "cpu") -> None:
        self.components, self.profile, self.device = components, profile, device
        if device == "cpu":  # narrow convolutions take half of the time so
            for part in (components.vae.decoder.up_blocks, components.vae.decoder.conv_out):
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.memory_limit: int | None = None
        self.vae_scale_factor = vae_scale_factor(components.vae)
        self.schedule = Schedule(components.scheduler)
        self.prompts = PromptEncoder(components.tokenizer, components.text_encoder)
        self.codec = LatentCodec(components.vae, components.tiny_vae)
        self.denoiser = Denoiser(components.controlnet, components.unet, self.schedule, self.vae_scale_factor)
        self.memory = MemoryModel.of(components.controlnet, components.vae, components.memory_constants)

    @classmethod
    def load(
        cls, directory: str | Path, device: str | None = None, dtype: torch.dtype | None = None, gpu: str | None = None
    ) -> "SeeSR":
        """Load a bundle directory straight to `device` ("cuda", "cpu"; None: a GPU where there is one).

        `dtype` None means fp16 on a GPU and fp32 on the CPU. `gpu` is SEESR_GPU, as `hardware.profile` takes it.
        On the CPU the process keeps freed memory from now on (`hardware.keep_freed_memory`). Raises RuntimeError that
        names the file and the tensors that are wrong.
        """
        device = device or hardware.device()
        if device == "cpu":
            hardware.keep_freed_memory()
        profile = hardware.profile(device, gpu)
        components = bundle.load(Path(directory), device, dtype or profile.dtype)
        attention = hardware.use_fast_attention(device, components.unet, components.controlnet, components.vae)
        log.info("Loaded %s on %s, attention by %s.", components.name, device, attention)
        return cls(components, profile, device)

    @property
    def dtype(self) -> torch.dtype:
        return self.components.unet.dtype

    @torch.inference_mode()
    def upscale(
        self,
        image: "Image.Image | images.OpenedImage",
        settings: Settings,
        noise: Noise | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """An image of any size -> the same image, larger by exactly the scale of `settings`, halves rounded up.

        The tagger sees the input itself. The working image is the input resized once, with its short side at least the
        bundle's process size, and padded by its edge pixels to multiples of the VAE's scale factor.
        """
        settings = replace(settings, seed=secrets.randbits(32) if settings.seed is None else settings.seed)
        assert settings.seed is not None
        opened = image if isinstance(image, images.OpenedImage) else images.OpenedImage(image.convert("RGB"))
        image, source = opened.rgb, opened.rgb if opened.pixels is None else opened.pixels
        size = (image.height, image.width)
        target, working, _ = self.sizes(size, settings.scale(size))
        flat, process_size = images.flat_sides(source), self.components.process_size
        padded, (top, left) = sizes.place(working, flat, process_size, self.vae_scale_factor)
        inside = (..., slice(top, top + working[0]), slice(left, left + working[1]))
        context = self._context(settings, noise, padded, on_progress)
        tags, tokens = context.stage("tag", lambda: self.tag(image))
        log.info("Tags: %s", ", ".join(tags) or "(none)")
        prompt = self.prompts.compose(tags, settings.user_prompt, settings.positive_prompt)
        text, negative_text = context.stage("text", lambda: (self.encode_text(prompt), self._negative_text(settings)))
        conditioning = Conditioning(text, tokens, negative_text)
        control_image = context.stage("resize", lambda: self._control_image(source, working, padded, (top, left)))
        latents = context.stage("encode", lambda: self.codec.prepare_latents(control_image, self.schedule, context))
        latent = context.stage("denoise", lambda: self.denoiser.denoise(latents, control_image, conditioning, context))
        result = context.stage("decode", lambda: self.codec.decode(latent, context)[inside])
        control, fix, fidelity = control_image[inside], settings.color_fix, settings.fidelity
        result = context.stage("color", lambda: match_color(result, control, fix, context.plan.strip))
        if fidelity != NEUTRAL_FIDELITY:
            result = context.stage("color", lambda: set_fidelity(result, control, fidelity, context.plan.strip))
        grey = fix != "none" and images.is_grayscale(image)
        deep = opened.pixels is not None and settings.output_format in images.DEEP_FORMATS
        upscaled, pixels = context.stage("resize", lambda: images.to_result(result, target, grey, deep))
        tiles, recoveries = len(context.plan.grid(context.latent_size)), dict(context.recoveries)
        return Result(upscaled, tags, prompt, settings.seed, context.timings, tiles, context.plan, recoveries, pixels)

    def tag(self, image: "Image.Image") -> tuple[list[str], Tensor]:
        """RGB image -> its tags, and the image tokens (1, L, D)"""
        return self.components.tagger(images.to_tensor(image, self.device))

    def encode_text(self, prompt: str) -> Tensor:
        """str -> (1, 77, D)"""
        return self.prompts.encode(prompt)

    @torch.inference_mode()
    def predict_noise(
        self, latent: Tensor, t: int, control: Tensor, text: Tensor, tokens: Tensor, conditioning_scale: float = 1.0
    ) -> Tensor:
        """One ControlNet and UNet call: (B, C, h, w), t, (B, 3, H, W) in [0, 1] -> (B, C, h, w), float32

        `text` is (1 or B, 77, D), `tokens` (1 or B, L, Di). The output is what the scheduler's prediction_type says.
        """
        controlnet, unet = self.components.controlnet, self.components.unet
        embedding = embed_control_image(controlnet, control)
        return run_controlnet_unet(controlnet, unet, latent, t, embedding, text, tokens, conditioning_scale)

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
        """(1, 3, H, W) in [0, 1] -> the clean latent (1, C, h, w), float32, scaled

        `noise` is asked for every draw; None means `seeded_noise(settings.seed)`, the same on every device.
        `negative_text` acts above cfg_scale 1; None means the settings' negative_prompt. `grid` replaces the plan's
        tiles and blend weights (for parity with the reference). Raises ValueError unless H and W are multiples of the
        VAE's scale factor.
        """
        factor, size = self.vae_scale_factor, (control.shape[2], control.shape[3])
        if size[0] % factor or size[1] % factor:
            raise ValueError(f"control must have sides that are multiples of {factor}, got {size}; pad it")
        control = control.to(self.device)
        negative_text = self._negative_text(settings) if negative_text is None else negative_text
        conditioning, context = Conditioning(text, tokens, negative_text), self._context(settings, noise, size)
        latents = self.codec.prepare_latents(control, self.schedule, context)
        return self.denoiser.denoise(latents, control, conditioning, context, grid)

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """(1, C, h, w), scaled -> (1, 3, H, W) in [0, 1], float32"""
        size = (latent.shape[2] * self.vae_scale_factor, latent.shape[3] * self.vae_scale_factor)
        return self.codec.decode(latent.to(self.device), self._context(Settings(num_inference_steps=1), None, size))

    def sizes(self, size: Size, scale: Fraction | float) -> tuple[Size, Size, Size]:
        """Input size -> target, working and padded size. Raises ValueError if the target is too large."""
        process_size, least_scale = self.components.process_size, self.components.least_scale
        target, working = sizes.working_size(size, scale, process_size, self.profile.output_pixels, least_scale)
        return target, working, sizes.padded_size(working, process_size, self.vae_scale_factor)

    def plan(self, size: Size, settings: Settings) -> TilePlan:
        """The tiles for a padded working image of `size`, shrunk to fit free memory. Raises ValueError if none fit."""
        if settings.fast_vae and self.components.tiny_vae is None:
            raise ValueError(
                f"fast_vae needs a small autoencoder, which {self.components.name} lacks; {FAST_VAE_ADVICE}"
            )
        wanted, free = TilePlan.wanted(self.profile, settings), hardware.free_memory(self.device)
        plan = self.memory.fit(size, settings, wanted, min(free, self.memory_limit or free))
        log.info("Runs with %s%s.", plan, "" if plan == wanted else ", to stay within the free memory")
        return plan

    def predict_work(self, image: "Image.Image", settings: Settings) -> float:
        """The FLOPs of an upscale of `image`, without the changes that a lack of memory makes."""
        size = (image.height, image.width)
        padded = self.sizes(size, settings.scale(size))[2]
        latent, plan = self._latent_size(padded), TilePlan.wanted(self.profile, settings)
        return sum(predicted_work(self.components.flops, latent, settings, plan).values())

    def warm_up(self) -> None:
        """Upscale one tile, so that the first request waits for no kernels. On a CPU only a small model does."""
        ramp = torch.linspace(0, 1, sizes.MIN_TILE * self.vae_scale_factor // 8)
        slope = (ramp[:, None] + ramp) / 2
        gradient = images.to_image(torch.stack([slope, slope / 2, 1 - slope])[None])
        settings = Settings(num_inference_steps=2, scale_factor=8, seed=0)
        if self.device != "cpu" or self.predict_work(gradient, settings) < CPU_WARM_UP_FLOPS:
            self.upscale(gradient, settings)

    def _context(
        self, settings: Settings, noise: Noise | None, size: Size, on_progress: OnProgress | None = None
    ) -> UpscaleContext:
        """A context for a padded working image of `size`."""
        latent_size = self._latent_size(size)
        noise, plan = noise or seeded_noise(settings.seed), self.plan(size, settings)
        progress = Progress(predicted_work(self.components.flops, latent_size, settings, plan), on_progress)
        return UpscaleContext(settings, noise, plan, latent_size, self.device, progress)

    def _latent_size(self, size: Size) -> Size:
        return size[0] // self.vae_scale_factor, size[1] // self.vae_scale_factor

    def _negative_text(self, settings: Settings) -> Tensor | None:
        return self.encode_text(settings.negative_prompt) if settings.cfg_scale > 1 else None

    def _control_image(self, image: Any, working: Size, padded: Size, corner: tuple[int, int]) -> Tensor:
        """The working image (1, 3, H, W) in [0, 1] at `corner` (top, left), extended by its edge pixels to `padded`."""
        control_image = images.to_tensor(images.resize(image, working), self.device)
        (top, left), bottom, right = corner, padded[0] - working[0] - corner[0], padded[1] - working[1] - corner[1]
        margins = (left, right, top, bottom)
        return F.pad(control_image, margins, mode="replicate") if any(margins) else control_image
