"""Print what the memory model says of the real model on every card: `.venv/bin/python tests/memory_table.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from test_memory import build_full_size

from seesr.hardware import GPUS
from seesr.memory import Plan, VaeTiles
from seesr.settings import Settings

WEIGHTS = 4.2e9
CONTEXT = 0.5e9
"""What CUDA itself takes."""


def main() -> None:
    model, settings = build_full_size(), Settings()
    print("| card | result | peak beside the weights, GB | stage | plan |\n|---|---|---|---|---|")
    for gpu in GPUS.values():
        vae = VaeTiles(gpu.vae_tile)
        wanted = Plan(gpu.latent_tile, gpu.overlap, gpu.tile_batch, vae, vae)
        for side in (512, 2048, 4096, 8192):
            plan = model.fit((side, side), settings, wanted, int(0.9 * (gpu.memory * 1e9 - WEIGHTS - CONTEXT)))
            peaks = model.peaks((side, side), settings, plan)
            stage = max(peaks, key=lambda name: peaks[name])
            print(f"| {gpu.name} | {side} x {side} | {peaks[stage] / 1e9:.1f} | {stage} | {plan} |", flush=True)


if __name__ == "__main__":
    main()
