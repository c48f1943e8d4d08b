"""What machine this is, and the tiles, batch and precision that fit it. The only place that asks about CUDA."""

import gc
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

log = logging.getLogger(__name__)


OUTPUT_PIXELS = 8192 * 8192
"""The largest result. What a card's memory holds may be less: seesr.memory decides that from what is free."""


@dataclass(frozen=True)
class Profile:
    """Defaults for one kind of machine. `memory` is the card's, in GB.

    `latent_tile`, its `overlap` and `vae_tile` (0: no tiles) are in latent pixels; `tile_batch` tiles are denoised at
    once. Memory may make all of them smaller.
    """

    name: str
    memory: int
    dtype: torch.dtype
    latent_tile: int
    overlap: int
    tile_batch: int
    vae_tile: int
    output_pixels: int = OUTPUT_PIXELS


CPU = Profile("cpu", 0, torch.float32, latent_tile=128, overlap=16, tile_batch=1, vae_tile=128)

# Latent tiles of 64 on every card: what SD-Turbo and SeeSR were trained on, and the least work (docs/performance.md): a
# latent pixel costs six times as much in a tile of 320, as self-attention is quadratic. 96, which SeeSR's script takes,
# sees half as far again for a quarter more. One size for all cards also means that a seed gives nearly the same
# picture on each. Batches hold as many latent pixels as one tile of 181, 256 or 362. VAE tiles only where whole
# pictures of 4096 x 4096 don't fit. An overlap of an eighth hides seams.
_GPU: dict[str, Any] = {"dtype": torch.float16, "latent_tile": 64, "overlap": 8}
GPUS = {
    profile.name: profile
    for profile in (
        Profile("t4", 16, tile_batch=8, vae_tile=128, **_GPU),
        Profile("v100", 16, tile_batch=8, vae_tile=128, **_GPU),
        Profile("a40-large", 48, tile_batch=16, vae_tile=0, **_GPU),
        Profile("l40s", 48, tile_batch=16, vae_tile=0, **_GPU),
        Profile("a100-large", 80, tile_batch=32, vae_tile=0, **_GPU),
        Profile("h100", 80, tile_batch=32, vae_tile=0, **_GPU),
    )
}

_CARDS = {
    "T4": "t4",
    "V100": "v100",
    "A40": "a40-large",
    "L40S": "l40s",
    "A100": "a100-large",
    "H100": "h100",
    "H200": "h100",
}


def device() -> str:
    """ "cuda" where a GPU can be used, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def profile(device: str, requested: str | None = None) -> Profile:
    """The profile of the machine this runs on; `requested` is what the image was built for (SEESR_GPU).

    What the card really is wins; a difference is logged. A card that is not in the table gets the profile of the
    largest one in it that has no more memory.
    """
    if requested and requested not in GPUS:
        raise ValueError(f"SEESR_GPU must be one of {', '.join(GPUS)}, got {requested!r}")
    if not device.startswith("cuda"):
        if requested:
            log.warning("SEESR_GPU asks for %s, but this runs on the CPU: using the CPU's tiles.", requested)
        return CPU
    card = torch.cuda.get_device_properties(device)
    found = _match(card.name, card.total_memory / 1e9)
    if requested and requested != found.name:
        log.warning(
            "SEESR_GPU asks for %s, but the card is %s: using the tiles of %s.", requested, card.name, found.name
        )
    return found


def _match(card: str, memory: float) -> Profile:
    """A card's marketing name ("NVIDIA A100-SXM4-80GB") and GB -> its profile."""
    words = card.replace("-", " ").split()
    for word, name in _CARDS.items():
        if word in words:
            return GPUS[name]
    fitting = [gpu for gpu in GPUS.values() if gpu.memory <= memory * 1.1]
    chosen = max(fitting, key=lambda gpu: gpu.memory) if fitting else GPUS["t4"]
    log.warning("The card %s (%.0f GB) is not in the table: using the tiles of %s.", card, memory, chosen.name)
    return chosen


def use_fast_attention(device: str, *models: Any) -> str:
    """Turn on xformers in diffusers models where it is installed and the device is a GPU; return what is used."""
    if device.startswith("cuda") and importlib.util.find_spec("xformers") is not None:
        for model in models:
            model.enable_xformers_memory_efficient_attention()
        return "xformers"
    return "torch SDPA"


def synchronize(device: str) -> None:
    """Wait for the GPU, so that a clock read next means something."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: the GPU's, the CPU allocator's or Python's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def free_cached_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_memory(device: str) -> int:
    """Bytes that an upscale may plan with: what is free now, less a tenth that kernels take for themselves."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = min(psutil.virtual_memory().available, _cgroup_memory())
    return int(0.9 * free)


def _cgroup_memory(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes left of the container's limit (cgroup v2), its file cache not counted; a very large number without one."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return 2**62 if limit == "max" else int(limit) - used + int(cache.get("inactive_file", 0))
    except (OSError, ValueError):
        return 2**62


@contextmanager
def as_loaded(*models: Any) -> Iterator[None]:
    """Within the block the models are as they are."""
    yield


@contextmanager
def in_float32(*models: Any) -> Iterator[None]:
    """Within the block the models hold float32 values; half-precision ones come back exactly."""
    dtypes = [model.dtype for model in models]
    try:
        for model in models:
            model.to(torch.float32)
        yield
    finally:
        for model, dtype in zip(models, dtypes, strict=True):
            model.to(dtype)


@contextmanager
def attention_in_float32(*models: Any) -> Iterator[None]:
    """Within the block the models' attention is computed in float32 by torch, whatever computes it otherwise."""
    processors = [model.attn_processors for model in models]
    try:
        for model in models:
            model.set_attn_processor(AttnProcessor2_0())
        with _Float32Attention():
            yield
    finally:
        for model, before in zip(models, processors, strict=True):
            model.set_attn_processor(before)


class _Float32Attention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        dtype = args[0].dtype
        wide = [value.float() if torch.is_tensor(value) and value.is_floating_point() else value for value in args]
        return func(*wide, **(kwargs or {})).to(dtype)
