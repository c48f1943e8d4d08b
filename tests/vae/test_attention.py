"""Sampled attention of large images against full attention."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from seesr.pipeline import SeeSR
from seesr.vae import attention


@torch.inference_mode()
def test_sampled_attention_is_the_whole_one_where_every_key_is_taken(
    golden: SeeSR, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, hidden = golden.components.vae.decoder.mid_block, torch.randn(1, 64, 20, 28)
    layer = block.attentions[0]
    exact = layer(hidden)
    # One block holds it all; then several, whose near keys leave the far ones out that they hold.
    torch.testing.assert_close(attention.sampled_attention(layer, hidden, 1), exact, atol=1e-6, rtol=0)
    monkeypatch.setattr(attention, "WINDOW", 8)
    monkeypatch.setattr(attention, "MARGIN", 2)
    torch.testing.assert_close(attention.sampled_attention(layer, hidden, 1), exact, atol=1e-6, rtol=0)
    whole = attention.mid_block(block, hidden)
    assert whole.equal(block(hidden))
    apart = [(attention.mid_block(block, hidden, stride) - whole).abs().mean() for stride in (2, 9)]
    assert 0 < apart[0] < apart[1] < (hidden - whole).abs().mean()


@torch.inference_mode()
def test_sampled_attention_finds_what_looks_at_itself(golden: SeeSR, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharp attention, every pixel on its own like: a sample alone would lose it, near keys keep it."""
    layer: Any = copy.deepcopy(golden.components.vae.decoder.mid_block.attentions[0])
    layer.to_q.weight.copy_(30 * layer.to_k.weight)
    hidden = torch.randn(1, 64, 40, 40)
    exact = layer(hidden)
    monkeypatch.setattr(attention, "WINDOW", 16)
    apart = []
    for margin in (4, -(10**6)):
        monkeypatch.setattr(attention, "MARGIN", margin)
        apart.append((attention.sampled_attention(layer, hidden, 4) - exact).abs().mean())
    assert apart[0] < 0.05 * apart[1]


@torch.inference_mode()
def test_a_sampled_key_weighs_as_much_as_all_pixels_it_stands_for(
    golden: SeeSR, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries of zero make full attention the mean of all values. Blocks of equal pixels make the sample exact."""
    stride = 4
    layer: Any = copy.deepcopy(golden.components.vae.decoder.mid_block.attentions[0])
    layer.to_q.weight.zero_()
    layer.to_q.bias.zero_()
    hidden = F.interpolate(torch.randn(1, 64, 10, 12), scale_factor=stride)
    monkeypatch.setattr(attention, "WINDOW", 2 * stride)
    monkeypatch.setattr(attention, "MARGIN", stride)
    sampled = attention.sampled_attention(layer, hidden, stride)
    torch.testing.assert_close(sampled, layer(hidden), atol=1e-5, rtol=0)
