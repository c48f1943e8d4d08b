"""Latents: encoding large images at a smaller size, and the VAE's fallback to float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seesr import images, sizes
from seesr.memory import VaeTilePlan
from seesr.pipeline import SeeSR
from seesr.settings import Settings
from seesr.vae import tiling

DATA = Path(__file__).parent / "data"


def test_encoding_at_a_smaller_size_moves_the_result_less_than_another_seed(
    tiny: SeeSR, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.open_image(DATA / "astronaut.jpg").rgb.crop((64, 32, 192, 128))
    settings = Settings(num_inference_steps=1, seed=1)
    whole, other = (images.to_tensor(tiny.upscale(image, replace(settings, seed=s)).image) for s in (1, 2))
    shapes, encode = [], tiling.encode

    def watched(vae: Any, image: Tensor, *tiles: Any) -> Tensor:
        shapes.append(tuple(image.shape[2:]))
        return encode(vae, image, *tiles)

    monkeypatch.setattr(sizes, "ENCODE_MAX_PIXELS", 48 * 64)
    monkeypatch.setattr(tiling, "encode", watched)
    reduced = images.to_tensor(tiny.upscale(image, settings).image)
    assert shapes == [(192, 256)]  # half of 384 x 512
    moved, differing = ((one - whole).square().mean().sqrt() * 255 for one in (reduced, other))
    assert 0 < moved < 0.25 < differing


@pytest.mark.slow
def test_the_small_autoencoder_is_near_the_vae_and_repeats(tiny: SeeSR) -> None:
    image, settings = images.open_image(DATA / "astronaut.jpg").rgb.crop((64, 32, 192, 128)), Settings(seed=1)
    fast = replace(settings, fast_vae=True)
    whole, quick, again = (tiny.upscale(image, chosen) for chosen in (settings, fast, fast))
    assert quick.image.tobytes() == again.image.tobytes()
    difference = images.to_tensor(whole.image) - images.to_tensor(quick.image)
    assert 0.3 < difference.square().mean().sqrt() * 255 < 6
    assert quick.plan.encode == quick.plan.decode == VaeTilePlan(2 * tiny.profile.vae_tile, fast=True)
    assert "fast VAE tiles" in str(quick.plan)


def test_without_a_small_autoencoder_fast_vae_is_refused(tiny: SeeSR) -> None:
    lacking = SeeSR(replace(tiny.components, tiny_vae=None), tiny.profile, tiny.device)
    with pytest.raises(ValueError, match=r"^fast_vae needs a small autoencoder, which .* lacks; leave it off, or conv"):
        lacking.upscale(images.to_image(torch.rand(1, 3, 20, 20)), Settings(fast_vae=True))


def test_an_overflow_of_the_vae_runs_again_in_float32(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    half = SeeSR.load(tiny_bundle, device="cpu", dtype=torch.float16)
    whole = SeeSR.load(tiny_bundle, device="cpu")
    latent = torch.randn(1, 16, 8, 8) * 2e5  # beyond float16's 65504 behind the scale factor
    image = half.decode(latent)
    assert "overflowed in torch.float16" in caplog.text
    assert half.components.vae.dtype == torch.float16
    assert (image - whole.decode(latent)).abs().mean() < 0.01


def test_an_image_that_is_not_finite_is_never_returned(golden: SeeSR) -> None:
    with pytest.raises(RuntimeError, match="not finite"):
        golden.decode(torch.full((1, 4, 8, 8), float("nan")))
