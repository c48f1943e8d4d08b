"""SeeSR tiled as upstream does it, through our networks: what gains are measured against.

Equal to cswry/SeeSR: latent tiles of 320 that overlap by 4, one at a time; the ControlNet embeds the control image anew
for every tile and step; VAE boxes of 1024 pixels with a border of 32 to encode and of 224 latent pixels with a border
of 11 to decode, with attention inside each box; upsampling before its convolution. Two things differ and do not change
the work: latent tiles blend by sin², and each VAE box has its own GroupNorm statistics, which upstream pools. Left out,
in upstream's favour: the second run of the tagger, the resizing back and forth.
"""

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from seesr.bundle import Components
from seesr.hardware import Profile
from seesr.latents import LatentCodec
from seesr.memory import TilePlan, VaeTilePlan
from seesr.pipeline import SeeSR
from seesr.settings import Settings
from seesr.sizes import Size
from seesr.tiling import TileGrid, blend_weights
from seesr.vae import vae_scale_factor
from seesr.vae.subpixel import SubpixelUpsample
from seesr.vae.tiling import Direction, Report, Span

from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.upsampling import Upsample2D

ENCODE, DECODE = (1024, 32), (224, 11)
"""Side and border of a VAE box: pixels to encode, latent pixels to decode."""


class UpstreamTilePlan(TilePlan):
    """Latent tiles keep their full size, and the last one is shifted back inside. No image is reduced to encode it."""

    def encode_size(self, size: Size) -> Size:
        return size

    def grid(self, size: Size) -> TileGrid:
        tile = (min(size[0], self.latent_tile), min(size[1], self.latent_tile))
        step = self.latent_tile - self.overlap
        tops, lefts = ((*range(0, length - side, step), length - side) for length, side in zip(size, tile, strict=True))
        weight_y, weight_x = (blend_weights(side, min(self.overlap, side // 2)) for side in tile)
        return TileGrid(size, tile, tops, lefts, weight_y, weight_x)


PLAN = UpstreamTilePlan(320, 4, 1, VaeTilePlan(ENCODE[0] // 8), VaeTilePlan(DECODE[0]))


class RepeatedEmbedding(ControlNetConditioningEmbedding):
    """The ControlNet gets the control image itself and embeds it at every call."""

    def embed(self, image: Tensor) -> Tensor:
        """The image as it is."""
        return image


class BoxCodec(LatentCodec):
    """The VAE in upstream's boxes."""

    def run_vae(
        self, direction: Direction, source: Tensor, plan: VaeTilePlan, report: Report = lambda _: None
    ) -> Tensor:
        vae, factor = self.vae, vae_scale_factor(self.vae)
        source = source.to(vae.dtype)
        if direction == "encode":
            moments = run_boxes(vae.encoder, source, 2 * vae.config["latent_channels"], 1 / factor, *ENCODE)
            return moments if vae.quant_conv is None else vae.quant_conv(moments)
        latent = source if vae.post_quant_conv is None else vae.post_quant_conv(source)
        return run_boxes(vae.decoder, latent, 3, factor, *DECODE)


class UpstreamTiling(SeeSR):
    """SeeSR with upstream's tiles and without our savings. It shares the weights of `components`.

    `tiles` are the side and the overlap of latent tiles where a request names none; None means those of PLAN.
    """

    def __init__(
        self, components: Components, profile: Profile, device: str = "cpu", tiles: tuple[int, int] | None = None
    ) -> None:
        controlnet, vae = (_copy_sharing_weights(model) for model in (components.controlnet, components.vae))
        controlnet.controlnet_cond_embedding.__class__ = RepeatedEmbedding
        for module in vae.modules():
            if isinstance(module, SubpixelUpsample):
                module.__class__ = Upsample2D  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__(replace(components, controlnet=controlnet, vae=vae), profile, device)
        self.codec, self.tiles = BoxCodec(vae), tiles

    def plan(self, size: Size, settings: Settings) -> TilePlan:
        """PLAN, with the latent tiles of `settings` if they ask for any: upstream's script takes 96 overlapping 32."""
        side, wanted = self.tiles or (PLAN.latent_tile, PLAN.overlap)
        tile, overlap = settings.latent_tiled_size or side, settings.latent_tiled_overlap or wanted
        return replace(PLAN, latent_tile=tile, overlap=overlap)


def _copy_sharing_weights(model: Any) -> Any:
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def run_boxes(model: Any, source: Tensor, channels: int, scale: float, side: int, border: int) -> Tensor:
    """(B, C, H, W) -> (B, `channels`, scale * H, scale * W): `model` box by box"""
    if max(source.shape[2:]) <= side + 2 * border:
        return model(source)
    height, width = (round(scale * length) for length in source.shape[2:])
    result = source.new_empty(len(source), channels, height, width)
    spans = [box_spans(length, side, border) for length in source.shape[2:]]
    for (rows, inner_rows), (columns, inner_columns) in itertools.product(*spans):
        box = model(source[:, :, slice(*rows), slice(*columns)])
        y, x = round(scale * rows[0]), round(scale * columns[0])
        top, bottom, left, right = (round(scale * edge) for edge in (*inner_rows, *inner_columns))
        result[:, :, top:bottom, left:right] = box[:, :, top - y : bottom - y, left - x : right - x]
    return result


def box_spans(length: int, side: int, border: int) -> list[tuple[Span, Span]]:
    """Along an axis of `length`: what each box reads, and the part of it that becomes the result."""
    count = max(1, math.ceil((length - 2 * border) / side))
    even = math.ceil((length - 2 * border) / count)
    rounded = (-(-even // multiple) * multiple for multiple in (32, 16, 8, 4, 2))
    step = next((value for value in rounded if value <= side), even)
    spans = []
    for start in range(border, length, step):
        stop = min(start + step, length)
        inner = (0 if start <= border else start, length if stop >= length - border else stop)
        spans.append(((max(0, start - border), min(length, stop + border)), inner))
        if inner[1] == length:
            break
    return spans
