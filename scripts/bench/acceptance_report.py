"""What scripts.bench.acceptance found, as Markdown: its checks, its measurements, a Card, and a paragraph."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from seesr import cost
from seesr.memory import TilePlan
from seesr.settings import Settings
from seesr.sizes import Size

PARTS = {"networks": ("ControlNet", "UNet"), "vae": ("encode", "decode")}
"""A share of cost.Card -> the stages of its kernels."""

RUNS = {"embed": "networks", "denoise": "networks", "encode": "vae", "decode": "vae", "tiny": "vae"}
"""First word of a cost.Run -> its share. What only moves memory has none."""

Row = Mapping[str, Any]


def shares(
    gpu: str, padded: Size, settings: Settings, plan: TilePlan, seconds: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Of each of PARTS: the measured seconds, those of the roofline of cost.CARDS[gpu], and the number of kernels."""
    counted, card = cost.read_counted(), cost.CARDS[gpu]
    latent = (padded[0] // counted.memory.vae_scale_factor, padded[1] // counted.memory.vae_scale_factor)
    roofline, number = defaultdict(float), defaultdict(float)
    for run in cost.runs(latent, settings, plan):
        name, kernels = RUNS.get(run.name.split()[0], ""), counted.kernels[run.name]
        roofline[name] += run.roofline(kernels, card.flops, card.bandwidth)
        number[name] += run.times * sum(kernel.number for kernel in kernels)
    return {
        name: {"seconds": sum(seconds[s] for s in stages), "roofline": roofline[name], "kernels": number[name]}
        for name, stages in PARTS.items()
    }


def measured_card(rows: Mapping[str, Row], gpu: str) -> cost.Card | None:
    """The Card that explains the rows; None if there are too few. A lone tile of 64 tells what a kernel costs the host.

    That is an upper bound where the card is slower than the host.
    """
    sizes = [row for row in rows.values() if "networks" in row]
    large, lone = ([row for row in sizes if (row["side"] > 128) == wanted] for wanted in (True, False))
    exact = [row for row in large if not row["fast_vae"]]
    if not exact or not lone:
        return None
    launch = lone[0]["networks"]["seconds"] / lone[0]["networks"]["kernels"]
    networks, vae = share(large, "networks"), share(exact, "vae")
    return replace(cost.CARDS[gpu], networks=networks, vae=vae, launch=float(f"{launch:.2g}"), basis="measured")


def share(rows: list[Row], part: str) -> float:
    """Seconds of the roofline by measured ones, all rows together."""
    return round(sum(row[part]["roofline"] for row in rows) / sum(row[part]["seconds"] for row in rows), 2)


def report(rows: Mapping[str, Row], environment: Mapping[str, str], gpu: str, command: str) -> str:
    """Markdown."""
    sizes = {name: row for name, row in rows.items() if row["kind"] == "size" and row["status"] == "measured"}
    lines = ["\n| item | result | seen |", "|---|---|---|"]
    lines += [f"| {name} | {row['status']} | {row['text']} |" for name, row in rows.items() if name not in sizes]
    stages = ("encode", "ControlNet", "UNet", "decode")
    titles = ["input -> result", *stages, "all, s", "predicted, s", "held, GB", "planned, GB", "networks", "VAE"]
    lines += ["", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in sizes.items():
        seconds = [f"{row['stages'][stage]:.2f}" for stage in stages] + [f"{row['seconds']:.2f}"]
        seconds.append(f"{row['estimate']:.2f}" if "estimate" in row else "")
        memory = [f"{max(row[key].values()) / 1e9:.2f}" for key in ("held", "peaks")]
        reached = [f"{share([row], part):.0%}" if part in row else "" for part in PARTS]
        lines.append(f"| {' | '.join([name, *seconds, *memory, *reached])} |")
    if (card := measured_card(rows, gpu)) is not None:
        rates = f"{card.flops / 1e12:g}e12, {card.bandwidth / 1e9:g}e9, {card.price}"
        shown = f"{rates}, {card.networks}, {card.vae}, {card.launch * 1e6:g}e-6, {card.basis!r}"
        lines += ["", f"For seesr/cost.py: {gpu!r}: Card({shown})"]
    return "\n".join([*lines, "", paragraph(rows, environment, card, command)])


def paragraph(rows: Mapping[str, Row], environment: Mapping[str, str], card: cost.Card | None, command: str) -> str:
    """For docs/performance.md."""
    checks = [row["status"] for row in rows.values() if row["kind"] == "check"]
    text = [
        f"Measured on {environment['card']}, torch {environment['torch']}, commit {environment['commit']}, "
        f"with {environment['weights']}, by `{command}`: {checks.count('passed')} checks passed, "
        f"{checks.count('failed')} failed, {checks.count('not run')} were not run."
    ]
    sizes = [row for row in rows.values() if row["kind"] == "size" and row["status"] == "measured"]
    cases: dict[str, list[str]] = defaultdict(list)
    for row in sizes:
        case = f"{row['steps']} step(s){' with fast_vae' * row['fast_vae']}"
        cases[case].append(f"{row['seconds']:.2f} s ({4 * row['side']}²)")
    text += [f"{case}: {', '.join(seconds)}." for case, seconds in cases.items()]
    if sizes:
        ratios = [max(row["held"].values()) / max(row["peaks"].values()) for row in sizes]
        text.append(f"Memory held was {min(ratios):.2f} to {max(ratios):.2f} of the plan's.")
    if card is not None:
        peaks = f"{card.flops / 1e12:g} TFLOP/s and {card.bandwidth / 1e9:g} GB/s"
        reached = f"the networks reach {card.networks:.2f} of the roofline, the VAE {card.vae:.2f}"
        text.append(f"At {peaks} {reached}; a kernel costs the host at most {1e6 * card.launch:.0f} µs.")
    for name, title in (("ceilings", "Measured ceilings"), ("setup", "Setup")):
        if rows.get(name, {}).get("status") == "measured":
            text.append(f"{title}: {rows[name]['text']}.")
    return " ".join(text)
