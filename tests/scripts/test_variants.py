"""One change at a time, on the embedded bundle."""

import json
from pathlib import Path

import pytest
import torch

from scripts.bench import variants
from seesr.pipeline import SeeSR
from seesr.settings import Settings

SETTINGS = Settings(num_inference_steps=1, seed=0)


@pytest.fixture
def seesr(tiny_bundle: Path) -> SeeSR:
    return SeeSR.load(tiny_bundle, "cpu")


def weights(seesr: SeeSR) -> torch.Tensor:
    return seesr.components.unet.conv_in.weight


def test_a_change_acts_within_its_block_only(seesr: SeeSR) -> None:
    known, decoder = variants.variants(seesr), seesr.components.vae.decoder
    assert decoder.conv_out.weight.is_contiguous(memory_format=torch.channels_last)  # the product's own order on a CPU
    with known["channels_last"](seesr) as changed:
        assert changed is seesr
        assert weights(seesr).is_contiguous(memory_format=torch.channels_last)
        assert decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert weights(seesr).is_contiguous()
    assert decoder.conv_in.weight.is_contiguous()
    assert decoder.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    with known["batch 8"](seesr):
        assert seesr.profile.tile_batch == 8
    assert seesr.profile.tile_batch == 1
    with known["upstream 96/32"](seesr) as changed:
        assert (changed.plan((1024, 1024), SETTINGS).latent_tile, seesr.profile.latent_tile) == (96, 128)
        assert weights(changed) is weights(seesr)


def test_compiled_networks_are_left_as_they_were(seesr: SeeSR) -> None:
    unet, controlnet = seesr.components.unet, seesr.components.controlnet
    before = unet.forward
    with variants.compiled("reduce-overhead", seesr):
        assert unet.forward is not before
        first = unet.forward, controlnet.forward
    assert unet.forward == before
    with variants.compiled("reduce-overhead", seesr):
        assert (unet.forward, controlnet.forward) == first  # nothing is compiled twice


@pytest.mark.slow
def test_rows_say_what_a_change_gains(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.json"
    options = ["--bundle", str(tiny_bundle), "--sides", "48", "--runs", "1", "--json", str(file)]
    monkeypatch.setattr("sys.argv", ["variants", *options, "--only", "channels_last", "batch 2"])
    with pytest.raises(SystemExit) as ended:
        variants.main()
    assert ended.value.code == 0
    rows = json.loads(file.read_text())
    assert [row["change"] for row in rows] == ["channels_last", "batch 2"]
    for row in rows:
        assert row["sides"] == "48 -> 192"
        assert row["ratio"] == pytest.approx(row["after"] / row["before"], abs=0.02)
        assert row["levels"] <= 1


def test_a_change_that_cannot_be_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["variants", "--bundle", str(tiny_bundle), "--only", "faster"])
    with pytest.raises(SystemExit):
        variants.main()
    assert "--only takes 'channels_last', 'batch 1'" in capsys.readouterr().err
