"""Steering against a slow loop in float64, against a case whose mode is known, and what it promises in an upscale."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seesr import denoise, images, kds
from seesr.pipeline import SeeSR
from seesr.settings import Settings


def slow(x0: Tensor, bandwidth: float) -> Tensor:
    """The definition, one latent pixel after the other."""
    values = x0.double()
    runs, _, height, width = values.shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    cut = {(n, y, x): values[n, :, y, x] for n in range(runs) for y, x in cells}

    def apart(y: int, x: int, i: int, j: int) -> float:
        return (cut[i, y, x] - cut[j, y, x]).square().mean().sqrt().item()

    every = sorted(apart(y, x, i, j) for y, x in cells for i in range(runs) for j in range(i + 1, runs))
    scale = bandwidth * 2 * every[(len(every) - 1) // 2]
    result = values.clone()
    for y, x in cells:
        for i in range(runs):
            weights = [math.exp(-(apart(y, x, i, j) ** 2) / (2 * scale**2)) for j in range(runs)]
            moved = sum(w * cut[j, y, x] for j, w in enumerate(weights)) / sum(weights)
            result[i, :, y, x] = moved
    return result


@pytest.mark.parametrize("runs", [2, 5])
@pytest.mark.parametrize("bandwidth", [0.1, 0.4, 0.8])
def test_steering_is_its_definition(runs: int, bandwidth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kds, "CHUNK", 7 * runs**2)  # several parts
    x0 = torch.randn(runs, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kds.steer(x0, bandwidth).double(), slow(x0, bandwidth), atol=1e-5, rtol=0)


def test_runs_go_where_most_agree() -> None:
    """Five of seven lie around 1, two around 5: the five close ranks, and the outliers do not drag them."""
    noise = torch.randn(7, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.05
    centre = torch.tensor([1.0] * 5 + [5.0] * 2)[:, None, None, None]
    steered = kds.steer(centre + noise, 0.8)
    assert (steered[:5] - 1).abs().mean() < 0.6 * (noise[:5]).abs().mean()
    assert (steered[5:] - 5).abs().mean() < (noise[5:]).abs().mean()
    assert kds.nearest_to_mean(centre + noise) < 5


def test_steering_beats_the_mean_and_the_choice_where_places_have_two_modes() -> None:
    """Each place is one of two things in each run, -1 or 1, and a little noise: a image must decide, not blend."""
    random = torch.Generator().manual_seed(5)
    side = torch.where(torch.rand(8, 1, 12, 12, generator=random) < 0.7, 1.0, -1.0)
    runs = side + 0.3 * torch.randn(8, 4, 12, 12, generator=random)

    def off(latent: Tensor) -> float:
        """How far from the nearer of the two modes, root mean square."""
        return torch.minimum((latent - 1).square().mean(1), (latent + 1).square().mean(1)).mean().sqrt().item()

    steered = kds.steer(runs, 0.3)
    unsteered = off(runs[[kds.nearest_to_mean(runs)]])
    assert off(steered[[kds.nearest_to_mean(steered)]]) < 0.7 * unsteered
    assert off(runs.mean(0, keepdim=True)) > 1.5 * unsteered


def test_half_precision_is_steered_in_float32() -> None:
    half = (torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(6)) * 300).half()
    steered = kds.steer(half, 0.3)
    assert steered.dtype == torch.float32
    assert steered.equal(kds.steer(half.float(), 0.3))
    assert kds.nearest_to_mean(half) == kds.nearest_to_mean(half.float())


def test_what_stays_as_it_is() -> None:
    one = torch.randn(1, 4, 5, 5)
    assert kds.steer(one, 0.3).equal(one)
    equal = torch.ones(3, 4, 5, 5)
    assert kds.steer(equal, 0.3).equal(equal)
    assert kds.nearest_to_mean(one) == 0


def test_the_bandwidth_means_the_same_at_every_scale() -> None:
    x0 = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(kds.steer(x0 * 50, 0.3) / 50, kds.steer(x0, 0.3), atol=1e-5, rtol=0)


def levels(seesr: SeeSR, **settings: object) -> np.ndarray:
    image = images.to_image(torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(4)))
    return np.asarray(seesr.upscale(image, Settings(seed=6, **settings)).image).astype(int)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_dial_acts(tiny: SeeSR, steps: int) -> None:
    def run(**settings: object) -> np.ndarray:
        return levels(tiny, num_inference_steps=steps, **settings)

    plain = run()
    assert np.array_equal(plain, run(num_particles=8, bandwidth=0.7))
    assert np.array_equal(plain, run(use_kds=True, num_particles=1))
    steered = run(use_kds=True, num_particles=4, bandwidth=0.3)
    assert np.array_equal(steered, run(use_kds=True, num_particles=4, bandwidth=0.3))
    assert not np.array_equal(steered, plain)
    assert not np.array_equal(steered, run(use_kds=True, num_particles=4, bandwidth=0.8))
    assert not np.array_equal(steered, run(use_kds=True, num_particles=3, bandwidth=0.3))


@pytest.mark.slow
def test_tiles_batches_and_guidance_change_nothing_but_rounding(tiny: SeeSR) -> None:
    batched = SeeSR(tiny.components, replace(tiny.profile, tile_batch=3))
    for settings in ({"latent_tiled_size": 32}, {"cfg_scale": 2.0}):
        one, three = (
            levels(seesr, use_kds=True, num_particles=4, num_inference_steps=2, **settings) for seesr in (tiny, batched)
        )
        assert np.abs(one - three).max() <= 1


def test_particles_share_all_but_the_denoising(tiny: SeeSR) -> None:
    seen: dict[str, list[int]] = {}
    vae: Any = tiny.components.vae
    modules = {"encoder": vae.encoder.conv_in, "decoder": vae.decoder.conv_in, "unet": tiny.components.unet}

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: seen.setdefault(name, []).append(
            len(output[0] if name == "unet" else output)
        )

    hooks = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    levels(tiny, use_kds=True, num_particles=3, num_inference_steps=2)
    for hook in hooks:
        hook.remove()
    assert seen == {"encoder": [1], "decoder": [1], "unet": [1] * 6}


def test_running_out_of_memory_halves_the_batch_of_particles(tiny: SeeSR, monkeypatch: pytest.MonkeyPatch) -> None:
    batched = SeeSR(tiny.components, replace(tiny.profile, tile_batch=4))
    image = images.to_image(torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(4)))
    settings = Settings(num_inference_steps=2, seed=6, use_kds=True, num_particles=4)
    wanted, real, sizes = batched.upscale(image, settings), denoise.run_controlnet_unet, []

    def failing(controlnet: object, unet: object, latent: Tensor, *others: object) -> Tensor:
        sizes.append(len(latent))
        if len(latent) > 2:
            raise MemoryError
        return real(controlnet, unet, latent, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(denoise, "run_controlnet_unet", failing)
    recovered = batched.upscale(image, settings)
    assert sizes == [4, 2, 2, 2, 2]
    assert recovered.recoveries == {"out of memory in denoise": 1}
    assert np.abs(np.asarray(recovered.image).astype(int) - np.asarray(wanted.image)).max() <= 1
