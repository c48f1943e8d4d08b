"""Bundles that tests share: one converted from the reference's tiny checkpoints, and the embedded one."""

from pathlib import Path

import pytest

from seesr.pipeline import SeeSR
from tests.golden import convert_golden

ROOT = Path(__file__).resolve().parent.parent


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
