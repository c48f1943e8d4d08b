"""What the losses ask for, and on which device they work."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.train.data import Batch
from scripts.train.losses import Adversary, RefineLoss, contrast_l1, grain_l1, harm
from scripts.train.model import Bundle
from seesr import bundle as bundles

CPU, META = torch.device("cpu"), torch.device("meta")


def test_the_critic_learns_and_its_loss_has_a_chosen_strength() -> None:
    """The hinge loss of the critic falls on images that it can tell apart; our gradient keeps its length."""
    torch.manual_seed(1)
    adversary, real = Adversary(CPU), torch.rand(2, 3, 32, 32)
    batch = Batch(real, torch.zeros_like(real), torch.zeros(2, 3, 8, 8), [[], []])
    ours = torch.zeros_like(real).requires_grad_()
    gaps, loss = [], torch.zeros(())
    for _ in range(60):
        ours.grad = None
        loss = adversary(ours, batch)
        loss.backward()
        with torch.no_grad():
            scores = [adversary.critic(torch.cat([p, batch.control], 1)).mean().item() for p in (real, ours)]
        gaps.append(scores[0] - scores[1])
    assert loss.item() == 0
    assert gaps[-1] > gaps[0] + 0.1
    assert ours.grad is not None
    expected = Adversary.SHARE * 60 / Adversary.WARM_UP / ours.numel() ** 0.5
    assert ours.grad.norm().item() == pytest.approx(expected, rel=1e-4)


def test_contrast_misses_smoothed_texture_and_harm_is_what_is_worse_than_the_input() -> None:
    torch.manual_seed(2)
    truth = torch.rand(2, 3, 32, 32) * 2 - 1
    soft = torch.nn.functional.avg_pool2d(truth, 3, stride=1, padding=1)
    assert contrast_l1(truth, truth) == 0
    assert contrast_l1(soft, truth) > 0.1
    batch = Batch(truth, soft, torch.zeros(2, 3, 8, 8), [[], []])
    assert harm(truth, batch) == harm((soft + truth) / 2, batch) == 0
    assert harm(soft, batch) == pytest.approx(0.04, abs=1e-3)  # no better counts as slightly worse
    assert harm(torch.stack([-soft[0], truth[1]]), batch) > 0.04


def test_grain_asks_for_the_same_roughness_and_not_for_the_same_pixels() -> None:
    def noise(seed: int, size: float = 0.1) -> torch.Tensor:
        return size * torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(seed))

    grass, other = noise(0), noise(1)
    smooth = torch.nn.functional.avg_pool2d(grass, 3, stride=1, padding=1)
    assert grain_l1(grass, grass) == 0
    assert grain_l1(other, grass) < 0.3 * grain_l1(smooth, grass)
    # By regions: grain on the left does not make up for none on the right.
    left, right = grass.clone(), grass.clone()
    left[..., 48:] = right[..., :48] = 0
    assert grain_l1(left, right) > 3 * grain_l1(other, grass)
    for start, truth in ((smooth, grass), (torch.zeros_like(grass), torch.zeros_like(grass))):
        result = start.clone().requires_grad_()
        grain_l1(result, truth).backward()
        assert result.grad is not None
        assert result.grad.isfinite().all()


def test_a_step_stays_on_its_device(tiny_bundle: Path) -> None:
    """The meta device refuses tensors of the CPU, as a GPU does."""
    bundle = Bundle(bundles.load(tiny_bundle)).to(META)
    refine_loss = RefineLoss(META, features=False)
    images = torch.rand(2, 3, 96, 96)
    batch = Batch(images, images, torch.rand(2, 3, 24, 24), [["green"], []]).to(META)
    for seed in range(4):  # the first step and later ones, own and other prompts
        loss = refine_loss(bundle, batch, np.random.default_rng(seed))
        loss.backward()
        assert loss.device == META


def test_the_optimizer_of_a_restored_critic_follows_it() -> None:
    """AdamW on a GPU refuses a state on the CPU. The meta device does not, so the state itself is checked."""
    adversary, images = Adversary(CPU), torch.rand(1, 3, 96, 96)
    adversary(images, Batch(images, images, torch.rand(1, 3, 24, 24), [[]]))
    restored = Adversary(META)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # values cannot be copied to the meta device
        restored.load_state_dict(adversary.state_dict())
    states = [value for state in restored.optimizer.state.values() for name, value in state.items() if name != "step"]
    assert states
    assert {value.device.type for value in states} == {"meta"}


def test_constant_channels_have_no_gradient(tiny_bundle: Path) -> None:
    bundle, images = Bundle(bundles.load(tiny_bundle)), torch.rand(1, 3, 64, 64)
    batch = Batch(images, images, torch.rand(1, 3, 16, 16), [[]])
    RefineLoss(CPU, features=False)(bundle, batch, np.random.default_rng(0)).backward()
    gradients = {name: p.grad for name, p in bundle.trained().items() if p.grad is not None}
    written, read = gradients["vae.decoder.conv_in.weight"], gradients["unet.conv_out.weight"]
    assert written[:2].abs().max() == read[:, :2].abs().max() == 0
    assert min(written[2:].abs().max(), read[:, 2:].abs().max()) > 0
    assert not any(name.startswith(("ram.", "vae.encoder.", "text.")) for name in bundle.trained())
