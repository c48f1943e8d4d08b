"""Images an hour of the Ray engine on one and on two nodes of this machine, with the embedded bundle.

    .venv/bin/python -m scripts.bench.ray_nodes

Each node has one CPU, so one worker with one thread of torch. The photographs are those of scripts.bench.batch. Time
counts from the first result: Ray and the workers start before. The machine must have a core for each node.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from scripts.bench.batch import write_photographs
from seesr.batch.job import Job, Options
from seesr.batch.ray_cluster import ALONE, QUIET
from seesr.batch.ray_engine import RayEngine
from seesr.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}


def run(address: str, folder: Path) -> tuple[float, float]:
    """Upscale a folder by the cluster: seconds until the first result, and images an hour after it."""
    with tempfile.TemporaryDirectory() as out:
        settings = Settings(num_inference_steps=1, seed=0)
        engine = RayEngine(Options(paths=[], settings=settings, bundle=ROOT / "weights/tiny", ray_address=address))
        jobs = [Job(str(path), f"{out}/{path.name}.png", out, path.stat().st_size) for path in sorted(folder.iterdir())]
        start, times = time.perf_counter(), list[float]()
        for row in engine.run(jobs):
            if "error" in row:
                raise RuntimeError(row["error"])
            times.append(time.perf_counter() - start)
    return times[0], 3600 * (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="photographs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= QUIET | ALONE | {"RAY_AUTH_MODE": "disabled"}
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name), ROOT / "examples", arguments.count)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        for nodes in (1, 2):
            if nodes == 2:
                cluster.add_node(**NODE)
            first, speed = run(str(cluster.address), Path(name))
            print(f"{nodes} nodes: first result after {first:.0f} s, then {speed:,.0f} images an hour", flush=True)
        cluster.shutdown()


if __name__ == "__main__":
    main()
