"""Memory and FLOPs constants of a bundle: measure them, write them to bundle.json, or predict the memory of every card.

    .venv/bin/python -m scripts.bench.memory weights/tiny            measured beside what bundle.json holds
    .venv/bin/python -m scripts.bench.memory weights/tiny --write    put the measured ones into bundle.json
    .venv/bin/python -m scripts.bench.memory --table                 peak memory of the real model by card and size

Everything is counted on the meta device, so no GPU is needed. Exits with 1 where bundle.json holds other constants.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.bench import random_bundle
from scripts.bundle_writer import measure_bundle
from seesr import hardware
from seesr.bundle import Components, read_json
from seesr.cost import plan_for_card
from seesr.memory import MemoryModel
from seesr.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="the bundle to measure")
    parser.add_argument("--write", action="store_true", help="write the constants to its bundle.json")
    parser.add_argument("--table", action="store_true", help="instead: the real model on every card")
    arguments = parser.parse_args()
    if arguments.table:
        print(card_table(random_bundle.build()))
        return
    if arguments.bundle is None:
        parser.error("name a bundle, or --table")
    measured, info = measure_bundle(arguments.bundle), read_json(arguments.bundle / "bundle.json")
    recorded = {group: info.get(group, {}) for group in measured}
    print(constants_table(measured, recorded))
    if arguments.write:
        write(arguments.bundle, measured)
    elif measured != recorded:
        sys.exit("bundle.json holds other constants; --write puts the measured ones there")


def constants_table(measured: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    """Markdown: every constant as measured and as bundle.json holds it."""
    held = dict(_flatten(recorded))
    lines = ["| constant | measured | in bundle.json |", "|---|---|---|"]
    lines += [f"| {name} | {value} | {held.get(name, '')} |" for name, value in _flatten(measured)]
    return "\n".join(lines)


def _flatten(constants: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in constants.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def write(directory: Path, constants: Mapping[str, Any]) -> None:
    """Put the constants into bundle.json, behind the sizes; the file is replaced whole or not at all."""
    info = read_json(directory / "bundle.json")
    info = {name: value for name, value in info.items() if name not in constants}
    names = list(info)
    place = max(names.index(name) + 1 for name in ("name", "process_size", "least_scale") if name in info)
    items = list(info.items())
    ordered = dict([*items[:place], *constants.items(), *items[place:]])
    with tempfile.TemporaryDirectory(prefix=".memory-", dir=directory) as folder:
        path = Path(folder) / "bundle.json"
        path.write_text(json.dumps(ordered, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(path, directory / "bundle.json")


def weight_bytes(components: Components) -> int:
    """Bytes of all networks' parameters."""
    return sum(p.numel() * p.itemsize for model in components.models for p in model.parameters())


def card_table(components: Components) -> str:
    """Markdown: the largest stage of every card and size, at four steps."""
    model = MemoryModel.of(components.controlnet, components.vae, components.memory_constants)
    weights, settings = weight_bytes(components), Settings(num_inference_steps=4)
    lines = ["| card | result | peak beside the weights, GB | stage | plan |", "|---|---|---|---|---|"]
    for profile in hardware.GPUS.values():
        for side in (512, 2048, 4096, 8192):
            plan = plan_for_card(model, profile, weights, (side, side), settings)
            stage, peak = max(model.peaks((side, side), settings, plan).items(), key=lambda item: item[1])
            lines.append(f"| {profile.name} | {side} x {side} | {peak / 1e9:.1f} | {stage} | {plan} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
