"""The small autoencoder (diffusers' AutoencoderTiny, TAESD) in tiles that equal it untiled within rounding.

It has neither norms nor attention. A tile starts with the halo that all convolutions need, which shrinks at each change
of resolution.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from seesr.sizes import Size
from seesr.vae import vae_scale_factor
from seesr.vae.subpixel import SubpixelConv
from seesr.vae.tiling import Direction, Report, Span, split_evenly


@dataclass(frozen=True)
class Stage:
    """Layers of one resolution. `scale` is input pixels per latent pixel; `halo` is in latent pixels."""

    layers: list[nn.Module]
    scale: int
    halo: int


def stages(vae: Any, direction: Direction) -> list[Stage]:
    """Each but the first begins with the convolution that changes the resolution."""
    scale = vae_scale_factor(vae) if direction == "encode" else 1
    groups: list[tuple[list[nn.Module], int, int]] = [([], scale, scale)]
    for layer in getattr(vae, f"{direction}r").layers:
        after = 2 * scale if isinstance(layer, SubpixelConv) else scale // getattr(layer, "stride", (1,))[0]
        if after != scale:
            groups.append(([], scale, after))
            scale = after
        groups[-1][0].append(layer)
    found, halo = [], 0
    for layers, before, after in reversed(groups):
        convolutions = sum(isinstance(module, nn.Conv2d) for layer in layers for module in layer.modules())
        halo += math.ceil(convolutions / after)
        found.append(Stage(layers, before, halo))
    return found[::-1]


def encode(vae: Any, image: Tensor, tile: int = 0, report: Report = lambda _: None) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> latents (B, C, h, w), unscaled, in the VAE's dtype; there is no posterior

    `tile` is in latent pixels; 0 means no tiles. H and W must be multiples of the scale factor.
    """
    factor = vae_scale_factor(vae)
    size = (image.shape[2] // factor, image.shape[3] // factor)
    result = image.new_empty(image.shape[0], vae.config["latent_channels"], *size)
    _run_tiles(stages(vae, "encode"), image, result, size, tile, lambda part: part.add(1).div_(2), report)
    return result


def decode(vae: Any, latent: Tensor, tile: int = 0, report: Report = lambda _: None) -> Tensor:
    """(B, C, h, w), unscaled -> (B, 3, H, W) in about [-1, 1]; the rest as for `encode`"""
    factor, size = vae_scale_factor(vae), (latent.shape[2], latent.shape[3])
    result = latent.new_empty(latent.shape[0], 3, size[0] * factor, size[1] * factor)
    _run_tiles(stages(vae, "decode"), latent, result, size, tile, lambda part: part.div(3).tanh_().mul_(3), report)
    return result.mul_(2).sub_(1)


def _run_tiles(
    steps: list[Stage],
    source: Tensor,
    result: Tensor,
    size: Size,
    tile: int,
    prepare: Callable[[Tensor], Tensor],
    report: Report,
) -> None:
    """One tile of a latent of `size` after the other; its interior goes to its place in `result`."""
    interiors = list(itertools.product(*(split_evenly(length, tile or length) for length in size)))
    for number, interior in enumerate(interiors, 1):
        hidden, corner = source, (0, 0)
        for stage in steps:
            spans = zip(interior, size, strict=True)
            rows, columns = ((max(0, a - stage.halo), min(length, b + stage.halo)) for (a, b), length in spans)
            hidden, corner = _crop(hidden, corner, (rows, columns), stage.scale), (rows[0], columns[0])
            hidden = prepare(hidden) if stage is steps[0] else hidden
            for layer in stage.layers:
                hidden = layer(hidden)
        scale = result.shape[2] // size[0]
        _crop(result, (0, 0), interior, scale).copy_(_crop(hidden, corner, interior, scale))
        report(number / len(interiors))


def _crop(hidden: Tensor, corner: Size, spans: tuple[Span, ...], scale: int) -> Tensor:
    """`spans` of a map that starts at `corner`, both in latent pixels."""
    rows, columns = (slice((a - o) * scale, (b - o) * scale) for o, (a, b) in zip(corner, spans, strict=True))
    return hidden[:, :, rows, columns]
