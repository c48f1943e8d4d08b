"""Rules about sizes: targets, working and padded sizes, encoding at a smaller size, legal tiles."""

import itertools

import pytest

from seesr import sizes
from seesr.sizes import working_size
from seesr.tiling import tile_grid


@pytest.mark.parametrize(
    ("size", "scale", "target", "working"),
    [
        ((128, 128), 4, (512, 512), (512, 512)),
        ((100, 200), 4, (400, 800), (512, 1024)),
        ((200, 100), 2.5, (500, 250), (1024, 512)),
        ((300, 301), 2, (600, 602), (600, 602)),
        ((49, 60), 4, (196, 240), (512, 627)),
        ((1, 1), 1, (1, 1), (512, 512)),
        ((1, 4000), 4, (4, 16000), (4, 16000)),
        ((33, 65), 1.5, (50, 98), (512, 1004)),
        ((33, 65), 2.5, (83, 163), (512, 1006)),
        ((5, 50), 1.1, (6, 55), (447, 4096)),
        ((20, 50), 1.15, (23, 58), (512, 1292)),  # 57.5, which floats take for 57.49999999999999
    ],
)
def test_working_size(size: tuple[int, int], scale: float, target: tuple[int, int], working: tuple[int, int]) -> None:
    assert working_size(size, scale, 512) == (target, working)


@pytest.mark.parametrize(
    ("size", "scale", "working"),
    [
        ((100, 80), 2, (400, 320)),
        ((100, 80), 1, (400, 320)),
        ((100, 80), 3, (400, 320)),
        ((100, 80), 4, (400, 320)),
        ((100, 80), 8, (800, 640)),
        ((1024, 1024), 1, (2048, 2048)),
        ((2048, 2048), 2, (4096, 4096)),
    ],
)
def test_a_least_scale_is_worked_at_up_to_four_megapixels(
    size: tuple[int, int], scale: float, working: tuple[int, int]
) -> None:
    found = working_size(size, scale, 64, least_scale=4)
    assert found == ((scale * size[0], scale * size[1]), working)


@pytest.mark.parametrize(
    ("size", "long_side", "target"),
    [
        ((300, 400), 1024, (768, 1024)),
        ((400, 300), 1001, (1001, 751)),  # 750.75
        ((3, 400), 600, (5, 600)),  # 4.5
        ((1, 100), 100, (1, 100)),
        ((640, 640), 5120, (5120, 5120)),
        ((1, 1024), 8192, (8, 8192)),
    ],
)
def test_a_target_long_side_decides_the_longer_side_exactly(
    size: tuple[int, int], long_side: int, target: tuple[int, int]
) -> None:
    scale = sizes.scale_of(size, 4.0, long_side)
    assert working_size(size, scale, 1)[0] == target


@pytest.mark.parametrize(
    ("size", "long_side", "advice"),
    [
        ((300, 400), 399, "ask for 400 to 3200"),
        ((300, 400), 3201, "ask for 400 to 3200"),
        ((5, 20), 200, "ask for 64 to 160"),
        ((2000, 10), 1000, "ask for 2000 to 8192"),
        ((9000, 10), 8192, "use scale_factor"),
        ((5, 5), 64, "use scale_factor"),
    ],
)
def test_a_target_long_side_outside_one_to_eight_times_is_refused(
    size: tuple[int, int], long_side: int, advice: str
) -> None:
    with pytest.raises(ValueError, match=rf"image of {size[1]} x {size[0]}, got {long_side}; {advice}$"):
        sizes.scale_of(size, 4.0, long_side)


def test_a_result_beyond_the_limit_is_refused() -> None:
    assert working_size((1024, 1024), 8, 512)[0] == (8192, 8192)
    with pytest.raises(ValueError, match=r"at most 67 megapixels, scale_factor 8 would give 16000 x 8000"):
        working_size((1000, 2000), 8, 512)


def test_padding_reaches_the_process_size_and_a_multiple_of_the_vae_scale_factor() -> None:
    assert sizes.padded_size((512, 627), 512, 8) == (512, 632)
    assert sizes.padded_size((4, 1400), 160, 8) == (160, 1400)
    assert sizes.padded_size((64, 65), 64, 4) == (64, 68)


@pytest.mark.parametrize(
    ("flat", "padded", "corner"),
    [
        ((False, False, False, False), (128, 160), (0, 0)),
        ((True, False, False, False), (160, 160), (32, 0)),
        ((False, True, True, True), (160, 224), (0, 32)),
        ((True, True, True, True), (192, 224), (32, 32)),
    ],
)
def test_flat_sides_get_a_margin(flat: tuple, padded: tuple[int, int], corner: tuple[int, int]) -> None:
    assert sizes.place((125, 160), flat, 64, 8) == (padded, corner)


def test_a_large_image_is_encoded_at_a_smaller_size_of_the_same_aspect() -> None:
    assert sizes.encode_size((255, 256)) == (255, 256)
    assert sizes.encode_size((256, 256)) == (128, 128)
    assert sizes.encode_size((512, 512)) == (256, 256)
    assert sizes.encode_size((513, 512)) == (256, 255)
    assert sizes.encode_size((1, 90000)) == (1, 45000)
    for size in itertools.product((200, 257, 511, 767, 1024), (256, 300, 513, 1023, 4000)):
        encoded = sizes.encode_size(size)
        assert 16000 < encoded[0] * encoded[1] <= 256 * 256 or encoded == size
        assert encoded[0] / encoded[1] == pytest.approx(size[0] / size[1], rel=0.02)


@pytest.mark.parametrize(("asked", "legal"), [(0, 0), (1, 32), (31, 32), (32, 32), (96, 96), (480, 480), (1000, 480)])
def test_a_tile_out_of_range_becomes_the_nearest_legal_one_and_is_logged(
    asked: int, legal: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert sizes.legal_tile(asked) == legal
    assert (f"latent_tiled_size {asked} is outside 32 to 480: using {legal}." in caplog.text) == (asked != legal)


@pytest.mark.parametrize(("asked", "legal"), [(0, 0), (1, 1), (32, 32), (33, 32), (240, 32)])
def test_an_overlap_of_more_than_half_a_tile_becomes_half_and_is_logged(
    asked: int, legal: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert sizes.legal_overlap(asked, 64) == legal
    assert ("is more than half of the tile (64): using 32." in caplog.text) == (asked != legal)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 8), (96, 12), (100, 13), (32, 4), (480, 60)])
def test_the_default_overlap_is_an_eighth_of_the_tile(tile: int, overlap: int) -> None:
    assert sizes.default_overlap(tile) == overlap
    grid = tile_grid((3 * tile, 3 * tile), tile)
    assert grid.tops == tile_grid((3 * tile, 3 * tile), tile, overlap).tops
    assert grid.weight_y.equal(tile_grid((3 * tile, 3 * tile), tile, overlap).weight_y)
    assert not grid.weight_y.equal(tile_grid((3 * tile, 3 * tile), tile, overlap + 1).weight_y)
