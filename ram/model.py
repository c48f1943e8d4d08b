"""The Recognize Anything tagger's network: a Swin gives image tokens, and one query per tag reads them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SwinConfig, SwinModel


@dataclass(frozen=True)
class RamConfig:
    """Sizes of a `Ram`; the defaults are `ram_swin_large_14m`. `image_size` is the input side, in pixels."""

    image_size: int = 384
    patch_size: int = 4
    embed_dim: int = 192
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (6, 12, 24, 48)
    window_size: int = 12
    token_dim: int = 512
    tag_dim: int = 768
    tag_heads: int = 4
    tag_layers: int = 2
    tag_mlp_dim: int = 3072
    tags: int = 4585

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RamConfig":
        """A config.json's content -> the config; JSON's lists become tuples."""
        lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)


class TagLayer(nn.Module):
    """Post-norm cross-attention and MLP: tag queries read the image tokens (a BertLayer without self-attention)."""

    def __init__(self, config: RamConfig) -> None:
        super().__init__()
        self.heads = config.tag_heads
        self.query = nn.Linear(config.tag_dim, config.tag_dim)
        self.key = nn.Linear(config.token_dim, config.tag_dim)
        self.value = nn.Linear(config.token_dim, config.tag_dim)
        self.out = nn.Linear(config.tag_dim, config.tag_dim)
        self.out_norm = nn.LayerNorm(config.tag_dim, eps=1e-12)
        self.fc1 = nn.Linear(config.tag_dim, config.tag_mlp_dim)
        self.fc2 = nn.Linear(config.tag_mlp_dim, config.tag_dim)
        self.mlp_norm = nn.LayerNorm(config.tag_dim, eps=1e-12)

    def forward(self, tags: Tensor, tokens: Tensor) -> Tensor:
        """(B, T, D), (B, L, C) -> (B, T, D)"""
        projections = (self.query(tags), self.key(tokens), self.value(tokens))
        query, key, value = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in projections)
        read = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tags = self.out_norm(tags + self.out(read))
        return self.mlp_norm(tags + self.fc2(F.gelu(self.fc1(tags))))


class Ram(nn.Module):
    """Swin tokens and a score per tag. Source: recognize-anything's RAM, the parts that tagging needs."""

    def __init__(self, config: RamConfig) -> None:
        super().__init__()
        self.config = config
        swin = SwinConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            depths=list(config.depths),
            num_heads=list(config.num_heads),
            window_size=config.window_size,
            drop_path_rate=0.0,
        )
        self.swin = SwinModel(swin)
        self.image_proj = nn.Linear(self.swin.num_features, config.token_dim)
        self.label_embed = nn.Parameter(torch.zeros(config.tags, config.token_dim))
        self.label_proj = nn.Linear(config.token_dim, config.tag_dim)
        self.layers = nn.ModuleList(TagLayer(config) for _ in range(config.tag_layers))
        self.score = nn.Linear(config.tag_dim, 1)

    def tokens(self, image: Tensor) -> Tensor:
        """(B, 3, S, S), ImageNet-normalised -> (B, 1 + L, token_dim): their mean, then L tokens (S = 384: L = 144)"""
        swin = self.swin(image)
        return self.image_proj(torch.cat([swin.pooler_output[:, None], swin.last_hidden_state], dim=1))

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, 1 + L, token_dim) -> (B, tags)"""
        tags = F.relu(self.label_proj(self.label_embed)).expand(len(tokens), -1, -1)
        for layer in self.layers:
            tags = layer(tags, tokens)
        return self.score(tags).squeeze(-1)
