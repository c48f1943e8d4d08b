"""Distil a bundle's VAE into a small autoencoder, and write the bundle with it.

    .venv/bin/python -m scripts.train.tiny_vae --start weights/tiny --work work-tiny-vae --out work-bundle

The decoder learns the VAE's images of its own latents and of the UNet's, the encoder the mean of its latents. Starts,
stops and continues as scripts.train.train does.
"""

import argparse
import functools
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from scripts.bundle_writer import BundleWriter
from scripts.eval import metrics, photographs
from scripts.train.data import Batch, Photographs, read_listing, to_pixels
from scripts.train.losses import contrast_l1, gradient_l1, l1
from scripts.train.model import Bundle
from scripts.train.train import ROOT, Plan, Training, read_best
from seesr import bundle as bundles
from seesr import hardware

CONFIG = {
    "latent_channels": 16,
    "encoder_block_out_channels": [16, 16, 16],
    "decoder_block_out_channels": [16, 16, 16],
    "num_encoder_blocks": [0, 0, 3],
    "num_decoder_blocks": [3, 3, 0],
    "scaling_factor": 2.0,
}
"""The embedded bundle's. Its latents are a quarter of the image's size and reach 7; the decoder clamps them at 3."""


class TinyBundle(Bundle):
    """The networks of a bundle, of which only its small autoencoder is trained."""

    def __init__(self, components: bundles.Components) -> None:
        super().__init__(components)
        assert components.tiny_vae is not None
        self.requires_grad_(False)
        self.tiny_vae = components.tiny_vae
        self.tiny_vae.requires_grad_(True)
        self.tiny_scale: float = self.tiny_vae.config["scaling_factor"]

    @torch.no_grad()
    def encode_mean(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the posterior's mean (B, C, h, w), scaled"""
        return (self.vae.encode(image).latent_dist.mode() - self.shift) * self.scale  # type: ignore[union-attr]

    def small_decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w), scaled -> (B, 3, H, W) in [-1, 1]"""
        return self.tiny_vae.decoder(latent / self.tiny_scale)

    def small_encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w), scaled"""
        return self.tiny_vae.encoder(image) * self.tiny_scale

    @torch.no_grad()
    def denoised(self, batch: Batch, later: int | None = None) -> Tensor:
        """A batch -> the latent of its first step (B, C, h, w), scaled; of the step `later` that follows, if given"""
        text, tokens = self.text_states([""] * len(batch.truth)), self.tokens(batch.small)
        x0 = self.x0(self.noisy(batch.control), self.schedule.start, batch.control, text, tokens)
        if later is None:
            return x0
        noisy = self.schedule.add_noise(x0, torch.randn_like(x0), later)
        return self.x0(noisy, later, batch.control, text, tokens)


class DistilLoss(nn.Module):
    """Of the small decoder, on latents of the VAE or of one or two steps of the UNet, and of the small encoder."""

    GRADIENT, CONTRAST, LATENT = 0.3, 0.1, 0.1
    LATER = (749, 499, 499, 249)

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.to(device)

    def forward(self, bundle: TinyBundle, batch: Batch, random: np.random.Generator) -> Tensor:
        steps = int(random.integers(3))
        later = int(random.choice(self.LATER)) if steps == 2 else None
        latent = bundle.denoised(batch, later) if steps else bundle.encode(batch.truth)
        with torch.no_grad():
            wanted = bundle.decode(latent)
        found = bundle.small_decode(latent)
        loss = l1(found, wanted) + self.GRADIENT * gradient_l1(found, wanted)
        image = batch.control if random.random() < 0.7 else batch.truth
        loss = loss + self.LATENT * l1(bundle.small_encode(image), bundle.encode_mean(image))
        return loss + self.CONTRAST * contrast_l1(found, wanted)


class Distillation(Training):
    """Validated by the PSNR of the small decoder's image of two steps against the VAE's."""

    kind, stage = TinyBundle, 5

    def _set_floor(self) -> None:
        pass

    @torch.no_grad()
    def _validate(self) -> None:
        bundle, images, errors = cast(TinyBundle, self.bundle), [], []
        for batch in self.validation:
            torch.manual_seed(5)
            batch = batch.to(bundle.device)
            latent = bundle.denoised(batch, 249)
            small, full = bundle.small_decode(latent).cpu(), bundle.decode(latent).cpu()
            images.append(metrics.psnr(to_pixels(small), to_pixels(full)))
            error = bundle.small_encode(batch.control) - bundle.encode_mean(batch.control)
            errors.append(error.square().mean().item())
        psnr, rms = float(np.mean(images)), float(np.mean(errors)) ** 0.5
        print(f"  {psnr:.2f} dB from the VAE's images, {rms:.3f} RMS from its latents", flush=True)
        if psnr > self.best:
            self.best = psnr
            self._write_best({"psnr_to_vae": round(psnr, 2), "latent_rms": round(rms, 4)})


def export(folder: Path, start: Path, out: Path) -> None:
    """Write the bundle `start` with the best small autoencoder of the checkpoints in `folder`, in fp16, to `out`."""
    state = read_best(folder)
    tensors = {name.removeprefix("tiny_vae."): value for name, value in state["bundle"].items() if "tiny_vae." in name}
    before = bundles.read_json(start / "bundle.json")
    told = f"its tiny_vae by {state['done']} iterations of scripts.train.tiny_vae"
    with BundleWriter(out, replace=True) as writer:
        writer.copy(start)
        writer.component("tiny_vae", {"_class_name": "AutoencoderTiny", **CONFIG}, tensors)
        trained_by = f"{before['trained_by'].split('; its tiny_vae')[0]}; {told}"
        validation = {**before["validation"], "tiny_vae": state["measured"]}
        writer.info({**before, "trained_by": trained_by, "validation": validation})
    print(f"Wrote {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=ROOT / "weights/tiny", help="the bundle to distil")
    parser.add_argument("--iterations", type=int, default=2400)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "work-tiny-vae", help="checkpoints; a new run continues them"
    )
    parser.add_argument("--out", type=Path, required=True, help="the bundle to write")
    parser.add_argument("--rate", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument(
        "--afresh", action="store_true", help="from random weights where --start has a small autoencoder"
    )
    parser.add_argument("--photographs", type=Path, default=photographs.FROM_DEBIAN, help="their folder")
    parser.add_argument("--export-only", action="store_true", help="write the best checkpoint so far, train nothing")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of crops, damage and noise")
    parser.add_argument("--device", default=hardware.device(), help="default: a GPU where there is one")
    arguments = parser.parse_args()
    if not arguments.export_only:
        train(arguments)
    export(arguments.work, arguments.start, arguments.out)


def train(arguments: argparse.Namespace) -> None:
    folder, entries = arguments.photographs, read_listing()
    held_out = [entry | {"file": f"{entry['package']}/{entry['path']}"} for entry in photographs.listed("validate")]
    photographs.fetch_debian([*entries, *held_out], folder)
    plan = Plan(arguments.iterations, batch=2, rate=arguments.rate, seed=arguments.seed, report=200)
    draw = functools.partial(Photographs(folder, entries).batch, size=plan.crop, count=plan.batch)
    validation = Photographs(folder, held_out).validation(256)
    torch.manual_seed(plan.seed)
    start = bundles.load(arguments.start)
    if start.tiny_vae is None or arguments.afresh:
        start = replace(start, tiny_vae=bundles.build_tiny_vae(CONFIG))
    Distillation(plan, start, draw, validation, arguments.work, arguments.device, DistilLoss).run()


if __name__ == "__main__":
    main()
