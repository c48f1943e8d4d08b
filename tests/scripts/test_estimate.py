"""Estimates follow the work and the price."""

import argparse

import pytest

from scripts.bench import estimate, flops
from seesr import hardware
from seesr.pipeline import SeeSR
from seesr.settings import Settings


@pytest.mark.slow
def test_estimates_follow_work_and_price(tiny: SeeSR) -> None:
    model = estimate.CostModel(flops.without_values(tiny).components)
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


def test_a_wrong_size_is_refused() -> None:
    assert estimate.parse_size("1024x768") == (768, 1024)
    with pytest.raises(argparse.ArgumentTypeError, match="WIDTHxHEIGHT in pixels, such as 1024x768, got '1024'"):
        estimate.parse_size("1024")
