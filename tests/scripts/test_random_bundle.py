"""The networks that are built without weights have the real structure."""

import json

import pytest

from scripts.bench import random_bundle
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
