"""cog.yaml and .dockerignore: keys that Cog accepts, versions that fit, and an image of only what runs in it."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.cog_server import AS_IN_COG_YAML
from scripts.stage import BUNDLE, image_filter
from seesr.hardware import AUTO, GPUS
from tests.test_packaging import EXTRAS, image_pins, pins

ROOT = Path(__file__).resolve().parent.parent
in_image = image_filter(ROOT)
CONFIG = yaml.safe_load((ROOT / "cog.yaml").read_text())
ENVIRONMENT = dict(line.split("=", 1) for line in CONFIG["environment"])
TOP = {"build", "image", "model", "run", "predict", "train", "concurrency", "environment", "weights"}
BUILD = {"gpu", "cuda", "cudnn", "python_version", "python_requirements", "system_packages", "run", "sdk_version"}
TORCH_CUDA = {"2.4": "12.4", "2.5": "12.4", "2.6": "12.6", "2.7": "12.8", "2.8": "12.9", "2.9": "13.0"}
REFUSED = re.compile(r"^(CUDA_|NVIDIA_|NV_|REPLICATE_|R8_|PGET_|KUBERNETES_)")
RESERVED = {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONUNBUFFERED", "HF_ENDPOINT"}


def test_cog_knows_every_key() -> None:
    """Cog drops unknown keys without an error."""
    assert CONFIG.keys() <= TOP
    assert CONFIG["build"].keys() <= BUILD
    assert CONFIG["predict"] == "predict.py:Predictor"
    assert CONFIG["build"]["gpu"] is True


def test_environment_is_allowed_and_complete() -> None:
    assert not [name for name in ENVIRONMENT if REFUSED.match(name) or name in RESERVED]
    assert ENVIRONMENT["SEESR_GPU"] == "t4"
    assert ENVIRONMENT["SEESR_WEIGHTS"] == BUNDLE
    assert ENVIRONMENT.items() >= {**AS_IN_COG_YAML, "HF_HUB_OFFLINE": "1"}.items()
    text = (ROOT / "cog.yaml").read_text()
    assert all(name in text for name in (*GPUS, AUTO)), "the comment lists every choice"


def test_versions_are_pinned_and_fit_each_other() -> None:
    assert CONFIG["build"]["python_requirements"] == "requirements.txt"
    assert CONFIG["build"]["python_version"] == "3.11"
    assert CONFIG["build"]["sdk_version"] == pins(EXTRAS["predict"])["cog"]
    torch = ".".join(image_pins()["torch"].split(".")[:2])
    assert torch in TORCH_CUDA
    # A CUDA older than torch's own keeps the V100. Cog takes it because `cuda` is set.
    assert float(CONFIG["build"]["cuda"]) <= float(TORCH_CUDA[torch])


def test_of_the_repository_the_image_has_only_what_runs() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = listed.stdout.splitlines()
    runs = re.compile(r"(seesr(?!/batch/|/cost\.)|ram|weights/tiny)/.+|(cog\.yaml|predict\.py|requirements\.txt)")
    assert [name for name in files if in_image(name)] == [name for name in files if runs.fullmatch(name)]


@pytest.mark.parametrize(
    "path",
    [
        "out.png",
        "photo.jpg",
        "holiday/photo.jpg",
        "seesr.png",
        "work-train/state.pt",
        ".venv/bin/python",
        ".venv.lock",
        ".git/HEAD",
        ".cog/openapi_schema.json",
        "build/lib/seesr/sizes.py",
        "seesr_turbo.egg-info/PKG-INFO",
        "seesr/batch/plan.py",
        "seesr/batch/inputs.json",
        "seesr/cost.json",
        "seesr/__pycache__/sizes.cpython-311.pyc",
        "seesr/vae/__pycache__/tiling.cpython-311.pyc",
        "weights/manifest.lock.json",
        "weights/my-photos/a.jpg",
        "weights/upstream/sd_turbo/unet/diffusion_pytorch_model.safetensors",
        "weights/.seesr-turbo.part/bundle.json",
        "experiment.py",
    ],
)
def test_a_user_s_own_files_stay_out_of_the_image(path: str) -> None:
    assert not in_image(path)


@pytest.mark.parametrize("path", ["bundle.json", "unet/diffusion_pytorch_model.safetensors", "ram/model.safetensors"])
def test_the_bundle_that_cog_yaml_names_is_in_the_image(path: str) -> None:
    assert in_image(f"{ENVIRONMENT['SEESR_WEIGHTS']}/{path}")
