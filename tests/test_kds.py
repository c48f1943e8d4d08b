"""Steering against a slow loop in float64, against a case whose mode is known, and what it promises in an upscale."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from seesr import images, kds
from seesr.pipeline import SeeSR
from seesr.settings import Settings


def slow(x0: Tensor, bandwidth: float, patch: int) -> Tensor:
    """The definition, patch by patch; sides that are multiples of the patch."""
    values = x0.double()
    runs, _, height, width = values.shape
    cells = [(y, x) for y in range(0, height, patch) for x in range(0, width, patch)]
    cut = {(n, y, x): values[n, :, y : y + patch, x : x + patch] for n in range(runs) for y, x in cells}

    def apart(y: int, x: int, i: int, j: int) -> float:
        return (cut[i, y, x] - cut[j, y, x]).square().mean().sqrt().item()

    every = sorted(apart(y, x, i, j) for y, x in cells for i in range(runs) for j in range(i + 1, runs))
    scale = bandwidth * 2 * every[(len(every) - 1) // 2]
    result = values.clone()
    for y, x in cells:
        for i in range(runs):
            weights = [math.exp(-(apart(y, x, i, j) ** 2) / (2 * scale**2)) for j in range(runs)]
            moved = sum(w * cut[j, y, x] for j, w in enumerate(weights)) / sum(weights)
            result[i, :, y : y + patch, x : x + patch] = moved
    return result


@pytest.mark.parametrize("runs", [2, 5])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("bandwidth", [0.1, 0.4, 0.8])
def test_steering_is_its_definition(runs: int, patch: int, bandwidth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kds, "CHUNK", 7 * runs**2)  # several parts
    x0 = torch.randn(runs, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        kds.steer(x0, bandwidth, patch=patch).double(), slow(x0, bandwidth, patch), atol=1e-5, rtol=0
    )


def test_runs_go_where_most_agree() -> None:
    """Five of seven lie around 1, two around 5: the five close ranks, and the outliers do not drag them."""
    noise = torch.randn(7, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.05
    centre = torch.tensor([1.0] * 5 + [5.0] * 2)[:, None, None, None]
    steered = kds.steer(centre + noise, 0.8)
    assert (steered[:5] - 1).abs().mean() < 0.6 * (noise[:5]).abs().mean()
    assert (steered[5:] - 5).abs().mean() < (noise[5:]).abs().mean()
    assert kds.nearest_to_mean(centre + noise) < 5


def test_what_stays_as_it_is() -> None:
    one = torch.randn(1, 4, 5, 5)
    assert kds.steer(one, 0.3).equal(one)
    equal = torch.ones(3, 4, 5, 5)
    assert kds.steer(equal, 0.3).equal(equal)
    several = torch.randn(4, 4, 5, 7)
    assert kds.steer(several, 0.3, strength=0).equal(several)
    assert kds.steer(several, 0.3, patch=2).shape == several.shape
    assert kds.nearest_to_mean(one) == 0


def test_the_bandwidth_means_the_same_at_every_scale() -> None:
    x0 = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(kds.steer(x0 * 50, 0.3) / 50, kds.steer(x0, 0.3), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> SeeSR:
    return SeeSR.load(tiny_bundle, device="cpu")


def levels(seesr: SeeSR, **settings: object) -> np.ndarray:
    picture = images.to_image(torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(4)))
    return np.asarray(seesr.upscale(picture, Settings(seed=6, **settings)).image).astype(int)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 2])
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


def test_tiles_batches_and_guidance_change_nothing_but_rounding(tiny: SeeSR) -> None:
    from dataclasses import replace

    batched = SeeSR(tiny.parts, replace(tiny.profile, tile_batch=3))
    for settings in ({"latent_tiled_size": 24}, {"cfg_scale": 2.0}):
        one, three = (
            levels(seesr, use_kds=True, num_particles=4, num_inference_steps=2, **settings) for seesr in (tiny, batched)
        )
        assert np.abs(one - three).max() <= 1
