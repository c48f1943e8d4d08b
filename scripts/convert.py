#!/usr/bin/env python3
"""Turn the upstream files (SD-Turbo, SeeSR, RAM, DAPE) into one bundle of safetensors.

The only place that opens pickles, with weights_only=True. One component at a time is in memory: the real files
need under 8 GB of RAM.
"""

import argparse
import math
import re
import signal
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel

from ram.model import Ram, RamConfig
from scripts.bundle_writer import BundleWriter, sha256
from scripts.ram_keys import DROPPED, from_upstream, merge_dape
from seesr import bundle
from seesr.image_attention import from_seesr_key
from seesr.vae import vae_scale_factor

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

UNET = "unet/diffusion_pytorch_model.safetensors"
CONTROLNET = "controlnet/diffusion_pytorch_model.safetensors"
TINY_VAE = "diffusion_pytorch_model.safetensors"
LICENCES = {"SD-Turbo": "Stability AI Community License"} | dict.fromkeys(("SeeSR", "RAM", "DAPE"), "Apache-2.0")
MISSING = "{} is missing; run scripts/download.py, or name the folder that holds it"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd-turbo", type=Path, required=True, help="SD-Turbo as the hub has it: unet/, vae/, ...")
    parser.add_argument("--seesr", type=Path, required=True, help="SeeSR's folder with unet/ and controlnet/")
    parser.add_argument("--ram", type=Path, required=True, help="ram_swin_large_14m.pth")
    parser.add_argument("--dape", type=Path, required=True, help="DAPE.pth")
    parser.add_argument("--tags", type=Path, required=True, help="ram_tag_list.txt")
    parser.add_argument("--thresholds", type=Path, required=True, help="ram_tag_list_threshold.txt")
    parser.add_argument("--tiny-vae", type=Path, help="TAESD's folder, for fast_vae")
    parser.add_argument("--out", type=Path, required=True, help="the bundle to make, for example weights/seesr-turbo")
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--process-size", type=int, default=512, help="smallest short side to work at, in pixels")
    parser.add_argument("--force", action="store_true", help="replace --out if it exists")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the half-made bundle goes away with it
    try:
        convert(
            arguments.sd_turbo,
            arguments.seesr,
            arguments.ram,
            arguments.dape,
            arguments.tags,
            arguments.thresholds,
            arguments.out,
            dtype=torch.float16 if arguments.dtype == "fp16" else torch.float32,
            process_size=arguments.process_size,
            replace=arguments.force,
            tiny_vae=arguments.tiny_vae,
        )
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        sys.exit(f"convert: {str(error).splitlines()[0]}")
    print(f"Wrote the bundle {arguments.out}")


def convert(
    sd_turbo: Path,
    seesr: Path,
    ram: Path,
    dape: Path,
    tags: Path,
    thresholds: Path,
    out: Path,
    dtype: torch.dtype = torch.float16,
    process_size: int = 512,
    replace: bool = False,
    tiny_vae: Path | None = None,
) -> None:
    """Write the bundle `out`, whole or not at all. Raises RuntimeError naming the source file that does not fit."""
    seesr = seesr / "seesr" if (seesr / "seesr").is_dir() else seesr
    if process_size < 8:
        raise RuntimeError(f"--process-size must be at least 8 pixels, got {process_size}")
    names = ("unet", "vae", "text_encoder")
    configs = [*(sd_turbo / name / "config.json" for name in names), seesr / "controlnet/config.json"]
    sources = [_fp16_or_plain(sd_turbo / bundle.FILES[name]) for name in names]
    sources += [seesr / UNET, seesr / CONTROLNET, ram, dape, tags, thresholds]
    tiny = [] if tiny_vae is None else [tiny_vae / "config.json", tiny_vae / TINY_VAE]
    for path in (*configs, *sources, *tiny):
        if not path.is_file():
            raise RuntimeError(MISSING.format(path))
    with BundleWriter(out, dtype, replace) as writer:
        _unet(writer, sd_turbo, seesr)
        _controlnet(writer, seesr)
        _vae(writer, sd_turbo)
        if tiny_vae is not None:
            _tiny_vae(writer, tiny_vae, sd_turbo)
        _text_encoder(writer, sd_turbo)
        _tagger(writer, ram, dape, tags, thresholds)
        writer.info(
            {
                "name": "SeeSR-Turbo",
                "kind": "seesr-turbo",
                "process_size": process_size,
                "dtype": str(dtype).removeprefix("torch."),
                "created_from": {path.name: sha256(path) for path in (ram, dape, tags, thresholds)}
                | {str(path.relative_to(sd_turbo)): sha256(path) for path in sources[:3]}
                | {f"seesr/{path.relative_to(seesr)}": sha256(path) for path in sources[3:5]}
                | {f"taesd/{path.name}": sha256(path) for path in tiny[1:]},
                "licences": LICENCES | ({"TAESD": "MIT"} if tiny else {}),
            },
        )


def _unet(writer: BundleWriter, sd_turbo: Path, seesr: Path) -> None:
    """SD-Turbo's UNet, and of SeeSR's only the image attentions: all that its training touched."""
    config = bundle.read_json(sd_turbo / "unet/config.json")
    base_file = _fp16_or_plain(sd_turbo / UNET)
    base = _read(base_file, writer.dtype)
    added = _read(seesr / UNET, writer.dtype, only="image_attentions")
    if not added:
        raise RuntimeError(f"{seesr / UNET} has no image_attentions; it must be SeeSR's UNet")
    tensors = {key: tensor for key, tensor in base.items() if "image_attentions" not in key} | added
    _check_diffusers(bundle.build_unet, config, tensors, f"{base_file} with {seesr / UNET}")
    writer.component("unet", config | {"use_image_cross_attention": True}, tensors)


def _controlnet(writer: BundleWriter, seesr: Path) -> None:
    config, tensors = bundle.read_json(seesr / "controlnet/config.json"), _read(seesr / CONTROLNET, writer.dtype)
    _check_diffusers(bundle.build_controlnet, config, tensors, seesr / CONTROLNET)
    writer.component("controlnet", config, tensors)


def _check_diffusers(build: Any, config: dict[str, Any], tensors: Mapping[str, Tensor], where: object) -> None:
    widths = [tensor.shape[1] for key, tensor in tensors.items() if re.search(r"image_att.*attn2\.to_k\.weight$", key)]
    if not widths:
        raise RuntimeError(f"{where} has no image_attentions; it must come from SeeSR")
    model = bundle.build_empty(lambda: build(config, widths[0]))
    bundle.check_names(model, {from_seesr_key(key): tuple(value.shape) for key, value in tensors.items()}, where)


def _vae(writer: BundleWriter, sd_turbo: Path) -> None:
    # from_pretrained renames the attention of old files (query, key, value, proj_attn).
    tensors = _from_pretrained(AutoencoderKL, sd_turbo, "vae", torch_dtype=writer.dtype)
    writer.component("vae", bundle.read_json(sd_turbo / "vae/config.json"), tensors)


def _tiny_vae(writer: BundleWriter, folder: Path, sd_turbo: Path) -> None:
    config, tensors = bundle.read_json(folder / "config.json"), _read(folder / TINY_VAE, writer.dtype)
    model = bundle.build_empty(lambda: bundle.build_tiny_vae(config))
    bundle.check_names(model, {key: tuple(value.shape) for key, value in tensors.items()}, folder / TINY_VAE)
    vae = bundle.build_empty(lambda: bundle.build_vae(bundle.read_json(sd_turbo / "vae/config.json")))
    ours, theirs = ((each.config["latent_channels"], vae_scale_factor(each)) for each in (vae, model))
    if ours != theirs:
        found = f"{theirs[0]} channels and a factor of {theirs[1]}"
        raise RuntimeError(f"{folder} must have the VAE's latents ({ours[0]} channels, factor {ours[1]}), got {found}")
    writer.component("tiny_vae", config, tensors)


def _text_encoder(writer: BundleWriter, sd_turbo: Path) -> None:
    tensors = _from_pretrained(CLIPTextModel, sd_turbo, "text_encoder", dtype=writer.dtype)
    writer.component("text_encoder", bundle.read_json(sd_turbo / "text_encoder/config.json"), tensors)
    for name in bundle.TOKENIZER:
        writer.text(f"tokenizer/{name}", _text(sd_turbo / "tokenizer" / name))
    writer.json("scheduler/scheduler_config.json", bundle.read_json(sd_turbo / "scheduler/scheduler_config.json"))


def _from_pretrained(kind: Any, sd_turbo: Path, name: str, **dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a component as its library loads them. RuntimeError unless they fit its config.json."""
    model, info = kind.from_pretrained(
        sd_turbo / name,
        variant=_variant(sd_turbo / bundle.FILES[name]),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **dtype,
    )
    extra = [key for key in info["unexpected_keys"] if not key.endswith("position_ids")]
    faults = [*info["missing_keys"], *info["mismatched_keys"], *extra]
    if faults:
        shown = ", ".join(map(str, faults[:3]))
        raise RuntimeError(f"{sd_turbo / name} does not fit its config: {shown}; download it again")
    return bundle.stored_tensors(model)


def _variant(path: Path) -> str | None:
    """fp16 where the hub's fp16 file of `path` is there; scripts/download.py brings that one, half the bytes."""
    return "fp16" if path.with_suffix(".fp16.safetensors").is_file() else None


def _fp16_or_plain(path: Path) -> Path:
    return path.with_suffix(".fp16.safetensors") if _variant(path) else path


def _tagger(writer: BundleWriter, ram: Path, dape: Path, tags: Path, thresholds: Path) -> None:
    checkpoint = _unpickle(ram)
    checkpoint = checkpoint.get("model", checkpoint)
    renamed = {re.sub(r"^vision_multi\.", "tagging_head.", key): tensor for key, tensor in checkpoint.items()}
    needed = {key: tensor for key, tensor in renamed.items() if not DROPPED.search(key)}
    tensors = from_upstream(merge_dape(needed, _unpickle(dape)))
    names, limits = _text(tags).splitlines(), _text(thresholds).split()
    if not all(re.fullmatch(r"\d*\.?\d+", limit) for limit in limits):
        raise RuntimeError(f"{thresholds} must hold one number per tag; download it again")
    config = ram_config(tensors)
    if not len(names) == len(limits) == config.tags:
        counts = f"{config.tags}, {len(names)} and {len(limits)}"
        raise RuntimeError(f"{ram}, {tags} and {thresholds} must agree, they hold {counts} tags")
    model = bundle.build_empty(lambda: Ram(config))
    bundle.check_names(model, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, ram)
    writer.tagger(config, tensors, "\n".join(names) + "\n", "\n".join(limits) + "\n")


_MEASURED = (
    "swin.embeddings.patch_embeddings.projection.weight",
    "swin.encoder.layers.0.blocks.0.attention.self.relative_position_bias_table",
    "image_proj.weight",
    "label_proj.weight",
    "label_embed",
    "layers.0.fc1.weight",
)


def ram_config(tensors: Mapping[str, Tensor]) -> RamConfig:
    """RAM's sizes, read off its tensors (our names): window and heads from the bias tables, the rest from widths.

    The tag head's 4 attention heads do not show in the tensors. The image size makes the last stage one window.
    """
    missing = [name for name in _MEASURED if name not in tensors]
    if missing:
        raise RuntimeError(f"the RAM checkpoint lacks {missing[0]} (our name); it is not RAM's, or it is incomplete")
    stages = 1 + max(int(key.split(".")[3]) for key in tensors if key.startswith("swin.encoder.layers."))
    blocks = [key for key in tensors if key.endswith("relative_position_bias_table")]
    tables = [tensors[next(key for key in blocks if f"layers.{stage}." in key)] for stage in range(stages)]
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    patches = tensors["swin.embeddings.patch_embeddings.projection.weight"]
    return RamConfig(
        image_size=patches.shape[-1] * window * 2 ** (stages - 1),
        patch_size=patches.shape[-1],
        embed_dim=patches.shape[0],
        depths=tuple(sum(f"layers.{stage}." in key for key in blocks) for stage in range(stages)),
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=window,
        token_dim=tensors["image_proj.weight"].shape[0],
        tag_dim=tensors["label_proj.weight"].shape[0],
        tag_layers=1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("layers.")),
        tag_mlp_dim=tensors["layers.0.fc1.weight"].shape[0],
        tags=tensors["label_embed"].shape[0],
    )


def _read(path: Path, dtype: torch.dtype, only: str = "") -> dict[str, Tensor]:
    """A safetensors file's tensors whose name contains `only`, each narrowed to `dtype` as it is read."""
    with bundle.open_tensors(path) as file:
        return {key: file.get_tensor(key).to(dtype) for key in file.keys() if only in key}  # noqa: SIM118


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        # mmap: RAM's 5.6 GB are mostly optimizer state, and only the tensors that are used are read. Files from
        # before torch 1.6 are no zip archives and can't be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise RuntimeError(f"{path} is not a checkpoint of plain tensors ({reason}); download it again") from error
    if not isinstance(loaded, dict):
        raise RuntimeError(f"{path} must hold named tensors, got a {type(loaded).__name__}; download it again")
    return loaded


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RuntimeError(MISSING.format(path)) from None


if __name__ == "__main__":
    main()
