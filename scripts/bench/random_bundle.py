"""The real model's structure without its weights: on the meta device to count, or with random values to time.

.venv/bin/python -m scripts.bench.random_bundle FOLDER    writes a bundle of the real size (4.5 GB), random weights
"""

import argparse
import math
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import CLIPTokenizer

from ram.model import Ram, RamConfig
from ram.tagger import Tagger
from scripts import bundle_writer
from scripts.dry_run import measure
from seesr import bundle

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

Model = TypeVar("Model", bound=nn.Module)

TOKENIZER = Path(__file__).resolve().parents[2] / "weights/tiny/tokenizer"
"""The embedded bundle has the real vocabulary."""

_SHARED: dict[str, Any] = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
UNET = _SHARED | {"sample_size": 64, "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}
CONTROLNET = _SHARED | {"conditioning_embedding_out_channels": [16, 32, 96, 256]}
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
    "pad_token_id": 1,
}
"""The config.json files of SD-Turbo and SeeSR, without the library's defaults."""


def build(device: str = "meta", dtype: torch.dtype = torch.float16) -> bundle.Components:
    """All components at full size: without values on "meta", else with random values of the usual spread."""

    def fill(model: Model) -> Model:
        return model.to("meta", dtype) if device == "meta" else randomize(model, device, dtype)

    ram = RamConfig()
    unet = fill(bundle.build_empty(lambda: bundle.build_unet(UNET, ram.token_dim)))
    controlnet = fill(bundle.build_empty(lambda: bundle.build_controlnet(CONTROLNET, ram.token_dim)))
    vae = fill(bundle.build_empty(lambda: bundle.build_vae(VAE)))
    tagger = fill(bundle.build_empty(lambda: Ram(ram)))
    tiny_vae = fill(bundle.build_empty(lambda: bundle.build_tiny_vae({})))
    constants = measure(unet, controlnet, vae, tagger, tiny_vae)
    scheduler: Any = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    return bundle.Components(
        unet=unet,
        controlnet=controlnet,
        vae=vae,
        tiny_vae=tiny_vae,
        text_encoder=fill(bundle.build_empty(lambda: bundle.build_text_encoder(TEXT_ENCODER))),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True),
        tagger=Tagger(
            tagger,
            [f"tag {number}" for number in range(ram.tags)],
            torch.full((ram.tags,), 2.0),  # no tag reaches this
        ),
        scheduler=scheduler,
        name="the real structure with random weights",
        process_size=512,
        memory=constants["memory"],
        flops=constants["flops"],
    )


def write(folder: Path, device: str = "cpu") -> None:
    """A bundle of random values; `device` draws them. Raises RuntimeError if `folder` exists."""
    torch.manual_seed(0)
    bundle_writer.save(build(device), folder, {"kind": "random"})


def randomize(model: Model, device: str, dtype: torch.dtype) -> Model:
    """Parameters get memory and values; buffers, such as position numbers, keep theirs."""
    buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
    model = model.to_empty(device=device).to(dtype)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    for name, tensor in model.named_parameters():
        if tensor.ndim > 1:
            bound = 1 / math.sqrt(tensor[0].numel())
            tensor.data.uniform_(-bound, bound)
        else:
            tensor.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the bundle to write; it must not exist")
    folder: Path = parser.parse_args().folder
    write(folder)
    print(f"{folder}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
