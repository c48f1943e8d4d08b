"""The package: one version, one set of pins, a wheel of seesr and ram only, and an import that costs nothing."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import seesr

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(requirements: list[str]) -> dict[str, str]:
    """ "name==version" lines by name; others and comments are left out."""
    found = (re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==(\S+)", line) for line in requirements)
    return {match[1]: match[2] for match in found if match}


def image_pins() -> dict[str, str]:
    return pins((ROOT / "requirements.txt").read_text().splitlines())


def python(code: str, folder: Path) -> str:
    """What `code` prints when it is run in `folder`, with warnings shown."""
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def test_the_image_and_the_package_share_their_pins() -> None:
    package, image = pins(PROJECT["dependencies"]), image_pins()
    assert image.keys() - package.keys() == {"torch", "xformers"}
    assert package == {name: version for name, version in image.items() if name in package}


def test_both_builds_of_torch_are_in_the_package_s_range() -> None:
    (torch,) = [line for line in PROJECT["dependencies"] if line.startswith("torch")]
    low, high = (tuple(map(int, bound.split("."))) for bound in re.findall(r"[\d.]+", torch))
    setup = re.search(r"^torch=(\S+)$", (ROOT / "scripts/setup").read_text(), re.MULTILINE)
    assert setup is not None
    for version in (image_pins()["torch"], setup[1]):
        assert low <= tuple(map(int, version.split("."))) < high


def test_every_extra_is_pinned() -> None:
    groups = EXTRAS | PYPROJECT["dependency-groups"]
    assert groups.keys() == {"predict", "dev", "eval", "ray", "replicate", "playground"}
    for name, requirements in groups.items():
        others = [line for line in requirements if not line.startswith("seesr-turbo[")]
        assert len(pins(requirements)) == len(others), name


def test_pre_commit_runs_the_ruff_that_is_pinned() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["rev"] == f"v{pins(EXTRAS['dev'])['ruff']}"


def test_versions_agree() -> None:
    assert PROJECT["version"] == seesr.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == seesr.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == seesr.__version__


def test_the_changelog_has_the_usual_sections() -> None:
    sections = re.findall(r"^### (.+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(sections) <= {"Added", "Changed", "Fixed"}


def test_every_package_of_seesr_and_ram_is_listed() -> None:
    found = {path.parent for name in ("seesr", "ram") for path in (ROOT / name).rglob("*.py")}
    assert {".".join(path.relative_to(ROOT).parts) for path in found} == set(
        PYPROJECT["tool"]["setuptools"]["packages"]
    )


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("seesr", "ram", "scripts", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "data"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "predict.py", "requirements.txt"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"seesr_turbo-{seesr.__version__}-py3-none-any.whl"
    files = zipfile.ZipFile(wheel)
    names = files.namelist()
    wanted = {
        path.relative_to(ROOT).as_posix() for name in ("seesr", "ram") for path in (ROOT / name).rglob("*.py")
    } | {"seesr/py.typed", "ram/py.typed", "seesr/cost.json", "seesr/batch/inputs.json"}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    about = f"seesr_turbo-{seesr.__version__}.dist-info"
    assert f"{about}/licenses/LICENSE" in names
    assert files.read(f"{about}/entry_points.txt").decode().split("\n") == [
        "[console_scripts]",
        "seesr = seesr.batch.__main__:main",
        "",
    ]


def test_importing_seesr_is_fast_and_loads_no_torch(tmp_path: Path) -> None:
    code = """
import sys, time
start = time.perf_counter()
import seesr
print(time.perf_counter() - start)
assert not {"torch", "numpy", "PIL", "diffusers"} & sys.modules.keys()
assert set(seesr.__all__) <= set(dir(seesr))
"""
    assert min(float(python(code, tmp_path)) for _ in range(3)) < 0.05


@pytest.mark.slow
def test_the_public_names_are_imported_on_first_use_without_warnings(tmp_path: Path) -> None:
    code = "from seesr import *; from seesr import SeeSR; print(*sorted(n for n in dir() if n[0] != '_'))"
    assert python(code, tmp_path).split() == ["SeeSR", "Settings", "open_image", "save_image"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'seesr' has no attribute 'upscale'"):
        getattr(seesr, "upscale")  # noqa: B009 (pyright refuses seesr.upscale)
