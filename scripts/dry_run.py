"""Run networks without their values, on the meta device, and count the memory of their tensors and their FLOPs.

`measure` gives the constants of bundle.json, for seesr.memory and seesr.progress.
"""

import copy
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from seesr.denoise import embed_control_image, run_controlnet_unet
from seesr.sizes import MIN_TILE
from seesr.vae import attention, tiling, tiny, vae_scale_factor

SIDE = 32
"""Side in latent pixels of the inputs that coefficients per pixel are measured with."""

TILE_SIDES = (16, 48, 128)
"""VAE tiles that the coefficients of tile sizes are fitted to, in latent pixels."""


DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


class TensorMemoryTracker(TorchDispatchMode):
    """Within the block: bytes held by the tensors that it makes; `peak` is the most at one time.

    Counts on any device. On the meta device nothing is computed. What kernels allocate for themselves is not seen.
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
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


class FusedAttention(TorchFunctionMode):
    """Within the block attention computes nothing and, like the fused kernels, allocates no attention matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3] if len(args) >= 3 else [*args, *(kwargs or {}).values()][:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def to_meta(model: nn.Module) -> Any:
    """A copy of the network on the meta device, without values."""
    known: dict[int, Tensor] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        known[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=False)
    return copy.deepcopy(model, known)


def measure(unet: Any, controlnet: Any, vae: Any, ram: Any, tiny_vae: Any = None) -> dict[str, dict[str, Any]]:
    """Networks of seesr.bundle.build_* -> the groups "memory" and "flops" of bundle.json."""
    memory, flops = (
        measure_memory(unet, controlnet, vae, ram.config.token_dim),
        measure_flops(unet, controlnet, vae, ram),
    )
    if tiny_vae is not None:
        for name, dtype in DTYPES.items():
            memory[name] |= _measure_tiny(to_meta(tiny_vae).to(dtype))
        flops |= measure_tiny_flops(tiny_vae)
    return {"memory": memory, "flops": flops}


@torch.inference_mode()
def measure_memory(unet: Any, controlnet: Any, vae: Any, token_width: int) -> dict[str, dict[str, Any]]:
    """Networks of seesr.bundle.build_* -> memory constants for both dtypes that they may run in.

    `token_width` is the width of the image tokens. seesr.memory.MemoryModel says what the constants mean.
    """
    models = [to_meta(model) for model in (unet, controlnet, vae)]
    return {name: _measure([model.to(dtype) for model in models], token_width) for name, dtype in DTYPES.items()}


@torch.inference_mode()
def measure_flops(unet: Any, controlnet: Any, vae: Any, ram: Any) -> dict[str, float]:
    """FLOPs by stage: "tag" of an image; "encode", "denoise" (one pass over a tile) and "decode" per latent pixel."""
    unet, controlnet, vae, ram = (to_meta(model).to(torch.float32) for model in (unet, controlnet, vae, ram))
    side, channels, factor = MIN_TILE, vae.config["latent_channels"], vae_scale_factor(vae)
    text = torch.empty(1, 77, unet.config["cross_attention_dim"])
    image, latent = torch.empty(1, 3, side * factor, side * factor), torch.empty(1, channels, side, side)
    tokens = torch.empty(1, 145, ram.config.token_dim)

    def denoise() -> Tensor:
        embedded = embed_control_image(controlnet, image)
        return run_controlnet_unet(controlnet, unet, latent, 999, embedded, text, tokens)

    size = ram.config.image_size
    runs: dict[str, Callable[[], Tensor]] = {
        "tag": lambda: ram.logits(ram.tokens(torch.empty(1, 3, size, size))),
        "encode": lambda: vae.encoder(image.to("meta")),
        "denoise": denoise,
        "decode": lambda: vae.decoder(latent.to("meta")),
    }
    flops = {}
    for stage, run in runs.items():
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            run()
        flops[stage] = float(counter.get_total_flops()) / (1 if stage == "tag" else side**2)
    return flops


@torch.inference_mode()
def measure_tiny_flops(tiny_vae: Any) -> dict[str, float]:
    """A small autoencoder -> its FLOPs per latent pixel, "tiny_encode" and "tiny_decode"."""
    vae, flops = to_meta(tiny_vae).to(torch.float32), {}
    for direction in ("encode", "decode"):
        source = torch.empty(1, *_source_shape(vae, direction), device="meta")
        with FlopCounterMode(display=False) as counter:
            getattr(tiny, direction)(vae, source)
        flops[f"tiny_{direction}"] = float(counter.get_total_flops()) / SIDE**2
    return flops


@torch.inference_mode()
def _measure_tiny(vae: Any) -> dict[str, list[list[float]]]:
    """A small autoencoder on the meta device -> halo and bytes per latent pixel of its stages, by direction."""
    rows: dict[str, list[list[float]]] = {}
    for direction in ("encode", "decode"):
        with torch.device("meta"), TensorMemoryTracker() as tracker:
            hidden, found = torch.empty(1, *_source_shape(vae, direction), dtype=vae.dtype), []
            for stage in tiny.stages(vae, direction):
                tracker.peak = tracker.now
                for layer in stage.layers:
                    hidden = layer(hidden)
                found.append([stage.halo, round(tracker.peak / SIDE**2, 1)])
        rows[f"tiny_{direction}"] = found
    return rows


def _source_shape(vae: Any, direction: str) -> tuple[int, int, int]:
    """What an autoencoder encodes or decodes for a latent of SIDE: (C, H, W)"""
    factor = vae_scale_factor(vae)
    return (3, SIDE * factor, SIDE * factor) if direction == "encode" else (vae.config["latent_channels"], SIDE, SIDE)


def _measure(models: list[Any], token_width: int) -> dict[str, Any]:
    unet, controlnet, vae = models
    itemsize, text_width = vae.dtype.itemsize, unet.config["cross_attention_dim"]
    states = (4 + (itemsize if itemsize < 4 else 0)) * (77 * text_width + 145 * token_width)
    channels, image_side = vae.config["latent_channels"], SIDE * vae_scale_factor(vae)

    def embed() -> Tensor:
        return embed_control_image(controlnet, torch.empty(1, 3, image_side, image_side))

    embedded = embed()

    def denoise() -> Tensor:
        text, tokens = torch.empty(1, 77, text_width), torch.empty(1, 145, token_width)
        latent = torch.empty(1, channels, SIDE, SIDE)
        return run_controlnet_unet(controlnet, unet, latent, 999, embedded.clone(), text, tokens)

    return {
        "states": states,
        "embedding": round(_peak(embed) / SIDE**2, 1),
        "networks": round((_peak(denoise) - states) / SIDE**2, 1),
        "encode": _measure_vae(vae, "encode"),
        "decode": _measure_vae(vae, "decode"),
    }


def _peak(run: Callable[[], object]) -> int:
    """Bytes that `run` holds at its peak, its result included."""
    with torch.device("meta"), FusedAttention(), TensorMemoryTracker() as tracker:
        run()
    return tracker.peak


def _measure_vae(vae: Any, direction: tiling.Direction) -> dict[str, Any]:
    coder, width = getattr(vae, f"{direction}r"), vae.config["block_out_channels"][-1]
    source = torch.empty(1, *_source_shape(vae, direction), dtype=vae.dtype, device="meta")

    def mid_block(side: int, stride: int) -> float:
        size = (1, width, side, side)
        peak = _peak(lambda: attention.mid_block(coder.mid_block, torch.empty(size, dtype=vae.dtype), stride))
        return round(peak / side**2, 1)

    return {
        "untiled": round(_peak(lambda: coder(source).float()) / SIDE**2, 1),
        "mid_block": mid_block(SIDE, 1),
        # Several windows, so that one window's keys are not charged to every pixel.
        "mid_block_sampled": mid_block(4 * attention.WINDOW, 4),
        "tiles": _fit_tiles(vae, direction),
    }


def _fit_tiles(vae: Any, direction: tiling.Direction) -> list[list[float]]:
    """A row per GroupNorm: coefficients of area, sides and constant for a waiting tile, then for a running one.

    Rows that no tile size and no number of waiting tiles makes the largest are left out.
    """
    measured = torch.tensor([_measure_tile(vae, direction, side) for side in TILE_SIDES], dtype=torch.float64)
    basis = torch.tensor([[side**2, 2 * side, 1] for side in TILE_SIDES], dtype=torch.float64)
    rows = torch.linalg.solve(basis, measured.flatten(1)).unflatten(1, measured.shape[1:])  # (3, norms, 2)
    largest: set[int] = set()
    for side, waiting in itertools.product((16, 24, 32, 48, 64, 96, 128, 256), (0, 7, 63, 4096)):
        bytes_of = torch.tensor([side**2, 2 * side, 1], dtype=torch.float64) @ rows.flatten(1)
        held, running = bytes_of.unflatten(0, measured.shape[1:]).unbind(1)
        largest.add(int((waiting * held + running).argmax()))
    return [[round(value, 1) for value in rows[:, norm].T.flatten().tolist()] for norm in sorted(largest)]


def _measure_tile(vae: Any, direction: tiling.Direction, side: int) -> list[tuple[int, int]]:
    """Between each two norms of a VAE tile of `side` latent pixels: bytes it holds at them, and its peak on the way."""
    held: list[int] = []
    peaks: list[int] = []
    with torch.device("meta"), TensorMemoryTracker() as tracker:
        for _ in _stops(vae, direction, side):
            held.append(tracker.now)
            peaks.append(tracker.peak)
            tracker.peak = tracker.now
    source, after = held[0], [*held[1:], held[0]]
    peaks = [*peaks[1:], tracker.peak]
    return [(max(pair) - source, peak - source) for *pair, peak in zip(held, after, peaks, strict=True)]


def _stops(vae: Any, direction: tiling.Direction, side: int) -> Iterator[None]:
    """Run one inner tile on the meta device; stop at its start and at every GroupNorm."""
    channels = 3 if direction == "encode" else vae.config["block_out_channels"][-1]
    length = 3 * side * (vae_scale_factor(vae) if direction == "encode" else 1)
    source = torch.empty(1, channels, length, length, dtype=vae.dtype, device="meta")
    running = tiling.start_tile(vae, direction, source, ((side, 2 * side), (side, 2 * side)))
    yield
    statistics: tiling.Statistics | None = None
    while not isinstance(measure := tiling.resume(running, statistics), tiling.Tile):
        yield
        statistics = tiling.merge_stats([measure()])
