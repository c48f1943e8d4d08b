"""Bundles on disk: strict loading, saving and what goes wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts import bundle_writer
from seesr import bundle as bundles
from seesr.pipeline import SeeSR

UNET = bundles.FILES["unet"]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the embedded bundle to damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.mark.slow
def test_save_and_load_round_trip(golden: SeeSR, tmp_path: Path) -> None:
    bundle_writer.save(golden.components, tmp_path / "copy", {"kind": "test"}, dtype=torch.float32)
    again = bundles.load(tmp_path / "copy")
    for name in ("unet", "controlnet", "vae", "tiny_vae", "text_encoder"):
        ours, theirs = (bundles.stored_tensors(getattr(parts, name)) for parts in (golden.components, again))
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours), name
    assert again.tagger.tags == golden.components.tagger.tags
    torch.testing.assert_close(again.tagger.thresholds, golden.components.tagger.thresholds, atol=1e-4, rtol=0)
    assert again.process_size == golden.components.process_size
    assert again.scheduler.config["timestep_spacing"] == "trailing"


def test_stored_names_are_upstream_s(tiny_bundle: Path) -> None:
    names = load_file(tiny_bundle / UNET)
    assert any("image_attentions.0.transformer_blocks.0.attn2.to_k.weight" in name for name in names)
    assert not any(".text." in name for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_what_was_asked_for(tiny_bundle: Path, dtype: torch.dtype) -> None:
    parts = bundles.load(tiny_bundle, "cpu", dtype)
    for model in (parts.unet, parts.controlnet, parts.vae, parts.text_encoder, parts.tagger.model):
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
        assert not model.training


@pytest.mark.parametrize("fault", ["missing", "left over", "misshapen"])
def test_tensors_that_do_not_fit_are_named(bundle: Path, fault: str) -> None:
    tensors = load_file(bundle / UNET)
    if fault == "missing":
        del tensors["conv_in.weight"]
    elif fault == "left over":
        tensors["conv_in.surprise"] = torch.zeros(1)
    else:
        tensors["conv_in.weight"] = torch.zeros(1, 2)
    save_file(tensors, bundle / UNET)
    with pytest.raises(RuntimeError, match=rf"unet.*tensors 1 {fault} \(conv_in\.") as caught:
        bundles.load(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", [*bundles.FILES.values(), "bundle.json", "vae/config.json", "tokenizer/vocab.json", "ram/tags.txt"]
)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(RuntimeError, match=f"{name} is missing; download or build the bundle again"):
        bundles.load(bundle)


@pytest.mark.parametrize("name", [UNET, "bundle.json"])
def test_a_damaged_file_is_named(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError, match=f"{name} is (damaged|not valid JSON)"):
        bundles.load(bundle)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("bundle.json", "[]", "is not valid JSON"),
        ("bundle.json", '{"name": "x", "process_size": "64"}', "must give a name and a process_size"),
        ("ram/config.json", '{"surprise": 1}', "describes no ram"),
        ("ram/thresholds.txt", "many", "tags or thresholds are damaged"),
        ("unet/config.json", '{"down_block_types": ["Nothing"]}', "describes no unet"),
    ],
)
def test_a_wrong_description_is_named(bundle: Path, name: str, content: str, sentence: str) -> None:
    (bundle / name).write_text(content)
    with pytest.raises(RuntimeError, match=sentence):
        bundles.load(bundle)


def test_values_that_half_precision_can_t_hold_are_refused(golden: SeeSR, tmp_path: Path) -> None:
    refused = pytest.raises(RuntimeError, match=r"vae's tensor conv_in\.bias is not finite in torch\.float16")
    with refused, bundle_writer.BundleWriter(tmp_path / "copy") as writer:
        writer.component("vae", {}, {"conv_in.bias": torch.tensor([1e6])})
    assert list(tmp_path.iterdir()) == []


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="must be a directory"):
        bundles.load(tmp_path / "nowhere")


def test_a_bundle_without_image_attention_is_refused(bundle: Path) -> None:
    tensors = {key: value for key, value in load_file(bundle / UNET).items() if "image_attentions" not in key}
    save_file(tensors, bundle / UNET)
    with pytest.raises(RuntimeError, match=r"tensors \d+ missing \(.*\.image\."):
        bundles.load(bundle)


def test_pickles_are_never_read(bundle: Path) -> None:
    """Even where a pickle lies beside, or instead of, the safetensors file."""
    torch.save(load_file(bundle / UNET), (bundle / UNET).with_suffix(".bin"))
    (bundle / UNET).unlink()
    with pytest.raises(RuntimeError, match="is missing"):
        bundles.load(bundle)


@pytest.mark.slow
def test_a_failed_save_leaves_nothing(golden: SeeSR, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        bundle_writer.save(golden.components, tmp_path / "copy", {"kind": object()})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "copy").mkdir()
    with pytest.raises(RuntimeError, match="exists already"):
        bundle_writer.save(golden.components, tmp_path / "copy", {})


def test_the_embedded_bundle_says_what_it_is(tiny_bundle: Path) -> None:
    about = json.loads((tiny_bundle / "bundle.json").read_text())
    assert about["kind"] == "tiny"
    assert about["process_size"] > 0
    assert about["photographs"]
    assert all(entry["licence"] and entry["credit"] for entry in about["photographs"])
    size = sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    assert size < 40e6
