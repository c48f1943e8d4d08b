"""What a run would do: names, seconds and dollars per card, with nothing written."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from seesr import cost
from seesr.batch import plan, work
from seesr.batch.find import Inputs, shown
from seesr.batch.job import Job, Options, bundle_id
from seesr.batch.naming import Naming
from seesr.batch.progress import say
from seesr.batch.report import reports_of
from seesr.sizes import Size

LISTED = 20  # images that are listed by name
DISTINCT = 200  # sizes that are predicted as they are; further ones are rounded
STEPS = 16  # of a rounded side in each octave: at most 3 % off


class Predictions:
    """Seconds of images with the real model, by card."""

    def __init__(self, options: Options) -> None:
        self._settings = options.settings
        self._known: dict[Size, dict[str, float]] = {}

    def seconds(self, size: Size) -> dict[str, float]:
        """By card; a card that cannot make such a result is missing."""
        if size not in self._known and len(self._known) >= DISTINCT:
            size = (_rounded(size[0]), _rounded(size[1]))
        if size not in self._known:
            self._known[size] = dict(self._predicted(size))
        return self._known[size]

    def _predicted(self, size: Size) -> Iterator[tuple[str, float]]:
        for card in cost.CARDS:
            with suppress(ValueError):
                yield card, cost.estimate(card, size, self._settings).seconds


def dry_run(options: Options, inputs: Inputs, naming: Naming) -> int:
    """List what would be done, and print totals by card. The exit status."""
    reports = reports_of(inputs.roots, options)
    for report in dict.fromkeys(reports.values()):
        report.load()
    planned = plan.Plan(options, inputs, naming, reports, model := _model(options))
    found, totals, predictions = Counts(), Counter[str](), Predictions(options)
    for job in planned.jobs():
        seconds = {} if job.size is None else predictions.seconds(job.size)
        totals.update(seconds)
        found.add(job, options, bool(seconds))
        if options.json:
            print(json.dumps(_row(job, options, seconds)))
        elif found.images <= LISTED:
            print(f"{shown(job.input)} -> {shown(job.output)}{_sizes(job, options)}")
    found.skipped = planned.skipped
    if options.json:
        cards = {card: _card(card, seconds) for card, seconds in totals.items()}
        print(json.dumps(asdict(found) | {"megapixels": round(found.megapixels, 3), "cards": cards}))
    else:
        print(*_lines(found, totals), sep="\n")
    if found.skipped and model is None:
        say("results of other models and versions count as done here; the run makes them again")
    for sentence in planned.notes:
        say(sentence)
    return 1 if inputs.unreadable else 0


@dataclass
class Counts:
    """What a dry run adds up. `unknown` images have a size that cannot be read or no card can make."""

    images: int = 0
    skipped: int = 0
    unknown: int = 0
    megapixels: float = 0.0

    def add(self, job: Job, options: Options, known: bool) -> None:
        self.images += 1
        self.unknown += not known
        self.megapixels += plan.result_megapixels(job, options)


def _model(options: Options) -> str | None:
    """The model as rows name it, where it is known without asking Replicate."""
    if options.engine == "replicate":
        return options.model if ":" in (options.model or "") else None
    return bundle_id(work.choose_bundle(options.bundle))


def _rounded(side: int) -> int:
    step = max(1, 2 ** (side.bit_length() - 1) // STEPS)
    return max(1, round(side / step) * step)


def _row(job: Job, options: Options, seconds: dict[str, float]) -> dict[str, Any]:
    """What a dry run says about an image."""
    result = plan.result_size(job, options)
    row: dict[str, Any] = {"input": job.input, "output": job.output}
    if result is not None:
        row |= {"height": result[0], "width": result[1]}
    return row | {"cards": {card: _card(card, found) for card, found in seconds.items()}}


def _card(card: str, seconds: float) -> dict[str, float]:
    """Predicted seconds of one card, and dollars where it is sold by the second."""
    price = cost.CARDS[card].price
    return {"seconds": round(seconds, 3)} | ({} if price is None else {"dollars": round(price * seconds, 6)})


def _sizes(job: Job, options: Options) -> str:
    result = plan.result_size(job, options)
    if job.size is None or result is None:
        return ""
    return f"  {job.size[1]} x {job.size[0]} -> {result[1]} x {result[0]}"


def _lines(found: Counts, totals: "Counter[str]") -> Iterator[str]:
    if found.images > LISTED:
        yield f"and {found.images - LISTED} more (--json lists all)"
    skipped = f", {found.skipped} are done already" if found.skipped else ""
    yield f"{found.images} images to do{skipped}: {found.megapixels:.1f} megapixels of results"
    if found.unknown:
        yield f"{found.unknown} of them are not in the predictions: their size is not known, or too large"
    if totals:
        yield "Predicted for one card with the full model (never measured on a GPU; seesr/cost.py says how):"
        yield f"  {'':12}{'time':>12}{'images/hour':>13}{'dollars':>11}"
    for card, seconds in totals.items():
        per_hour = 3600 * (found.images - found.unknown) / seconds if seconds else 0
        dollars = _card(card, seconds).get("dollars")
        sold = "not sold" if dollars is None else f"{dollars:.2f}" if dollars >= 10 else f"{dollars:.4f}"
        yield f"  {card:12}{_duration(seconds):>12}{per_hour:>13,.0f}{sold:>11}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
