"""The reference's way of tiling, through our networks: what gains are measured against.

Equal to cswry/SeeSR: where latent tiles of 320 overlapping 4 lie, one at a time, the control picture embedded anew for
every tile and step, and for the VAE its boxes (1024 pixels with 32 around to encode, 224 latent pixels with 11 around
to decode), with attention inside each box. Not equal: how latent tiles blend (by sin², as everywhere here), and each
VAE box has its own GroupNorm statistics where the reference pools them; neither changes the work. The second branch
that the reference runs at cfg_scale 1, its second run of the tagger and its resizing back and forth are left out, in
its favour.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from diffusers.models.upsampling import Upsample2D
from torch import Tensor

from seesr.hardware import Profile
from seesr.memory import Plan, VaeTiles
from seesr.pipeline import Conditions, Pictures, SeeSR
from seesr.run import Run
from seesr.tiling import TileGrid, _ramp
from seesr.upsampling import PhaseUpsample
from seesr.weights import Parts

Span = tuple[int, int]

ENCODE = (1024, 32)
DECODE = (224, 11)
"""Tile and what it reads around: pixels to encode, latent pixels to decode."""


class ReferencePlan(Plan):
    """Latent tiles of their full size, the last of them moved back inside; pictures of any size are encoded whole."""

    def encoded(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def grid(self, size: tuple[int, int]) -> TileGrid:
        sides = (min(size[0], self.latent_tile), min(size[1], self.latent_tile))
        tops, lefts = (self._starts(length, side) for length, side in zip(size, sides, strict=True))
        weights = [_ramp(side, min(self.overlap, side // 2)) for side in sides]
        return TileGrid(size, sides, tops, lefts, *weights)

    def _starts(self, length: int, side: int) -> tuple[int, ...]:
        step = self.latent_tile - self.overlap
        return (*range(0, length - side, step), length - side)


PLAN = ReferencePlan(320, 4, 1, VaeTiles(ENCODE[0] // 8), VaeTiles(DECODE[0]))


class ReferenceWay(SeeSR):
    """SeeSR that tiles as the reference does, and whose VAE doubles pixels before it convolves them."""

    def __init__(self, parts: Parts, profile: Profile, device: str = "cpu") -> None:
        super().__init__(replace(parts, vae=copy.deepcopy(parts.vae)), profile, device)
        for module in self.parts.vae.modules():
            if isinstance(module, PhaseUpsample):
                module.__class__ = Upsample2D  # pyright: ignore

    def plan(self, size: tuple[int, int], settings: Any) -> Plan:
        return PLAN

    def _predict_tiles(
        self, whole: Tensor, pictures: Pictures, t: int, conditions: Conditions, run: Run, bar: Any
    ) -> Iterator[Tensor]:
        afresh = Pictures(self, pictures._control, pictures.grid, embedded=False, kept=False)
        return super()._predict_tiles(whole, afresh, t, conditions, run, bar)

    def _vae(self, way: str, part: Tensor, run: Run) -> Tensor:
        return through_vae(self.parts.vae, way, part.to(self.parts.vae.dtype)).float()


def through_vae(vae: Any, way: str, part: Tensor) -> Tensor:
    """Encode (B, 3, H, W) to (B, 2C, h, w), or decode (B, C, h, w) to (B, 3, H, W), box by box."""
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    if way == "encode":
        moments = _boxes(vae.encoder, part, *ENCODE, lambda side: side // factor)
        return moments if vae.quant_conv is None else vae.quant_conv(moments)
    latent = part if vae.post_quant_conv is None else vae.post_quant_conv(part)
    return _boxes(vae.decoder, latent, *DECODE, lambda side: side * factor)


def _boxes(model: Any, part: Tensor, tile: int, halo: int, scaled: Callable[[int], int]) -> Tensor:
    size = part.shape[2:]
    if max(size) <= tile + 2 * halo:
        return model(part)
    result: Tensor | None = None
    for (rows, answer_rows), (columns, answer_columns) in itertools.product(
        *(spans(side, tile, halo) for side in size)
    ):
        found = model(part[:, :, slice(*rows), slice(*columns)])
        if result is None:
            result = found.new_empty(*found.shape[:2], *(scaled(side) for side in size))
        assert result is not None
        # Where the answer lies in the result, and in what was found.
        into = [slice(*(scaled(side) for side in span)) for span in (answer_rows, answer_columns)]
        start = [scaled(span[0]) for span in (rows, columns)]
        out = [slice(s.start - first, s.stop - first) for s, first in zip(into, start, strict=True)]
        result[:, :, into[0], into[1]] = found[:, :, out[0], out[1]]
    assert result is not None
    return result


def spans(length: int, tile: int, halo: int) -> list[tuple[Span, Span]]:
    """Along an axis of `length`: what each box reads, and what it answers for."""
    count = max(1, math.ceil((length - 2 * halo) / tile))
    side = math.ceil((length - 2 * halo) / count)
    for multiple in (32, 16, 8, 4, 2):
        rounded = -(-side // multiple) * multiple
        if rounded <= tile:
            side = rounded
            break
    found = []
    for start in range(halo, length, side):
        stop = min(start + side, length)
        answer = (0 if start <= halo else start, length if stop >= length - halo else stop)
        found.append(((max(0, start - halo), min(length, stop + halo)), answer))
        if answer[1] == length:
            return found
    return found
