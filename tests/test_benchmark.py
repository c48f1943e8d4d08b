"""Counted work equals a real run's, the reference's way has its geometry, and the gain that was aimed at holds."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import benchmark
import estimate
import full_size
import pytest
import reference_way
import torch
import work
from golden import manifest
from reference_way import ReferencePlan, ReferenceWay
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from seesr import hardware, images, weights
from seesr.memory import VaeTiles
from seesr.pipeline import SeeSR
from seesr.settings import Settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "steps", "guidance", "tile"), [(SeeSR, 2, 1.0, 48), (SeeSR, 1, 2.0, 48), (ReferenceWay, 2, 1.0, 0)]
)
def test_counted_without_computing_is_what_a_real_run_does(
    tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, way: type[SeeSR], steps: int, guidance: float, tile: int
) -> None:
    seesr = way(tiny.parts, tiny.profile, "cpu")
    monkeypatch.setattr(reference_way, "PLAN", ReferencePlan(64, 4, 1, VaeTiles(64), VaeTiles(64)))
    settings = Settings(num_inference_steps=steps, cfg_scale=guidance, seed=0, latent_tiled_size=tile)
    picture = benchmark.picture_of(96).rgb
    plan = seesr.plan(work.padded_size(seesr, (96, 96), 4.0), settings)
    with work.Work() as real:
        result = seesr.upscale(picture, settings)
    assert result.tiles > 1
    counted = work.of_upscale(work.dry(seesr), (96, 96), settings, plan)
    assert sum(stage.flops for stage in counted.values()) == real.flops > 1e9
    # Sums and copies outside the networks are counted only where they are large.
    assert sum(stage.bytes for stage in counted.values()) == pytest.approx(real.bytes, rel=0.1)
    assert counted["UNet"].flops > counted["ControlNet"].flops > 0
    assert counted["blend"].flops == 0 < counted["blend"].bytes


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_once_and_moves_no_matrix(device: str) -> None:
    query, key = torch.randn(2, 3, 50, 16, device=device), torch.randn(2, 3, 70, 16, device=device)
    with torch.inference_mode(), work.Work() as counted:
        F.scaled_dot_product_attention(query, key, key)
    assert counted.flops == 4 * 2 * 3 * 50 * 70 * 16
    assert counted.bytes == 4 * 2 * 3 * 16 * (50 + 70 + 70 + 50)


def test_flops_are_torch_s() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Flatten(2), torch.nn.Linear(49, 5))
    image = torch.randn(2, 3, 15, 15)
    with torch.inference_mode(), work.Work() as ours, FlopCounterMode(display=False) as theirs:
        model(image)
    assert ours.flops == theirs.get_total_flops() == 2 * 2 * 8 * 49 * (27 + 5)
    assert ours.seconds(1e12, 1e30) == pytest.approx(ours.flops / 1e12)
    assert ours.seconds(1e30, 1e9) == pytest.approx(ours.bytes / 1e9)


def test_the_reference_s_boxes() -> None:
    grid = reference_way.PLAN.grid((512, 1024))
    assert (grid.tile, grid.tops, grid.lefts) == ((320, 320), (0, 192), (0, 316, 632, 704))
    assert reference_way.PLAN.grid((100, 320)).offsets == [(0, 0)]
    assert reference_way.spans(512, 224, 11) == [
        ((0, 214), (0, 203)),
        ((192, 406), (203, 395)),
        ((384, 512), (395, 512)),
    ]
    read = [box for box, _ in reference_way.spans(4096, 1024, 32)]
    assert read == [(0, 1088), (1024, 2112), (2048, 3136), (3072, 4096)]
    image = torch.arange(2 * 90 * 70.0).reshape(1, 2, 90, 70)
    twice = reference_way._boxes(
        lambda part: part.repeat_interleave(2, 2).repeat_interleave(2, 3), image, 24, 4, lambda s: 2 * s
    )
    assert twice.equal(image.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.fixture(scope="module")
def real() -> weights.Parts:
    return full_size.build()


def test_the_full_size_is_the_real_one(real: weights.Parts) -> None:
    for model, name in ((real.unet, "seesr_unet_config"), (real.controlnet, "seesr_controlnet_config")):
        wanted = {key: value for key, value in manifest(name).items() if key in model.config and key[0] != "_"}
        assert len(wanted) > 25
        for key, value in wanted.items():
            assert json.loads(json.dumps(model.config[key])) == value, key
    assert sum(p.numel() for p in real.text_encoder.parameters()) == pytest.approx(340e6, rel=0.01)
    assert sum(p.numel() for p in real.vae.parameters()) == pytest.approx(83.7e6, rel=0.01)


@pytest.mark.slow
def test_a_quarter_of_the_reference_s_work(real: weights.Parts) -> None:
    """1024 -> 4096 at one and two steps with a large card's tiles."""
    ours = SeeSR(real, hardware.GPUS["a40-large"], "meta")
    theirs = ReferenceWay(real, ours.profile, "meta")
    flops = []
    for seesr in (ours, theirs):
        settings = Settings(num_inference_steps=1)
        plan = benchmark.plan_of(seesr, (4096, 4096), settings)
        stages = {name: stage.flops for name, stage in work.of_upscale(seesr, (1024, 1024), settings, plan).items()}
        step = stages["ControlNet"] + stages["UNet"]
        flops.append((sum(stages.values()), sum(stages.values()) + step))
    assert flops[0][0] < flops[1][0] / 4
    assert flops[0][1] < flops[1][1] / 4


def test_it_times_every_stage_and_writes_json(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, trace = tmp_path / "out.json", tmp_path / "trace.json"
    command = f"benchmark --bundle {tiny_bundle} --sides 32 --steps 1 --runs 1 --json {out} --profile {trace}"
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr(benchmark, "measure_ceilings", lambda *_: (1e11, 1e10))
    monkeypatch.setattr(benchmark.logging, "disable", lambda _: None)
    benchmark.main()
    (row,) = json.loads(out.read_text())
    seconds = {name: stage["seconds"] for name, stage in row["stages"].items()}
    assert seconds.keys() == {*work.STAGES, "resize", "file"}
    assert all(value > 0 for value in seconds.values())
    assert "| UNet |" in capsys.readouterr().out
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.slow
def test_estimates_follow_work_and_price(tiny: SeeSR) -> None:
    model = estimate.Model(work.dry(tiny).parts)
    one, four = (model.estimate("a40-large", (128, 128), Settings(num_inference_steps=n)) for n in (1, 4))
    assert one.seconds < four.seconds < 4 * one.seconds
    assert one.dollars == pytest.approx(0.000725 * one.seconds)
    large = model.estimate("a40-large", (256, 256), Settings(num_inference_steps=1))
    assert large.seconds > 3 * one.seconds
    assert large.vram > one.vram
    slow = model.estimate("t4", (256, 256), Settings(num_inference_steps=1))
    assert slow.seconds > large.seconds
    assert model.estimate("v100", (64, 64), Settings()).dollars is None
    assert estimate.CARDS.keys() == hardware.GPUS.keys()


def test_a_size_that_is_none_is_refused() -> None:
    assert estimate.size("1024x768") == (1024, 768)
    with pytest.raises(Exception, match="WIDTHxHEIGHT in pixels, such as 1024x768, got '1024'"):
        estimate.size("1024")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gradient", "photograph"])
def test_no_seam_shows_where_tiles_meet(tiny: SeeSR, kind: str) -> None:
    """The jump from column to column at tiles' borders against that of all columns, in levels of 255."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 128), torch.linspace(0, 1, 192), indexing="ij")
    picture = images.to_image(torch.stack([x, y, (x + y) / 2])[None])
    if kind == "photograph":
        picture = images.open_image(Path(__file__).parent / "data/astronaut.jpg").rgb.crop((32, 0, 224, 128))
    settings = Settings(num_inference_steps=1, seed=3, latent_tiled_size=64)
    grid = tiny.plan((512, 768), settings).grid((512 // tiny.factor, 768 // tiny.factor))
    edges = [tiny.factor * edge for left in grid.lefts for edge in (left, left + grid.tile[1])]
    borders = [edge - 1 for edge in edges if 0 < edge < 768]
    assert len(borders) >= 4
    shares = []
    for tile in (64, 256):  # with borders there, and without
        result = images.to_tensor(tiny.upscale(picture, replace(settings, latent_tiled_size=tile)).image) * 255
        jumps = result.diff(dim=3).abs().mean(dim=(0, 1, 2))
        around = F.avg_pool1d(jumps[None], 25, 1, 12, count_include_pad=False)[0]
        shares.append((jumps[borders] / around[borders]).mean())
    assert shares[0] < shares[1] + 0.05
