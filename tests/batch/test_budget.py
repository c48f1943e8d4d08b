"""What predictions cost, and when no more of them are taken."""

from dataclasses import replace

import pytest

from seesr import cost
from seesr.batch.budget import Budget
from seesr.batch.job import Job
from seesr.settings import Settings

JOB = Job("a.jpg", "a.png", ".", 1000, None, (512, 512))
PRICE = 0.000225


def budget_of(ceiling: float | None) -> Budget:
    return Budget(ceiling, PRICE, "t4", Settings())


def test_an_image_is_estimated_by_its_size_on_the_card() -> None:
    budget = budget_of(1)
    seconds = cost.estimate("t4", (512, 512), Settings()).seconds
    assert budget.estimate(JOB) == pytest.approx(PRICE * seconds)
    assert budget.estimate(replace(JOB, size=(1024, 1024))) > 2 * budget.estimate(JOB)
    assert budget.estimate(replace(JOB, size=None)) == budget.estimate(replace(JOB, size=(1024, 1024)))
    assert budget.estimate(replace(JOB, size=(9000, 9000))) == 0, "it is refused"
    assert budget_of(None).estimate(JOB) == budget.estimate(JOB), "what a canceled prediction counts"
    assert Budget(1, 0.0, "", Settings()).estimate(JOB) == 0, "no price is known"


def test_what_is_in_flight_counts_until_it_is_paid() -> None:
    budget = budget_of(1.0)
    assert budget.allows(0.3 * 3)
    assert not budget.allows(0.3 * 4)
    budget.pay(0.3, 0.3)
    assert budget.allows(0.3 * 2)
    assert not budget.allows(0.3 * 3)
    assert budget_of(None).allows(1e9)


def test_estimates_are_corrected_by_what_results_cost() -> None:
    budget = budget_of(10.0)
    budget.pay(2.0, 1.0)
    assert budget.allows(4.0)
    assert not budget.allows(4.1)
    budget.pay(1.0)  # failed: paid, but no measure of what a result costs
    assert budget.correction == 2
    assert budget.allows(3.5)
    assert not budget.allows(3.6)
    assert (
        "is left of --budget $10.00 ($3.0000 spent); raise it, or run this again to spend as much once more"
        in budget.used_up()
    )
