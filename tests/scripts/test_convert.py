"""The converter on upstream-format files: whole bundles or nothing, and a sentence for what does not fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts import convert as script
from seesr import bundle as bundles
from tests.golden import UPSTREAM, write_taesd

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    path = shutil.copytree(UPSTREAM, tmp_path / "upstream")
    write_taesd(path / "taesd")
    return path


def run(upstream: Path, out: Path, **changed: Any) -> None:
    ram = upstream / "ram"
    arguments: dict[str, Any] = {
        "sd_turbo": upstream / "sd_turbo",
        "seesr": upstream / "seesr",
        "ram": ram / "ram_swin_large_14m.pth",
        "dape": ram / "DAPE.pth",
        "tags": ram / "ram_tag_list.txt",
        "thresholds": ram / "ram_tag_list_threshold.txt",
        "tiny_vae": upstream / "taesd",
    }
    script.convert(**arguments | changed, out=out)


@pytest.mark.slow
def test_the_bundle_is_complete_and_says_where_it_is_from(upstream: Path, tmp_path: Path) -> None:
    run(upstream, tmp_path / "bundle")
    parts = bundles.load(tmp_path / "bundle")
    assert parts.name == "SeeSR-Turbo"
    about = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert about["process_size"] == 512
    assert about["dtype"] == "float16"
    assert all(len(value) == 64 for value in about["created_from"].values())
    assert {f"{name}/diffusion_pytorch_model.safetensors" for name in ("seesr/unet", "taesd")} < {
        *about["created_from"]
    }
    assert about["licences"]["TAESD"] == "MIT"
    for name in bundles.FILES.values():
        assert {tensor.dtype for tensor in load_file(tmp_path / "bundle" / name).values()} == {torch.float16}


@pytest.mark.slow
def test_the_small_autoencoder_is_optional_and_checked(upstream: Path, tmp_path: Path) -> None:
    run(upstream, tmp_path / "without", tiny_vae=None)
    assert bundles.load(tmp_path / "without").tiny_vae is None
    assert "TAESD" not in json.loads((tmp_path / "without/bundle.json").read_text())["licences"]
    small: Any = AutoencoderTiny(latent_channels=16)
    small.save_pretrained(upstream / "taesd3")
    with pytest.raises(RuntimeError, match=r"taesd3 must have the VAE's latents \(4 channels, factor 8\), got 16 chan"):
        run(upstream, tmp_path / "other", tiny_vae=upstream / "taesd3")
    path = upstream / "taesd/diffusion_pytorch_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key != "encoder.layers.0.bias"}, path)
    with pytest.raises(RuntimeError, match=r"taesd/.* tensors 1 missing \(encoder\.layers\.0\.bias"):
        run(upstream, tmp_path / "damaged")


@pytest.mark.slow
def test_the_unet_is_merged_from_both(upstream: Path, tmp_path: Path) -> None:
    run(upstream, tmp_path / "bundle")
    merged, base, seesr = (
        load_file(path / "unet/diffusion_pytorch_model.safetensors")
        for path in (tmp_path / "bundle", upstream / "sd_turbo", upstream / "seesr")
    )
    assert not seesr["conv_in.bias"].equal(base["conv_in.bias"])
    assert merged["conv_in.bias"].equal(base["conv_in.bias"])  # SeeSR's own base weights are left out
    added = {key for key in seesr if "image_attentions" in key}
    assert merged.keys() == base.keys() | added
    assert all(merged[key].equal(seesr[key]) for key in added)


@pytest.mark.slow
def test_the_command_line(upstream: Path, tmp_path: Path) -> None:
    ram, out = upstream / "ram", tmp_path / "bundle"
    command = [sys.executable, ROOT / "scripts/convert.py", "--sd-turbo", upstream / "sd_turbo", "--seesr"]
    command += [upstream / "seesr", "--ram", ram / "ram_swin_large_14m.pth", "--dape", ram / "DAPE.pth", "--tags"]
    command += [ram / "ram_tag_list.txt", "--thresholds", ram / "ram_tag_list_threshold.txt", "--out", out]
    first = subprocess.run([*command, "--dtype", "fp32"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert f"Wrote the bundle {out}" in first.stdout
    second = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith(f"convert: {out} exists already")


@pytest.mark.slow
def test_old_attention_names_in_the_vae_are_read(upstream: Path, tmp_path: Path) -> None:
    path = upstream / "sd_turbo/vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, tensor in load_file(path).items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        tensors[key] = tensor
    assert any("proj_attn" in key for key in tensors)
    save_file(tensors, path)
    run(upstream, tmp_path / "bundle")
    whole = load_file(UPSTREAM / "sd_turbo/vae/diffusion_pytorch_model.safetensors")
    converted = load_file(tmp_path / "bundle/vae/diffusion_pytorch_model.safetensors")
    assert all(converted[key].equal(whole[key]) for key in whole)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("pwned",)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("not a checkpoint", "is not a checkpoint of plain tensors"),
        ("evil pickle", "is not a checkpoint of plain tensors"),
        ("missing", "is missing; run scripts/download.py"),
        ("list pickle", "must hold named tensors, got a list"),
        ("empty dape", "DAPE has no update for 'visual_encoder"),
        ("bad thresholds", "must hold one number per tag"),
        ("wrong tags", "must agree, they hold 50, 1 and 50 tags"),
        ("sd unet for seesr's", "has no image_attentions; it must be SeeSR's UNet"),
        ("unet lacks a tensor", r"tensors 1 missing \(conv_in.bias\)"),
        ("vae lacks a tensor", "sd_turbo/vae does not fit its config"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_left(
    upstream: Path, tmp_path: Path, name: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed: dict[str, Path] = {}
    odd = tmp_path / "odd"
    if name == "not a checkpoint":
        odd.write_bytes(b"<html>")
        changed["ram"] = odd
    elif name == "evil pickle":
        torch.save({"model": Evil()}, odd)
        changed["ram"] = odd
    elif name == "list pickle":
        torch.save([torch.zeros(1)], odd)
        changed["ram"] = odd
    elif name == "empty dape":
        torch.save({}, odd)
        changed["dape"] = odd
    elif name == "bad thresholds":
        odd.write_text("x\n" * 50)
        changed["thresholds"] = odd
    elif name == "missing":
        changed["dape"] = tmp_path / "nowhere.pth"
    elif name == "wrong tags":
        odd.write_text("one tag\n")
        changed["tags"] = odd
    elif name == "sd unet for seesr's":
        shutil.copy(upstream / "sd_turbo" / script.UNET, upstream / "seesr" / script.UNET)
    else:
        path = upstream / "sd_turbo" / (script.UNET if name.startswith("unet") else bundles.FILES["vae"])
        tensors = load_file(path)
        del tensors["conv_in.bias" if name.startswith("unet") else "decoder.conv_in.bias"]
        save_file(tensors, path)
    before = set(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match=sentence):
        run(upstream, tmp_path / "bundle", **changed)
    assert set(tmp_path.iterdir()) == before
    assert "pwned" not in capsys.readouterr().out
