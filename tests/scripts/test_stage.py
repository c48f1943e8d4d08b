"""What a push stages, and that Cog's choice of weight folders fits it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts import stage
from seesr import bundle
from tests.test_cog_yaml import in_image

ROOT = Path(__file__).resolve().parents[2]
LARGE = stage.LARGE


def write(root: Path, sizes: Mapping[str, int]) -> Path:
    """Files of these sizes, which take no room on the disk."""
    for name, size in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with (root / name).open("wb") as file:
            file.truncate(size)
    return root


def copy_project(root: Path) -> Path:
    """The files of the repository that its image has, and the hashes of its upstream files."""
    tops = [path for path in ROOT.iterdir() if in_image(path.name)]
    paths = [path for top in tops for path in (top.rglob("*") if top.is_dir() else [top]) if path.is_file()]
    names = [name for name in (path.relative_to(ROOT).as_posix() for path in paths) if in_image(name)]
    for name in ["weights/manifest.json", ".dockerignore", *names]:
        if not name.startswith(stage.BUNDLE):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "project")


@pytest.fixture
def large_bundle(tmp_path: Path, tiny_bundle: Path) -> Path:
    """A bundle on the disk of `project` with files as large as the full model's: two folders of weights."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    return write(folder, {"unet/more.safetensors": LARGE, "ram/more.safetensors": LARGE})


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ({"a": LARGE, "b": LARGE, "small": LARGE - 1}, ["a", "b"]),
        ({"models/a": LARGE, "models/small": LARGE - 1}, ["models"]),
        ({"a": LARGE, "models/a": LARGE, "predict.py": 1}, ["models", "a"]),
        ({"models/a": LARGE, "models/predict.py": 1}, []),
        ({"models/a": LARGE, "models/code/predict.ipynb": 1}, []),
        ({"models/a": LARGE, "models2.py": 1}, []),
        ({"b/x/a": LARGE, "b/w/a": LARGE, "a/a": LARGE}, ["a", "b/w", "b/x"]),
        ({"models/a": LARGE, "models/deep/a": LARGE}, ["models"]),
        ({"models/a": LARGE, "models2/deep/a": LARGE}, ["models", "models2/deep"]),
        ({"models/code/a.py": LARGE, "models/a.png": LARGE, "a.mp4": LARGE, "a.log": LARGE, "a.whl": LARGE}, []),
        ({".git/objects/a": LARGE, "sub/.git/a": LARGE, ".cog/a": LARGE, ".gitmodel/a": LARGE}, []),
        ({".venv/lib/a.so": LARGE, ".venv/lib/python/b.so": LARGE}, [".venv/lib"]),
    ],
)
def test_folders_of_weights_are_those_that_cog_finds(tmp_path: Path, sizes: dict[str, int], found: list[str]) -> None:
    assert stage.weight_folders(write(tmp_path, sizes)) == found


def test_every_folder_of_weights_that_cog_finds_in_the_stage_is_in_the_image(
    tmp_path: Path, project: Path, large_bundle: Path
) -> None:
    folder = tmp_path / "stage"
    with stage.open_stage(folder, project):
        stage.fill(folder, large_bundle, "t4", project)
    found = stage.weight_folders(folder)
    assert found == [f"{stage.BUNDLE}/ram", f"{stage.BUNDLE}/unet"]
    assert all(in_image(f"{name}/{file}") for name in found for file in os.listdir(folder / name))
    assert stage.hidden_weights(folder) == []


def test_the_project_s_own_folder_would_fail(project: Path, large_bundle: Path) -> None:
    shutil.copytree(large_bundle, project / stage.BUNDLE)
    write(project, {".venv/lib/torch/libtorch.so": LARGE, "weights/upstream/seesr/DAPE.pth": LARGE})
    assert stage.hidden_weights(project) == [".venv/lib/torch", "weights/upstream/seesr"]


def test_the_stage_holds_what_the_image_needs_and_nothing_else(
    tmp_path: Path, project: Path, large_bundle: Path
) -> None:
    write(project, {"out.png": 1, "holiday/photo.jpg": 1, "seesr/__pycache__/a.pyc": 1, "weights/other/a": 1})
    before, folder = (project / "cog.yaml").read_text(), tmp_path / "stage"
    with stage.open_stage(folder, project):
        stage.fill(folder, large_bundle, "l40s", project)
    ours = [name for name in stage.names_in(project) if in_image(name)]
    theirs = [f"{stage.BUNDLE}/{name}" for name in stage.names_in(large_bundle)]
    assert stage.names_in(folder) == sorted([".dockerignore", stage.MARKER, *ours, *theirs])
    assert (folder / "cog.yaml").read_text() == before.replace("SEESR_GPU=t4", "SEESR_GPU=l40s") != before
    assert (project / "cog.yaml").read_text() == before
    assert (folder / stage.BUNDLE / "bundle.json").samefile(large_bundle / "bundle.json")
    assert not (folder / "predict.py").samefile(project / "predict.py")


@pytest.mark.slow
def test_the_model_runs_from_the_stage(tmp_path: Path, project: Path, tiny_bundle: Path) -> None:
    code = (
        "import predict, seesr; from seesr.pipeline import SeeSR; from seesr import Settings, open_image;"
        "result = SeeSR.load(predict.choose_bundle()).upscale(open_image('photo.jpg').rgb, Settings(seed=1));"
        "print(predict.__file__, seesr.__file__, result.image.size)"
    )
    with stage.open_stage(None, project) as folder:
        stage.fill(folder, tiny_bundle, "t4", project)
        shutil.copy(ROOT / "examples/text.jpg", folder / "photo.jpg")
        env = os.environ | {"PYTHONPATH": str(folder), "SEESR_WEIGHTS": stage.BUNDLE}
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(str(folder)) == 2


def git(root: Path, *command: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *who, *command], cwd=root, check=True, capture_output=True)


def test_in_a_checkout_tracked_files_count_as_they_are_on_disk(tmp_path: Path) -> None:
    root = write(tmp_path, {"seesr/a.py": 1, "seesr/gone.py": 1, "predict.py": 1, "README.md": 1, "weights/tiny/a": 1})
    shutil.copy(ROOT / ".dockerignore", root)
    git(root, "init")
    git(root, "add", ".")
    files, notes = stage.image_files(root)
    assert (files, notes) == (["predict.py", "seesr/a.py", "seesr/gone.py", "weights/tiny/a"], [])
    git(root, "commit", "-m", "a")
    (root / "seesr/gone.py").unlink()
    write(root, {"seesr/a.py": 2, "README.md": 2, "seesr/new.py": 1, "photo.jpg": 1})
    files, notes = stage.image_files(root)
    assert files == ["predict.py", "seesr/a.py", "weights/tiny/a"]
    assert notes == [
        "not committed, taken as on disk: seesr/a.py, seesr/gone.py",
        "unknown to git, LEFT OUT (git add takes them in): seesr/new.py",
    ]


def test_a_download_inside_another_checkout_is_no_checkout(tmp_path: Path) -> None:
    root = write(tmp_path / "download", {"seesr/a.py": 1, "photo.jpg": 1, f"{stage.BUNDLE}/bundle.json": 1})
    shutil.copy(ROOT / ".dockerignore", root)
    git(tmp_path, "init")
    files, (note,) = stage.image_files(root)
    assert files == ["seesr/a.py"]
    assert note.startswith("no git checkout")


def test_only_an_earlier_stage_is_emptied(tmp_path: Path) -> None:
    folder = tmp_path / "a/stage"
    with stage.open_stage(folder):
        write(folder, {"old/file": 1, "file": 1})
    with stage.open_stage(folder):
        assert stage.names_in(folder) == [stage.MARKER]
    foreign = write(tmp_path / "photos", {"photo.jpg": 1})
    with pytest.raises(ValueError, match="must be a new or empty folder"), stage.open_stage(foreign):
        pass
    assert stage.names_in(foreign) == ["photo.jpg"]


def test_a_stage_of_no_name_is_removed(project: Path) -> None:
    def interrupt() -> None:
        with stage.open_stage(None, project) as folder:
            assert folder.parent == project / "weights"
            raise KeyboardInterrupt

    before = stage.names_in(project)
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert stage.names_in(project) == before
    assert not list((project / "weights").glob(".stage*"))


def test_a_bundle_on_another_disk_is_copied(tmp_path: Path, project: Path, tiny_bundle: Path) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tiny_bundle.stat().st_dev:
        pytest.skip("needs a second disk at /dev/shm")
    with stage.open_stage(memory / f"seesr-stage-{os.getpid()}", project) as folder:
        notes = stage.fill(folder, tiny_bundle, "t4", project)
        copied = stage.names_in(folder / stage.BUNDLE)
        shutil.rmtree(folder)
    assert copied == stage.names_in(tiny_bundle)
    assert notes[1].startswith(f"{len(copied)} files of {tiny_bundle} are copies")


def test_cog_yaml_without_the_card_is_refused(project: Path, tiny_bundle: Path) -> None:
    (project / "cog.yaml").write_text("environment: []\n")
    with stage.open_stage(None, project) as folder, pytest.raises(RuntimeError, match="must set SEESR_GPU once"):
        stage.fill(folder, tiny_bundle, "t4", project)


@pytest.mark.slow
def test_a_good_bundle_is_described(golden_bundle: Path, tiny_bundle: Path) -> None:
    is_full, about = stage.check_bundle(golden_bundle)
    assert is_full
    assert about.startswith("SeeSR-Turbo, F32, 0.")
    assert about.endswith("0 of 10 source files have the manifest's sha256")
    is_full, about = stage.check_bundle(tiny_bundle)
    assert not is_full
    assert about.endswith("not the full model, a test")


def test_a_bundle_that_no_worker_could_load_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    folder = tmp_path / "bundle"
    with pytest.raises(RuntimeError, match=r"no bundle\.json"):
        stage.check_bundle(folder)
    shutil.copytree(tiny_bundle, folder)
    unet, vae = folder / bundle.FILES["unet"], folder / bundle.FILES["vae"]
    shutil.copy(vae, unet)
    with pytest.raises(RuntimeError, match=r"unet.* does not fit its config: tensors \d+ missing"):
        stage.check_bundle(folder)
    shutil.copy(tiny_bundle / bundle.FILES["unet"], unet)
    with vae.open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(RuntimeError, match=r"vae.* is damaged"):
        stage.check_bundle(folder)
    changed = bytearray((tiny_bundle / bundle.FILES["vae"]).read_bytes())
    changed[-1] ^= 1
    vae.write_bytes(changed)
    with pytest.raises(RuntimeError, match=r"vae/diffusion_pytorch_model\.safetensors must have the sha256 of bundle"):
        stage.check_bundle(folder)
