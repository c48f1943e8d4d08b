"""Average the weights of bundles of one lineage, which is often better than each of them.

    .venv/bin/python -m scripts.train.average A B --shares 0.5 0.5 --out C

Source: Wortsman et al., "Model soups", 2022. Tokenizer, tags and settings are those of the last bundle.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.bundle_writer import save
from seesr import bundle


@torch.no_grad()
def average(bundles: Sequence[Path], shares: Sequence[float], out: Path) -> None:
    """Write the weighted mean of all weights to the new directory `out`; its bundle.json names the bundles and shares.

    Raises ValueError if there is not one share per bundle, if they don't add up to 1, or if the bundles hold other
    tensors; RuntimeError if a bundle can't be read or `out` exists.
    """
    if len(shares) != len(bundles) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"--shares must be {len(bundles)} numbers that add up to 1, got {list(shares)}")
    loaded = [bundle.load(directory) for directory in bundles]
    for networks in zip(*(components.models for components in loaded), strict=True):
        states = [network.state_dict() for network in networks]
        if len({str({name: tensor.shape for name, tensor in state.items()}) for state in states}) > 1:
            raise ValueError("the bundles must hold the same tensors; average bundles of one lineage only")
        for name, tensor in states[-1].items():
            if tensor.is_floating_point():
                total: Any = sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
                tensor.copy_(total)
    infos = [json.loads((directory / "bundle.json").read_text(encoding="utf-8")) for directory in bundles]
    sources = [f"{share:g} of ({info['trained_by']})" for share, info in zip(shares, infos, strict=True)]
    trained_by = f"scripts.train.average: {', '.join(sources)}"
    save(loaded[-1], out, infos[-1] | {"trained_by": trained_by, "validation": {}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", required=True, help="one per bundle, 1 in all")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write")
    arguments = parser.parse_args()
    try:
        average(arguments.bundles, arguments.shares, arguments.out)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
