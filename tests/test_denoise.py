"""Denoising: control embeddings are shared, and an overflow in half precision runs again in higher precision."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from seesr import images
from seesr.bundle import ControlImageEmbedding
from seesr.denoise import ConditioningCache, Denoiser
from seesr.pipeline import SeeSR
from seesr.settings import Settings


@pytest.mark.parametrize("settings", [{"cfg_scale": 2.0}, {"use_kds": True, "num_particles": 3}, {}])
def test_at_one_step_each_tile_is_embedded_once_and_only_the_latest_is_kept(
    tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Three particles in batches of two: a tile's particles are in two batches."""
    kept: list[int] = []
    get = ConditioningCache.__getitem__

    def watched(self: ConditioningCache, tile: int) -> Tensor:
        result = get(self, tile)
        kept.append(len(self.cached))
        return result

    monkeypatch.setattr(ConditioningCache, "__getitem__", watched)
    embedded, result = count_embeddings(tiny, monkeypatch, num_inference_steps=1, **settings)
    assert embedded == result.tiles > 1
    assert set(kept) == {1}


def test_several_steps_share_the_embeddings_of_all_tiles(tiny: SeeSR, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded, result = count_embeddings(tiny, monkeypatch, num_inference_steps=3)
    assert embedded == result.tiles > 1


def count_embeddings(tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[int, Any]:
    """How many control images an upscale of several tiles embeds, and its result."""
    count, embed = [0], ControlImageEmbedding.embed

    def watched(self: ControlImageEmbedding, image: Tensor) -> Tensor:
        count[0] += len(image)
        return embed(self, image)

    monkeypatch.setattr(ControlImageEmbedding, "embed", watched)
    monkeypatch.setattr(tiny, "profile", replace(tiny.profile, tile_batch=2))
    image = images.to_image(torch.rand(1, 3, 48, 96))
    wanted = Settings(seed=1, latent_tiled_size=48, latent_tiled_overlap=8, **settings)
    result = tiny.upscale(image, wanted)
    return count[0], result


class OverflowingAttention(TorchFunctionMode):
    """Within the block attention of half-precision values gives inf."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        attention = func is torch.nn.functional.scaled_dot_product_attention
        return result * float("inf") if attention and args[0].dtype == torch.float16 else result


@pytest.mark.slow
@pytest.mark.parametrize("where", ["attention", "everything"])
def test_an_overflow_of_the_unet_runs_again_in_higher_precision(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """An inf planted where half precision computes: in its attention, or in a layer that only float32 spares."""
    half, whole = (SeeSR.load(tiny_bundle, "cpu", dtype) for dtype in (torch.float16, torch.float32))
    image = images.to_image(torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(2)))
    settings = Settings(num_inference_steps=2, seed=1)
    wanted = whole.upscale(image, settings)

    def overflow(_: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * float("inf") if inputs[0].dtype == torch.float16 else output

    if where == "everything":
        half.components.unet.conv_out.register_forward_hook(overflow)
    else:
        run = Denoiser.denoise

        def planted(self: Denoiser, *args: Any) -> Tensor:
            with OverflowingAttention():
                return run(self, *args)

        monkeypatch.setattr(Denoiser, "denoise", planted)
    result = half.upscale(image, settings)
    assert result.recoveries == {"overflow in denoise": 1 if where == "attention" else 2}
    assert "The UNet overflowed in torch.float16: running again with attention_in_float32" in caplog.text
    assert half.components.unet.dtype == half.components.controlnet.dtype == torch.float16
    apart = torch.from_numpy(np.asarray(result.image).astype(int) - np.asarray(wanted.image)).abs().float()
    assert apart.mean() < 3
    again = half.upscale(image, settings) if where == "attention" else result
    assert again.image.tobytes() == result.image.tobytes()


@pytest.mark.slow
def test_a_damaged_unet_gives_no_image(golden_bundle: Path) -> None:
    broken = SeeSR.load(golden_bundle, "cpu")
    broken.components.unet.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the UNet's result is not finite"):
        broken.upscale(images.to_image(torch.rand(1, 3, 40, 40)), Settings(num_inference_steps=1))
