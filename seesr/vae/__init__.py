"""The VAE in tiles: exact halos, shared GroupNorm statistics, attention over the whole latent."""

from typing import Any


def vae_scale_factor(vae: Any) -> int:
    """Image pixels per latent pixel along one axis: 8 for SD-Turbo."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)
