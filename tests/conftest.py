"""Bundles that tests share: one converted from the reference's tiny checkpoints, and the embedded one.

Imports stand in the fixtures: the process that starts the others needs none of them.
"""

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from seesr.pipeline import SeeSR

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted by the process that needs it first; the others take it from there."""
    from tests.golden import convert_golden

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    bundle = folder / "golden/bundle"
    with (folder / "golden.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not bundle.exists():
            bundle.parent.mkdir()
            convert_golden(bundle)
    return bundle


@pytest.fixture(scope="session")
def golden(golden_bundle: Path) -> "SeeSR":
    from seesr.pipeline import SeeSR

    return SeeSR.load(golden_bundle, device="cpu")


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """The embedded bundle."""
    return ROOT / "weights/tiny"


@pytest.fixture(scope="session")
def tiny(tiny_bundle: Path) -> "SeeSR":
    from seesr.pipeline import SeeSR

    return SeeSR.load(tiny_bundle, device="cpu")
