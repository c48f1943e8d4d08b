#!/usr/bin/env python3
"""Average the weights of bundles of one lineage, which is often better than each of them.

    scripts/average_bundles.py A B --shares 0.5 0.5 --out C

Fine-tuned copies of one model lie in one basin, so their mean works (Wortsman et al., "Model soups", 2022). Tokenizer,
tags and settings are those of the last bundle.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def average(bundles: list[Path], shares: list[float], out: Path) -> None:
    """Write the weighted mean of all tensors to `out`, which must not be there, and how it came about to bundle.json.

    Raises ValueError where shares don't add up to 1 or are not one for each bundle, and where bundles hold other
    tensors.
    """
    if len(shares) != len(bundles) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"--shares must be {len(bundles)} numbers that add up to 1, got {shares}")
    last = bundles[-1]
    shutil.copytree(last, out)
    for path in sorted(out.rglob("*.safetensors")):
        states = [load_file(bundle / path.relative_to(out)) for bundle in bundles]
        shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
        if any(shape != shapes[0] for shape in shapes):
            shutil.rmtree(out)
            raise ValueError(f"the bundles must hold the same tensors, {path.name} differs; average one lineage only")
        save_file(
            {name: _mean([state[name] for state in states], shares) for name in states[0]}, path, {"format": "pt"}
        )
    described = json.loads((last / "bundle.json").read_text())
    parts = [f"{share:g} of ({trained_by(bundle)})" for share, bundle in zip(shares, bundles, strict=True)]
    described |= {"trained_by": f"scripts/average_bundles.py: {', '.join(parts)}", "validation": {}}
    (out / "bundle.json").write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")


def trained_by(bundle: Path) -> str:
    return json.loads((bundle / "bundle.json").read_text())["trained_by"]


def _mean(tensors: list[torch.Tensor], shares: list[float]) -> torch.Tensor:
    total = sum(share * tensor.double() for share, tensor in zip(shares, tensors, strict=True))
    assert isinstance(total, torch.Tensor)
    return total.to(tensors[-1].dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", required=True, help="one per bundle, 1 in all")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} is there already; name another, or remove it")
    average(arguments.bundles, arguments.shares, arguments.out)


if __name__ == "__main__":
    main()
