"""Upstream RAM tensor names and ours: a table, both ways, and DAPE's low-rank update merged into the weights."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK, _OUR_BLOCK = "visual_encoder.layers.{}.blocks.{}.", "swin.encoder.layers.{}.blocks.{}."
_HEAD = "tagging_head.encoder.layer.{}."

TABLE: dict[str, str | tuple[str, ...]] = {
    "visual_encoder.patch_embed.proj": "swin.embeddings.patch_embeddings.projection",
    "visual_encoder.patch_embed.norm": "swin.embeddings.norm",
    _BLOCK + "norm1": _OUR_BLOCK + "layernorm_before",
    _BLOCK + "norm2": _OUR_BLOCK + "layernorm_after",
    _BLOCK + "attn.qkv": tuple(f"{_OUR_BLOCK}attention.self.{part}" for part in ("query", "key", "value")),
    _BLOCK + "attn.proj": _OUR_BLOCK + "attention.output.dense",
    _BLOCK + "attn.relative_position_bias_table": _OUR_BLOCK + "attention.self.relative_position_bias_table",
    _BLOCK + "mlp.fc1": _OUR_BLOCK + "intermediate.dense",
    _BLOCK + "mlp.fc2": _OUR_BLOCK + "output.dense",
    "visual_encoder.layers.{}.downsample.norm": "swin.encoder.layers.{}.downsample.norm",
    "visual_encoder.layers.{}.downsample.reduction": "swin.encoder.layers.{}.downsample.reduction",
    "visual_encoder.norm": "swin.layernorm",
    _HEAD + "crossattention.self.query": "layers.{}.query",
    _HEAD + "crossattention.self.key": "layers.{}.key",
    _HEAD + "crossattention.self.value": "layers.{}.value",
    _HEAD + "crossattention.output.dense": "layers.{}.out",
    _HEAD + "crossattention.output.LayerNorm": "layers.{}.out_norm",
    _HEAD + "intermediate.dense": "layers.{}.fc1",
    _HEAD + "output.dense": "layers.{}.fc2",
    _HEAD + "output.LayerNorm": "layers.{}.mlp_norm",
    "image_proj": "image_proj",
    "label_embed": "label_embed",
    "wordvec_proj": "label_proj",
    "fc": "score",
}
"""Names of modules or single tensors, with {} for numbers. A tuple: one stacked tensor, split along its rows."""

DROPPED = re.compile(r"(relative_position_index|attn_mask)$|^(tag_encoder|text_decoder)\.")
"""Upstream tensors that tagging does not need: derived buffers, and RAM's caption networks."""

_LEAF = re.compile(r"(.*)(\.weight|\.bias)$")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def from_upstream(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under RAM's own names -> under ours, without the DROPPED. Raises RuntimeError for an unknown name."""
    ours: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        key = re.sub(r"^vision_multi\.", "tagging_head.", key)
        if DROPPED.search(key):
            continue
        names = _translate(key, TABLE)
        for name, part in zip(names, tensor.chunk(len(names)), strict=True):
            ours[name] = part
    return ours


def to_upstream(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The exact inverse of `from_upstream`, without what it dropped."""
    whole = {ours: theirs for theirs, ours in TABLE.items() if isinstance(ours, str)}
    stacked = {part: theirs for theirs, ours in TABLE.items() if isinstance(ours, tuple) for part in ours}
    order = {part: place for ours in TABLE.values() if isinstance(ours, tuple) for place, part in enumerate(ours)}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.endswith("relative_position_index"):  # a buffer that Swin derives
            continue
        (name,) = _translate(key, whole | stacked)
        parts.setdefault(name, {})[order.get(_pattern(key)[0], 0)] = tensor
    return {
        name: found[0] if len(found) == 1 else torch.cat([found[place] for place in sorted(found)])
        for name, found in parts.items()
    }


def _translate(key: str, table: Mapping[str, str | tuple[str, ...]]) -> tuple[str, ...]:
    pattern, numbers, leaf = _pattern(key)
    found = table.get(pattern)
    if found is None:
        raise RuntimeError(f"no rule for the tensor {key!r}: this is not the RAM checkpoint that SeeSR uses")
    names = found if isinstance(found, tuple) else (found,)
    return tuple(name.format(*numbers) + leaf for name in names)


def _pattern(key: str) -> tuple[str, list[str], str]:
    """ "layers.1.out.bias" -> ("layers.{}.out", ["1"], ".bias")"""
    match = _LEAF.match(key)
    stem, leaf = (match[1], match[2]) if match else (key, "")
    return _NUMBER.sub("{}", stem + ".").removesuffix("."), _NUMBER.findall(stem + "."), leaf


def merge_dape(tensors: Mapping[str, Tensor], lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream-named RAM tensors and DAPE's LoRA -> the same tensors, float32 where merged: W + B A / r (alpha 1)

    Swin's stacked qkv has LoRA on q and v only. Upstream shares `tag_encoder`'s first layers with `tagging_head`, so
    both updates of the cross-attention land on one tensor. Raises RuntimeError for a name that fits nothing.
    """
    _check_complete(tensors, lora)
    merged = dict(tensors)
    for key in lora:
        if not key.endswith(".lora_A") or key.startswith("text_decoder."):
            continue
        down, up = lora[key].float(), lora[key.removesuffix("A") + "B"].float()
        target = re.sub(r"^tag_encoder\.", "tagging_head.", key.removesuffix("lora_A") + "weight")
        if target in merged:
            merged[target] = merged[target].float() + _delta(down, up, merged[target])
        elif not key.startswith("tag_encoder."):  # its self-attention and later layers are not needed for tagging
            raise RuntimeError(f"DAPE has {key!r}, but the RAM checkpoint has no {target!r} to merge it into")
    return merged


_UPDATED = re.compile(r"^visual_encoder\..*\.qkv\.weight$|^tagging_head\..*crossattention\.self\.(query|key)\.weight$")


def _check_complete(tensors: Mapping[str, Tensor], lora: Mapping[str, Tensor]) -> None:
    """DAPE must update every Swin qkv and every tag layer's query and key, and hold nothing but LoRA pairs."""
    for key in lora:
        if not key.endswith((".lora_A", ".lora_B")):
            raise RuntimeError(f"DAPE must hold only LoRA tensors, got {key!r}")
        pair = key[:-1] + ("B" if key.endswith("A") else "A")
        if pair not in lora:
            raise RuntimeError(f"DAPE must hold LoRA tensors in pairs, got {key!r} without {pair!r}")
    for key in tensors:
        if _UPDATED.search(key) and key.replace(".weight", ".lora_A") not in lora:
            raise RuntimeError(f"DAPE has no update for {key!r}; the file is incomplete, download it again")


def _delta(down: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    rank = up.shape[1]
    if down.shape[0] == rank:
        return up @ down / rank
    width = weight.shape[0] // 3  # MergedLinear with q and v enabled, k left alone
    query, value = up[:width] @ down[:rank], up[width:] @ down[rank:]
    return torch.cat([query, torch.zeros_like(query), value]) / rank
