"""What an upscale should cost on each card: seconds, memory and dollars, and how far off the prediction may be.

    .venv/bin/python -m scripts.bench.estimate --size 1024x768 --scale 4 --steps 2 --gpu t4
    .venv/bin/python -m scripts.bench.estimate --table     every card at three sizes
    .venv/bin/python -m scripts.bench.estimate --scale-table    images an hour, dollars a thousand
    .venv/bin/python -m scripts.bench.estimate --errors    predicted beside published speeds, and where shares come from
    .venv/bin/python -m scripts.bench.estimate --count     count the networks again, into seesr/cost.json

No number here was measured on a GPU with this model. seesr/cost.py says how it is predicted.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from seesr import cost, hardware
from seesr.cost import CARDS, Estimate, Run, read_counted
from seesr.memory import TilePlan
from seesr.settings import Settings
from seesr.sizes import Size

SIDES = (2048, 4096, 8192)
CASES = {
    "1 step, fast_vae": Settings(num_inference_steps=1, fast_vae=True),
    "1 step": Settings(num_inference_steps=1),
    "4 steps": Settings(num_inference_steps=4),
}
"""Columns of the table: results of SIDES at scale 4."""

ORDER = ("t4", "l40s", "a100-large", "h100", "v100", "a40-large")

NETWORKS = {"UNet": ("sd15 unet",), "UNet and ControlNet": ("sd15 unet", "sd15 controlnet")}
BATCHES = (1, 4, 16)


@dataclass(frozen=True)
class Measured:
    """Iterations per second at BATCHES, by NETWORKS: Stable Diffusion 1.5, 512 x 512, fp16, SDPA, channels_last, eager.

    Each iteration runs a batch twice as large, for guidance. None: out of memory. Source: diffusers' documentation,
    optimization/torch2.0.md, columns "torch 2.0 - no compile". Rates: as for cost.Card; GeForce cards with float32
    accumulation. The A100 is taken as one of 40 GB.
    """

    flops: float
    bandwidth: float
    speeds: Mapping[str, tuple[float | None, ...]]

    def passes(self) -> Iterator[tuple[str, int, float, float, float]]:
        """Networks, batch, seconds of the roofline, number of kernels and published seconds of each measurement."""
        for networks, speeds in self.speeds.items():
            for batch, speed in zip(BATCHES, speeds, strict=True):
                if speed is not None:
                    roofline, count = sd15(NETWORKS[networks], batch, self.flops, self.bandwidth)
                    yield networks, batch, roofline, count, 1 / speed

    def fit(self) -> tuple[float, float]:
        """The share of the roofline and the seconds per kernel that explain the speeds best; 0: never waited for."""
        passes = list(self.passes())

        def error(found: tuple[float, float]) -> float:
            share, launch = found
            return sum(math.log(max(roof / share, count * launch) / real) ** 2 for _, _, roof, count, real in passes)

        shares, launches = (number / 200 for number in range(40, 180)), [number * 1e-6 for number in range(61)]
        return min(itertools.product(shares, launches), key=error)


MEASURED = {
    "T4": Measured(65e12, 320e9, {"UNet": (6.9, 1.79, 1 / 2.34), "UNet and ControlNet": (4.89, 1.34, None)}),
    "V100": Measured(125e12, 900e9, {"UNet": (18.99, 5.96, 1.66), "UNet and ControlNet": (13.48, 4.26, 1.19)}),
    "A100": Measured(312e12, 1555e9, {"UNet": (21.66, 11.6, 3.04), "UNet and ControlNet": (15.02, 8.28, 2.15)}),
    "RTX 3090": Measured(71e12, 936e9, {"UNet": (22.56, 6.46, 1.70), "UNet and ControlNet": (16.03, 4.59, 1.23)}),
    "RTX 4090": Measured(165.2e12, 1008e9, {"UNet": (40.5, 12.62, 3.17), "UNet and ControlNet": (29.27, 9.1, 2.23)}),
}

SAME_CHIP = {"a40-large": ("RTX 3090", 74.7e12), "l40s": ("RTX 4090", 183.3e12)}
"""A GeForce card with the chip, and what the chip would reach with its halved tensor rate (cores times clock)."""

H100_SPEEDUP = 192.02 / 102.8
"""Over the A100: the SDXL UNet at 1024 x 1024, by NVIDIA (stabilityai/stable-diffusion-xl-1.0-tensorrt)."""

SEESR_SECONDS = 3.94
"""SeeSR itself on an A100: 50 steps with guidance, 512 x 512 (arXiv 2311.16518)."""


def sd15(names: Sequence[str], batch: int, flops: float, bandwidth: float) -> tuple[float, float]:
    """Seconds of the roofline and number of kernels of one iteration with guidance."""
    kernels = [kernel for name in names for kernel in read_counted().kernels[name]]
    run = Run(names[0], (64, 64), 2 * batch)
    return run.roofline(kernels, flops, bandwidth), sum(kernel.number for kernel in kernels)


def derive_shares() -> dict[str, tuple[float, str]]:
    """The networks' share of the roofline by card, and where it comes from."""
    shares = {name: measured.fit()[0] for name, measured in MEASURED.items()}
    found = {name: (shares[card], "fitted") for name, card in (("t4", "T4"), ("v100", "V100"), ("a100-large", "A100"))}
    both, largest = NETWORKS["UNet and ControlNet"], BATCHES[-1]
    for name, (relative, flops) in SAME_CHIP.items():
        card = CARDS[name]
        full, halved = (sd15(both, largest, rate, card.bandwidth)[0] for rate in (card.flops, flops))
        ends = shares["A100"], shares[relative] * full / halved
        text = f"the middle of {ends[0]:.2f} (A100) and {ends[1]:.2f} ({relative}, the same chip)"
        found[name] = sum(ends) / 2, text
    a100, h100 = (sd15(both, largest, CARDS[name].flops, CARDS[name].bandwidth)[0] for name in ("a100-large", "h100"))
    text = f"{shares['A100']:.2f} (A100) for a roofline {a100 / h100:.2f} times faster, found {H100_SPEEDUP:.2f} times"
    return found | {"h100": (shares["A100"] * H100_SPEEDUP / (a100 / h100), text)}


def predict_seesr() -> tuple[float, float]:
    """Seconds for SEESR_SECONDS by our networks, and those of them that wait for the host."""
    name, settings = "a100-large", Settings(num_inference_steps=1, cfg_scale=5.5)
    card, seconds, waiting = CARDS[name], 0.0, 0.0
    for run in cost.runs((64, 64), settings, TilePlan.wanted(hardware.GPUS[name], settings)):
        kernels = read_counted().kernels[run.name]
        found = run.seconds(kernels, card) * (50 if run.name == "denoise" else 1)
        seconds += found
        waiting += found if run.seconds(kernels, replace(card, launch=0)) < run.seconds(kernels, card) else 0
    return seconds, waiting


def errors() -> str:
    """Markdown: predicted beside published speeds, then the shares of all cards, then SeeSR as a whole."""
    lines = [
        "| card | share of the roofline | host, µs per kernel | networks | batch 1, 4, 16: published it/s | error, % |",
        "|---" * 6 + "|",
    ]
    for name, measured in MEASURED.items():
        share, launch = measured.fit()
        for networks, group in itertools.groupby(measured.passes(), key=lambda found: found[0]):
            pairs = [(1 / real, 1 / max(roof / share, count * launch)) for _, _, roof, count, real in group]
            published = ", ".join(f"{theirs:.3g}" for theirs, _ in pairs)
            wrong = ", ".join(f"{100 * (ours / theirs - 1):+.0f}" for theirs, ours in pairs)
            host = f"{1e6 * launch:.0f}" if launch else "not seen"
            lines.append(f"| {name} | {share:.3f} | {host} | {networks} | {published} | {wrong} |")
    lines += ["", "| `SEESR_GPU` | share of the roofline | from |", "|---|---|---|"]
    lines += [f"| `{name}` | {share:.2f} | {text} |" for name, (share, text) in derive_shares().items()]
    seconds, waiting = predict_seesr()
    wrong = f"{seconds:.2f} s predicted ({100 * (seconds / SEESR_SECONDS - 1):+.0f} %)"
    lines += [
        "",
        f"SeeSR, 512 x 512, 50 steps, A100: {SEESR_SECONDS} s published, {wrong}; {waiting:.2f} s wait for the host.",
    ]
    return "\n".join(lines)


def table() -> str:
    """Markdown: results of SIDES by card, what the customer expected, and the cheapest card."""
    found = {
        (name, case): [cost.estimate(name, (side // 4, side // 4), settings) for side in SIDES]
        for name in ORDER
        for case, settings in CASES.items()
    }
    titles = [title for case in CASES for title in (case, f"{case}, dollars")]
    lines = [f"| `SEESR_GPU` | {' | '.join(titles)} | expected | memory |", "|---" * (len(titles) + 3) + "|"]
    for name in ORDER:
        cells = [text for case in CASES for text in (_seconds(found[name, case]), _dollars(found[name, case]))]
        expected = ", ".join(map(str, cost.EXPECTED[name])) + " s" if name in cost.EXPECTED else ""
        memory = ", ".join(f"{estimate.vram / 1e9:.0f}" for estimate in found[name, list(CASES)[-1]])
        lines.append(f"| `{name}` | {' | '.join(cells)} | {expected} | {memory} GB |")
    for case in CASES:
        cheapest = (_cheapest({name: found[name, case][i] for name in ORDER}) for i in range(len(SIDES)))
        lines += ["", f"Cheapest per image at {case}: {', '.join(cheapest)}."]
    return "\n".join(lines)


def scale_table() -> str:
    """Markdown: images an hour, dollars a thousand and cards for a million a day, by card, at scale 4."""
    cases = [(side, case) for side in SIDES[:2] for case in CASES]
    titles = [f"{side // 4}² to {side}², {case}" for side, case in cases]
    lines = [f"| `SEESR_GPU` | {' | '.join(titles)} |", "|---" * (len(cases) + 1) + "|"]
    for name in ORDER:
        cells = []
        for side, case in cases:
            found = cost.estimate(name, (side // 4, side // 4), CASES[case])
            price = "not sold" if found.dollars is None else f"${1000 * found.dollars:.2f}"
            cards = math.ceil(1e6 * found.seconds / 86400)
            cells.append(f"{3600 / found.seconds:,.0f}, {price}, {cards}")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(estimates: Sequence[Estimate]) -> str:
    return ", ".join(f"{e.seconds:.1f}" if e.seconds < 9.95 else f"{e.seconds:.0f}" for e in estimates) + " s"


def _dollars(estimates: Sequence[Estimate]) -> str:
    return ", ".join(f"{e.dollars:.4f}" for e in estimates if e.dollars is not None) or "not sold"


def _cheapest(estimates: Mapping[str, Estimate]) -> str:
    prices = {name: estimate.dollars for name, estimate in estimates.items() if estimate.dollars is not None}
    name = min(prices, key=lambda name: prices[name])
    return f"{name} (${prices[name]:.4f})"


def rows(cards: Sequence[str], size: Size, settings: Settings) -> str:
    """Markdown: one input on each of `cards`."""
    lines = ["| card | seconds | dollars per image | VRAM, GB | share of the roofline | plan |", "|---" * 6 + "|"]
    for name in cards:
        found, card = cost.estimate(name, size, settings), CARDS[name]
        price = "not sold" if found.dollars is None else f"{found.dollars:.4f}"
        share = f"{card.networks:.2f}, {card.basis}"
        lines.append(f"| {name} | {found.seconds:.1f} | {price} | {found.vram / 1e9:.1f} | {share} | {found.plan} |")
    return "\n".join(lines)


def parse_size(text: str) -> Size:
    """ "WIDTHxHEIGHT" -> (height, width)"""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, such as 1024x768, got {text!r}")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=(1024, 1024), metavar="WIDTHxHEIGHT", help="the input's")
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cfg", type=float, default=1.0, help="cfg_scale; above 1 each step costs twice as much")
    parser.add_argument("--fast-vae", action="store_true", help="with the small autoencoder")
    parser.add_argument("--gpu", choices=CARDS, help="one card only")
    parser.add_argument("--table", action="store_true", help="every card at three sizes")
    help_ = "images an hour, dollars a thousand, cards for a million a day"
    parser.add_argument("--scale-table", action="store_true", help=help_)
    parser.add_argument("--errors", action="store_true", help="predicted beside published speeds")
    parser.add_argument("--count", action="store_true", help="count the networks again and write seesr/cost.json")
    arguments = parser.parse_args()
    if arguments.count:
        from scripts.bench import kernels  # imports every network

        kernels.write(kernels.count())
    elif arguments.errors:
        print(errors())
    elif arguments.table:
        print(table())
    elif arguments.scale_table:
        print(scale_table())
    else:
        wanted = {"num_inference_steps": arguments.steps, "scale_factor": arguments.scale, "cfg_scale": arguments.cfg}
        settings = Settings(**wanted, fast_vae=arguments.fast_vae)
        print("Predicted, not measured. The VAE's share of the roofline is unmeasured, and assumed as the networks'.\n")
        print(rows([arguments.gpu] if arguments.gpu else ORDER, arguments.size, settings))


if __name__ == "__main__":
    main()
