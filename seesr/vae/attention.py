"""The VAE's middle block over a whole latent: full self-attention, or near and sampled keys for large latents."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seesr.vae.resnet import resnet_block

FULL_ATTENTION_MAX_PIXELS = 256 * 256  # latent pixels up to which each one attends to all others
SAMPLED_KEYS = 128 * 128  # about how many keys are sampled from a larger latent
WINDOW, MARGIN = 64, 16  # latent pixels: side of a block of queries, and how far around it its near keys reach

KeysValues = tuple[Tensor, Tensor]  # (B, heads, L, D) each


def mid_block(block: Any, hidden: Tensor, stride: int | None = None) -> Tensor:
    """A VAE's middle block: (B, C, h, w) -> (B, C, h, w), with every `stride`-th row and column of the keys sampled.

    1 is full attention; None means 1 up to FULL_ATTENTION_MAX_PIXELS, then about SAMPLED_KEYS.
    """
    pixels = hidden.shape[2] * hidden.shape[3]
    if stride is None:
        stride = 1 if pixels <= FULL_ATTENTION_MAX_PIXELS else round(math.sqrt(pixels / SAMPLED_KEYS))
    hidden = resnet_block(block.resnets[0], hidden)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            hidden = attention(hidden) if stride <= 1 else sampled_attention(attention, hidden, stride)
        hidden = resnet_block(resnet, hidden)
    return hidden


def sampled_attention(attention: Any, hidden: Tensor, stride: int) -> Tensor:
    """(B, C, h, w) -> (B, C, h, w): each block of pixels attends to all near keys and to a sample of the far ones.

    A sampled key stands for stride² pixels, so log(stride²) is added to its score: the sum is about that of full
    attention where keys are alike (within a tenth at borders that the stride does not divide).
    """
    inner = attention.group_norm(hidden.flatten(2)).unflatten(2, hidden.shape[2:])
    height, width = inner.shape[2:]
    y, x = (torch.arange(stride // 2, side, stride, device=inner.device) for side in (height, width))
    far = _keys_values(attention, inner[:, :, stride // 2 :: stride, stride // 2 :: stride])
    result = torch.empty_like(inner)
    for top, left in itertools.product(range(0, height, WINDOW), range(0, width, WINDOW)):
        rows, columns = ((max(0, start - MARGIN), start + WINDOW + MARGIN) for start in (top, left))
        near = _keys_values(attention, inner[:, :, slice(*rows), slice(*columns)])
        is_near = ((y >= rows[0]) & (y < rows[1]))[:, None] & ((x >= columns[0]) & (x < columns[1]))
        bias = torch.where(is_near.flatten(), -1e4, 2 * math.log(stride))
        block = (slice(None), slice(None), slice(top, top + WINDOW), slice(left, left + WINDOW))
        states = _attend(attention, inner[block], near, far, bias)
        result[block] = states.transpose(1, 2).unflatten(2, result[block].shape[2:])
    if attention.residual_connection:
        result.add_(hidden)
    return result.div_(attention.rescale_output_factor)


def _keys_values(attention: Any, hidden: Tensor) -> KeysValues:
    """(B, C, h, w) -> keys and values"""
    states = hidden.flatten(2).transpose(1, 2)
    return _split_heads(attention, attention.to_k(states)), _split_heads(attention, attention.to_v(states))


def _split_heads(attention: Any, states: Tensor) -> Tensor:
    return states.unflatten(2, (attention.heads, -1)).transpose(1, 2)


def _attend(attention: Any, hidden: Tensor, near: KeysValues, far: KeysValues, bias: Tensor) -> Tensor:
    """(B, C, h, w) attends to `near` and `far` keys; `bias` (L,) is added to the scores of `far` -> (B, h * w, C)

    The bias is one more channel of the keys, which is 1 in every query: a mask would be as large as the scores.
    """
    query = _split_heads(attention, attention.to_q(hidden.flatten(2).transpose(1, 2)))
    width = query.shape[-1]
    scaled = (bias * math.sqrt(width)).clamp(min=torch.finfo(query.dtype).min)
    added = torch.cat([bias.new_zeros(near[0].shape[2]), scaled]).to(query.dtype)
    key, value = (torch.cat(pair, dim=2) for pair in zip(near, far, strict=True))
    query, key, value = (F.pad(states, (0, 8)) for states in (query, key, value))  # 8 keeps kernels aligned
    query[..., width] = 1
    key[..., width] = added
    states = F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)[..., :width]
    return attention.to_out[0](states.transpose(1, 2).flatten(2))
