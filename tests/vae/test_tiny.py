"""The small autoencoder equals diffusers' own, whole and in tiles."""

import copy
from typing import Any

import pytest
import torch

from seesr.bundle import build_tiny_vae
from seesr.vae import tiny

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

TAESD: dict[str, Any] = {}
"""The defaults."""
EMBEDDED: dict[str, Any] = {
    "latent_channels": 16,
    "encoder_block_out_channels": [12, 12, 12],
    "decoder_block_out_channels": [12, 12, 12],
    "num_encoder_blocks": [0, 1, 3],
    "num_decoder_blocks": [3, 2, 0],
}
"""Latents of a quarter of the image's size, as in the embedded bundle."""
CASES = [
    (TAESD, (5, 9), 0),
    (TAESD, (30, 24), 16),
    (EMBEDDED, (9, 13), 0),
    (EMBEDDED, (45, 50), 16),
    (EMBEDDED, (23, 40), 7),
]


def pair(config: dict[str, Any]) -> tuple[Any, Any]:
    """Diffusers' own autoencoder with random weights, and ours with the same ones."""
    torch.manual_seed(1)
    theirs: Any = AutoencoderTiny.from_config(config)
    ours = build_tiny_vae(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize(("config", "size", "tile"), CASES)
@torch.inference_mode()
def test_it_equals_diffusers_untiled(config: dict[str, Any], size: tuple[int, int], tile: int) -> None:
    theirs, ours = pair(config)
    factor, channels = (8, 4) if config is TAESD else (4, 16)
    image, latent = torch.rand(1, 3, *(factor * side for side in size)) * 2 - 1, 2 * torch.randn(1, channels, *size)
    shares: list[float] = []
    encoded, decoded = (
        run(ours, part, tile, shares.append) for run, part in ((tiny.encode, image), (tiny.decode, latent))
    )
    torch.testing.assert_close(encoded, theirs.encode(image).latents, atol=1e-6, rtol=0)
    torch.testing.assert_close(decoded, theirs.decode(latent).sample, atol=1e-6, rtol=0)
    assert shares.count(1.0) == 2
    assert (len(shares) > 2) == (tile > 0)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@torch.inference_mode()
def test_halos_are_no_larger_than_needed(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the halos of all stages one latent pixel smaller, tiles differ."""
    _, ours = pair(EMBEDDED)
    for parameter in ours.parameters():
        parameter.abs_()  # every pixel of the receptive field counts
    run, shape = (tiny.encode, (3, 160, 160)) if direction == "encode" else (tiny.decode, (16, 40, 40))
    source, stages = torch.rand(1, *shape), tiny.stages(ours, direction)  # type: ignore[arg-type]
    whole, tiled = run(ours, source), run(ours, source, 20)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=0)
    smaller = [tiny.Stage(stage.layers, stage.scale, stage.halo - 1) for stage in stages]
    monkeypatch.setattr(tiny, "stages", lambda *_: smaller)
    assert ((run(ours, source, 20) - whole).abs() > 1e-5 * whole.abs()).any()


@torch.inference_mode()
def test_half_precision_stays_close() -> None:
    _, ours = pair(EMBEDDED)
    half, latent = copy.deepcopy(ours).half(), torch.randn(1, 16, 24, 24)
    image = tiny.decode(half, latent.half(), 10)
    assert image.dtype == torch.float16
    assert (image.float() - tiny.decode(ours, latent)).abs().max() < 5e-3
