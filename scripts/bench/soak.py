"""Whether a worker lasts: many predictions in a row, or one image of 8192 x 8192 within a memory limit.

    .venv/bin/python -m scripts.bench.soak               200 predictions; resident memory and open files stay level
    .venv/bin/python -m scripts.bench.soak --shapes random   each of another size; memory stays within 1.5 times
    .venv/bin/python -m scripts.bench.soak --large 16    2048 x 2048 -> 8192 x 8192 within 16 GB
    .venv/bin/python -m scripts.bench.soak --cold        seconds until a worker is ready

Exits with 1 where memory or files grow or the limit is exceeded. For --cold of the real size, write a bundle with
scripts.bench.random_bundle first.
"""

import argparse
import base64
import io
import logging
import resource
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from scripts.bench.benchmark import synthetic_image
from scripts.cog_server import CogServer
from seesr import hardware, images
from seesr.pipeline import SeeSR
from seesr.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def data_uri(height: int, width: int, seed: int) -> str:
    """A synthetic PNG."""
    stream = io.BytesIO()
    synthetic_image(height, width, seed).rgb.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def resources(server: CogServer) -> tuple[float, int, int]:
    """MB resident, open files and temporary files of the server and its workers."""
    parent = psutil.Process(server.pid)
    family = [parent, *parent.children(recursive=True)]
    left = [path for path in (server.folder / "tmp").rglob("*") if path.is_file()]
    return sum(p.memory_info().rss for p in family) / 1e6, sum(p.num_fds() for p in family), len(left)


def request_seconds(server: CogServer) -> float:
    """Seconds of a 128 x 128 image at the defaults, as the server counts them."""
    _, answer = server.predict(image=data_uri(128, 128, 0), seed=0)
    return sum(answer["metrics"]["seconds"].values())


def soak(count: int) -> bool:
    """`count` predictions of changing size, steps and format -> whether memory and files stayed level.

    The first request must not take longer than the second by more than a fifth either.
    """
    rows = []
    with CogServer() as server:
        first, second = (request_seconds(server) for _ in range(2))
        print(f"first request {first:.2f} s, second {second:.2f} s: {first / second:.2f} times")
        warm = first < 1.2 * second
        for number in range(count):
            height, width = 24 + number % 3 * 16, 24 + number % 4 * 16
            status, answer = server.predict(
                image=data_uri(height, width, number),
                num_inference_steps=1 + number % 2,
                output_format=("png", "webp", "jpg")[number % 3],
                seed=number,
            )
            if (status, answer["status"]) != (200, "succeeded"):
                raise RuntimeError(f"prediction {number} gave {status}: {answer}")
            if (number + 1) % 20 == 0:
                rows.append(resources(server))
                print("after {:4d}: {:7.1f} MB, {} open files, {} temporary".format(number + 1, *rows[-1]), flush=True)
    # Kernels are built for new shapes, and the allocator now and then takes one more arena (60 MB): the second half
    # may see one of those, and nothing that grows with the predictions.
    middle, last = rows[len(rows) // 2 - 1], rows[-1]
    return warm and last[0] < 1.08 * middle[0] and last[1] <= middle[1] + 1 and last[2] <= 1


def random_shapes(count: int) -> bool:
    """`count` predictions of random sizes -> whether memory stayed within 1.5 times that after the first ten."""
    random, rows = np.random.default_rng(0), []
    with CogServer() as server:
        for number in range(count):
            height, width = random.integers(16, 129, 2).tolist()
            status, answer = server.predict(image=data_uri(height, width, number), num_inference_steps=1, seed=number)
            if (status, answer["status"]) != (200, "succeeded"):
                raise RuntimeError(f"prediction {number} gave {status}: {answer}")
            if (number + 1) % 10 == 0:
                rows.append(resources(server)[0])
                print(f"after {number + 1:4d}: {rows[-1]:7.1f} MB", flush=True)
    return max(rows) <= 1.5 * rows[0]


def large(bundle: Path, limit: float) -> bool:
    """2048 x 2048 -> 8192 x 8192 with `limit` GB to use -> whether the process stayed within it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    seesr = SeeSR.load(bundle)
    used = psutil.Process().memory_info().rss
    seesr.memory_limit = int(hardware.USABLE_SHARE * (limit * 1e9 - used))
    photograph = images.resize(images.open_image(ROOT / "examples/building.jpg").rgb, (2048, 2048))
    start = time.perf_counter()
    result = seesr.upscale(photograph, Settings(num_inference_steps=1, scale_factor=4, seed=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{result.image.width} x {result.image.height} in {time.perf_counter() - start:.0f} s by {result.plan}")
    print(f"peak resident {peak:.1f} GB of {limit:.0f} GB, recoveries {result.recoveries}")
    return peak <= limit


def cold(bundle: Path) -> None:
    """Print the seconds from the start of the process to READY, twice: the second start finds its files cached."""
    stored = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    print(f"{bundle}: {stored / 1e6:.0f} MB on disk")
    for _ in range(2):
        start = time.perf_counter()
        with CogServer(env={"SEESR_WEIGHTS": str(bundle.resolve())}, timeout=1200) as server:
            ready = time.perf_counter() - start
            family = psutil.Process(server.pid).children(recursive=True)
            read = sum(p.io_counters().read_chars for p in family) / 1e6
            paged = sum(p.io_counters().read_bytes for p in family) / 1e6
            resident = max(p.memory_info().rss for p in family) / 1e6
            print(*(line.strip() for line in server.lines if "Setup:" in line), sep="\n")
        print(
            f"READY after {ready:.1f} s; {read:.0f} MB by read calls, {paged:.0f} MB from disk, {resident:.0f} MB held"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="predictions in a row")
    parser.add_argument("--shapes", choices=["few", "random"], default="few", help="of how many sizes they are")
    parser.add_argument("--large", type=float, metavar="GB", help="instead: 2048 -> 8192 within so many GB")
    parser.add_argument("--cold", action="store_true", help="instead: seconds until the server is ready")
    parser.add_argument("--bundle", type=Path, default=ROOT / "weights/tiny", help="for --large and --cold")
    arguments = parser.parse_args()
    if arguments.cold:
        cold(arguments.bundle)
        return
    if arguments.large:
        passed = large(arguments.bundle, arguments.large)
    else:
        passed = (random_shapes if arguments.shapes == "random" else soak)(arguments.count)
    print("within bounds" if passed else "out of bounds")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
