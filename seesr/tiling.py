"""Tiles over a latent: where they lie and how their results blend. Geometry only, no models."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from seesr.sizes import Size, default_overlap, tile_count, tile_side


@dataclass(frozen=True)
class TileGrid:
    """Equal tiles that cover a latent, with separable blend weights. All sizes are (height, width) in latent pixels.

    `tops` and `lefts` are the tiles' offsets. `weight_y` (tile height,) and `weight_x` (tile width,) are positive.
    """

    size: Size
    tile: Size
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    weight_y: Tensor
    weight_x: Tensor

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """(top, left) of every tile, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    def crop(self, image: Tensor, offset: tuple[int, int], factor: int = 1) -> Tensor:
        """(B, C, H, W) -> (B, C, th, tw): the tile at `offset` of an image `factor` times the latent's size"""
        top, left = (side * factor for side in offset)
        height, width = (side * factor for side in self.tile)
        return image[:, :, top : top + height, left : left + width]

    def blend(self, tiles: Iterable[Tensor]) -> Tensor:
        """(B, C, th, tw) per tile, in the order of `offsets` -> (B, C, h, w): their weighted mean, in float32

        Weights and their sums are float64: at a tile's border they may be 1e-11 of the centre's.
        """
        if len(self) == 1:
            return next(iter(tiles)).float()
        total: Tensor | None = None
        weight = torch.outer(self.weight_y, self.weight_x)
        share = 1 / torch.outer(self._sum(self.weight_y, self.tops, 0), self._sum(self.weight_x, self.lefts, 1))
        for (top, left), result in zip(self.offsets, tiles, strict=True):
            if total is None:
                total = result.new_zeros((*result.shape[:2], *self.size), dtype=torch.float32)
            rows, columns = slice(top, top + self.tile[0]), slice(left, left + self.tile[1])
            weighted = (weight * share[rows, columns]).to(result.device, torch.float32)
            total[:, :, rows, columns] += result.float() * weighted
        assert total is not None
        return total

    def _sum(self, weight: Tensor, starts: tuple[int, ...], axis: int) -> Tensor:
        total = torch.zeros(self.size[axis], dtype=torch.float64)
        for start in starts:
            total[start : start + self.tile[axis]] += weight
        return total


def tile_grid(size: Size, tile: int, overlap: int = 0) -> TileGrid:
    """Cover a latent of `size` with tiles of side `tile` that overlap by at least `overlap` (0: the default overlap).

    An axis no longer than `tile` gets one tile of its own length, so tiles may be oblong (the reference decides by
    area and shrinks tiles to squares). Tiles lie evenly and are made as small as an even grid allows. Weights rise over
    the overlap as sin², which hides seams at any overlap. Raises ValueError for an overlap as long as the tile.
    """
    overlap = overlap or default_overlap(tile)
    if not 0 < overlap < tile:
        raise ValueError(f"latent_tiled_overlap must be smaller than the tile ({tile}), got {overlap}; lower it")
    counts = [tile_count(length, tile, overlap) for length in size]
    sides = [tile_side(length, tile, overlap, count) for length, count in zip(size, counts, strict=True)]
    tops, lefts = (_even_starts(*axis) for axis in zip(size, sides, counts, strict=True))
    weight_y, weight_x = (blend_weights(side, min(overlap, side // 2)) for side in sides)
    return TileGrid(size, (sides[0], sides[1]), tops, lefts, weight_y, weight_x)


def blend_weights(length: int, overlap: int) -> Tensor:
    """Weights (length,) of a tile along one axis, float64: sin² over `overlap` at both ends, 1 between."""
    distance = torch.arange(length, dtype=torch.float64) + 0.5
    edge = torch.minimum(distance, length - distance)
    return (edge / max(overlap, 0.5)).clamp(max=1).mul(math.pi / 2).sin().square()


def _even_starts(length: int, tile: int, count: int) -> tuple[int, ...]:
    return tuple(round(i * (length - tile) / (count - 1)) for i in range(count)) if count > 1 else (0,)
