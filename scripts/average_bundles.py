#!/usr/bin/env python3
"""Average the weights of bundles of one lineage, which is often better than each of them.

    scripts/average_bundles.py A B --shares 0.5 0.5 --out C

Fine-tuned copies of one model lie in one basin, so their mean works (Wortsman et al., "Model soups", 2022). Tokenizer,
tags and settings are those of the last bundle.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from benchmark import models

from seesr import weights


@torch.no_grad()
def average(bundles: list[Path], shares: list[float], out: Path) -> None:
    """Write the weighted mean of all weights to `out`, which must not be there, and how it came about to bundle.json.

    Raises ValueError where shares don't add up to 1 or are not one for each bundle, and where bundles hold other
    tensors; RuntimeError where one can't be read or `out` is there.
    """
    if len(shares) != len(bundles) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"--shares must be {len(bundles)} numbers that add up to 1, got {shares}")
    loaded = [weights.load(bundle) for bundle in bundles]
    for networks in zip(*(models(parts) for parts in loaded), strict=True):
        states = [network.state_dict() for network in networks]
        shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
        if any(shape != shapes[0] for shape in shapes):
            kind = type(networks[0]).__name__
            raise ValueError(f"the bundles must hold the same tensors, {kind} differs; average one lineage only")
        for name, tensor in states[-1].items():
            if tensor.is_floating_point():
                total: Any = sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
                tensor.copy_(total)
    infos = [json.loads((bundle / "bundle.json").read_text()) for bundle in bundles]
    parts = [f"{share:g} of ({info['trained_by']})" for share, info in zip(shares, infos, strict=True)]
    described = {"trained_by": f"scripts/average_bundles.py: {', '.join(parts)}", "validation": {}}
    weights.save(loaded[-1], out, infos[-1] | described)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", required=True, help="one per bundle, 1 in all")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        average(arguments.bundles, arguments.shares, arguments.out)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
