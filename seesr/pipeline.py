"""SeeSR: the steps of one upscale, in the order they happen."""

import itertools
import logging
import math
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from seesr import hardware, images, kds, vae_tiling, weights
from seesr.color_fix import match_color, set_fidelity
from seesr.memory import MemoryModel, Plan, VaeTiles
from seesr.prompts import PromptEncoder
from seesr.run import Draws, Noise, Run
from seesr.schedule import Schedule
from seesr.settings import NEUTRAL, Settings
from seesr.tiling import LEAST, TileGrid
from seesr.upsampling import double_by_phases

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

FINER_PIXELS = 2048 * 2048
"""The largest working picture that a bundle's least scale may ask for."""


@dataclass(frozen=True)
class Result:
    """One upscale: the picture (RGB), what the tagger saw, the seed used, seconds per stage, tiles per step.

    `plan` holds the sizes that it ran with; `recoveries` counts what had to be done again ("out of memory in decode",
    "overflow in denoise"), and is empty when all went well.
    """

    image: "Image.Image"
    tags: list[str]
    prompt: str
    seed: int
    timings: dict[str, float]
    tiles: int
    plan: Plan
    recoveries: dict[str, int]

    def metrics(self) -> dict[str, Any]:
        """What the answer of a prediction tells, beside its files."""
        told = {name: getattr(self, name) for name in ("seed", "tags", "tiles", "recoveries")}
        return told | {"plan": str(self.plan), "seconds": {name: round(s, 4) for name, s in self.timings.items()}}


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
        self.memory_limit: int | None = None
        """Bytes that an upscale may plan with, where that is less than what is free."""
        self.schedule = Schedule(parts.scheduler)
        self.prompts = PromptEncoder(parts.tokenizer, parts.text_encoder)
        self.factor = 2 ** (len(parts.vae.config["block_out_channels"]) - 1)
        """Picture pixels per latent pixel: 8 for SD-Turbo."""
        parts.controlnet.controlnet_cond_embedding.__class__ = EmbedOnce
        double_by_phases(parts.vae.decoder)
        self.memory = MemoryModel(parts.controlnet, parts.unet, parts.vae, call_networks)
        self.attention = hardware.use_fast_attention(device, parts.unet, parts.controlnet, parts.vae)

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
        seesr = cls(parts, profile, device)
        log.info("Loaded %s on %s (tiles of %s, attention by %s).", parts.name, device, profile.name, seesr.attention)
        return seesr

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
        assert settings.seed is not None
        image = image.convert("RGB")
        size, limit = (image.height, image.width), self.profile.output_pixels
        parts = self.parts
        target, working = working_size(size, settings.scale_factor, parts.process_size, limit, parts.least_scale)
        padded = self._padded_size(working)
        run = self._run(settings, noise, padded)
        tags, tokens = run.stage("tag", lambda: self._tag(image))
        log.info("Tags: %s", ", ".join(tags) or "(none)")
        prompt = self.prompts.compose(tags, settings.user_prompt, settings.positive_prompt)
        conditions = run.stage("text", lambda: self._conditions(prompt, tokens, settings))
        control = run.stage("resize", lambda: self._control(image, working, padded))
        latent = run.stage("encode", lambda: self._start(control, run))
        grid, latent = run.stage("denoise", lambda: self._denoise_in_tiles(latent, control, conditions, run))
        result = run.stage("decode", lambda: self._decode(latent, run)[:, :, : working[0], : working[1]])
        control = control[:, :, : working[0], : working[1]]
        result = run.stage("color", lambda: match_color(result, control, settings.color_fix, run.plan.strip))
        if settings.fidelity != NEUTRAL:
            result = run.stage("color", lambda: set_fidelity(result, control, settings.fidelity, run.plan.strip))
        picture = run.stage("resize", lambda: images.resize(images.to_image(result), target))
        if settings.color_fix != "none" and images.is_colourless(image):
            picture = picture.convert("L").convert("RGB")
        return Result(picture, tags, prompt, settings.seed, run.seconds, len(grid), run.plan, dict(run.recoveries))

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
        parts = self.parts
        return call_networks(
            parts.controlnet, parts.unet, latent.to(self.device), control, text, tokens, t, conditioning_scale
        )

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

        With use_kds it is one of num_particles, steered.

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
        negative = None
        if settings.cfg_scale > 1:
            negative = self.encode_text(settings.negative_prompt) if negative_text is None else negative_text
        run = self._run(settings, noise, (control.shape[2], control.shape[3]))
        latent = self._start(control, run)
        return self._denoise(latent, control, Conditions(text, tokens, negative), run, grid or run.plan.grid(run.size))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """(1, C, h, w), scaled -> (1, 3, H, W) in [0, 1], float32"""
        size = (latent.shape[2] * self.factor, latent.shape[3] * self.factor)
        return self._decode(latent.to(self.device), self._run(Settings(num_inference_steps=1), None, size))

    def plan(self, size: tuple[int, int], settings: Settings) -> Plan:
        """The tiles for a padded working picture of `size` (H, W): the request's, else the hardware's.

        They are halved until what is free holds them. Raises ValueError where nothing does, and for an overlap that
        is more than half of the tile.
        """
        tile = settings.latent_tiled_size or self.profile.latent_tile
        usual = self.profile.overlap if tile == self.profile.latent_tile else math.ceil(tile / 8)
        overlap = settings.latent_tiled_overlap or usual
        if overlap > tile // 2:
            raise ValueError(
                f"latent_tiled_overlap must be at most half of this machine's tile ({tile}), got {overlap}; "
                "lower it, or set latent_tiled_size too"
            )
        vae = VaeTiles(self.profile.vae_tile)
        wanted = Plan(tile, overlap, self.profile.tile_batch, vae, vae)
        free = hardware.free_memory(self.device)
        plan = self.memory.fit(size, settings, wanted, min(free, self.memory_limit or free))
        log.info("Runs with %s%s.", plan, "" if plan == wanted else ", to stay within the free memory")
        return plan

    def warm_up(self) -> None:
        """Run once what the first request would otherwise wait for: kernels, for one tile as every GPU has it."""
        side = LEAST * self.factor // 8
        picture = images.to_image(torch.linspace(0, 1, 3 * side * side).view(1, 3, side, side))
        self.upscale(picture, Settings(num_inference_steps=2, scale_factor=8, seed=0))

    def _run(self, settings: Settings, noise: Noise | None, size: tuple[int, int]) -> Run:
        """For a padded working picture of `size` (H, W)."""
        latent = (size[0] // self.factor, size[1] // self.factor)
        draw = Draws(noise or seeded_noise(settings.seed))
        return Run(settings, draw, self.plan(size, settings), latent, self.device)

    def _tag(self, image: "Image.Image") -> tuple[list[str], Tensor]:
        return self.parts.tagger(images.to_tensor(image, self.device))

    def _conditions(self, prompt: str, tokens: Tensor, settings: Settings) -> Conditions:
        negative = self.encode_text(settings.negative_prompt) if settings.cfg_scale > 1 else None
        return Conditions(self.encode_text(prompt), tokens, negative)

    def _control(self, image: "Image.Image", working: tuple[int, int], padded: tuple[int, int]) -> Tensor:
        """The working picture, (1, 3, H, W) in [0, 1], grown right and down by its edge pixels to `padded`."""
        control = images.to_tensor(images.resize(image, working), self.device)
        bottom, right = (to - side for to, side in zip(padded, working, strict=True))
        return F.pad(control, (0, right, 0, bottom), mode="replicate") if bottom or right else control

    def _padded_size(self, working: tuple[int, int]) -> tuple[int, int]:
        """Multiples of `factor`, and at least the process size, which a long thin picture was not enlarged to."""
        height, width = (-(-max(side, self.parts.process_size) // self.factor) * self.factor for side in working)
        return height, width

    def _start(self, control: Tensor, run: Run) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> the noisy latents (N, C, h, w) that denoising starts from, one per particle"""
        vae = self.parts.vae
        shape = (run.settings.particles, vae.config["latent_channels"], *run.size)
        start = run.draw("init", shape).to(self.device, torch.float32)
        if run.settings.start_point == "noise":
            return start
        mean, logvar = self._encode(control, run).chunk(2, dim=1)
        # The posterior's sample, as upstream; its mode would be a little smoother.
        posterior = mean + (logvar.clamp(-30, 20) / 2).exp() * run.draw("vae", shape).to(self.device, torch.float32)
        latent = (posterior - (vae.config["shift_factor"] or 0.0)) * vae.config["scaling_factor"]
        return self.schedule.add_noise(latent, start, self.schedule.last)

    def _encode(self, control: Tensor, run: Run) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> the posterior's moments (1, 2C, h, w)

        A large picture is reduced first and its moments are enlarged: at the first timestep they weigh 0.07 beside
        the noise, and what the picture shows comes from the ControlNet.
        """
        size = run.plan.encoded(run.size)
        if size == run.size:
            return self._vae("encode", control.mul(2).sub_(1), run)
        sides = [side * self.factor for side in size]
        reduced = F.interpolate(control, sides, mode="bilinear", antialias=True, align_corners=False)
        moments = self._vae("encode", reduced.mul_(2).sub_(1), run)
        return F.interpolate(moments, run.size, mode="bicubic", align_corners=False)

    def _decode(self, latent: Tensor, run: Run) -> Tensor:
        vae = self.parts.vae
        latent = latent / vae.config["scaling_factor"] + (vae.config["shift_factor"] or 0.0)
        return self._vae("decode", latent, run).div_(2).add_(0.5).clamp_(0, 1)

    def _vae(self, way: str, part: Tensor, run: Run) -> Tensor:
        """Encode or decode, in float32 out; where half precision overflows, once more in float32, which is said."""
        vae: Any = self.parts.vae
        apply = {"encode": vae_tiling.encode, "decode": vae_tiling.decode}[way]

        tiles = run.plan.encode if way == "encode" else run.plan.decode

        def once() -> Tensor:
            return apply(vae, part.to(vae.dtype), tiles.tile, tiles.together).float()

        result = once()
        if not _finite(result) and vae.dtype != torch.float32:
            log.warning("The VAE overflowed in %s (%s): doing it again in float32.", vae.dtype, way)
            run.recoveries[f"overflow in {way}"] += 1
            with hardware.in_float32(vae):
                result = once()
        if not _finite(result):
            raise RuntimeError(f"the VAE's result is not finite ({way}); the bundle or the latent is damaged")
        return result

    def _denoise_in_tiles(
        self, latent: Tensor, control: Tensor, conditions: Conditions, run: Run
    ) -> tuple[TileGrid, Tensor]:
        grid = run.plan.grid(run.size)
        return grid, self._denoise(latent, control, conditions, run, grid)

    def _denoise(self, latent: Tensor, control: Tensor, conditions: Conditions, run: Run, grid: TileGrid) -> Tensor:
        steps = self.schedule.timesteps(run.settings.num_inference_steps)
        pictures = Pictures(self, control, grid, embedded=run.settings.network_calls > 1, kept=len(steps) > 1)
        with tqdm(total=len(steps) * len(grid) * len(latent), desc="denoise", unit="tile", file=sys.stdout) as bar:
            for i, t in enumerate(steps):
                output = self._predict_finite(latent, pictures, t, conditions, run, bar)
                x0 = self.schedule.predict_x0(latent, output, t)
                if run.settings.use_kds:
                    x0 = kds.steer(x0, run.settings.bandwidth)
                if i == len(steps) - 1:
                    return x0[[kds.nearest_to_mean(x0)]] if len(x0) > 1 else x0
                step_noise = run.draw(f"step{i}", tuple(latent.shape)).to(self.device, torch.float32)
                latent = self.schedule.step(latent, x0, t, steps[i + 1], step_noise)
        raise AssertionError("timesteps() returned no step")

    def _predict_finite(
        self, latent: Tensor, pictures: "Pictures", t: int, conditions: Conditions, run: Run, bar: Any
    ) -> Tensor:
        """The blended model output; where half precision overflows, again with attention, then all, in float32."""
        parts, loaded = self.parts, self.dtype
        raised = [hardware.as_loaded, hardware.attention_in_float32, hardware.in_float32]
        while True:
            with raised[run.precision](parts.unet, parts.controlnet):
                output = pictures.grid.blend(self._predict_tiles(latent, pictures, t, conditions, run, bar))
            if _finite(output):
                return output
            if loaded == torch.float32 or run.precision == len(raised) - 1:
                raise RuntimeError("the UNet's result is not finite; the bundle or the image's tags are damaged")
            run.precision += 1
            run.recoveries["overflow in denoise"] += 1
            log.warning("The UNet overflowed in %s: again by %s.", loaded, raised[run.precision].__name__)
            bar.total += len(pictures.grid) * len(latent)

    def _predict_tiles(
        self, whole: Tensor, pictures: "Pictures", t: int, conditions: Conditions, run: Run, bar: Any
    ) -> Iterator[Tensor]:
        """Model outputs (N, C, th, tw) of all tiles; N particles and, with guidance, a second, negative branch each."""
        negative, settings, offsets = conditions.negative_text, run.settings, pictures.grid.offsets
        works = list(itertools.product(range(len(offsets)), range(len(whole))))
        ready: list[Tensor] = []
        for batch in (works[i : i + run.plan.tile_batch] for i in range(0, len(works), run.plan.tile_batch)):
            latent = torch.cat([pictures.grid.crop(whole[[one]], offsets[tile]) for tile, one in batch])
            picture = torch.cat([pictures[tile] for tile, _ in batch])
            text = conditions.text
            if negative is not None:
                text = torch.cat([states.expand(len(latent), -1, -1) for states in (negative, text)])
                latent, picture = latent.repeat(2, 1, 1, 1), picture.repeat(2, 1, 1, 1)
            output = self.predict_noise(latent, t, picture, text, conditions.tokens, settings.conditioning_scale)
            if negative is not None:
                away, toward = output.chunk(2)
                output = away + settings.cfg_scale * (toward - away)
            bar.update(len(batch))
            ready += output.split(1)
            while len(ready) >= len(whole):
                yield torch.cat(ready[: len(whole)])
                ready = ready[len(whole) :]


class Pictures:
    """The control picture by tile; with `embedded` as the ControlNet's embedding, so that several calls share it.

    `kept`: the embeddings of all tiles are, for further steps; else only the latest.
    """

    def __init__(self, seesr: SeeSR, control: Tensor, grid: TileGrid, embedded: bool, kept: bool) -> None:
        self.grid = grid
        self._seesr, self._control, self._embedded, self._kept = seesr, control, embedded, kept
        self._known: dict[tuple[int, torch.dtype], Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        """(1, 3, th, tw) in [0, 1], or (1, C, th, tw) embedded, in the models' present dtype"""
        picture = self.grid.crop(self._control, self.grid.offsets[number], self._seesr.factor)
        if not self._embedded:
            return picture
        key = (number, self._seesr.dtype)
        if key not in self._known:
            if not self._kept:
                self._known.clear()
            embed = self._seesr.parts.controlnet.controlnet_cond_embedding
            self._known[key] = embed(picture.to(self._seesr.dtype))
        return self._known[key]


def call_networks(
    controlnet: Any,
    unet: Any,
    latent: Tensor,
    control: Tensor,
    text: Tensor,
    tokens: Tensor,
    t: int,
    conditioning_scale: float = 1.0,
) -> Tensor:
    """ControlNet, then UNet, on the UNet's device and in its dtype -> (B, C, h, w) in float32"""
    device, dtype = unet.device, unet.dtype
    latent = latent.to(device, dtype)
    context = tuple(states.to(device, dtype).expand(len(latent), -1, -1) for states in (text, tokens))
    step = torch.tensor(t, device=device)
    taps, middle = controlnet(
        latent,
        step,
        encoder_hidden_states=context,
        controlnet_cond=control.to(device, dtype),
        conditioning_scale=conditioning_scale,
        return_dict=False,
    )
    output = unet(
        latent,
        step,
        encoder_hidden_states=context,
        down_block_additional_residuals=taps,
        mid_block_additional_residual=middle,
        return_dict=False,
    )
    return output[0].float()


def _finite(values: Tensor) -> bool:
    """Whether all values are finite: a sum is not if one is not, and takes no memory."""
    return bool(values.sum().isfinite())


def seeded_noise(seed: int | None) -> Noise:
    """Draws from one CPU generator, in the order they are asked for; None draws a seed."""
    generator = torch.Generator().manual_seed(secrets.randbits(32) if seed is None else seed)
    return lambda name, shape: torch.randn(shape, generator=generator)


def working_size(
    size: tuple[int, int],
    scale: float,
    process_size: int,
    limit: int = hardware.OUTPUT_PIXELS,
    least_scale: float = 1.0,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the input -> the target (height, width) and the size to work at.

    The target is round(scale * side). Both are the same unless the target's short side is below `process_size`; then
    the working picture is larger by one factor, but no longer than 8 * `process_size` or the target itself (what a
    long thin picture's short side then lacks is padded). Below `least_scale` it is larger too, as if that had been
    asked for, but no larger than FINER_PIXELS. Raises ValueError for a target of more than `limit` pixels.
    """
    target = (max(1, round(scale * size[0])), max(1, round(scale * size[1])))
    if target[0] * target[1] > limit:
        raise ValueError(
            f"the result may have at most {limit / 1e6:.0f} megapixels, "
            f"scale_factor {scale:g} would give {target[1]} x {target[0]}; lower it or make the image smaller"
        )
    short, long = sorted(target)
    grow = min(max(1.0, process_size / short), max(1.0, 8 * process_size / long))
    grow = max(grow, min(least_scale / scale, math.sqrt(FINER_PIXELS / (short * long))))
    if grow == 1.0:
        return target, target
    return target, (math.ceil(target[0] * grow - 1e-6), math.ceil(target[1] * grow - 1e-6))
