"""Bundles that tests share: one converted from the reference's tiny checkpoints, and the embedded one."""

import os
from pathlib import Path

# The recorded outputs come from AVX2 kernels; others differ from them by as much as some tests allow.
os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as scripts/cog_server.py
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # processes side by side share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))

import pytest
import torch
from scripts.convert import convert
from tests.golden import UPSTREAM

from seesr.pipeline import SeeSR

ROOT = Path(__file__).resolve().parent.parent


def convert_golden(out: Path) -> Path:
    """The reference's tiny random weights as our converter bundles them, in fp32."""
    ram = UPSTREAM / "ram"
    convert(
        UPSTREAM / "sd_turbo",
        UPSTREAM / "seesr",
        ram / "ram_swin_large_14m.pth",
        ram / "DAPE.pth",
        ram / "ram_tag_list.txt",
        ram / "ram_tag_list_threshold.txt",
        out,
        dtype=torch.float32,
        process_size=160,
    )
    return out


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_golden(tmp_path_factory.mktemp("golden") / "bundle")


@pytest.fixture(scope="session")
def golden(golden_bundle: Path) -> SeeSR:
    return SeeSR.load(golden_bundle, device="cpu")


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """The embedded bundle."""
    return ROOT / "weights/tiny"


@pytest.fixture(scope="session")
def tiny(tiny_bundle: Path) -> SeeSR:
    return SeeSR.load(tiny_bundle, device="cpu")
