"""The machine: its profile, free memory and precision. The only module that uses torch.cuda."""

import ctypes
import gc
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from seesr.sizes import OUTPUT_PIXELS

log = logging.getLogger(__name__)
USABLE_SHARE = 0.9  # of free memory, for an upscale to plan with; kernels allocate the rest for themselves


@dataclass(frozen=True)
class Profile:
    """Defaults for one kind of machine. `memory` is the card's, in GB; `output_pixels` limits the result.

    `latent_tile` and `vae_tile` (0: no tiles) are in latent pixels; `tile_batch` tiles are denoised at once. All of
    them are reduced to fit free memory. Cards with one of the words `cards` in their names get this profile.
    """

    name: str
    memory: int
    dtype: torch.dtype
    latent_tile: int
    tile_batch: int
    vae_tile: int
    cards: tuple[str, ...] = ()
    output_pixels: int = OUTPUT_PIXELS


AUTO = "auto"  # SEESR_GPU: the card's own profile
STOPPED = "the GPU stopped working and this worker must be restarted; send the request again"
MEMORY_TOLERANCE = 1.1  # cards report a little less memory than their names say

# malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX
_MALLOC = {-4: 0, -1: 2**31 - 1, -2: 2**28, -8: 1}

CPU = Profile("cpu", 0, torch.float32, latent_tile=128, tile_batch=1, vae_tile=128)

# Latent tiles of 64 on every card: the training size of SD-Turbo and SeeSR, and the least work, since self-attention is
# quadratic (docs/performance.md). With one size a seed gives nearly the same image on every card. VAE tiles of 256 hold
# fewer than 2^31 elements in each layer (256 channels of 2048 x 2048 pixels): beyond, cuDNN before 9.3, which comes
# with the torch of cog.yaml, leaves convolutions to a way that needs nine times the memory.
_GPUS = (  # name, GB, tiles at once, VAE tile, words of the card's name
    ("t4", 16, 8, 128, ("T4",)),
    ("v100", 16, 8, 128, ("V100",)),
    ("a40-large", 48, 16, 256, ("A40",)),
    ("l40s", 48, 16, 256, ("L40S",)),
    ("a100-large", 80, 32, 256, ("A100",)),
    ("h100", 80, 32, 256, ("H100", "H200")),
)
GPUS = {row[0]: Profile(row[0], row[1], torch.float16, 64, *row[2:]) for row in _GPUS}


def device() -> str:
    """ "cuda" where a GPU can be used, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def profile(device: str, requested: str | None = None) -> Profile:
    """The profile that `requested` (SEESR_GPU) names; None, "" or "auto" mean the card's own. The CPU has its own too.

    Logs the card and the profile. Raises ValueError for an unknown name.
    """
    if requested and requested not in (AUTO, *GPUS):
        raise ValueError(f"SEESR_GPU must be one of {', '.join((AUTO, *GPUS))}, got {requested!r}")
    if not device.startswith("cuda"):
        log.info("No GPU: profile cpu.")
        return CPU
    card = torch.cuda.get_device_properties(device)
    return choose_profile(card.name, card.total_memory / 1e9, requested)


def card_name(device: str) -> str:
    """Such as "NVIDIA A40"; of a CPU, what it is and its threads, such as "CPU, threads: 2"."""
    if not device.startswith("cuda"):
        return f"CPU, threads: {torch.get_num_threads()}"
    return torch.cuda.get_device_properties(device).name


def choose_profile(card: str, memory: float, requested: str | None = None) -> Profile:
    """A card's name ("NVIDIA A40"), its GB and SEESR_GPU -> a profile, logged with the card.

    A card with less memory than the profile gets a warning: its tiles shrink to fit.
    """
    chosen = GPUS[requested] if requested and requested != AUTO else profile_of_card(card, memory)
    log.info("Card %s (%.0f GB), profile %s.", card, memory, chosen.name)
    if memory * MEMORY_TOLERANCE < chosen.memory:
        text = "The card %s has %.0f GB, less than the %d GB of profile %s: tiles shrink to fit."
        log.warning(text, card, memory, chosen.memory, chosen.name)
    return chosen


def profile_of_card(card: str, memory: float) -> Profile:
    """A card's name and GB -> its own profile. An unknown card gets the largest with no more memory."""
    words = card.replace("-", " ").split()
    for known in GPUS.values():
        if any(word in words for word in known.cards):
            return known
    fitting = [gpu for gpu in GPUS.values() if gpu.memory <= memory * MEMORY_TOLERANCE]
    return max(fitting, key=lambda gpu: gpu.memory) if fitting else GPUS["t4"]


def responds(device: str) -> bool:
    """Whether the device still computes. After some CUDA errors every later call of the process fails."""
    if not device.startswith("cuda"):
        return True
    try:
        return torch.ones(1, device=device).add_(1).item() == 2
    except torch.OutOfMemoryError:
        return True
    except RuntimeError as error:
        log.error("The GPU does not respond: %s", error)
        return False


def use_fast_attention(device: str, *models: Any) -> str:
    """Turn on xformers in diffusers models if it is installed and the device is a GPU. Returns what is used.

    Its kernels take heads whose width is a multiple of 8; a model with another one keeps torch's attention.
    """
    if not device.startswith("cuda") or importlib.util.find_spec("xformers") is None:
        return "torch SDPA"
    fitting = [model for model in models if all(width % 8 == 0 for width in head_widths(model))]
    for model in fitting:
        model.enable_xformers_memory_efficient_attention()
    return "xformers" if len(fitting) == len(models) else f"xformers in {len(fitting)} of {len(models)} networks"


def head_widths(model: Any) -> set[int]:
    """Channels of one head, of every attention in a diffusers model"""
    layers = [module for module in model.modules() if hasattr(module, "to_q") and hasattr(module, "heads")]
    return {layer.to_q.out_features // layer.heads for layer in layers}


def synchronize(device: str) -> None:
    """Wait until the GPU has finished, so that timings are real."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def keep_freed_memory() -> None:
    """Let the C library of a process that computes on the CPU use freed memory again. It would ask for new pages.

    glibc maps each large activation and unmaps it, and the kernel clears every page anew: a sixth of all CPU time. Of
    what is kept, free memory above 2 GB goes back. One heap serves all threads: with one for each, a worker that saw
    60 sizes of image held twice as much. Does nothing where the environment sets MALLOC_MMAP_MAX_ or where
    the C library is another one.
    """
    if "MALLOC_MMAP_MAX_" in os.environ or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return
    for parameter, value in _MALLOC.items():
        library.mallopt(parameter, value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: the GPU's, the CPU allocator's or Python's."""
    words = (
        "DefaultCPUAllocator",
        "could not create a primitive",
        "could not create a memory",
    )  # torch's, and oneDNN's
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def free_cached_memory() -> None:
    """Return memory that no tensor holds to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_memory(device: str) -> int:
    """Bytes that an upscale may plan with: nine tenths of what is free now; kernels need the rest."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = min(psutil.virtual_memory().available, cgroup_memory())
    return int(USABLE_SHARE * free)


def is_named_card(device: str, profile: Profile) -> bool:
    """Whether a GPU is the card that its profile is named after, by its memory: an H200 works with that of the H100."""
    share = torch.cuda.get_device_properties(device).total_memory / (profile.memory * 1e9)
    return 1 / MEMORY_TOLERANCE < share < MEMORY_TOLERANCE


def limit_memory(device: str, size: float | None) -> None:
    """Let this process's allocator take at most `size` bytes of a GPU, what it holds included; None lifts the limit."""
    total = torch.cuda.get_device_properties(device).total_memory
    share = 1.0 if size is None else min(1.0, size / total)
    torch.cuda.set_per_process_memory_fraction(share, torch.device(device).index)  # which refuses a bare "cuda"


def take_peak_memory(device: str) -> int:
    """The most bytes that tensors held on a GPU at one time since the last call."""
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def cgroup_memory(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes left of the container's limit (cgroup v2), its file cache not counted; a very large number without one."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return 2**62 if limit == "max" else int(limit) - used + int(cache.get("inactive_file", 0))
    except (OSError, ValueError):
        return 2**62


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
    """Within the block the models' attention is computed by torch in float32."""
    from diffusers.models.attention_processor import AttnProcessor2_0  # needed here only, and slow to import

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
