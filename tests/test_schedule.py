"""The noise schedule against the reference's recorded coefficients."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from seesr.schedule import Schedule

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

RECORDED = json.loads((Path(__file__).parent / "data/schedule.json").read_text())["steps"]
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "clip_sample": False,
}


@pytest.fixture
def schedule() -> Schedule:
    return Schedule(DDPMScheduler(**CONFIG))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_timesteps_are_the_reference_s(schedule: Schedule, steps: int) -> None:
    assert schedule.timesteps(steps) == [step["t"] for step in RECORDED[str(steps)]]


@pytest.mark.parametrize("steps", [2, 4])
def test_step_coefficients(schedule: Schedule, steps: int) -> None:
    one, nothing = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for step in RECORDED[str(steps)][:-1]:
        t, previous = step["t"], step["prev_t"]
        assert schedule.step(nothing, one, t, previous, nothing).item() == pytest.approx(step["coef_x0"], rel=1e-5)
        assert schedule.step(one, nothing, t, previous, nothing).item() == pytest.approx(step["coef_xt"], rel=1e-5)
        assert schedule.step(nothing, nothing, t, previous, one).item() == pytest.approx(step["std"], rel=1e-5)


def test_start_is_almost_pure_noise(schedule: Schedule) -> None:
    one, nothing = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert schedule.start == 999
    assert schedule.add_noise(one, nothing, 999).item() == pytest.approx(0.0682649, rel=1e-5)
    assert schedule.add_noise(nothing, one, 999).item() == pytest.approx(0.9976673, rel=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_predict_x0_undoes_add_noise(kind: Literal["epsilon", "v_prediction", "sample"]) -> None:
    schedule = Schedule(DDPMScheduler(**CONFIG, prediction_type=kind))
    clean, noise = torch.randn(2, 1, 4, 8, 8).unbind(0)
    kept = schedule.scheduler.alphas_cumprod[499]
    output = {"epsilon": noise, "v_prediction": kept**0.5 * noise - (1 - kept) ** 0.5 * clean, "sample": clean}[kind]
    x0 = schedule.predict_x0(schedule.add_noise(clean, noise, 499), output, 499)
    torch.testing.assert_close(x0, clean, atol=1e-5, rtol=0)


def test_unknown_prediction_type_is_named(schedule: Schedule) -> None:
    schedule.scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(RuntimeError, match="'flow'"):
        schedule.predict_x0(torch.zeros(1), torch.zeros(1), 999)
