"""Seams: what the borders of latent tiles leave in a result."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from seesr import images
from seesr.pipeline import SeeSR
from seesr.settings import Settings


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gradient", "photograph"])
def test_no_seam_shows_where_tiles_meet(tiny: SeeSR, kind: str) -> None:
    """The jump from column to column at tiles' borders against that of all columns, in levels of 255."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 128), torch.linspace(0, 1, 192), indexing="ij")
    image = images.to_image(torch.stack([x, y, (x + y) / 2])[None])
    if kind == "photograph":
        image = images.open_image(Path(__file__).parent / "data/astronaut.jpg").rgb.crop((32, 0, 224, 128))
    settings = Settings(num_inference_steps=1, seed=3, latent_tiled_size=64)
    factor = tiny.vae_scale_factor
    grid = tiny.plan((512, 768), settings).grid((512 // factor, 768 // factor))
    edges = [factor * edge for left in grid.lefts for edge in (left, left + grid.tile[1])]
    borders = [edge - 1 for edge in edges if 0 < edge < 768]
    assert len(borders) >= 4
    shares = []
    for tile in (64, 256):  # with borders there, and without
        result = images.to_tensor(tiny.upscale(image, replace(settings, latent_tiled_size=tile)).image) * 255
        jumps = result.diff(dim=3).abs().mean(dim=(0, 1, 2))
        around = F.avg_pool1d(jumps[None], 25, 1, 12, count_include_pad=False)[0]
        shares.append((jumps[borders] / around[borders]).mean())
    assert shares[0] < shares[1] + 0.05
