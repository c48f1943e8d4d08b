"""The converter takes SD-Turbo's fp16 files, which scripts/download.py brings, where they are there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.convert import convert
from tests.golden import UPSTREAM

NAMES = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    return shutil.copytree(UPSTREAM, tmp_path / "upstream")


def run(upstream: Path, out: Path) -> None:
    ram = upstream / "ram"
    tags, thresholds = ram / "ram_tag_list.txt", ram / "ram_tag_list_threshold.txt"
    convert(
        upstream / "sd_turbo",
        upstream / "seesr",
        ram / "ram_swin_large_14m.pth",
        ram / "DAPE.pth",
        tags,
        thresholds,
        out,
        dtype=torch.float16,
    )


@pytest.mark.slow
def test_fp16_files_are_taken_where_they_are_there(upstream: Path, tmp_path: Path) -> None:
    expected = {}
    for name in NAMES:
        plain = upstream / "sd_turbo" / f"{name}.safetensors"
        expected[name] = {key: (value / 2).half() for key, value in load_file(plain).items()}  # not the plain values
        save_file(expected[name], plain.with_suffix(".fp16.safetensors"), {"format": "pt"})
    (upstream / "sd_turbo/unet/diffusion_pytorch_model.safetensors").unlink()
    (upstream / "sd_turbo/vae/diffusion_pytorch_model.safetensors").unlink()  # the text encoder has both
    run(upstream, tmp_path / "bundle")
    for name in NAMES:
        converted = load_file(tmp_path / "bundle" / f"{name}.safetensors")
        shared = converted.keys() & expected[name].keys()
        assert len(shared) > 10
        assert all(converted[key].equal(expected[name][key]) for key in shared)
    created_from = json.loads((tmp_path / "bundle/bundle.json").read_text())["created_from"]
    assert {f"{name}.fp16.safetensors" for name in NAMES} <= created_from.keys()
    assert not {f"{name}.safetensors" for name in NAMES} & created_from.keys()


def test_a_missing_file_is_named_by_its_plain_name(upstream: Path, tmp_path: Path) -> None:
    (upstream / "sd_turbo/vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"vae/diffusion_pytorch_model\.safetensors is missing"):
        run(upstream, tmp_path / "bundle")
