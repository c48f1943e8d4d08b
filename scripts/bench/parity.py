"""How far this code is from upstream's recorded outputs: `.venv/bin/python -m scripts.bench.parity`."""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from seesr.color_fix import match_color
from seesr.pipeline import SeeSR
from seesr.vae import tiling
from tests.golden import LOOP, LOOP_CASES, PROMPTS, UNET, UNET_CASES, convert_golden, predict, recorded, sample


def compare(seesr: SeeSR) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is compared, our result, upstream's recorded one. `seesr` holds the bundle of `convert_golden`."""
    for case, (t, scale) in UNET_CASES.items():
        yield f"ControlNet + UNet {case}", predict(seesr, case, t, scale), UNET[f"{case}.out"]
    text = torch.cat([seesr.encode_text(prompt) for prompt in PROMPTS])
    yield "text states", text, recorded("text")["last_hidden_state"]
    ram, tagger = recorded("ram"), seesr.components.tagger
    for name in ("lr_a", "lr_b"):
        tokens = tagger(ram[f"{name}.image_uint8"].permute(2, 0, 1)[None] / 255)[1]
        wanted = ram.get(f"{name}.image_embeds", ram.get(f"{name}.image_embeds_first32"))
        assert wanted is not None
        yield f"RAM tokens {name}", tokens[:, : wanted.shape[1]], wanted
        yield f"RAM logits {name}", tagger.model.logits(tokens), ram[f"{name}.logits"]
    vae, model = recorded("vae"), seesr.components.vae
    for tile in (0, 7, 16, 24):
        moments = tiling.encode(model, vae["image_uint8"] / 127.5 - 1, tile)
        yield f"VAE encode, tile {tile}", moments, vae["moments_untiled"]
        image = tiling.decode(model, vae["z"], tile)[:, :, ::4, ::4]
        yield f"VAE decode, tile {tile}", image, vae["decoded_untiled_sub4"]
    for name in LOOP_CASES:
        yield f"loop {name}", sample(seesr, name), LOOP[f"{name}.latent"]
    color = recorded("colour")
    for number in (0, 1):
        target, source = (color[f"{number}.{key}_uint8"].permute(2, 0, 1)[None] / 255 for key in ("target", "source"))
        for mode in ("wavelet", "adain"):
            wanted = color[f"{number}.{mode}_float"].clamp(0, 1)
            yield f"color {mode} {number}", match_color(target, source, mode), wanted


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        seesr = SeeSR.load(convert_golden(Path(folder) / "bundle"), device="cpu")
        rows = list(compare(seesr))
    print(f"{'compared':40} {'max error':>10} {'of values to':>12}")
    for name, ours, theirs in rows:
        print(f"{name:40} {(ours - theirs).abs().max().item():10.1e} {theirs.abs().max().item():12.1f}")


if __name__ == "__main__":
    main()
