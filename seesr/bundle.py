"""The bundle on disk: its layout, and strict loading straight to the device."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ram.model import Ram, RamConfig
from ram.tagger import Tagger
from seesr.image_attention import add_image_attention, from_seesr_key
from seesr.vae.subpixel import use_subpixel_upsampling

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding, ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "tiny_vae": "tiny_vae/diffusion_pytorch_model.safetensors",  # optional
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "controlnet": "controlnet/diffusion_pytorch_model.safetensors",
    "ram": "ram/model.safetensors",
}
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")

_DERIVED = ("relative_position_index", "position_ids")
"""Buffers that a module computes by itself; never stored."""

Model = TypeVar("Model", bound=nn.Module)


class ControlImageEmbedding(ControlNetConditioningEmbedding):
    """The ControlNet's image embedding as a step of its own: the ControlNet takes its result in place of an image."""

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, C, h, w)"""
        return super().forward(image)

    def forward(self, conditioning: Tensor) -> Tensor:
        """What the ControlNet calls: (B, C, h, w), embedded already, stays as it is."""
        return conditioning


@dataclass(frozen=True)
class Components:
    """Everything a bundle holds, built. `process_size` is the smallest short side to work at, in pixels.

    `least_scale` is the smallest scale to work at, for models trained for one scale. `memory` holds the memory
    constants by dtype, "fp16" and "fp32" (see seesr.memory.MemoryModel), `flops` the work by stage (seesr.progress).
    """

    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    tagger: Tagger
    scheduler: DDPMScheduler
    name: str
    process_size: int
    least_scale: float = 1.0
    memory: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)
    tiny_vae: AutoencoderTiny | None = None

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """All networks."""
        networks = (self.unet, self.controlnet, self.vae, self.text_encoder, self.tagger.model)
        return networks if self.tiny_vae is None else (*networks, self.tiny_vae)

    @property
    def memory_constants(self) -> Mapping[str, Any]:
        """The memory constants of the VAE's dtype."""
        return self.memory["fp16" if self.vae.dtype.itemsize == 2 else "fp32"]


def load(directory: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Components:
    """Read a bundle directory: safetensors straight to `device` in `dtype` (None: fp16 on a GPU, else fp32).

    Reads no pickle and no network. Raises RuntimeError that names the file and the tensors that are wrong.
    """
    if not directory.is_dir():
        raise RuntimeError(f"the bundle must be a directory, got {directory}, which is none")
    dtype = dtype or (torch.float16 if device.startswith("cuda") else torch.float32)
    tiny = ("tiny_vae",) if (directory / "tiny_vae").is_dir() else ()
    info = _bundle_info(directory / "bundle.json", {f"tiny_{way}" for way in ("encode", "decode") if tiny})

    for name in TOKENIZER:
        _require(directory / "tokenizer" / name)
    # SD-Turbo's file is written for an Euler scheduler; DDPM takes the keys it knows, as upstream does.
    scheduler: Any = DDPMScheduler.from_config(read_json(directory / "scheduler/scheduler_config.json"))
    tokenizer = CLIPTokenizer.from_pretrained(directory / "tokenizer", local_files_only=True)
    models: dict[str, Any] = {}
    for component in ("ram", "unet", "controlnet", "vae", "text_encoder", *tiny):  # RAM first: others need its config
        rename = from_seesr_key if component in ("unet", "controlnet") else str
        model = build_component(directory, component)
        models[component] = load_state_dict(model, directory / FILES[component], device, dtype, rename)
    tagger = _tagger(directory / "ram", models.pop("ram"))
    return Components(tokenizer=tokenizer, tagger=tagger, scheduler=scheduler, **models, **info)


def _bundle_info(path: Path, tiny: set[str]) -> dict[str, Any]:
    """What Components takes from bundle.json, checked; `tiny` names the further FLOPs of a small autoencoder."""
    info = read_json(path)
    name, process_size, least_scale = info.get("name"), info.get("process_size"), info.get("least_scale", 1)
    if not isinstance(name, str) or not isinstance(process_size, int) or process_size < 1:
        raise RuntimeError(f"{path} must give a name and a process_size in pixels; build it again")
    if not isinstance(least_scale, (int, float)) or not 1 <= least_scale <= 8:
        raise RuntimeError(f"{path}: least_scale must be 1 to 8, got {least_scale}; build it again")
    found = {"name": name, "process_size": process_size, "least_scale": least_scale}
    for group, needed in (("memory", {"fp16", "fp32"}), ("flops", {"tag", "encode", "denoise", "decode"} | tiny)):
        if not isinstance(constants := info.get(group), dict) or not needed <= constants.keys():
            command = f".venv/bin/python -m scripts.bench.memory {path.parent} --write"
            raise RuntimeError(
                f"{path} must give {group} constants for {', '.join(sorted(needed))}; add them: {command}"
            )
        found[group] = constants
    return found


def _tagger(folder: Path, model: Ram) -> Tagger:
    tags, thresholds = _read_text(folder / "tags.txt").splitlines(), _read_text(folder / "thresholds.txt").split()
    try:
        return Tagger(model, tags, torch.tensor([float(value) for value in thresholds]))
    except ValueError as error:
        raise RuntimeError(f"{folder}: tags or thresholds are damaged ({error}); build the bundle again") from None


def build_component(directory: Path, component: str) -> Any:
    """One of FILES on the meta device, by its config.json. Image attention is as wide as RAM's tokens."""
    path = directory / component / "config.json"
    config = read_json(path)
    builders: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: build_unet(config, token_width(directory)),
        "controlnet": lambda: build_controlnet(config, token_width(directory)),
        "vae": lambda: build_vae(config),
        "tiny_vae": lambda: build_tiny_vae(config),
        "text_encoder": lambda: build_text_encoder(config),
        "ram": lambda: Ram(RamConfig.from_dict(config)),
    }
    try:
        return build_empty(builders[component])
    except (TypeError, ValueError, KeyError) as error:
        raise RuntimeError(f"{path} describes no {component} ({error}); build the bundle again") from error


def token_width(directory: Path) -> int:
    """The width of RAM's image tokens in a bundle directory, and so of the image attention."""
    return RamConfig.from_dict(read_json(directory / "ram/config.json")).token_dim


def build_unet(config: dict[str, Any], token_width: int) -> UNet2DConditionModel:
    """From an upstream config.json: the stock UNet with SeeSR's image attention over tokens of `token_width`."""
    return add_image_attention(UNet2DConditionModel.from_config(_arguments(config)), token_width)


def build_controlnet(config: dict[str, Any], token_width: int) -> ControlNetModel:
    """From an upstream config.json: the stock ControlNet with image attention; it takes embedded control images."""
    controlnet: Any = ControlNetModel.from_config(_arguments(config))
    controlnet.controlnet_cond_embedding.__class__ = ControlImageEmbedding
    return add_image_attention(controlnet, token_width)


def build_vae(config: dict[str, Any]) -> AutoencoderKL:
    """From an upstream config.json: the stock VAE with sub-pixel upsampling in its decoder."""
    vae: Any = AutoencoderKL.from_config(_arguments(config))
    use_subpixel_upsampling(vae.decoder)
    return vae


def build_tiny_vae(config: dict[str, Any]) -> AutoencoderTiny:
    """From an upstream config.json: diffusers' small autoencoder, with sub-pixel upsampling and ReLUs in place."""
    arguments = {name: value for name, value in _arguments(config).items() if name != "block_out_channels"}
    vae: Any = AutoencoderTiny.from_config(arguments)  # which writes block_out_channels without taking it
    use_subpixel_upsampling(vae.decoder)
    for module in vae.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True
    return vae


def build_text_encoder(config: dict[str, Any]) -> CLIPTextModel:
    """From an upstream config.json: CLIP's text encoder."""
    return CLIPTextModel(CLIPTextConfig.from_dict(config))


def build_empty(build: Callable[[], Model]) -> Model:
    """Run `build` with parameters on the meta device. Buffers, which no file holds, are real."""
    with init_empty_weights(include_buffers=False):
        return build().eval().requires_grad_(False)


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers config.json without its notes and without SeeSR's switch, which diffusers does not know."""
    return {name: v for name, v in config.items() if not name.startswith("_") and name != "use_image_cross_attention"}


def load_state_dict(
    model: Model, path: Path, device: str, dtype: torch.dtype, rename: Callable[[str], str] = str
) -> Model:
    """Fill an empty model from a safetensors file, strictly. `rename` maps stored names to the model's."""
    with open_tensors(path, device) as file:
        names = {rename(key): key for key in file.keys()}  # noqa: SIM118
        check_names(model, {name: tuple(file.get_slice(key).get_shape()) for name, key in names.items()}, path)
        tensors = {name: file.get_tensor(key).to(dtype) for name, key in names.items()}
    derived = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(_DERIVED)}
    model.load_state_dict(tensors | derived, strict=True, assign=True)
    return model.to(device).requires_grad_(False)  # buffers only: the parameters are there already


def check_names(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raise RuntimeError that names the differences unless `shapes` (our names) are the model's stored tensors."""
    wanted = {name: tuple(tensor.shape) for name, tensor in stored_tensors(model).items()}
    shared = sorted(wanted.keys() & shapes.keys())
    kinds = {
        "missing": sorted(wanted.keys() - shapes.keys()),
        "left over": sorted(shapes.keys() - wanted.keys()),
        "misshapen": [f"{key} {shapes[key]} instead of {wanted[key]}" for key in shared if shapes[key] != wanted[key]],
    }
    faults = []
    for kind, names in kinds.items():
        shown = ", ".join([*names[:3], "..."] if len(names) > 3 else names)
        faults += [f"{len(names)} {kind} ({shown})"] if names else []
    if faults:
        raise RuntimeError(f"{where} does not fit its config: tensors {'; '.join(faults)}; build the bundle again")


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without the buffers that it derives by itself."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_DERIVED)}


@contextmanager
def open_tensors(path: Path, device: str = "cpu") -> Iterator[Any]:
    """A safetensors file to read tensor by tensor. Raises RuntimeError where it is missing or damaged."""
    _require(path)
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except SafetensorError as error:
        raise RuntimeError(f"{path} is damaged ({error}); download or build the bundle again") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises RuntimeError where the file is missing or holds none."""
    try:
        if isinstance(value := json.loads(_read_text(path)), dict):
            return value
        raise ValueError("it holds no object")
    except ValueError as error:
        raise RuntimeError(f"{path} is not valid JSON ({error}); download or build the bundle again") from error


def _read_text(path: Path) -> str:
    _require(path)
    return path.read_text(encoding="utf-8")


def _require(path: Path) -> None:
    if not path.is_file():
        raise RuntimeError(f"{path} is missing; download or build the bundle again")
