"""Give a diffusers UNet or ControlNet SeeSR's second cross-attention, over image tokens."""

import re
from typing import Any

from torch import Tensor, nn

from diffusers.models.transformers.transformer_2d import Transformer2DModel


class TextThenImageAttention(nn.Module):
    """A block's text transformer followed by its twin, which attends to image tokens.

    It replaces the Transformer2DModel at `block.attentions[i]`, so the block's own forward runs unchanged;
    `encoder_hidden_states` is a pair (text, image tokens). Source: SeeSR (cswry/SeeSR), where the twins are in a
    parallel list `image_attentions`.
    """

    def __init__(self, text: Transformer2DModel, image_dim: int) -> None:
        super().__init__()
        self.text = text
        # Not from_config(): it resets what the block passed positionally (the head counts) to defaults.
        config = {name: value for name, value in text.config.items() if not name.startswith("_")}
        self.image = Transformer2DModel(**config | {"cross_attention_dim": image_dim})

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: tuple[Tensor, Tensor], **kwargs: Any
    ) -> tuple[Tensor]:
        """(B, C, h, w), ((B, Lt, Dt), (B, Li, Di)) -> ((B, C, h, w),)"""
        text, tokens = encoder_hidden_states
        (hidden_states,) = self.text(hidden_states, text, **kwargs)
        return self.image(hidden_states, tokens, **kwargs)


def add_image_attention(model: Any, image_dim: int) -> Any:
    """Wrap every cross-attention of a stock UNet2DConditionModel or ControlNetModel in place; return the model.

    `image_dim` is the width of the image tokens: 512 for SeeSR (upstream hard-codes it; no config names it).
    """
    for block in (*model.down_blocks, model.mid_block, *getattr(model, "up_blocks", ())):
        if getattr(block, "has_cross_attention", False):
            block.attentions = nn.ModuleList(TextThenImageAttention(text, image_dim) for text in block.attentions)
    return model


def from_seesr_key(key: str) -> str:
    """Stored -> ours: `mid_block.image_attentions.0.norm.bias` -> `mid_block.attentions.0.image.norm.bias`"""
    name = r"\.(image_)?attentions\.(\d+)\."
    return re.sub(name, lambda m: f".attentions.{m[2]}.{'image' if m[1] else 'text'}.", key)
