"""Statistics and norms of the VAE against float64, in both orders of memory, and the zeros around a map."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seesr.vae.group_norm import merge_stats, norm_silu_conv, tile_stats
from seesr.vae.padding import pad

ORDERS = pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])


@ORDERS
@pytest.mark.parametrize("mean", [0, 30])
def test_statistics_of_parts_are_those_of_the_whole(order: torch.memory_format, mean: float) -> None:
    """Within a millionth of the variance, far from zero too, with channels that differ."""
    generator, norm = torch.Generator().manual_seed(3), nn.GroupNorm(2, 8)
    hidden = torch.randn(2, 8, 90, 70, generator=generator) * 2 + mean + torch.arange(8)[:, None, None]
    hidden = hidden.contiguous(memory_format=order)
    parts = [hidden[:, :, :50], hidden[:, :, 50:, :33], hidden[:, :, 50:, 33:]]
    variance, found = merge_stats([tile_stats(norm, part, torch.float32) for part in parts])
    exact = torch.var_mean(hidden.double().unflatten(1, (2, -1)), dim=(2, 3, 4), correction=0)
    torch.testing.assert_close(variance.double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.double(), exact[1], rtol=0, atol=4e-6)


@ORDERS
@torch.inference_mode()
def test_a_norm_is_exact_in_both_orders(order: torch.memory_format) -> None:
    """On this map torch's own GroupNorm is off by 3e-4 with channels last."""
    generator, norm, conv = torch.Generator().manual_seed(4), nn.GroupNorm(1, 24), nn.Conv2d(24, 2, 3, padding=1)
    hidden = (torch.randn(1, 24, 300, 300, generator=generator) * 3 + 5).contiguous(memory_format=order)
    conv.to(memory_format=order)  # type: ignore[call-overload]
    ours = norm_silu_conv(norm, conv, hidden)
    exact = F.conv2d(F.silu(norm.double()(hidden.double())), conv.weight.double(), conv.bias.double(), padding=1)  # type: ignore[union-attr]
    torch.testing.assert_close(ours.double(), exact, atol=5e-6, rtol=0)


@ORDERS
def test_zeros_are_put_around_a_map(order: torch.memory_format) -> None:
    hidden, weight = torch.randn(1, 3, 4, 5), torch.randn(2, 3, 3, 3).contiguous(memory_format=order)
    for padding in ((1, 0, 0, 1), (0, 1, 1, 0), (1, 1, 1, 1), (0, 0, 0, 0)):
        found = pad(hidden, padding, weight)
        assert found.equal(F.pad(hidden, padding))
        assert found is hidden or found.is_contiguous(memory_format=order)
