"""Every tensor of the real, full-size files has its place in our modules, and the other way round (meta device)."""

import pytest
import torch

from ram.model import Ram, RamConfig
from scripts.bundle_writer import to_seesr_key
from scripts.convert import ram_config
from scripts.ram_keys import DROPPED, from_upstream, merge_dape, to_upstream
from seesr import bundle as bundles
from seesr.image_attention import from_seesr_key
from tests.golden import manifest

Shapes = dict[str, tuple[int, ...]]


def shapes_of(name: str) -> Shapes:
    return {key: tuple(shape) for key, shape in manifest(name).items()}


def upstream_shapes(model: torch.nn.Module) -> Shapes:
    return {to_seesr_key(name): tuple(tensor.shape) for name, tensor in bundles.stored_tensors(model).items()}


def test_the_unet_is_sd_turbo_s_with_seesr_s_image_attentions() -> None:
    config = manifest("seesr_unet_config")
    model = bundles.build_empty(lambda: bundles.build_unet(config, 512))
    seesr, base = shapes_of("seesr_unet"), shapes_of("sd_turbo_unet_base")
    merged = base | {key: shape for key, shape in seesr.items() if "image_attentions" in key}
    assert len(base) == 686
    assert len(merged) == 1102
    bundles.check_names(model, {from_seesr_key(key): shape for key, shape in merged.items()}, "the manifest")
    assert upstream_shapes(model) == merged == seesr


def test_the_controlnet_is_seesr_s() -> None:
    config = manifest("seesr_controlnet_config")
    model = bundles.build_empty(lambda: bundles.build_controlnet(config, 512))
    wanted = shapes_of("seesr_controlnet")
    assert len(wanted) == 522
    bundles.check_names(model, {from_seesr_key(key): shape for key, shape in wanted.items()}, "the manifest")
    assert upstream_shapes(model) == wanted


def test_the_tagger_is_ram_s_without_what_is_dropped_by_name() -> None:
    stored = {key: torch.empty(shape, device="meta") for key, shape in shapes_of("ram_swin_large_14m_expected").items()}
    assert len(stored) == 1042
    ours = from_upstream(stored)
    assert ram_config(ours) == RamConfig()
    model = bundles.build_empty(lambda: Ram(RamConfig()))
    bundles.check_names(model, {key: tuple(tensor.shape) for key, tensor in ours.items()}, "the manifest")
    back = {key: tuple(tensor.shape) for key, tensor in to_upstream(bundles.stored_tensors(model)).items()}
    assert back == {key: tuple(tensor.shape) for key, tensor in stored.items() if not DROPPED.search(key)}


def test_every_tensor_of_dape_finds_its_weight() -> None:
    stored = {key: torch.empty(shape, device="meta") for key, shape in shapes_of("ram_swin_large_14m_expected").items()}
    lora = {key: torch.empty(shape, device="meta") for key, shape in shapes_of("dape_lora").items()}
    assert len(lora) == 248
    needed = {key: tensor for key, tensor in stored.items() if not DROPPED.search(key)}
    merged = merge_dape(needed, lora)
    assert {key: tensor.shape for key, tensor in merged.items()} == {k: t.shape for k, t in needed.items()}
    changed = {key for key in needed if merged[key] is not needed[key]}
    assert len(changed) == 24 + 4  # Swin's qkv, and query and key of two tag layers


@pytest.mark.parametrize("name", ["seesr_unet", "seesr_controlnet", "sd_turbo_unet_base"])
def test_renaming_is_exact_both_ways(name: str) -> None:
    keys = list(shapes_of(name))
    ours = [from_seesr_key(key) for key in keys]
    assert len(set(ours)) == len(keys)
    assert [to_seesr_key(key) for key in ours] == keys
