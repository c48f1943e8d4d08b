"""What predictions on Replicate cost, and the ceiling that a user sets."""

from seesr import cost
from seesr.batch.job import Job
from seesr.settings import Settings
from seesr.sizes import Size

TYPICAL_SIZE: Size = (1024, 1024)
"""Stands for an image whose size is not known."""


class Budget:
    """Dollars of one run, spent and expected, for one thread.

    `price` is in dollars a second, 0 if not known; `gpu` is a name of seesr.cost.CARDS.

    What a prediction takes is estimated for the full model, and corrected by what those before it took.
    """

    def __init__(self, ceiling: float | None, price: float, gpu: str, settings: Settings) -> None:
        self.ceiling, self.price, self.gpu, self.settings = ceiling, price, gpu, settings
        self.spent = 0.0
        self._estimated = self._taken = 0.0

    def estimate(self, job: Job) -> float:
        """Dollars by the card's speed alone; 0 for an image that the model will refuse, or without a price."""
        if not self.price:
            return 0.0
        try:
            return self.price * cost.estimate(self.gpu, job.size or TYPICAL_SIZE, self.settings).seconds
        except ValueError:
            return 0.0

    @property
    def correction(self) -> float:
        """How many times more than estimated the results so far cost."""
        return self._taken / self._estimated if self._estimated and self._taken else 1.0

    def allows(self, estimates: float) -> bool:
        """Whether predictions of these estimates in all can still be paid."""
        return self.ceiling is None or self.spent + self.correction * estimates <= self.ceiling

    def pay(self, dollars: float, estimate: float = 0.0) -> None:
        """A prediction has cost `dollars`; `estimate` is what it was estimated to cost if it has a result."""
        self.spent += dollars
        if estimate:
            self._taken, self._estimated = self._taken + dollars, self._estimated + estimate

    def used_up(self) -> str:
        """Why the run stops, as a sentence."""
        return (
            f"the next image may cost more than is left of --budget ${self.ceiling:.2f} (${self.spent:.4f} spent); "
            "raise it, or run this again to spend as much once more: what is done stays done"
        )
