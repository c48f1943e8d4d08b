"""64 megapixels open within 1.5 GB of memory and 10 seconds of CPU time."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seesr import images
from tests.image_files import tiff

SIDE = 8000
GIGABYTES, SECONDS = 1.5, 10

pytestmark = pytest.mark.slow


def random_rows(channels: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, SIDE, channels)).astype(dtype)


def transparent_tiff(path: Path) -> None:
    """RGBA, uncompressed, transparent but for a strip."""
    values = random_rows(4, "u1")
    values[..., 3] = 0
    whole = np.tile(values, (SIDE // 16, 1, 1))
    whole[4000:4100, :, 3] = 255
    path.write_bytes(tiff(whole, 8, 2, rows=500, more={338: (3, [2])}))


def ppm(path: Path) -> None:
    """16 bits: of as many pixels as the largest file holds."""
    height = (images.MAX_BYTES - 1000) // (6 * SIDE)
    path.write_bytes(
        b"P6 %d %d 65535\n" % (SIDE, height) + (random_rows(3, ">u2") * 255).tobytes() * (height // 16 + 1)
    )
    with path.open("r+b") as file:
        file.truncate(images.MAX_BYTES - 500)


def pgm(path: Path) -> None:
    path.write_bytes(b"P5 %d %d 4095\n" % (SIDE, SIDE) + (random_rows(1, ">u2") * 16).tobytes() * (SIDE // 16))


def qoi(path: Path) -> None:
    """Noise: LUMA and RGB, the longest that its pixels can be."""
    random = np.random.default_rng(0)
    luma = np.stack([0x80 | random.integers(0, 64, 400_000), random.integers(0, 256, 400_000)], 1).astype("u1")
    rgb = np.hstack([np.full((100_000, 1), 0xFE), random.integers(0, 256, (100_000, 3))]).astype("u1")
    head = b"qoif" + SIDE.to_bytes(4) * 2 + bytes([3, 0])
    path.write_bytes(head + (luma.tobytes() + rgb.tobytes()) * (SIDE * SIDE // 500_000) + bytes(7) + b"\1")


@pytest.mark.parametrize("write", [transparent_tiff, ppm, pgm, qoi])
def test_opening_is_cheap(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    opening = f"from seesr import images; print(images.open_image({str(tmp_path / 'a')!r}).rgb.width)"
    code = f"{opening}; print(*[line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    width, kilobytes = output.split()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert int(width) == SIDE
    assert int(kilobytes) * 1024 < GIGABYTES * 1e9
    print(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < SECONDS + 3  # and 3 s for the imports
