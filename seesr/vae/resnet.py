"""The VAE's residual block over a whole map."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F


def resnet_block(block: Any, hidden: Tensor) -> Tensor:
    """Diffusers' ResnetBlock2D without time embedding: (B, C, h, w) -> (B, C', h, w), the same bits

    SiLU and the sum write over their inputs, which nobody else holds, where diffusers copies.
    """
    inner = block.conv1(F.silu(block.norm1(hidden), inplace=True))
    inner = block.conv2(F.silu(block.norm2(inner), inplace=True))
    inner.add_(hidden if block.conv_shortcut is None else block.conv_shortcut(hidden))
    return inner if block.output_scale_factor == 1 else inner.div_(block.output_scale_factor)
