"""Memory: what an upscale will take, the tiles that fit into what is free, and what to do where that was wrong."""

import copy
import functools
import logging
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from seesr import hardware, vae_tiling
from seesr.settings import NEUTRAL, Settings
from seesr.tiling import TileGrid, tile_grid

log = logging.getLogger(__name__)

LATENT_FLOOR, VAE_FLOOR, TOGETHER_FLOOR, STRIP_FLOOR = 16, 16, 8, 128
"""The least that running out of memory may lead to: latent pixels, latent pixels, tiles, picture rows."""

VAE_TILE = 64
"""VAE tiles from which on fewer of them settle the statistics, before they get smaller: their borders cost time."""

T = TypeVar("T")


@dataclass(frozen=True)
class VaeTiles:
    """How one way through the VAE is tiled. `tile` is in latent pixels, 0 means no tiles.

    `together` is how many tiles settle the GroupNorm statistics; None means all, which is exact.
    """

    tile: int
    together: int | None = None

    def smaller(self, size: tuple[int, int]) -> "VaeTiles | None":
        """What to try after memory ran out on a latent of `size`; None where nothing is left to try."""
        tile = min(self.tile or max(size), max(size)) // 2
        if tile >= VAE_TILE:
            return VaeTiles(tile, self.together)
        count = vae_tiling.tile_count(size, self.tile)
        together = min(count, self.together or count) // 2
        if together >= TOGETHER_FLOOR:
            return VaeTiles(self.tile, together)
        return VaeTiles(tile, self.together) if tile >= VAE_FLOOR else None


@dataclass(frozen=True)
class Plan:
    """What memory decides about one upscale.

    `latent_tile` and `overlap` are in latent pixels, `strip` is the rows whose colours are matched at once.
    """

    latent_tile: int
    overlap: int
    tile_batch: int
    encode: VaeTiles
    decode: VaeTiles
    strip: int = 512

    def grid(self, size: tuple[int, int]) -> TileGrid:
        """The tiles over a latent of `size` (height, width)."""
        return tile_grid(size, self.latent_tile, self.overlap)

    def encoded(self, size: tuple[int, int]) -> tuple[int, int]:
        """At which size a picture of a latent of `size` (height, width) is encoded, in latent pixels."""
        return vae_tiling.encoded_size(size)

    def smaller(self, stage: str, size: tuple[int, int], particles: int = 1) -> "Plan | None":
        """What to try after `stage` ran out of memory on a latent of `size`; None where nothing is left to try."""
        if stage == "denoise":
            return self._smaller_tiles(size, particles)
        if stage == "color" and self.strip > STRIP_FLOOR:
            return replace(self, strip=self.strip // 2)
        if stage == "encode" and (tiles := self.encode.smaller(self.encoded(size))) is not None:
            return replace(self, encode=tiles)
        if stage == "decode" and (tiles := self.decode.smaller(size)) is not None:
            return replace(self, decode=tiles)
        return None

    def _smaller_tiles(self, size: tuple[int, int], particles: int) -> "Plan | None":
        count = len(self.grid(size)) * particles
        if min(self.tile_batch, count) > 1:
            return replace(self, tile_batch=min(self.tile_batch, count) // 2)
        tile = min(self.latent_tile, max(size)) // 2
        if tile < LATENT_FLOOR:
            return None
        return replace(self, latent_tile=tile, overlap=min(self.overlap, math.ceil(tile / 4)))

    def __str__(self) -> str:
        parts = [f"latent tiles of {self.latent_tile} overlapping {self.overlap}, {self.tile_batch} at a time"]
        for way, tiles in (("encode", self.encode), ("decode", self.decode)):
            sample = "" if tiles.together is None else f" ({tiles.together} settle its statistics)"
            parts.append(f"VAE tiles of {tiles.tile}{sample} to {way}" if tiles.tile else f"no VAE tiles to {way}")
        return ", ".join([*parts, f"colours by {self.strip} rows"])


def attempt(stage: str, work: Callable[[], T], shrink: Callable[[], bool] = lambda: False) -> T:
    """Run `work`; where memory runs out, free what can be freed and run it again, smaller if `shrink` finds a way.

    Without one it is run once more as it is. Raises MemoryError with one sentence when that was not enough.
    """
    again = True
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not hardware.is_out_of_memory(error):
                raise
        hardware.free_cached_memory()
        if not shrink():
            if not again:
                raise MemoryError(
                    f"there is not enough memory for the {stage} stage, even with the smallest tiles; lower "
                    "scale_factor, send a smaller image or use a GPU with more memory"
                )
            again = False
            log.warning("Out of memory in the %s stage: freed what could be freed, trying once more.", stage)


class LiveBytes(TorchDispatchMode):
    """Within the block: how many bytes the tensors hold that it makes; `peak` is the most at one time.

    Counts on any device, the meta device included, where nothing is computed. What kernels take for themselves is
    not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


class FusedAttention(TorchFunctionMode):
    """Within the block attention computes nothing and, as the fused kernels do, keeps no attention matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3] if len(args) >= 3 else [*args, *(kwargs or {}).values()][:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def skeleton(model: nn.Module) -> Any:
    """The same network without its values, on the meta device: for dry runs."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): _without_values(t) for t in tensors})


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


class MemoryModel:
    """Predicts the device memory of an upscale by running its heavy parts dry, on the meta device.

    `run` is the pipeline's ControlNet and UNet call: (controlnet, unet, latent, control, text, tokens, t) -> output.
    """

    def __init__(self, controlnet: Any, unet: Any, vae: Any, run: Callable[..., Tensor]) -> None:
        self.vae = skeleton(vae)
        networks = skeleton(controlnet), skeleton(unet)
        self._call, self._embed = functools.partial(run, *networks), networks[0].controlnet_cond_embedding
        self._text, self._tokens = unet.config["cross_attention_dim"], _token_dim(unet)
        self._embedded = controlnet.config["block_out_channels"][0]
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.channels: int = vae.config["latent_channels"]
        self.bytes: int = vae.dtype.itemsize
        self._states = (4 + (self.bytes if self.bytes < 4 else 0)) * (77 * self._text + 145 * self._tokens)
        """Bytes of the text's states and the image's tokens, float32, and of their copies in a shorter dtype."""
        self._network = functools.cache(self._measure_network)  # a second or two with the real networks: once
        self._whole = functools.cache(self._measure_whole)
        self._middle = functools.cache(self._measure_middle)
        self._tile = functools.lru_cache(64)(self._measure_tile)

    def peaks(self, size: tuple[int, int], settings: Settings, plan: Plan) -> dict[str, int]:
        """Bytes beside the weights at each stage's worst moment, for a padded working picture of `size` (H, W)."""
        latent = (size[0] // self.factor, size[1] // self.factor)
        picture, state = 12 * size[0] * size[1], 4 * self.channels * latent[0] * latent[1]
        particles = settings.particles
        drawn = (settings.num_inference_steps + 1) * state * particles
        encoded = plan.encoded(latent)
        given = 12 * self.factor**2 * math.prod(encoded)
        sampling = (2 + 5 * particles) * state  # the posterior's moments, then its samples and noise
        grid = plan.grid(latent)
        area = grid.tile[0] * grid.tile[1]
        batch = min(plan.tile_batch, len(grid) * particles) * settings.branches
        tiles = self._tiles(area * batch, False)
        if settings.network_calls > 1:  # each tile is embedded once; for further steps all embeddings are kept
            kept = len(grid) if settings.num_inference_steps > 1 else 1
            tiles = self._embedded * self.bytes * area * kept + max(
                self._tiles(area, False), self._tiles(area * batch, True)
            )
        strip = 12 * size[1] * min(plan.strip + 62, size[0])
        ways = [_COLOR[settings.color_fix], *([_FIDELITY] if settings.fidelity != NEUTRAL else [])]
        color = max(wholes * picture + strips * strip for wholes, strips in ways)
        return {
            "encode": picture
            + drawn
            + max(given + 2 * state * (particles - 1) + self._vae("encode", encoded, plan.encode), sampling),
            "denoise": picture + drawn + 4 * state * particles + _steering(latent, particles) + tiles,
            "decode": picture + drawn + 2 * state + self._vae("decode", latent, plan.decode),
            "color": color + drawn + state,
        }

    def fit(self, size: tuple[int, int], settings: Settings, plan: Plan, free: int) -> Plan:
        """The first plan, from `plan` down, whose every stage stays within `free` bytes.

        Raises ValueError where none does.
        """
        latent = (size[0] // self.factor, size[1] // self.factor)
        while True:
            peaks = self.peaks(size, settings, plan)
            stage = max(peaks, key=lambda name: peaks[name])
            if peaks[stage] <= free:
                return plan
            smaller = plan.smaller(stage, latent, settings.particles)
            if smaller is None:
                raise ValueError(
                    f"a result of {size[1]} x {size[0]} pixels needs about {peaks[stage] / 1e9:.1f} GB of memory in "
                    f"the {stage} stage, {max(0, free) / 1e9:.1f} GB are free; lower scale_factor, send a smaller "
                    "image or use a GPU with more memory"
                )
            plan = smaller

    def _tiles(self, area: int, embedded: bool) -> int:
        """ControlNet and UNet on tiles of `area` latent pixels in all: what they hold grows with the pixels.

        `embedded` if they are given the embedded picture, which then stands where the picture would.
        """
        embedding, networks = self._network()
        if not embedded:
            networks = max(embedding, networks + 3 * 4 * self.factor**2 - self._embedded * self.bytes)
        return self._states + int(area * networks)

    def _vae(self, way: str, latent: tuple[int, int], tiles: VaeTiles) -> int:
        """What vae_tiling.encode or decode holds, its input in the VAE's dtype and its result in float32 included."""
        area = latent[0] * latent[1]
        pixels = 3 * self.factor**2 * area
        given = pixels * self.bytes if way == "encode" and self.bytes < 4 else 0
        if tiles.tile == 0 or tiles.tile >= max(latent):
            return given + int(self._whole(way) * area)
        sides = [-(-length // -(-length // tiles.tile)) for length in latent]
        count = vae_tiling.tile_count(latent, tiles.tile)
        together = min(tiles.together or count, count)
        middle = self._middle(way, area > vae_tiling.WHOLE_ATTENTION) * area
        # A decoder's tiles have used up their borders where they are largest, an encoder's start there with them.
        mean, most = vae_tiling.border_share(self.vae, latent, tiles.tile) if way == "encode" else (1.0, 1.0)
        kept = max((together - 1) * mean * waiting + most * busy for waiting, busy in self._tile(way, *sides))
        kept += self.vae.config["block_out_channels"][-1] * self.bytes * area
        result = pixels * self.bytes if way == "decode" else 0
        wide = pixels * 4 if way == "decode" and self.bytes < 4 else 0
        return given + int(max(middle, kept + result, result + wide))

    @torch.inference_mode()
    def _measure_network(self) -> tuple[float, float]:
        """Bytes per latent pixel of embedding a picture, and of ControlNet and UNet given it embedded."""
        side = 32
        with torch.device("meta"), FusedAttention():
            with LiveBytes() as embedding:
                latent = torch.empty(1, self.channels, side, side)
                control = torch.empty(1, 3, side * self.factor, side * self.factor)
                embedded = self._embed(control.to(self.vae.dtype))
            del control, latent
            with LiveBytes() as live:
                latent, embedded = torch.empty(1, self.channels, side, side), embedded.clone()
                text, tokens = torch.empty(1, 77, self._text), torch.empty(1, 145, self._tokens)
                self._call(latent, embedded, text, tokens, 999)
        return embedding.peak / side**2, (live.peak - self._states) / side**2

    @torch.inference_mode()
    def _measure_whole(self, way: str) -> float:
        """Bytes per latent pixel of the untiled encoder or decoder, its result in float32 included."""
        side = 32
        shape = (self.channels, side, side) if way == "decode" else (3, side * self.factor, side * self.factor)
        with torch.device("meta"), FusedAttention():
            part = torch.empty(1, *shape, dtype=self.vae.dtype)
            with LiveBytes() as live:
                getattr(self.vae, f"{way}r")(part).float()
        return live.peak / side**2

    @torch.inference_mode()
    def _measure_middle(self, way: str, sampled: bool) -> float:
        """Bytes per latent pixel of the middle block, what it is given included."""
        side = 8 * vae_tiling.WINDOW if sampled else 32  # one block's keys must not be charged to every pixel
        block = getattr(self.vae, f"{way}r").mid_block
        with torch.device("meta"), FusedAttention(), LiveBytes() as live:
            hidden = torch.empty(1, self.vae.config["block_out_channels"][-1], side, side, dtype=self.vae.dtype)
            vae_tiling.middle(block, hidden, 4 if sampled else 1)
        return live.peak / side**2

    @torch.inference_mode()
    def _measure_tile(self, way: str, height: int, width: int) -> list[tuple[int, int]]:
        """Between each two norms of a VAE tile of this many latent pixels: what it holds at them, and on the way."""
        held: list[int] = []
        peaks: list[int] = []
        with torch.device("meta"), LiveBytes() as live:
            for _ in vae_tiling.dry_tile(self.vae, way, (height, width)):
                held.append(live.now)
                peaks.append(live.peak)
                live.peak = live.now
        source, after = held[0], [*held[1:], held[0]]
        peaks = [*peaks[1:], live.peak]
        return [(max(pair) - source, peak - source) for *pair, peak in zip(held, after, peaks, strict=True)]


_COLOR = {"wavelet": (3, 4), "dwt": (4, 0), "adain": (5, 0), "none": (2, 0)}
"""What color_fix.match_color holds at its worst: whole pictures (its two arguments too), and strips of one."""

_FIDELITY = (3, 6)
"""The same of color_fix.set_fidelity, which follows it."""


def _steering(latent: tuple[int, int], particles: int) -> int:
    """What kds.steer holds: the distances of every pair at every latent pixel, float32, once more while they pool."""
    return 0 if particles == 1 else 2 * 4 * particles**2 * latent[0] * latent[1]


def _token_dim(unet: Any) -> int:
    for name, parameter in unet.named_parameters():
        if "image" in name and name.endswith("attn2.to_k.weight"):
            return parameter.shape[1]
    raise RuntimeError("the UNet has no image attention")
