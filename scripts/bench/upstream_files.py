"""Write the files of weights/manifest.json in upstream's formats: every real tensor name and shape, random values.

    .venv/bin/python -m scripts.bench.upstream_files FOLDER           15 GB, below FOLDER/hub
    .venv/bin/python -m scripts.bench.upstream_files FOLDER --tiny    the same for the reference's tiny checkpoints

The values depend on the file's name only. FOLDER/hashes.json gets the sha256 of each file. A second run keeps the files
that still have it.
"""

import argparse
import json
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from scripts.bench.random_bundle import TEXT_ENCODER, TOKENIZER, VAE
from scripts.bench.random_files import File, Pickle, Shapes, Text, Weights, empty
from scripts.bundle_writer import sha256
from seesr import bundle
from tests.golden import UPSTREAM, manifest, upstream_shapes

DAPE, RAM = "seesr/DAPE.pth", "ram/ram_swin_large_14m.pth"
WEIGHTS = {
    "sd-turbo/unet": "diffusion_pytorch_model.fp16.safetensors",
    "sd-turbo/vae": "diffusion_pytorch_model.fp16.safetensors",
    "sd-turbo/text_encoder": "model.fp16.safetensors",
    "seesr/seesr/unet": "diffusion_pytorch_model.safetensors",
    "seesr/seesr/controlnet": "diffusion_pytorch_model.safetensors",
    "taesd": "diffusion_pytorch_model.safetensors",
}
"""Folder -> its safetensors file, in half precision where its name says so. Each has a config.json too."""

TINY = {
    "sd-turbo/unet": "sd_turbo/unet",
    "sd-turbo/vae": "sd_turbo/vae",
    "sd-turbo/text_encoder": "sd_turbo/text_encoder",
    "seesr/seesr/unet": "seesr/unet",
    "seesr/seesr/controlnet": "seesr/controlnet",
}
"""Folder -> that of the reference's tiny checkpoints, which have full precision and no TAESD."""

NARROW = {"encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [8] * 4}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
SHARED = {
    "tagging_head.": "tag_encoder.",
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
"""Start of a name of RAM's -> that of the tensor that it shares. torch.save stores such a tensor once."""


def files(tiny: bool) -> dict[str, File]:
    """Folder and path as in weights/manifest.json -> the file."""
    scheduler = "scheduler/scheduler_config.json"
    found: dict[str, File] = {
        "sd-turbo/LICENSE.md": Text("Random weights, free to use.\n"),
        f"sd-turbo/{scheduler}": Text((UPSTREAM / "sd_turbo" / scheduler).read_text()),
        **{f"sd-turbo/tokenizer/{name}": Text((TOKENIZER / name).read_text()) for name in bundle.TOKENIZER},
    }
    configs = tiny_configs() if tiny else real_configs()
    shapes = tiny_shapes() if tiny else real_shapes(configs)
    shapes |= {"taesd": stored(bundle.build_tiny_vae, configs["taesd"])}
    for folder, name in WEIGHTS.items():
        dtype = torch.float16 if ".fp16." in name else torch.float32
        found[f"{folder}/config.json"] = Text(json.dumps(configs[folder], indent=2) + "\n")
        found[f"{folder}/{name}"] = Weights(shapes[folder], dtype)
    dape = upstream_shapes("ram/DAPE.pth") if tiny else manifest("dape_lora")
    ram = upstream_shapes("ram/ram_swin_large_14m.pth") if tiny else manifest("ram_swin_large_14m_expected")
    found[DAPE] = Pickle({name: empty(name, shape) for name, shape in dape.items()})
    found[RAM] = Pickle(training_state(ram))
    tags = ram["label_embed"][0]
    found["ram/ram_tag_list.txt"] = Text("\n".join(f"tag {number}" for number in range(tags)))  # no newline at the end
    found["ram/ram_tag_list_threshold.txt"] = Text("0.65\n" * tags)
    return found


def tiny_configs() -> dict[str, dict[str, Any]]:
    """Folder -> its config.json."""
    recorded = {folder: bundle.read_json(UPSTREAM / name / "config.json") for folder, name in TINY.items()}
    return recorded | {"taesd": {"_class_name": "AutoencoderTiny", **NARROW}}


def tiny_shapes() -> dict[str, Shapes]:
    """Folder -> the tensors of its safetensors file, but for TAESD."""
    return {folder: upstream_shapes(f"{name}/{WEIGHTS[folder].replace('.fp16', '')}") for folder, name in TINY.items()}


def real_configs() -> dict[str, dict[str, Any]]:
    """Folder -> its config.json."""
    unet = {"_class_name": "UNet2DConditionModel", **manifest("seesr_unet_config")}
    return {
        "sd-turbo/unet": {name: value for name, value in unet.items() if name != "use_image_cross_attention"},
        "sd-turbo/vae": {"_class_name": "AutoencoderKL", **VAE, "scaling_factor": 0.18215, "force_upcast": True},
        "sd-turbo/text_encoder": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **TEXT_ENCODER},
        "seesr/seesr/unet": unet,
        "seesr/seesr/controlnet": {"_class_name": "ControlNetModel", **manifest("seesr_controlnet_config")},
        "taesd": {"_class_name": "AutoencoderTiny"},
    }


def real_shapes(configs: Mapping[str, dict[str, Any]]) -> dict[str, Shapes]:
    """Folder -> the tensors of its safetensors file, but for TAESD.

    No names of SD-Turbo's VAE and text encoder were recorded. Theirs are those of old files, which the converter must
    take too: the VAE's attention under its first names, and the text encoder with a buffer.
    """
    vae = stored(bundle.build_vae, configs["sd-turbo/vae"])
    for new, old in OLD_ATTENTION.items():
        vae = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): shape for name, shape in vae.items()}
    text_encoder = stored(bundle.build_text_encoder, configs["sd-turbo/text_encoder"])
    return {
        "sd-turbo/unet": manifest("sd_turbo_unet_base"),
        "sd-turbo/vae": vae,
        "sd-turbo/text_encoder": text_encoder | {"text_model.embeddings.position_ids": (1, 77)},
        "seesr/seesr/unet": manifest("seesr_unet"),
        "seesr/seesr/controlnet": manifest("seesr_controlnet"),
    }


def stored(build: Callable[[dict[str, Any]], torch.nn.Module], config: dict[str, Any]) -> dict[str, Sequence[int]]:
    """The tensors of the network that a config.json describes."""
    tensors = bundle.stored_tensors(bundle.build_empty(lambda: build(config)))
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def training_state(shapes: Shapes) -> dict[str, Any]:
    """RAM's checkpoint: the model, and Adam's two moments of all parameters but the fixed label embedding.

    That state is inferred from the size of the real file, 5.239 GiB, which this one has too.
    """
    model = {}
    for name, shape in shapes.items():
        twin = next((name.replace(start, to) for start, to in SHARED.items() if name.startswith(start)), name)
        model[name] = model[twin] if twin in model else empty(name, shape)
    buffers = ("position_ids", "relative_position_index", "attn_mask", "label_embed")
    trained = {id(tensor): name for name, tensor in model.items() if not name.endswith(buffers)}
    state = {
        number: {"step": 1000, "exp_avg": empty(name, shapes[name]), "exp_avg_sq": empty(name, shapes[name])}
        for number, name in enumerate(trained.values())
    }
    group = {"lr": 5e-6, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05, "params": list(state)}
    optimizer = {"state": state, "param_groups": [group]}
    return {"model": model, "optimizer": optimizer, "config": {"image_size": 384, "vit": "swin_l"}, "epoch": 4}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a temporary file that takes the place of `path` if the block ends without an error."""
    part = path.with_name(f".{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write(folder: Path, tiny: bool) -> None:
    """Bring FOLDER/hub and FOLDER/hashes.json up to date. Each file is replaced whole or not at all."""
    record = folder / "hashes.json"
    hashes: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
    for name, file in files(tiny).items():
        path = folder / "hub" / name
        if path.is_file() and hashes.get(name) == sha256(path):
            print(f"kept {name}", flush=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            file.write(part, torch.Generator().manual_seed(zlib.crc32(name.encode())))
        hashes[name] = sha256(path)
        with replacing(record) as part:
            part.write_text(json.dumps(hashes, indent=1))
        print(f"wrote {name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the reference's tiny checkpoints instead of the real size")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        write(arguments.folder, arguments.tiny)
    except (OSError, ValueError) as error:
        sys.exit(f"upstream_files: {error}")


if __name__ == "__main__":
    main()
