"""Tile geometry: every pixel covered, evenly, and blended without a seam."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from seesr.sizes import MIN_TILE
from seesr.tiling import tile_grid
from tests.golden import reference_grid

DATA = Path(__file__).parent / "data"

SIZES = [(1, 1), (1, 300), (7, 9), (64, 64), (65, 64), (40, 56), (128, 97), (333, 41)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (16, 4), (16, 8), (64, 0), (96, 32)])
def test_tiles_cover_the_latent_and_overlap_enough(size: tuple[int, int], tile: int, overlap: int) -> None:
    grid = tile_grid(size, tile, overlap)
    wanted = overlap or -(-tile // 8)
    for starts, side, length in zip((grid.tops, grid.lefts), grid.tile, size, strict=True):
        assert min(tile, length, MIN_TILE) <= side <= min(tile, length)
        assert starts[0] == 0
        assert starts[-1] + side == length
        gaps = [b - a for a, b in itertools.pairwise(starts)]
        assert all(0 < gap <= side - wanted for gap in gaps)
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_blending_the_crops_gives_the_latent_back(size: tuple[int, int]) -> None:
    latent = torch.randn(2, 4, *size)
    grid = tile_grid(size, 16, 4)
    torch.testing.assert_close(grid.blend(grid.crop(latent, o) for o in grid.offsets), latent, atol=2e-6, rtol=0)


def test_no_more_tiles_than_the_overlap_asks_for() -> None:
    assert len(tile_grid((64, 64), 64, 8)) == 1
    assert len(tile_grid((65, 64), 64, 8)) == 2
    assert tile_grid((40, 56), 16, 4).tops == (0, 12, 24)  # the reference's own offsets, where they divide evenly


def test_tiles_are_as_small_as_an_even_grid_allows() -> None:
    grid = tile_grid((512, 130), 128, 16)
    assert grid.tile == (120, 80)
    assert (len(grid.tops), len(grid.lefts)) == (5, 2)
    assert tile_grid((512, 512), 96, 12).tile == (96, 96)
    assert tile_grid((97, 65), 96, 12).tile == (64, 65)  # not below what the model was trained on


def test_neighbours_hand_over_smoothly() -> None:
    """Two tiles that disagree by 1 meet in a slope, not a step: no jump above that of sin² over the overlap."""
    grid = tile_grid((16, 28), 16, 4)
    assert grid.lefts == (0, 12)
    blended = grid.blend([torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)])
    row = blended[0, 0, 8]
    assert row[11] == 0
    assert row[16] == 1
    assert row.diff().max() < 0.4
    assert (row.diff() >= 0).all()


def test_half_precision_tiles_blend_in_float32() -> None:
    latent = torch.randn(1, 4, 40, 56).half()
    grid = tile_grid((40, 56), 16, 4)
    blended = grid.blend(grid.crop(latent, offset) for offset in grid.offsets)
    assert blended.dtype == torch.float32
    torch.testing.assert_close(blended, latent.float(), atol=2e-6, rtol=0)


def test_crops_of_the_image_follow_the_scale_factor() -> None:
    grid = tile_grid((40, 56), 16, 4)
    image = torch.arange(320 * 448.0).reshape(1, 1, 320, 448)
    assert grid.crop(image, (12, 24), 8).equal(image[:, :, 96:224, 192:320])


def test_overlap_as_long_as_the_tile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"smaller than the tile \(16\), got 16"):
        tile_grid((40, 56), 16, 16)


def test_reference_tile_grids_are_the_recorded_ones() -> None:
    for name, wanted in json.loads((DATA / "schedule.json").read_text())["tile_grids"].items():
        if not wanted["tiled"]:
            continue
        height, width, tile, overlap = (int("".join(filter(str.isdigit, part))) for part in name.split("_"))
        grid = reference_grid((height, width), tile, overlap)
        assert (list(grid.lefts), list(grid.tops)) == (wanted["x_offsets"], wanted["y_offsets"]), name
