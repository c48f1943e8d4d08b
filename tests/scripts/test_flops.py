"""Counted work equals the work of a real run, and a quarter of upstream's is enough."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench import benchmark, flops, random_bundle, upstream_tiling
from scripts.bench.upstream_tiling import UpstreamTilePlan, UpstreamTiling
from seesr import hardware
from seesr.memory import VaeTilePlan
from seesr.pipeline import SeeSR
from seesr.settings import Settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "steps", "guidance", "tile"), [(SeeSR, 2, 1.0, 48), (SeeSR, 1, 2.0, 48), (UpstreamTiling, 2, 1.0, 0)]
)
def test_counted_work_is_that_of_a_real_run(
    tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, model: type[SeeSR], steps: int, guidance: float, tile: int
) -> None:
    seesr = model(tiny.components, tiny.profile, "cpu")
    monkeypatch.setattr(upstream_tiling, "PLAN", UpstreamTilePlan(64, 4, 1, VaeTilePlan(64), VaeTilePlan(64)))
    settings = Settings(num_inference_steps=steps, cfg_scale=guidance, seed=0, latent_tiled_size=tile)
    plan = seesr.plan(seesr.sizes((96, 96), 4.0)[2], settings)
    with flops.FlopCounter() as real:
        result = seesr.upscale(benchmark.synthetic_image(96, 96).rgb, settings)
    assert result.tiles > 1
    counts = flops.count_upscale(flops.without_values(seesr), (96, 96), settings, plan)
    assert sum(count.flops for count in counts.values()) == real.flops > 1e9
    # Sums and copies outside the networks are counted only where they are large.
    assert sum(count.bytes for count in counts.values()) == pytest.approx(real.bytes, rel=0.1)
    assert counts["UNet"].flops > counts["ControlNet"].flops > 0
    assert counts["blend"].flops == 0 < counts["blend"].bytes


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_once_and_moves_no_matrix(device: str) -> None:
    query, key = torch.randn(2, 3, 50, 16, device=device), torch.randn(2, 3, 70, 16, device=device)
    with torch.inference_mode(), flops.FlopCounter() as counter:
        F.scaled_dot_product_attention(query, key, key)
    assert counter.flops == 4 * 2 * 3 * 50 * 70 * 16
    assert counter.bytes == 4 * 2 * 3 * 16 * (50 + 70 + 70 + 50)


def test_flops_are_those_of_torch() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Flatten(2), torch.nn.Linear(49, 5))
    image = torch.randn(2, 3, 15, 15)
    with torch.inference_mode(), flops.FlopCounter() as ours, FlopCounterMode(display=False) as theirs:
        model(image)
    assert ours.flops == theirs.get_total_flops() == 2 * 2 * 8 * 49 * (27 + 5)
    assert ours.roofline(1e12, 1e30) == pytest.approx(ours.flops / 1e12)
    assert ours.roofline(1e30, 1e9) == pytest.approx(ours.bytes / 1e9)


@pytest.mark.slow
def test_a_quarter_of_upstream_s_work() -> None:
    """1024 -> 4096 at one and two steps with a large card's tiles."""
    ours = SeeSR(random_bundle.build(), hardware.GPUS["a40-large"], "meta")
    upstream = UpstreamTiling(ours.components, ours.profile, "meta")
    totals = []
    for seesr in (ours, upstream):
        settings = Settings(num_inference_steps=1)
        plan = benchmark.choose_plan(seesr, (4096, 4096), settings)
        counts = flops.count_upscale(seesr, (1024, 1024), settings, plan)
        one_step = sum(count.flops for count in counts.values())
        totals.append((one_step, one_step + counts["ControlNet"].flops + counts["UNet"].flops))
    assert totals[0][0] < totals[1][0] / 4
    assert totals[0][1] < totals[1][1] / 4
