"""The VAE's residual block over a whole map."""

from typing import Any

from torch import Tensor

from seesr.vae.group_norm import norm_silu_conv


def resnet_block(block: Any, hidden: Tensor) -> Tensor:
    """Diffusers' ResnetBlock2D without time embedding: (B, C, h, w) -> (B, C', h, w)

    SiLU and the sum write over their inputs, which nobody else holds, where diffusers copies.
    """
    inner = norm_silu_conv(block.norm1, block.conv1, hidden)
    inner = norm_silu_conv(block.norm2, block.conv2, inner)
    inner.add_(hidden if block.conv_shortcut is None else block.conv_shortcut(hidden))
    return inner if block.output_scale_factor == 1 else inner.div_(block.output_scale_factor)
