"""The real model's networks without its weights: their sizes, to count work and memory, or random values to time.

scripts/full_size.py FOLDER     a bundle of the real size (4.2 GB) with random weights, to time how it loads
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from transformers import CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ram.model import Ram, RamConfig
from ram.tagger import Tagger
from seesr import weights

Model = TypeVar("Model", bound=nn.Module)

TOKENIZER = Path(__file__).resolve().parent.parent / "weights/tiny/tokenizer"
"""The embedded bundle's vocabulary is the real one."""

TOKENS = 512
"""Width of the image tokens."""

_DENOISER: dict[str, Any] = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
UNET = _DENOISER | {"sample_size": 64, "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}
CONTROLNET = _DENOISER | {"conditioning_embedding_out_channels": [16, 32, 96, 256]}
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}
TEXT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
    "pad_token_id": 1,
}
"""SD-Turbo's and SeeSR's config.json, without what says the library's defaults."""


def build(device: str = "meta", dtype: torch.dtype = torch.float16) -> weights.Parts:
    """All parts at full size: without values on "meta", else with random ones of the usual spread."""

    def values(model: Model) -> Model:
        return model.to("meta", dtype) if device == "meta" else _randomize(model.to_empty(device=device).to(dtype))

    config = RamConfig()
    scheduler: Any = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    return weights.Parts(
        unet=values(weights.build_empty(lambda: weights.build_unet(UNET, TOKENS))),
        controlnet=values(weights.build_empty(lambda: weights.build_controlnet(CONTROLNET, TOKENS))),
        vae=values(weights.build_empty(lambda: weights.build_vae(VAE))),
        text_encoder=values(weights.build_empty(lambda: weights.build_text_encoder(TEXT))),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True),
        tagger=Tagger(
            values(weights.build_empty(lambda: Ram(config))),
            [f"tag {number}" for number in range(config.tags)],
            torch.full((config.tags,), 2.0),  # no tag: all would be above 0.5, or none
        ),
        scheduler=scheduler,
        name="the real structure with random weights",
        process_size=512,
    )


def _randomize(model: Model) -> Model:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if tensor.ndim > 1:
            bound = 1 / math.sqrt(tensor[0].numel())
            tensor.data.uniform_(-bound, bound)
        else:
            tensor.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the bundle to write; it must not be there")
    folder: Path = parser.parse_args().folder
    torch.manual_seed(0)
    weights.save(build("cpu"), folder, {"kind": "random"})
    print(f"{folder}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
