"""Encode and decode in tiles, equal to the untiled VAE: only the workspace of a layer shrinks, never its view.

The reference's tiles see only themselves: their GroupNorm statistics leave out how tiles differ, their attention is
local and their halos are shorter than the convolutions reach, so its tiled pictures differ from its untiled ones.
Here a network is a list of layers over whole feature maps; a layer's convolutions run tile by tile with exactly the
border pixels they reach, GroupNorm uses the statistics of the whole map, and attention sees all of it.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def encode(vae: Any, image: Tensor, tile: int = 0) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> posterior moments (B, 2C, h, w): mean and log variance, in the VAE's dtype

    `tile` is in latent pixels; 0, or a tile that holds the latent, runs the VAE's own encoder. H and W must be
    multiples of the VAE's factor.
    """
    encoder = vae.encoder
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    if tile == 0 or tile * factor >= max(image.shape[2:]):
        moments = encoder(image)
    else:
        hidden = _convolve(encoder.conv_in, image, tile * factor)
        for block in encoder.down_blocks:
            side = max(1, tile * factor * hidden.shape[2] // image.shape[2])
            for resnet in block.resnets:
                hidden = _resnet(resnet, hidden, side)
            for downsampler in block.downsamplers or ():
                # Diffusers pads an asymmetric (0, 1, 0, 1) before its unpadded stride-2 convolution.
                hidden = _convolve(downsampler.conv, hidden, side // 2, after=(0, 1))
        hidden = encoder.mid_block(hidden)
        hidden = F.silu(encoder.conv_norm_out(hidden))
        moments = encoder.conv_out(hidden)
    return moments if vae.quant_conv is None else vae.quant_conv(moments)


def decode(vae: Any, latent: Tensor, tile: int = 0) -> Tensor:
    """(B, C, h, w), unscaled -> (B, 3, H, W) in about [-1, 1], in the VAE's dtype

    `tile` is in latent pixels; 0, or a tile that holds the latent, runs the VAE's own decoder.
    """
    decoder = vae.decoder
    latent = latent if vae.post_quant_conv is None else vae.post_quant_conv(latent)
    if tile == 0 or tile >= max(latent.shape[2:]):
        return decoder(latent)
    hidden = decoder.mid_block(decoder.conv_in(latent))
    for block in decoder.up_blocks:
        side = tile * hidden.shape[2] // latent.shape[2]
        for resnet in block.resnets:
            hidden = _resnet(resnet, hidden, side)
        for upsampler in block.upsamplers or ():
            hidden = _upsample(upsampler.conv, hidden, side)
    side = tile * hidden.shape[2] // latent.shape[2]
    return _convolve(decoder.conv_out, hidden, side, before=_norm_and_silu(decoder.conv_norm_out, hidden))


def _resnet(block: Any, hidden: Tensor, side: int) -> Tensor:
    """A ResnetBlock2D without time embedding, over a whole map, its convolutions in tiles of `side`."""
    inner = _convolve(block.conv1, hidden, side, before=_norm_and_silu(block.norm1, hidden))
    inner = _convolve(block.conv2, inner, side, before=_norm_and_silu(block.norm2, inner))
    if block.conv_shortcut is not None:
        hidden = _convolve(block.conv_shortcut, hidden, side)
    inner.add_(hidden)
    return inner.div_(block.output_scale_factor) if block.output_scale_factor != 1 else inner


def _norm_and_silu(norm: nn.GroupNorm, hidden: Tensor) -> Callable[[Tensor], Tensor]:
    """GroupNorm with the statistics of all of `hidden` (B, C, H, W), then SiLU, as a function of a part of it."""
    grouped = hidden.unflatten(1, (norm.num_groups, -1))
    # One group at a time, so that the float32 copy stays small; var_mean is stable where sums of squares are not.
    pairs = [torch.var_mean(grouped[:, g].float(), dim=(1, 2, 3), correction=0) for g in range(norm.num_groups)]
    variance, mean = (torch.stack(values, dim=1) for values in zip(*pairs, strict=True))  # (B, groups)
    per_group = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(per_group, dim=1) * norm.weight.float()
    mean, scale = mean.repeat_interleave(per_group, dim=1)[:, :, None, None], scale[:, :, None, None]
    bias = norm.bias.float()[:, None, None]
    return lambda part: F.silu(torch.addcmul(bias, part.float() - mean, scale).to(part.dtype))


def _convolve(
    conv: Any,
    hidden: Tensor,
    side: int,
    before: Callable[[Tensor], Tensor] | None = None,
    after: tuple[int, int] | None = None,
) -> Tensor:
    """A convolution over (B, C, H, W) in output tiles of `side`, each reading exactly the input it reaches.

    Zeros stand only around the whole map: conv.padding on all sides, or `after` (left/top, right/bottom). `before`
    is applied to each tile's input pixels (not to the zeros).
    """
    first, last = after or (conv.padding[0], conv.padding[0])
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    height, width = ((length + first + last - kernel) // stride + 1 for length in hidden.shape[2:])
    result = hidden.new_empty(hidden.shape[0], conv.out_channels, height, width)
    for rows in _spans(height, side):
        top, bottom, pad_top, pad_bottom = _reach(rows, hidden.shape[2], kernel, stride, first)
        for columns in _spans(width, side):
            left, right, pad_left, pad_right = _reach(columns, hidden.shape[3], kernel, stride, first)
            part = hidden[:, :, top:bottom, left:right]
            part = F.pad(before(part) if before else part, (pad_left, pad_right, pad_top, pad_bottom))
            result[:, :, rows[0] : rows[1], columns[0] : columns[1]] = F.conv2d(part, conv.weight, conv.bias, stride)
    return result


def _upsample(conv: Any, hidden: Tensor, side: int) -> Tensor:
    """Nearest-neighbour doubling and its 3x3 convolution, the doubled map only ever existing in tiles."""
    height, width = hidden.shape[2:]
    result = hidden.new_empty(hidden.shape[0], conv.out_channels, 2 * height, 2 * width)
    for top, bottom in _spans(height, side):
        for left, right in _spans(width, side):
            up, down = min(1, top), min(1, height - bottom)
            before, behind = min(1, left), min(1, width - right)
            part = hidden[:, :, top - up : bottom + down, left - before : right + behind]
            part = F.conv2d(F.interpolate(part, scale_factor=2.0, mode="nearest"), conv.weight, conv.bias, padding=1)
            result[:, :, 2 * top : 2 * bottom, 2 * left : 2 * right] = part[
                :, :, 2 * up : 2 * (up + bottom - top), 2 * before : 2 * (before + right - left)
            ]
    return result


def _spans(length: int, side: int) -> list[tuple[int, int]]:
    """Even spans of at most `side` that cover range(length)."""
    count = -(-length // max(1, side))
    edges = [round(i * length / count) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _reach(span: tuple[int, int], length: int, kernel: int, stride: int, pad: int) -> tuple[int, int, int, int]:
    """Output span -> the input span it reads, inside range(length), and the zeros missing before and behind it."""
    start, stop = span[0] * stride - pad, (span[1] - 1) * stride - pad + kernel
    return max(start, 0), min(stop, length), max(-start, 0), max(stop - length, 0)
