"""Predictions follow work and price; the kept kernels are those of the networks; the shares fit measurements."""

import argparse
import sys
from dataclasses import replace

import pytest

from scripts.bench import estimate, flops, kernels, random_bundle
from scripts.bench.memory import weight_bytes
from seesr import cost, hardware
from seesr.bundle import Components
from seesr.cost import CARDS, Estimate
from seesr.pipeline import SeeSR
from seesr.settings import Settings

ONE_STEP = Settings(num_inference_steps=1)
FAST = Settings(num_inference_steps=1, fast_vae=True)


@pytest.fixture(scope="module")
def real() -> Components:
    """Networks of the real structure, without values"""
    return random_bundle.build()


def predict(gpu: str = "a40-large", side: int = 256, settings: Settings = ONE_STEP) -> Estimate:
    return cost.estimate(gpu, (side, side), settings)


def test_estimates_follow_work_and_price() -> None:
    one, four = predict(), predict(settings=Settings(num_inference_steps=4))
    assert one.seconds < four.seconds < 4 * one.seconds
    assert one.dollars == pytest.approx(0.000725 * one.seconds)
    assert predict(side=512).seconds > 2.5 * one.seconds
    assert predict(settings=FAST).seconds < 0.8 * one.seconds
    assert predict(side=512).vram > one.vram > 4.5e9
    assert predict("t4").seconds > one.seconds > predict("h100").seconds
    assert predict("v100").dollars is None
    guided = predict(settings=Settings(cfg_scale=2.0))
    particles = predict(settings=Settings(use_kds=True, num_particles=2))
    assert guided.seconds == pytest.approx(particles.seconds, rel=0.1)
    assert four.seconds < guided.seconds < 2 * four.seconds
    assert predict(settings=Settings(num_inference_steps=1, target_long_side=1024)) == one
    assert CARDS.keys() == hardware.GPUS.keys() == set(estimate.ORDER)


def test_small_images_wait_for_the_host() -> None:
    fast = replace(CARDS["h100"], launch=0)
    run, kept = cost.Run("denoise", (64, 64)), cost.read_counted().kernels["denoise"]
    assert run.seconds(kept, CARDS["h100"]) > 2 * run.seconds(kept, fast)
    large = replace(run, batch=32)
    assert large.seconds(kept, CARDS["h100"]) == large.seconds(kept, fast)


def test_a_result_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="the result may have at most 67 megapixels"):
        predict(side=4096)


def test_the_shares_are_those_that_measurements_give() -> None:
    found = estimate.derive_shares()
    assert {name: f"{share:.2f}" for name, (share, _) in found.items()} == {
        name: f"{card.networks:.2f}" for name, card in CARDS.items()
    }
    for name, card in (("V100", CARDS["v100"]), ("A100", CARDS["a100-large"])):
        share, launch = estimate.MEASURED[name].fit()
        assert launch == pytest.approx(card.launch)
        for _, _, roofline, number, seconds in estimate.MEASURED[name].passes():
            assert max(roofline / share, number * launch) == pytest.approx(seconds, rel=0.07)


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ("--size 1024x768 --steps 2", ["| t4 | ", "| h100 | "]),
        ("--size 512x512 --gpu l40s", ["| l40s | "]),
        ("--table", ["| `t4` | ", "Cheapest per image at 1 step: h100 ($0.00"]),
        ("--errors", ["| T4 | 0.280 | not seen | UNet | 6.9, 1.79, 0.427 | +", "SeeSR, 512 x 512, 50 steps"]),
    ],
)
def test_the_command_prints_a_row_per_card(
    arguments: str, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["estimate", *arguments.split()])
    estimate.main()
    printed = capsys.readouterr().out
    for line in lines:
        assert f"\n{line}" in printed


def test_a_wrong_size_is_refused() -> None:
    assert estimate.parse_size("1024x768") == (768, 1024)
    with pytest.raises(argparse.ArgumentTypeError, match="WIDTHxHEIGHT in pixels, such as 1024x768, got '1024'"):
        estimate.parse_size("1024")


@pytest.mark.slow
def test_the_kept_kernels_are_those_of_the_networks() -> None:
    kept, counted = cost.read_counted(), kernels.count()
    assert kept.kernels.keys() == counted.kernels.keys()
    assert replace(kept, kernels={}) == replace(counted, kernels={})
    run = cost.Run("", (64, 64), batch=8, halos=(1, 1))
    for name, rows in counted.kernels.items():
        for card in (CARDS["t4"], CARDS["h100"]):
            rates = card.flops, card.bandwidth
            assert run.roofline(kept.kernels[name], *rates) == pytest.approx(run.roofline(rows, *rates), rel=0.005), (
                name
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "cases"),
    [("t4", [(1024, FAST), (2048, ONE_STEP)]), ("a100-large", [(512, ONE_STEP), (1024, ONE_STEP), (2048, FAST)])],
)
def test_the_kept_kernels_give_what_a_full_count_gives(
    gpu: str, cases: list[tuple[int, Settings]], real: Components
) -> None:
    """Results of 2048, 4096 and 8192 a side, by both autoencoders, and an oblong one with guidance and tiles of 96."""
    seesr, card = SeeSR(real, hardware.GPUS[gpu], "meta"), CARDS[gpu]
    oblong = replace(ONE_STEP, latent_tiled_size=96, cfg_scale=2.0)
    sizes = [((side, side), settings) for side, settings in cases]
    for size, settings in [*sizes, ((450, 700), oblong)]:
        padded = seesr.sizes(size, settings.scale_factor)[2]
        plan = cost.plan_for_card(seesr.memory, seesr.profile, weight_bytes(seesr.components), padded, settings)
        assert cost.estimate(gpu, size, settings).plan == plan
        stages = flops.count_upscale(seesr, size, settings, plan).values()
        exact = sum(stage.roofline(card.flops, card.bandwidth) for stage in stages)
        kept = cost.read_counted().kernels
        runs = cost.runs((padded[0] // 8, padded[1] // 8), settings, plan)
        assert sum(run.roofline(kept[run.name], card.flops, card.bandwidth) for run in runs) == pytest.approx(
            exact, rel=0.01
        )
        operations = sum(run.times * sum(found for found, _ in run.work(kept[run.name])) for run in runs)
        assert operations == pytest.approx(sum(stage.flops for stage in stages), rel=0.01)
