"""cog.yaml against what cog accepts. Cog drops unknown keys in silence, so a typo would act as nothing."""

import re
from pathlib import Path

import pytest
import yaml

from seesr.hardware import GPUS

ROOT = Path(__file__).resolve().parent.parent
CONFIG = yaml.safe_load((ROOT / "cog.yaml").read_text())
TOP = {"build", "image", "model", "run", "predict", "train", "concurrency", "environment", "weights"}
BUILD = {"gpu", "cuda", "cudnn", "python_version", "python_requirements", "system_packages", "run", "sdk_version"}
TORCH_CUDA = {"2.4": "12.4", "2.5": "12.4", "2.6": "12.6", "2.7": "12.8", "2.8": "12.9", "2.9": "13.0"}
REFUSED = re.compile(r"^(CUDA_|NVIDIA_|NV_|REPLICATE_|R8_|PGET_|KUBERNETES_)")
RESERVED = {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONUNBUFFERED", "HF_ENDPOINT"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith(("#", "-r")))


def test_only_keys_that_cog_knows() -> None:
    assert CONFIG.keys() <= TOP
    assert CONFIG["build"].keys() <= BUILD
    assert CONFIG["predict"] == "predict.py:Predictor"
    assert CONFIG["build"]["gpu"] is True


def test_environment_is_allowed_and_says_what_it_must() -> None:
    environment = dict(line.split("=", 1) for line in CONFIG["environment"])
    assert not [name for name in environment if REFUSED.match(name) or name in RESERVED]
    assert environment["SEESR_GPU"] in GPUS
    assert environment["SEESR_WEIGHTS"] == "weights/seesr-turbo"
    assert environment["HF_HUB_OFFLINE"] == "1"
    text = (ROOT / "cog.yaml").read_text()
    assert all(name in text for name in GPUS), "the comment lists every choice"


def test_versions_are_pinned_and_fit_each_other() -> None:
    image = pins("requirements.txt")
    assert CONFIG["build"]["python_requirements"] == "requirements.txt"
    assert CONFIG["build"]["python_version"] == "3.11"
    assert CONFIG["build"]["sdk_version"] == pins("requirements-cpu.txt")["cog"]
    torch = ".".join(image["torch"].split(".")[:2])
    assert torch in TORCH_CUDA
    # Older CUDA than torch's own keeps the V100; cog takes it because `cuda` is set.
    assert float(CONFIG["build"]["cuda"]) <= float(TORCH_CUDA[torch])


@pytest.mark.parametrize("name", ["diffusers", "transformers", "safetensors", "numpy", "Pillow", "PyWavelets"])
def test_image_and_cpu_share_their_pins(name: str) -> None:
    assert pins("requirements.txt")[name] == pins("requirements-cpu.txt")[name]


def test_the_two_sets_differ_only_where_they_must() -> None:
    image, cpu = pins("requirements.txt"), pins("requirements-cpu.txt")
    assert {name for name in image.keys() | cpu.keys() if image.get(name) != cpu.get(name)} == {
        "torch",
        "xformers",
        "cog",
    }
