"""One run: reports and their locks, the plan, the engine, and a row for each image."""

import json
import os
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from seesr.batch import files
from seesr.batch.find import Inputs
from seesr.batch.interrupt import Interrupts
from seesr.batch.job import Engine, Options, Row, StoppedError
from seesr.batch.lock import check_free
from seesr.batch.naming import Naming
from seesr.batch.plan import Plan
from seesr.batch.progress import Progress, say, summary_lines
from seesr.batch.report import Report, reports_of, settings_of


def run(options: Options, interrupts: Interrupts) -> int:
    """Do what the options ask for; the exit status."""
    naming = Naming(options)
    inputs = Inputs(options, naming)
    if options.output and not inputs.is_one_file:
        raise ValueError(f"-o is for the result of one image, got {' '.join(options.paths)}; give --out for several")
    if options.dry_run:
        from seesr.batch.dry_run import dry_run  # imported here: its predictions need torch

        return dry_run(options, inputs, naming)
    with ExitStack() as stack:
        reports = reports_of(inputs.roots, options)
        for report in dict.fromkeys(reports.values()):
            stack.enter_context(report)
        check_folders_above(inputs.roots)
        engine = make_engine(options)
        plan = Plan(options, inputs, naming, reports, engine.model)
        if other := plan.by_another_model:
            say(f"{other} of the results are of another model or version, and are made again by {engine.model}")
        return work(options, plan, engine, reports, interrupts)


def check_folders_above(roots: Iterable[str]) -> None:
    """Raise StoppedError if another run works on a folder above one of these, by its name or where links lead."""
    names = {name for root in roots if not files.is_address(root) for name in (root, os.path.realpath(root))}
    for above in {above for name in names for above in Path(name).parents}:
        check_free(str(above))


PACKAGES = {"ray": ("Ray", "ray"), "replicate": ("Replicate's client", "deploy")}
"""What engines need that is named as they are, and the kind of scripts/setup that installs it."""


def make_engine(options: Options) -> Engine:
    """The engine that the options name. Raises StoppedError where it lacks something."""
    if options.engine in PACKAGES and find_spec(options.engine) is None:
        what, kind = PACKAGES[options.engine]
        install = f"install it by `scripts/setup {kind}` or `pip install 'seesr-turbo[{options.engine}]'`"
        raise StoppedError(f"--engine {options.engine} needs {what}; {install}")
    if options.engine == "ray":
        from seesr.batch.ray_engine import RayEngine

        return RayEngine(options)
    if options.engine == "replicate":
        from seesr.batch.replicate_engine import ReplicateEngine

        return ReplicateEngine(options)
    from seesr.batch.local import LocalEngine

    return LocalEngine(options)


def work(options: Options, plan: Plan, engine: Engine, reports: dict[str, Report], interrupts: Interrupts) -> int:
    """Do all jobs of a plan; each row goes to its report as it comes. The exit status."""
    told = Progress(len(plan.found), lambda: plan.total_megapixels, lambda: engine.cost)
    settings = settings_of(options.settings)
    try:
        with interrupts.held(), closing(cast("Generator[Row]", engine.run(plan.jobs()))) as rows:
            while (row := interrupts.next(rows)) is not None:
                if (job := plan.waiting.pop(row.get("input", ""), None)) is None:
                    continue
                row |= Row(modified=job.modified, settings=settings, model=engine.model)
                written = reports[job.root].append(row)
                told.add(written)
                if options.json:
                    print(json.dumps(written), flush=True)
                if options.fail_fast and "error" in row:
                    plan.stop()
    finally:
        told.close()
        summarise(options, told.summary(plan.skipped) | {"left_out": len(plan.inputs.left_out)}, told.failed)
    for sentence in plan.notes:
        say(sentence)
    return 1 if told.failures or plan.inputs.unreadable else 0


def summarise(options: Options, found: dict[str, Any], failed: list[tuple[str, str]]) -> None:
    """The end of the output: numbers, and which images failed."""
    line, sentences = summary_lines(found, failed)
    print(json.dumps(found) if options.json else line, flush=True)
    for sentence in sentences:
        say(sentence)
