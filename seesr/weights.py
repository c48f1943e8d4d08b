"""The bundle on disk: its layout, strict loading straight to the device, and writing it whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ram.model import Ram, RamConfig
from ram.tagger import Tagger
from seesr.image_attention import add_image_attention, from_seesr_key, to_seesr_key

FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "controlnet": "controlnet/diffusion_pytorch_model.safetensors",
    "ram": "ram/model.safetensors",
}
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")

_DERIVED = ("relative_position_index", "position_ids")
"""Buffers that a module computes by itself; never stored."""

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Parts:
    """Everything a bundle holds, built. `process_size` is the smallest short side, in pixels, to work at.

    `least_scale` is the smallest factor to work at, for models that learned one factor only; the result is reduced.
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


def load(bundle: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Parts:
    """Open a bundle directory: safetensors read straight to `device` in `dtype` (None: fp16 on a GPU, else fp32).

    Never a pickle, never the network. Raises RuntimeError naming the file, and the tensors, that are missing, left
    over, misshapen or unreadable.
    """
    if not bundle.is_dir():
        raise RuntimeError(f"the bundle must be a directory, got {bundle}, which is none")
    dtype = dtype or (torch.float16 if device.startswith("cuda") else torch.float32)
    about = _json(bundle, "bundle.json")
    name, process_size = about.get("name"), about.get("process_size")
    if not isinstance(name, str) or not isinstance(process_size, int) or process_size < 1:
        raise RuntimeError(f"{bundle / 'bundle.json'} must give a name and a process_size in pixels; build it again")
    least_scale = about.get("least_scale", 1)
    if not isinstance(least_scale, (int, float)) or not 1 <= least_scale <= 8:
        raise RuntimeError(f"{bundle / 'bundle.json'}: least_scale must be 1 to 8, got {least_scale}; build it again")

    def read(part: str, build: Callable[[], Model]) -> Model:
        try:
            model = build_empty(build)
        except (TypeError, ValueError, KeyError) as error:
            where = bundle / part / "config.json"
            raise RuntimeError(f"{where} describes no {part} ({error}); build the bundle again") from error
        rename = from_seesr_key if part in ("unet", "controlnet") else str
        return _fill(model, bundle / FILES[part], device, dtype, rename)

    # SD-Turbo's file is written for an Euler scheduler; DDPM takes the keys it knows, as upstream's does.
    scheduler: Any = DDPMScheduler.from_config(_json(bundle, "scheduler/scheduler_config.json"))
    return Parts(
        unet=read("unet", lambda: build_unet(_json(bundle, "unet/config.json"), _image_dim(bundle, "unet"))),
        controlnet=read(
            "controlnet",
            lambda: build_controlnet(_json(bundle, "controlnet/config.json"), _image_dim(bundle, "controlnet")),
        ),
        vae=read("vae", lambda: build_vae(_json(bundle, "vae/config.json"))),
        text_encoder=read("text_encoder", lambda: build_text_encoder(_json(bundle, "text_encoder/config.json"))),
        tokenizer=_tokenizer(bundle),
        tagger=_tagger(bundle, read("ram", lambda: Ram(RamConfig.from_dict(_json(bundle, "ram/config.json"))))),
        scheduler=scheduler,
        name=name,
        process_size=process_size,
        least_scale=least_scale,
    )


def build_unet(config: dict[str, Any], image_dim: int) -> UNet2DConditionModel:
    """From an upstream config.json: the stock UNet with SeeSR's image attention of width `image_dim`."""
    unet: Any = UNet2DConditionModel.from_config(_arguments(config))  # its stub says it may be a tuple
    return add_image_attention(unet, image_dim)


def build_controlnet(config: dict[str, Any], image_dim: int) -> ControlNetModel:
    controlnet: Any = ControlNetModel.from_config(_arguments(config))
    return add_image_attention(controlnet, image_dim)


def build_vae(config: dict[str, Any]) -> AutoencoderKL:
    vae: Any = AutoencoderKL.from_config(_arguments(config))
    return vae


def build_text_encoder(config: dict[str, Any]) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig.from_dict(config))


def build_empty(build: Callable[[], Model]) -> Model:
    """Run `build` with parameters on the meta device; buffers, which no file holds, are real."""
    with init_empty_weights(include_buffers=False):
        return build().eval().requires_grad_(False)


def check_names(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raise RuntimeError unless `shapes` (our names) are exactly the model's stored tensors, naming what is not."""
    wanted = {name: tuple(tensor.shape) for name, tensor in stored_tensors(model).items()}
    missing, extra = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    misshapen = [
        f"{name} {shapes[name]} instead of {wanted[name]}"
        for name in sorted(wanted.keys() & shapes.keys())
        if shapes[name] != wanted[name]
    ]
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("left over", extra), ("misshapen", misshapen))
        if names
    ]
    if faults:
        raise RuntimeError(f"{where} does not fit its config: tensors {'; '.join(faults)}; build the bundle again")


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without the buffers that it derives by itself."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_DERIVED)}


@contextmanager
def open_tensors(path: Path, device: str = "cpu") -> Iterator[Any]:
    """A safetensors file to read tensor by tensor. Raises RuntimeError where it is missing or damaged."""
    if not path.is_file():
        raise RuntimeError(f"{path} is missing; download or build the bundle again")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except SafetensorError as error:
        raise RuntimeError(f"{path} is damaged ({error}); download or build the bundle again") from error


def _fill(model: Model, path: Path, device: str, dtype: torch.dtype, rename: Callable[[str], str]) -> Model:
    with open_tensors(path, device) as file:
        names = {rename(key): key for key in file.keys()}  # noqa: SIM118
        check_names(model, {name: tuple(file.get_slice(key).get_shape()) for name, key in names.items()}, path)
        tensors = {name: file.get_tensor(key).to(dtype) for name, key in names.items()}
    derived = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(_DERIVED)}
    model.load_state_dict(tensors | derived, strict=True, assign=True)
    return model.to(device).requires_grad_(False)  # buffers only: the parameters are there already


def _image_dim(bundle: Path, name: str) -> int:
    """The width of the image tokens, which no config names: read off the first image attention's keys."""
    with open_tensors(bundle / FILES[name]) as file:
        for key in file.keys():  # noqa: SIM118
            if "image_attentions" in key and key.endswith("attn2.to_k.weight"):
                return file.get_slice(key).get_shape()[1]
    raise RuntimeError(f"{bundle / FILES[name]} has no image attention; it must hold SeeSR's {name}")


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers config.json without its notes and SeeSR's switch, which stock diffusers does not know."""
    return {name: v for name, v in config.items() if not name.startswith("_") and name != "use_image_cross_attention"}


def _json(bundle: Path, name: str) -> dict[str, Any]:
    path = bundle / name
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
        return value
    except FileNotFoundError:
        raise RuntimeError(f"{path} is missing; download or build the bundle again") from None
    except ValueError as error:
        raise RuntimeError(f"{path} is not valid JSON ({error}); download or build the bundle again") from error


def _tokenizer(bundle: Path) -> CLIPTokenizer:
    for name in TOKENIZER:
        if not (bundle / "tokenizer" / name).is_file():
            raise RuntimeError(f"{bundle / 'tokenizer' / name} is missing; download or build the bundle again")
    return CLIPTokenizer.from_pretrained(bundle / "tokenizer", local_files_only=True)


def _tagger(bundle: Path, model: Ram) -> Tagger:
    try:
        tags = (bundle / "ram/tags.txt").read_text(encoding="utf-8").splitlines()
        thresholds = [float(line) for line in (bundle / "ram/thresholds.txt").read_text().split()]
    except FileNotFoundError as error:
        raise RuntimeError(f"{error.filename} is missing; download or build the bundle again") from None
    except ValueError as error:
        raise RuntimeError(f"{bundle}/ram: tags or thresholds are damaged ({error}); build the bundle again") from None
    return Tagger(model, tags, torch.tensor(thresholds))


class BundleWriter:
    """A bundle in the making: written beside `directory`, renamed to it when the block ends without an error.

    Tensors are stored in `dtype`. Raises RuntimeError if `directory` exists, unless `replace`.
    """

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float16, replace: bool = False) -> None:
        if directory.exists() and not replace:
            raise RuntimeError(f"{directory} exists already; remove it or name another directory")
        self.directory, self.dtype = directory, dtype

    def __enter__(self) -> "BundleWriter":
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(tempfile.mkdtemp(prefix=f".{self.directory.name}-", dir=self.directory.parent))
        self._temporary.chmod(0o755)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                old = self._temporary.with_name(f"{self._temporary.name}.old")
                if self.directory.exists():
                    os.rename(self.directory, old)  # aside, so that at no moment both are gone
                os.rename(self._temporary, self.directory)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def component(self, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """One of FILES with its config.json; tensors under the names they are stored by."""
        self.json(f"{name}/config.json", config)
        path = self._temporary / FILES[name]
        stored = {key: tensors[key].to(self.dtype).contiguous() for key in sorted(tensors)}
        for key, tensor in stored.items():
            if not tensor.isfinite().all():
                raise RuntimeError(f"{name}'s tensor {key} is not finite in {self.dtype}; convert with --dtype fp32")
        save_file(stored, path)
        path.chmod(0o644)

    def json(self, name: str, value: Mapping[str, Any]) -> None:
        self.text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def text(self, name: str, value: str) -> None:
        path = self._temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value, encoding="utf-8")

    def tagger(self, config: RamConfig, tensors: Mapping[str, Tensor], tags: str, thresholds: str) -> None:
        self.component("ram", config.to_dict(), tensors)
        self.text("ram/tags.txt", tags)
        self.text("ram/thresholds.txt", thresholds)


def save(
    parts: Parts, directory: Path, info: Mapping[str, Any], dtype: torch.dtype = torch.float16, replace: bool = False
) -> None:
    """Write `parts` as a bundle; `info` (kind, licences, ...) joins name and process size in bundle.json."""
    with BundleWriter(directory, dtype, replace) as writer:
        for name, model in (("unet", parts.unet), ("controlnet", parts.controlnet), ("vae", parts.vae)):
            config = {key: value for key, value in model.config.items() if not key.startswith("_")}
            writer.component(
                name,
                {"_class_name": type(model).__name__, **config},
                {to_seesr_key(key): tensor for key, tensor in stored_tensors(model).items()},
            )
        writer.component("text_encoder", parts.text_encoder.config.to_dict(), stored_tensors(parts.text_encoder))
        writer.tagger(
            parts.tagger.model.config,
            stored_tensors(parts.tagger.model),
            "".join(f"{tag}\n" for tag in parts.tagger.tags),
            "".join(f"{value:.6g}\n" for value in parts.tagger.thresholds.tolist()),
        )
        writer.json("scheduler/scheduler_config.json", {"_class_name": "DDPMScheduler", **_plain(parts.scheduler)})
        source = Path(parts.tokenizer.name_or_path)
        for name in TOKENIZER:
            writer.text(f"tokenizer/{name}", (source / name).read_text(encoding="utf-8"))
        sizes = {"process_size": parts.process_size, "least_scale": parts.least_scale}
        writer.json("bundle.json", {"name": parts.name, **sizes, **info})


def _plain(scheduler: DDPMScheduler) -> dict[str, Any]:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
