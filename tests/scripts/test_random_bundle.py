"""The networks that are built without weights have the real structure."""

import json

import pytest
import torch

from scripts.bench import random_bundle
from seesr import bundle
from tests.golden import manifest


@pytest.mark.slow
def test_the_full_size_is_the_real_one() -> None:
    real = random_bundle.build()
    for model, name in ((real.unet, "seesr_unet_config"), (real.controlnet, "seesr_controlnet_config")):
        wanted = {key: value for key, value in manifest(name).items() if key in model.config and key[0] != "_"}
        assert len(wanted) > 25
        for key, value in wanted.items():
            assert json.loads(json.dumps(model.config[key])) == value, key
    assert sum(p.numel() for p in real.text_encoder.parameters()) == pytest.approx(340e6, rel=0.01)
    assert sum(p.numel() for p in real.vae.parameters()) == pytest.approx(83.7e6, rel=0.01)
    assert real.memory.keys() == {"fp16", "fp32"}


def test_random_values_leave_position_numbers_alone() -> None:
    config = random_bundle.TEXT_ENCODER | {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    model = bundle.build_empty(lambda: bundle.build_text_encoder(config | {"num_attention_heads": 2}))
    filled = random_bundle.randomize(model, "cpu", torch.float16)
    positions = dict(filled.named_buffers())["text_model.embeddings.position_ids"]
    assert positions.tolist() == [list(range(77))]
    assert all(value.dtype == torch.float16 and value.isfinite().all() for value in filled.parameters())
    assert filled(torch.zeros(1, 77, dtype=torch.int64)).last_hidden_state.std() > 0
