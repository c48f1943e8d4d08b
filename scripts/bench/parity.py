"""How far this code is from upstream's recorded outputs.

.venv/bin/python -m scripts.bench.parity                              on the CPU, in float32
.venv/bin/python -m scripts.bench.parity --device cuda --dtype fp16   on a GPU
"""

import argparse
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from scripts.dry_run import DTYPES
from seesr.color_fix import match_color
from seesr.pipeline import SeeSR
from seesr.vae import tiling
from tests.golden import LOOP, LOOP_CASES, PROMPTS, ROOT, UNET, UNET_CASES, convert_golden, predict, recorded, sample


@cache
def golden_bundle() -> Path:
    """The reference's tiny random weights, converted once; removed when the process ends."""
    return convert_golden(ROOT / "parity/bundle")


def compare(seesr: SeeSR) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is compared, our result, upstream's recorded one. `seesr` holds `golden_bundle`."""
    device, dtype = seesr.device, seesr.dtype
    for case, (t, scale) in UNET_CASES.items():
        yield f"ControlNet + UNet {case}", predict(seesr, case, t, scale), UNET[f"{case}.out"]
    text = torch.cat([seesr.encode_text(prompt) for prompt in PROMPTS])
    yield "text states", text, recorded("text")["last_hidden_state"]
    ram, tagger = recorded("ram"), seesr.components.tagger
    for name in ("lr_a", "lr_b"):
        tokens = tagger(ram[f"{name}.image_uint8"].permute(2, 0, 1)[None].to(device) / 255)[1]
        wanted = ram.get(f"{name}.image_embeds", ram.get(f"{name}.image_embeds_first32"))
        assert wanted is not None
        yield f"RAM tokens {name}", tokens[:, : wanted.shape[1]], wanted
        yield f"RAM logits {name}", tagger.model.logits(tokens), ram[f"{name}.logits"]
    vae, model = recorded("vae"), seesr.components.vae
    source, latent = (values.to(device, dtype) for values in (vae["image_uint8"] / 127.5 - 1, vae["z"]))
    for tile in (0, 7, 16, 24):
        yield f"VAE encode, tile {tile}", tiling.encode(model, source, tile), vae["moments_untiled"]
        image = tiling.decode(model, latent, tile)[:, :, ::4, ::4]
        yield f"VAE decode, tile {tile}", image, vae["decoded_untiled_sub4"]
    for name in LOOP_CASES:
        yield f"loop {name}", sample(seesr, name), LOOP[f"{name}.latent"]
    color = recorded("colour")
    for number in (0, 1):
        keys = (f"{number}.{key}_uint8" for key in ("target", "source"))
        target, source = (color[key].permute(2, 0, 1)[None].to(device) / 255 for key in keys)
        for mode in ("wavelet", "adain"):
            wanted = color[f"{number}.{mode}_float"].clamp(0, 1)
            yield f"color {mode} {number}", match_color(target, source, mode), wanted


@torch.inference_mode()
def errors(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, tuple[float, float]]:
    """What is compared -> the largest error and the largest value. Float32 is computed exactly, not as TF32."""
    seesr = SeeSR.load(golden_bundle(), device, dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pairs = [(name, ours.float().cpu(), theirs) for name, ours, theirs in compare(seesr)]
    return {name: ((ours - theirs).abs().max().item(), theirs.abs().max().item()) for name, ours, theirs in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    arguments = parser.parse_args()
    print(f"{'compared':40} {'max error':>10} {'of values to':>12}")
    for name, (error, largest) in errors(arguments.device, DTYPES[arguments.dtype]).items():
        print(f"{name:40} {error:10.1e} {largest:12.1f}")


if __name__ == "__main__":
    main()
