"""Print how far this code is from the reference's recorded outputs: `.venv/bin/python tests/parity.py`."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import torch
from conftest import convert_golden
from golden import recorded
from test_pipeline import LOOP, LOOP_CASES, UNET, UNET_CASES, predict, sample
from test_prompts import PROMPTS
from torch import Tensor

from seesr import vae_tiling
from seesr.color_fix import match_color
from seesr.pipeline import SeeSR


def pairs(seesr: SeeSR) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is compared, ours, the reference's."""
    for case, (t, scale) in UNET_CASES.items():
        yield f"ControlNet + UNet {case}", predict(seesr, case, t, scale), UNET[f"{case}.out"]
    text = recorded("text")["last_hidden_state"]
    yield "text states", torch.cat([seesr.encode_text(prompt) for prompt in PROMPTS]), text
    ram = recorded("ram")
    for picture in ("lr_a", "lr_b"):
        tokens = seesr.parts.tagger(ram[f"{picture}.image_uint8"].permute(2, 0, 1)[None] / 255)[1]
        wanted = ram.get(f"{picture}.image_embeds", ram.get(f"{picture}.image_embeds_first32"))
        assert wanted is not None
        yield f"RAM tokens {picture}", tokens[:, : wanted.shape[1]], wanted
        yield f"RAM logits {picture}", seesr.parts.tagger.model.logits(tokens), ram[f"{picture}.logits"]
    vae, model = recorded("vae"), seesr.parts.vae
    for tile in (0, 7, 16, 24):
        moments = vae_tiling.encode(model, vae["image_uint8"] / 127.5 - 1, tile)
        yield f"VAE encode, tile {tile}", moments, vae["moments_untiled"]
        picture = vae_tiling.decode(model, vae["z"], tile)[:, :, ::4, ::4]
        yield f"VAE decode, tile {tile}", picture, vae["decoded_untiled_sub4"]
    for name in LOOP_CASES:
        yield f"loop {name}", sample(seesr, name), LOOP[f"{name}.latent"]
    colour = recorded("colour")
    for number in (0, 1):
        target, source = (colour[f"{number}.{k}_uint8"].permute(2, 0, 1)[None] / 255 for k in ("target", "source"))
        for mode in ("wavelet", "adain"):
            yield (
                f"colour {mode} {number}",
                match_color(target, source, mode),
                colour[f"{number}.{mode}_float"].clamp(0, 1),
            )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        seesr = SeeSR.load(convert_golden(Path(folder) / "bundle"), device="cpu")
        print(f"{'compared':40} {'max error':>10} {'of values to':>12}")
        for name, ours, theirs in pairs(seesr):
            print(f"{name:40} {(ours - theirs).abs().max().item():10.1e} {theirs.abs().max().item():12.1f}")


if __name__ == "__main__":
    main()
