"""Tiled encoding and decoding equal the untiled ones, and those equal the reference."""

import copy
from typing import Any

import pytest
import torch

from seesr.pipeline import SeeSR
from seesr.vae import tiling
from tests.golden import recorded

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

RECORDED = recorded("vae")
TILES = [0, *(pytest.param(tile, marks=pytest.mark.slow) for tile in (5, 7)), 16, 24, 39]


@pytest.mark.parametrize("tile", TILES)
@torch.inference_mode()
def test_encode_equals_the_reference_untiled(golden: SeeSR, tile: int) -> None:
    """Moments reach 45, and the recorded run's own rounding is 9e-5 of them (it is that far from float64)."""
    moments = tiling.encode(golden.components.vae, RECORDED["image_uint8"] / 127.5 - 1, tile)
    torch.testing.assert_close(moments, RECORDED["moments_untiled"], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [0, 7])
@torch.inference_mode()
def test_encode_without_rounding_equals_the_reference_untiled(golden: SeeSR, tile: int) -> None:
    """In float64 what is left is the recorded run's own rounding."""
    vae = copy.deepcopy(golden.components.vae).double()
    moments = tiling.encode(vae, RECORDED["image_uint8"].double() / 127.5 - 1, tile)
    torch.testing.assert_close(moments.float(), RECORDED["moments_untiled"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("tile", TILES)
@torch.inference_mode()
def test_decode_equals_the_reference_untiled(golden: SeeSR, tile: int) -> None:
    image = tiling.decode(golden.components.vae, RECORDED["z"], tile)
    torch.testing.assert_close(image[:, :, ::4, ::4], RECORDED["decoded_untiled_sub4"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("tile", [pytest.param(3, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize("size", [(21, 27), (8, 40), (5, 5)])
@torch.inference_mode()
def test_odd_sizes_and_batches(golden: SeeSR, size: tuple[int, int], tile: int) -> None:
    vae = golden.components.vae
    latent, image = torch.randn(2, 4, *size), torch.rand(2, 3, size[0] * 8, size[1] * 8) * 2 - 1
    for run, part in ((tiling.decode, latent), (tiling.encode, image)):
        torch.testing.assert_close(run(vae, part, tile), run(vae, part), atol=1e-4, rtol=0)


def small_vae(layers: int) -> Any:
    """4x latents, one norm group, no attention, no quant convolutions: the embedded bundle's kind."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16) if layers else (8, 8, 8),
        layers_per_block=layers,  # type: ignore[arg-type]
        latent_channels=5,
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


@pytest.mark.parametrize("layers", [0, 1])
@torch.inference_mode()
def test_other_shapes_of_vae(layers: int) -> None:
    vae = small_vae(layers)
    latent, image = torch.randn(1, 5, 18, 11), torch.rand(1, 3, 72, 44)
    for run, part in ((tiling.decode, latent), (tiling.encode, image)):
        torch.testing.assert_close(run(vae, part, 4), run(vae, part), atol=2e-5, rtol=0)


@pytest.mark.slow
@torch.inference_mode()
def test_a_sample_of_tiles_settles_the_statistics(golden: SeeSR) -> None:
    """The more tiles share in the statistics the nearer to the untiled result; one tile's own are far off."""
    vae, latent = golden.components.vae, RECORDED["z"]
    whole = tiling.decode(vae, latent)
    apart = [(tiling.decode(vae, latent, 7, count) - whole).abs().mean().item() for count in (1, 16, 47, 48, 99)]
    assert apart[0] > 4 * apart[1] > 4 * apart[2] > 0
    assert apart[3] < 1e-5
    assert apart[4] == apart[3]
    assert tiling.tile_count((latent.shape[2], latent.shape[3]), 7) == 48
    assert tiling.sample_tiles(6, 8, 5) == sorted(set(tiling.sample_tiles(6, 8, 5)))


@torch.inference_mode()
def test_statistics_hold_far_from_zero(golden: SeeSR) -> None:
    """A bright flat image: sums of squares would cancel, the pooled variance must not."""
    image = torch.full((1, 3, 64, 96), 0.999)
    image[:, :, 20:30] += 1e-3
    vae = golden.components.vae
    torch.testing.assert_close(tiling.encode(vae, image, 3), tiling.encode(vae, image), atol=1e-4, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_and_stays_close(dtype: torch.dtype) -> None:
    vae = small_vae(1).to(dtype)
    latent, image = torch.randn(1, 5, 16, 20, dtype=dtype), torch.rand(1, 3, 64, 80, dtype=dtype)
    for run, part in ((tiling.decode, latent), (tiling.encode, image)):
        tiled, whole = run(vae, part, 8), run(vae, part)
        assert tiled.dtype == dtype
        assert (tiled.float() - whole.float()).abs().mean() < 0.02
