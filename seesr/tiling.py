"""Tiles over a latent: where they lie and how their results blend. Geometry only, no models."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LEAST = 64
"""What tiles don't shrink below: SD-Turbo and SeeSR were trained on latents of 64."""


@dataclass(frozen=True)
class TileGrid:
    """Equal tiles that cover a (height, width) latent, with separable blend weights.

    `tile` is (height, width); `tops` and `lefts` are the tiles' offsets; `weight_y` and `weight_x` are a tile's
    weights along each axis (tile height and width values, above 0). All sizes are in latent pixels.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
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
            part = (weight * share[rows, columns]).to(result.device, torch.float32)
            total[:, :, rows, columns] += result.float() * part
        assert total is not None
        return total

    def _sum(self, weight: Tensor, starts: tuple[int, ...], axis: int) -> Tensor:
        total = torch.zeros(self.size[axis], dtype=torch.float64)
        for start in starts:
            total[start : start + self.tile[axis]] += weight
        return total


def tile_grid(size: tuple[int, int], tile: int, overlap: int = 0) -> TileGrid:
    """Cover a latent of `size` (height, width) with tiles of side `tile` that overlap by at least `overlap`.

    An axis no longer than `tile` gets one tile of its own length, so tiles may be oblong (the reference decides by
    area and shrinks tiles to squares). Tiles lie evenly, so there is no last sliver of double work, and shrink, in
    steps of 8, to what their number needs. `overlap` 0 means an eighth of the tile. Weights rise over the overlap as
    sin², which hides seams at any overlap.
    """
    overlap = overlap or math.ceil(tile / 8)
    if not 0 < overlap < tile:
        raise ValueError(f"latent_tiled_overlap must be smaller than the tile ({tile}), got {overlap}; lower it")
    counts = [_count(length, tile, overlap) for length in size]
    sides = [_side(length, tile, overlap, count) for length, count in zip(size, counts, strict=True)]
    tops, lefts = (_even_starts(*axis) for axis in zip(size, sides, counts, strict=True))
    weight_y, weight_x = (_ramp(side, min(overlap, side // 2)) for side in sides)
    return TileGrid(size, (sides[0], sides[1]), tops, lefts, weight_y, weight_x)


def _count(length: int, tile: int, overlap: int) -> int:
    return 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))


def _side(length: int, tile: int, overlap: int, count: int) -> int:
    """The smallest multiple of 8 that covers `length` with `count` tiles, at least LEAST, at most `tile`."""
    needed = -(-(length + (count - 1) * overlap) // (8 * count)) * 8
    return min(length, tile, max(needed, LEAST))


def _even_starts(length: int, tile: int, count: int) -> tuple[int, ...]:
    return tuple(round(i * (length - tile) / (count - 1)) for i in range(count)) if count > 1 else (0,)


def _ramp(length: int, overlap: int) -> Tensor:
    distance = torch.arange(length, dtype=torch.float64) + 0.5
    edge = torch.minimum(distance, length - distance)
    return (edge / max(overlap, 0.5)).clamp(max=1).mul(math.pi / 2).sin().square()
