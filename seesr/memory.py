"""Memory: the tile plan of an upscale, the bytes that it needs, and retry on out-of-memory."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from seesr import hardware, sizes
from seesr.color_fix import FIDELITY_PEAK_IMAGES, PEAK_IMAGES
from seesr.settings import NEUTRAL_FIDELITY, Settings
from seesr.sizes import Size
from seesr.tiling import TileGrid, tile_grid
from seesr.vae import tiling, vae_scale_factor
from seesr.vae.attention import FULL_ATTENTION_MAX_PIXELS

log = logging.getLogger(__name__)

# The smallest plan, in latent pixels, latent pixels, tiles and image rows.
MIN_LATENT_TILE, MIN_VAE_TILE, MIN_STATS_TILES, MIN_STRIP = 16, 16, 8, 128
SMALL_VAE_TILE = 64  # latent pixels; below it, fewer statistics tiles come before smaller tiles: halos cost time
FAST_VAE_TILES = 2  # times the tile of the VAE
ADVICE = "lower scale_factor, send a smaller image or use a GPU with more memory"

T = TypeVar("T")


@dataclass(frozen=True)
class VaeTilePlan:
    """How one direction of the VAE is tiled. `tile` is in latent pixels; 0 means no tiles.

    `stats_tiles` is how many tiles decide the GroupNorm statistics. None means all, which is exact. `fast` is the small
    autoencoder, which has none.
    """

    tile: int
    stats_tiles: int | None = None
    fast: bool = False

    def shrink(self, size: Size) -> "VaeTilePlan | None":
        """The next smaller plan for a latent of `size`; None if there is none."""
        tile = min(self.tile or max(size), max(size)) // 2
        if tile >= (MIN_VAE_TILE if self.fast else SMALL_VAE_TILE):
            return replace(self, tile=tile)
        if self.fast:
            return None
        count = tiling.tile_count(size, self.tile)
        stats_tiles = min(count, self.stats_tiles or count) // 2
        if stats_tiles >= MIN_STATS_TILES:
            return replace(self, stats_tiles=stats_tiles)
        return replace(self, tile=tile) if tile >= MIN_VAE_TILE else None


@dataclass(frozen=True)
class TilePlan:
    """The sizes of one upscale, in latent pixels; `tile_batch` tiles and `strip` image rows (colour fix) at a time."""

    latent_tile: int
    overlap: int
    tile_batch: int
    encode: VaeTilePlan
    decode: VaeTilePlan
    strip: int = 512

    @classmethod
    def wanted(cls, profile: hardware.Profile, settings: Settings) -> "TilePlan":
        """The tiles of the request, else of the profile, before free memory is considered."""
        tile = sizes.legal_tile(settings.latent_tiled_size) or profile.latent_tile
        overlap = sizes.legal_overlap(settings.latent_tiled_overlap, tile) or sizes.default_overlap(tile)
        vae = VaeTilePlan(profile.vae_tile)
        if settings.fast_vae:
            vae = VaeTilePlan(FAST_VAE_TILES * profile.vae_tile, fast=True)
        return cls(tile, overlap, profile.tile_batch, vae, vae)

    def grid(self, size: Size) -> TileGrid:
        """The tiles over a latent of `size`."""
        return tile_grid(size, self.latent_tile, self.overlap)

    def encode_size(self, size: Size) -> Size:
        """The latent size at which the image of a latent of `size` is encoded."""
        return sizes.encode_size(size)

    def shrink(self, stage: str, size: Size, particles: int = 1) -> "TilePlan | None":
        """The next smaller plan after `stage` ran out of memory on a latent of `size`; None if there is none."""
        if stage == "denoise":
            return self._shrink_denoise(size, particles)
        if stage == "color" and self.strip > MIN_STRIP:
            return replace(self, strip=self.strip // 2)
        if stage == "encode" and (plan := self.encode.shrink(self.encode_size(size))) is not None:
            return replace(self, encode=plan)
        if stage == "decode" and (plan := self.decode.shrink(size)) is not None:
            return replace(self, decode=plan)
        return None

    def _shrink_denoise(self, size: Size, particles: int) -> "TilePlan | None":
        count = len(self.grid(size)) * particles
        if min(self.tile_batch, count) > 1:
            return replace(self, tile_batch=min(self.tile_batch, count) // 2)
        tile = min(self.latent_tile, max(size)) // 2
        if tile < MIN_LATENT_TILE:
            return None
        return replace(self, latent_tile=tile, overlap=sizes.shrink_overlap(self.overlap, tile))

    def __str__(self) -> str:
        words = [f"latent tiles of {self.latent_tile} overlapping {self.overlap}, {self.tile_batch} at a time"]
        for direction, plan in (("encode", self.encode), ("decode", self.decode)):
            sample = "" if plan.stats_tiles is None else f" ({plan.stats_tiles} decide its statistics)"
            name = "fast VAE" if plan.fast else "VAE"
            tiles = f"{name} tiles of {plan.tile}{sample}" if plan.tile else f"no {name} tiles"
            words.append(f"{tiles} to {direction}")
        return ", ".join([*words, f"colours by {self.strip} rows"])


def retry_on_oom(stage: str, work: Callable[[], T], shrink: Callable[[], bool] = lambda: False) -> T:
    """Run `work`; on out-of-memory, retry while `shrink` reduces the plan, then once more, then raise MemoryError."""
    last_try = False
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not hardware.is_out_of_memory(error):
                raise
        hardware.free_cached_memory()
        if not shrink():
            if last_try:
                text = f"there is not enough memory for the {stage} stage, even with the smallest tiles"
                raise MemoryError(f"{text}; {ADVICE}")
            last_try = True
            log.warning("Out of memory in the %s stage: freed cached memory, trying once more.", stage)


@dataclass(frozen=True)
class MemoryModel:
    """Predicts the device memory of an upscale, in bytes, from the constants of bundle.json for the VAE's dtype.

    scripts/dry_run.py measures them. "states" is per prompt; "embedding" and "networks" are per latent pixel, and so
    are "untiled", "mid_block" and "mid_block_sampled" of "encode" and "decode". Their "tiles" has a row per GroupNorm:
    three coefficients of what a waiting tile holds and three of what a running one needs (see `_tile_bytes`).
    "tiny_encode" and "tiny_decode", of the small autoencoder, have a halo and bytes per latent pixel by resolution.
    """

    constants: Mapping[str, Any]
    vae_scale_factor: int
    itemsize: int
    """Of the VAE's dtype."""
    latent_channels: int
    vae_width: int
    controlnet_width: int
    """Channels of the VAE's middle block and of the control image's embedding."""
    encoder_layers: tuple[str, ...]

    @classmethod
    def of(cls, controlnet: Any, vae: Any, constants: Mapping[str, Any]) -> "MemoryModel":
        """For networks of seesr.bundle."""
        channels, width = vae.config["latent_channels"], vae.config["block_out_channels"][-1]
        embedding, layers = controlnet.config["block_out_channels"][0], tuple(tiling.layers_of(vae, "encode"))
        return cls(constants, vae_scale_factor(vae), vae.dtype.itemsize, channels, width, embedding, layers)

    def peaks(self, size: Size, settings: Settings, plan: TilePlan) -> dict[str, int]:
        """Bytes beside the weights at each stage's peak, for a padded working image of `size`."""
        latent = (size[0] // self.vae_scale_factor, size[1] // self.vae_scale_factor)
        image, state = 12 * size[0] * size[1], 4 * self.latent_channels * latent[0] * latent[1]
        particles = settings.particles
        noise = (settings.num_inference_steps + 1) * state * particles
        reduced = plan.encode_size(latent)
        encoding = 12 * self.vae_scale_factor**2 * math.prod(reduced) + 2 * state * (particles - 1)
        encoding += self._vae("encode", reduced, plan.encode)
        sampling = (2 + 5 * particles) * state  # the posterior's moments, then its samples and noise
        # The distances between all pairs of particles at every latent pixel, twice while they are compared.
        steering = 0 if particles == 1 else 2 * 4 * particles**2 * latent[0] * latent[1]
        strip = 12 * size[1] * min(plan.strip + 62, size[0])
        held = [PEAK_IMAGES[settings.color_fix]]
        if settings.fidelity != NEUTRAL_FIDELITY:
            held.append(FIDELITY_PEAK_IMAGES)
        return {
            "encode": image + noise + max(encoding, sampling),
            "denoise": image + noise + 4 * state * particles + steering + self._denoise(latent, settings, plan),
            "decode": image + noise + (2 + particles) * state + self._vae("decode", latent, plan.decode),
            "color": max(images * image + strips * strip for images, strips in held) + noise + state,
        }

    def fit(self, size: Size, settings: Settings, plan: TilePlan, free: int) -> TilePlan:
        """`plan`, shrunk until every stage needs at most `free` bytes. Raises ValueError if it can't shrink so far."""
        latent = (size[0] // self.vae_scale_factor, size[1] // self.vae_scale_factor)
        while True:
            peaks = self.peaks(size, settings, plan)
            stage = max(peaks, key=lambda name: peaks[name])
            if peaks[stage] <= free:
                return plan
            if (smaller := plan.shrink(stage, latent, settings.particles)) is None:
                needed = f"needs about {peaks[stage] / 1e9:.1f} GB of memory in the {stage} stage"
                found = f"a result of {size[1]} x {size[0]} pixels {needed}, {max(0, free) / 1e9:.1f} GB are free"
                raise ValueError(f"{found}; {ADVICE}")
            plan = smaller

    def _denoise(self, latent: Size, settings: Settings, plan: TilePlan) -> int:
        """Batches of tiles. The control image is embedded tile by tile; further steps keep all embeddings."""
        grid, constants = plan.grid(latent), self.constants
        area = grid.tile[0] * grid.tile[1]
        batch = min(plan.tile_batch, len(grid) * settings.particles) * settings.branches
        cached = len(grid) if settings.num_inference_steps > 1 else 1
        running = max(area * constants["embedding"], constants["states"] + area * batch * constants["networks"])
        return int(self.controlnet_width * self.itemsize * area * cached + running)

    def _vae(self, direction: tiling.Direction, latent: Size, plan: VaeTilePlan) -> int:
        """Encode or decode, with its input in the VAE's dtype and its result in float32."""
        constants, area = self.constants[f"tiny_{direction}" if plan.fast else direction], latent[0] * latent[1]
        values = 3 * self.vae_scale_factor**2 * area
        source = values * self.itemsize if direction == "encode" and self.itemsize < 4 else 0
        result = values * self.itemsize if direction == "decode" else 0
        wide = values * 4 if direction == "decode" and self.itemsize < 4 else 0
        if plan.fast:
            tile = [-(-length // -(-length // (plan.tile or length))) for length in latent]
            sides = ([min(a + 2 * halo, b) for a, b in zip(tile, latent, strict=True)] for halo, _ in constants)
            running = max(math.prod(side) * held for side, (_, held) in zip(sides, constants, strict=True))
            return source + int(max(running + result, result + wide))
        if plan.tile == 0 or plan.tile >= max(latent):
            return source + int(constants["untiled"] * area)
        height, width = (-(-length // -(-length // plan.tile)) for length in latent)
        count = tiling.tile_count(latent, plan.tile)
        waiting = min(plan.stats_tiles or count, count) - 1
        # An encoder's tiles are largest at their start, with their halos; a decoder's at their end, without.
        mean, most = self._halo_share(latent, plan.tile) if direction == "encode" else (1.0, 1.0)
        tiles = max(
            waiting * mean * _tile_bytes(row[:3], height, width) + most * _tile_bytes(row[3:], height, width)
            for row in constants["tiles"]
        )
        tiles += self.vae_width * self.itemsize * area
        sampled = area > FULL_ATTENTION_MAX_PIXELS
        mid_block = constants["mid_block_sampled" if sampled else "mid_block"] * area
        return source + int(max(mid_block, tiles + result, result + wide))

    def _halo_share(self, size: Size, tile: int) -> tuple[float, float]:
        """What encoder tiles over a latent of `size` read, the mean and the most, as a share of an inner tile."""
        mean, most, factor = 1.0, 1.0, self.vae_scale_factor
        for length in size:
            spans = [(a * factor, b * factor) for a, b in tiling.split_evenly(length, tile)]
            length *= factor
            read = [b - a for a, b in (tiling.receptive_field(span, length, self.encoder_layers) for span in spans)]
            inner = (length, length + spans[0][1])
            start, stop = tiling.receptive_field(inner, 3 * length, self.encoder_layers)
            mean *= sum(read) / len(read) / (stop - start)
            most *= max(read) / (stop - start)
        return mean, most


def _tile_bytes(coefficients: list[float], height: int, width: int) -> float:
    """Bytes of a VAE tile; because of halos they grow with the sides too."""
    area, side, constant = coefficients
    return area * height * width + side * (height + width) + constant
