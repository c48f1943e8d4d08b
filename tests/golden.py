"""The reference's recorded outputs, and its tiny checkpoints in upstream's own formats, unpacked once per run.

Recorded by running cswry/SeeSR on small random weights of the real structure, fp32 on a CPU. Weights are stored in
fp16 and the outputs were computed from exactly those values. In the text encoder the rows of words that no test says
are zero, and RAM's caption half is left out but for a few tensors, so that the archive stays small.
"""

import atexit
import json
import math
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from scripts.convert import convert
from seesr.pipeline import SeeSR
from seesr.settings import Settings
from seesr.tiling import TileGrid

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

DATA = Path(__file__).parent / "data"
ROOT = Path(tempfile.mkdtemp(prefix="seesr-golden-"))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
with tarfile.open(DATA / "golden.tar.xz") as archive:
    archive.extractall(ROOT, filter="data")

UPSTREAM = ROOT / "upstream"
"""sd_turbo/ and seesr/ as their repositories have them, ram/ with the pickles, the tags and the thresholds."""
shutil.copytree(DATA.parent.parent / "weights/tiny/tokenizer", UPSTREAM / "sd_turbo/tokenizer")


def recorded(name: str) -> dict[str, Tensor]:
    """The tensors of one recorded file: pipeline, unet, e2e, text, vae, ram or colour."""
    return load_file(ROOT / "recorded" / f"{name}.safetensors")


def manifest(name: str) -> dict:
    """Full-size tensor names -> shapes of an upstream file, or its config."""
    return json.loads((ROOT / "recorded/manifests.json").read_text())[name]


def upstream_shapes(name: str) -> dict[str, list[int]]:
    """Tensor names -> shapes of a tiny checkpoint, by its path below UPSTREAM; of RAM's, those of the model."""
    path = UPSTREAM / name
    tensors: Any = torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path)
    return {key: list(tensor.shape) for key, tensor in tensors.get("model", tensors).items()}


UNET = recorded("unet")
UNET_CASES = {"t999_b2_16x24": (999, 1.0), "t249_b2_8x40": (249, 0.7)}
"""A recorded ControlNet and UNet call -> its timestep and conditioning scale."""

LOOP = recorded("pipeline") | {"tokens": recorded("ram")["lr_a.image_embeds"]}
LOOP_CASES: dict[str, dict] = json.loads((DATA / "pipeline.json").read_text())
"""A recorded denoising loop -> its settings."""

PROMPTS: list[str] = json.loads((DATA / "text.json").read_text())["prompts"]
"""The prompts of the recorded text states, in their order."""


def write_taesd(folder: Path) -> Path:
    """A small autoencoder of TAESD's structure, narrower, with random weights, as its repository has it."""
    config: Any = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoencoderTiny(**config).save_pretrained(folder)
    return folder


def convert_golden(out: Path) -> Path:
    """The reference's tiny random weights as our converter bundles them, in fp32."""
    ram = UPSTREAM / "ram"
    convert(
        UPSTREAM / "sd_turbo",
        UPSTREAM / "seesr",
        ram / "ram_swin_large_14m.pth",
        ram / "DAPE.pth",
        ram / "ram_tag_list.txt",
        ram / "ram_tag_list_threshold.txt",
        out,
        dtype=torch.float32,
        process_size=160,
        tiny_vae=write_taesd(out.parent / "taesd"),
    )
    return out


def predict(seesr: SeeSR, case: str, t: int, conditioning_scale: float) -> Tensor:
    """Run a recorded ControlNet and UNet call."""
    return seesr.predict_noise(
        UNET[f"{case}.sample"],
        t,
        UNET[f"{case}.controlnet_cond"] / 255,
        UNET[f"{case}.encoder_hidden_states"],
        UNET[f"{case}.image_encoder_hidden_states"].float(),
        conditioning_scale=conditioning_scale,
    )


def sample(seesr: SeeSR, name: str) -> Tensor:
    """Run a recorded loop with its recorded noise; tiled ones with the reference's grid and weights."""
    case = LOOP_CASES[name]
    control = LOOP[case["control"]].permute(2, 0, 1)[None] / 255
    settings = Settings(
        num_inference_steps=case["steps"],
        cfg_scale=case["guidance"],
        conditioning_scale=case["conditioning_scale"],
        start_point=case["start_point"],
    )
    size = (control.shape[2] // 8, control.shape[3] // 8)
    return seesr.sample(
        control,
        LOOP["text"],
        LOOP["tokens"],
        settings,
        noise=lambda draw, shape: LOOP[f"{name}.noise_{draw}"].reshape(shape),
        negative_text=LOOP["negative_text"],
        grid=reference_grid(size, case["latent_tiled_size"], case["latent_tiled_overlap"]),
    )


def reference_grid(size: tuple[int, int], tile: int, overlap: int) -> TileGrid:
    """Upstream's tiles: by area, square, the last shifted back inside, Gaussian weights half a pixel off in y."""
    if size[0] * size[1] <= tile**2:
        return TileGrid(size, size, (0,), (0,), torch.ones(size[0]), torch.ones(size[1]))
    tile = min(tile, *size)

    def starts(length: int) -> tuple[int, ...]:
        count = max(1, math.ceil((length - tile) / (tile - overlap)) + 1)
        return tuple(min(i * (tile - overlap), length - tile) for i in range(count))

    def gauss(center: float) -> Tensor:
        position = torch.arange(tile, dtype=torch.float64)
        return torch.exp(-(((position - center) / tile) ** 2) / 0.02) / math.sqrt(0.02 * math.pi)

    return TileGrid(size, (tile, tile), starts(size[0]), starts(size[1]), gauss(tile / 2), gauss((tile - 1) / 2))
