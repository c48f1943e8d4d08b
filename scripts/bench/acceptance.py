"""Is this machine right, and how fast is it? Checks, then measurements, on a CUDA card with full-size random weights.

    .venv/bin/python -m scripts.bench.acceptance --json card.json     at most 10 minutes; --quick: at most 4
    .venv/bin/python -m scripts.bench.acceptance --device cpu         the embedded bundle, a small size

Every result is written at once; a later run with the same file, card, versions and code makes only what is missing.
Prints a table and a paragraph for docs/performance.md. Exits with 1 where an item failed.
"""

import argparse
import importlib.util
import itertools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from scripts.bench import acceptance_checks, acceptance_report, benchmark, random_bundle
from scripts.bench.acceptance_checks import TINY, Found, run_python
from scripts.bench.checklist import CHECK, Checklist, Item, environment
from scripts.bench.memory import weight_bytes
from seesr import cost, hardware
from seesr.pipeline import SeeSR
from seesr.settings import Settings

LONE_TILE = 128
"""Side of the input that makes one tile: it waits for the host."""

SETUP = """
import gc, json, sys, time
start = time.perf_counter()
gc.disable()  # as predict.py does
from seesr.pipeline import SeeSR
gc.enable()
imported = time.perf_counter()
seesr = SeeSR.load(sys.argv[1], sys.argv[2])
loaded = time.perf_counter()
seesr.warm_up()
print(json.dumps({"import": imported - start, "load": loaded - imported, "warm up": time.perf_counter() - loaded}))
"""


@dataclass
class Acceptance:
    """The items for a device. `given` is the bundle to measure; None writes one of random weights into `folder`."""

    device: str
    quick: bool
    given: Path | None
    folder: Path

    @property
    def on_card(self) -> bool:
        return self.device.startswith("cuda")

    @cached_property
    def profile(self) -> hardware.Profile:
        return hardware.profile(self.device)

    @cached_property
    def bundle(self) -> Path:
        if self.given is None:
            random_bundle.write(self.folder / "bundle", self.device)
            hardware.free_cached_memory()
        return self.given or self.folder / "bundle"

    @cached_property
    def seesr(self) -> SeeSR:
        return SeeSR.load(self.bundle, self.device)

    def items(self) -> Iterator[Item]:
        """In the order of their worth."""
        card = "" if self.on_card else "needs a CUDA card"
        pytest = "" if importlib.util.find_spec("pytest") else "pytest is not installed"
        yield Item("checks marked gpu", CHECK, 40, acceptance_checks.gpu_tests, card or pytest)
        yield from self.parity_items("fp16", card, "a CPU runs in fp32" if card else "")
        yield Item("out of memory", CHECK, 10, partial(acceptance_checks.recovery, self.device), card)
        yield Item("ceilings", "ceilings", 5, self.measure_ceilings)
        yield Item("setup", "setup", 30 if self.given else 90, self.measure_setup)
        yield Item("weights", "weights", 15, self.measure_weights)
        sides = (LONE_TILE, 512, 1024, 2048)[: 3 if self.quick else 4] if self.on_card else (32,)
        for side, steps, fast in itertools.product(sides, (1, 4), (True, False)):
            if side > LONE_TILE or (steps == 1 and not (fast and self.on_card)):
                yield self.size_item(side, Settings(num_inference_steps=steps, fast_vae=fast, seed=0))
        yield from self.parity_items("fp32", card)
        yield Item("a seed repeats", CHECK, 5, partial(acceptance_checks.seed_repeats, self.device))
        if not self.quick:
            yield Item("8192 x 8192 in 16 GB", CHECK, 60, lambda: acceptance_checks.small_card(self.seesr), card)

    def parity_items(self, dtype: str, card: str, blocked: str = "") -> Iterator[Item]:
        golden, as_on_a_cpu = acceptance_checks.golden_parity, acceptance_checks.as_on_a_cpu
        yield Item(f"golden parity, {dtype}", CHECK, 25, partial(golden, self.device, dtype), blocked)
        yield Item(f"as on a CPU, {dtype}", CHECK, 15, partial(as_on_a_cpu, self.device, dtype), card)

    def size_item(self, side: int, settings: Settings) -> Item:
        seconds, runs = 2.0, 1
        if self.on_card:
            seconds = cost.estimate(self.profile.name, (side, side), settings).seconds
            runs = 3 if seconds < 3 else 1
        name = f"{side} -> {4 * side}, {settings.num_inference_steps} step(s){', fast_vae' * settings.fast_vae}"
        lacking = settings.fast_vae and self.given is not None and not (self.given / "tiny_vae").is_dir()
        blocked = "the bundle has no small autoencoder" if lacking else ""
        return Item(name, "size", 1 + (1 + runs) * seconds, partial(self.measure_size, side, settings, runs), blocked)

    def measure_ceilings(self) -> Found:
        product, copy = benchmark.measure_ceilings(self.device, self.profile.dtype)
        text = f"{product / 1e12:.2f} TFLOP/s in a product, {copy / 1e9:.0f} GB/s in a copy"
        return {"text": text, "flops": product, "bandwidth": copy}

    def measure_setup(self) -> Found:
        seconds: dict[str, float] = json.loads(run_python("-c", SETUP, str(self.bundle), self.device)[-1])
        text = ", ".join(f"{value:.1f} s to {name}" for name, value in seconds.items())
        return {"text": f"{sum(seconds.values()):.1f} s until ready: {text}", "stages": seconds}

    def measure_weights(self) -> Found:
        """Before the sizes, whose seconds it would be counted to"""
        start = time.monotonic()
        held = weight_bytes(self.seesr.components) / 1e9
        return {"text": f"{time.monotonic() - start:.1f} s to load {held:.2f} GB of weights"}

    def measure_size(self, side: int, settings: Settings, runs: int) -> Found:
        seesr = self.seesr
        hardware.free_cached_memory()
        timed = benchmark.time_stages(seesr, benchmark.synthetic_image(side, side), settings, runs)
        padded, plan = seesr.sizes((side, side), settings.scale_factor)[2], timed.result.plan
        row: dict[str, Any] = {"side": side, "steps": settings.num_inference_steps, "fast_vae": settings.fast_vae}
        row |= {"runs": runs, "plan": str(plan), "recoveries": timed.result.recoveries, "stages": timed.seconds}
        row |= {"seconds": sum(timed.seconds.values()), "peaks": seesr.memory.peaks(padded, settings, plan)}
        row["held"] = {stage: timed.held[stage] for stage in row["peaks"]}
        known = self.on_card and hardware.is_named_card(self.device, self.profile)
        if known and seesr.components.process_size == cost.read_counted().process_size:
            row |= acceptance_report.shares(self.profile.name, padded, settings, plan, timed.seconds)
            row["estimate"] = cost.estimate(self.profile.name, (side, side), settings).seconds
        held, planned = (max(row[name].values()) / 1e9 for name in ("held", "peaks"))
        text = f"{row['seconds']:.2f} s, {held:.2f} GB held, {planned:.2f} GB planned"
        return row | {"text": f"{text}, recoveries {row['recoveries']}" if row["recoveries"] else text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help='"cuda" or "cpu"', choices=["cuda", "cpu"])
    parser.add_argument("--bundle", type=Path, help="what to measure (default: random weights of the real size)")
    parser.add_argument("--json", type=Path, help="the file that keeps the results")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, at most 4 minutes")
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    if not on_cpu and hardware.device() == "cpu":
        parser.error("no CUDA card can be used here; --device cpu runs the embedded bundle on the CPU")
    given = arguments.bundle or (TINY if on_cpu else None)
    limit = 3600 if on_cpu else 240 if arguments.quick else 600
    try:
        found = environment(arguments.device, given)
        checklist = Checklist(arguments.json, found, arguments.device, limit)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--json must name a file that can be written, got {arguments.json} ({error.strerror})")
    with tempfile.TemporaryDirectory(prefix="seesr-acceptance-") as folder:
        acceptance = Acceptance(arguments.device, arguments.quick, given, Path(folder))
        passed = checklist.run(list(acceptance.items()))
    command = f"python -m scripts.bench.acceptance {shlex.join(sys.argv[1:])}".strip()
    print(acceptance_report.report(checklist.rows, found, acceptance.profile.name, command))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
