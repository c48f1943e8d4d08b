"""The tagger against the reference's recorded tokens, logits and tags; RAM's names both ways."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from ram.model import Ram, RamConfig
from ram.tagger import Tagger
from scripts.convert import ram_config
from scripts.ram_keys import DROPPED, from_upstream, merge_dape, to_upstream
from seesr.pipeline import SeeSR
from tests.golden import UPSTREAM, recorded

RECORDED = recorded("ram")
PICTURES = ["lr_a", "lr_b"]  # 76 x 100, enlarged to 384; 410 x 120, where antialiasing would show


def build(dape: str | None) -> Ram:
    path = UPSTREAM / "ram"
    tensors = torch.load(path / "ram_swin_large_14m.pth", weights_only=True)["model"]
    tensors = {key: tensor for key, tensor in tensors.items() if not DROPPED.search(key)}
    if dape:
        tensors = merge_dape(tensors, torch.load(path / dape, weights_only=True))
    ours = {key: tensor.float() for key, tensor in from_upstream(tensors).items()}
    model = Ram(ram_config(ours)).eval()
    derived = {key: value for key, value in model.state_dict().items() if key.endswith("relative_position_index")}
    model.load_state_dict(ours | derived)
    return model


@pytest.mark.parametrize("picture", PICTURES)
def test_tokens_logits_and_tags_equal_the_reference(golden: SeeSR, picture: str) -> None:
    tagger = golden.components.tagger
    tags, tokens = tagger(RECORDED[f"{picture}.image_uint8"].permute(2, 0, 1)[None] / 255)
    if picture == "lr_a":
        torch.testing.assert_close(tokens, RECORDED["lr_a.image_embeds"], atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(tokens[:, :32], RECORDED["lr_b.image_embeds_first32"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tagger.model.logits(tokens), RECORDED[f"{picture}.logits"], atol=1e-4, rtol=0)
    assert tags == [tagger.tags[i] for i in RECORDED[f"{picture}.targets"][0].nonzero().flatten().tolist()]


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(
    ("dape", "logits", "tokens"),
    [
        (None, "logits_no_lora", "image_embeds_no_lora_first4"),
        ("DAPE_all_nonzero.pth", "logits_stress_all_lora", "image_embeds_stress_first4"),
    ],
)
@torch.inference_mode()
def test_without_dape_and_with_both_halves_of_it(picture: str, dape: str | None, logits: str, tokens: str) -> None:
    """ "All nonzero" also updates tag_encoder, whose first layers upstream shares with the tag head."""
    model = build(dape)
    tagger = Tagger(model, [str(i) for i in range(model.config.tags)], torch.zeros(model.config.tags))
    found = model.tokens(tagger.preprocess(RECORDED[f"{picture}.image_uint8"].permute(2, 0, 1)[None] / 255))
    torch.testing.assert_close(found[:, :4], RECORDED[f"{picture}.{tokens}"], atol=1e-4, rtol=0)
    torch.testing.assert_close(model.logits(found), RECORDED[f"{picture}.{logits}"], atol=1e-4, rtol=0)


def test_names_go_there_and_back() -> None:
    tensors = torch.load(UPSTREAM / "ram/ram_swin_large_14m.pth", weights_only=True)["model"]
    kept = {key: tensor for key, tensor in tensors.items() if not DROPPED.search(key)}
    back = to_upstream(from_upstream(tensors))
    assert back.keys() == kept.keys()
    assert all(back[key].equal(kept[key]) for key in kept)
    ours = from_upstream(tensors)
    shuffled = to_upstream({key: ours[key] for key in sorted(ours)})  # as a file lists them: key, query, value
    assert all(shuffled[key].equal(kept[key]) for key in kept)


def test_the_older_name_of_the_tag_head_is_known() -> None:
    assert list(from_upstream({"vision_multi.encoder.layer.1.output.dense.bias": torch.zeros(1)})) == [
        "layers.1.fc2.bias"
    ]


def test_unknown_names_are_errors() -> None:
    with pytest.raises(RuntimeError, match=r"no rule for the tensor 'visual_encoder\.surprise\.weight'"):
        from_upstream({"visual_encoder.surprise.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="must hold only LoRA tensors"):
        merge_dape({}, {"visual_encoder.layers.0.blocks.0.attn.qkv.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"in pairs, got 'fc\.lora_A' without 'fc\.lora_B'"):
        merge_dape({}, {"fc.lora_A": torch.zeros(8, 4)})
    lora = {"fc.lora_A": torch.zeros(8, 4), "fc.lora_B": torch.zeros(1, 8)}
    with pytest.raises(RuntimeError, match=r"no 'fc\.weight' to merge it into"):
        merge_dape({}, lora)


def test_config_round_trips_through_json(tmp_path: Path) -> None:
    config = RamConfig(depths=(2, 2), num_heads=(1, 2))
    assert RamConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config


def test_tags_and_thresholds_must_fit_the_model(golden: SeeSR) -> None:
    with pytest.raises(RuntimeError, match="must agree, got 1, 1 and 50"):
        Tagger(golden.components.tagger.model, ["a"], torch.zeros(1))
