"""Decoder modules that double by sub-pixel convolutions, under the names of those that they replace."""

import itertools
from typing import Any

from torch import Tensor, nn

from seesr.vae.upsampling import upsample

from diffusers.models.upsampling import Upsample2D


class SubpixelUpsample(Upsample2D):
    """Diffusers' Upsample2D as a VAE uses it: doubling, then a 3x3 convolution."""

    def forward(self, hidden_states: Tensor, output_size: None = None, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w)"""
        return upsample(hidden_states, self.conv, (1, 1, 1, 1))


class SubpixelConv(nn.Conv2d):
    """A doubling and the 3x3 convolution behind it, of an AutoencoderTiny."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w)"""
        return upsample(input, self, (1, 1, 1, 1))


def use_subpixel_upsampling(decoder: nn.Module) -> None:
    """Let a VAE's decoder double by sub-pixel convolutions; its tensors keep their names."""
    for module in decoder.modules():
        if type(module) is Upsample2D:
            module.__class__ = SubpixelUpsample
        if isinstance(module, nn.Sequential):
            for number, (layer, conv) in enumerate(itertools.pairwise(module)):
                if isinstance(layer, nn.Upsample) and type(conv) is nn.Conv2d:
                    module[number], conv.__class__ = nn.Identity(), SubpixelConv
