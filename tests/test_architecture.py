"""Who may import whom, held by reading the source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEVELS = {
    "seesr.settings": 0,
    "seesr.png": 0,
    "seesr.tiling": 0,
    "seesr.color_fix": 0,
    "seesr.hardware": 0,
    "seesr.schedule": 0,
    "seesr.upsampling": 0,
    "ram.model": 0,
    "ram.keys": 0,
    "seesr.images": 1,
    "seesr.image_attention": 1,
    "seesr.vae_tiling": 1,
    "seesr.kds": 1,
    "seesr.prompts": 1,
    "ram.tagger": 1,
    "seesr.memory": 2,
    "seesr.weights": 2,
    "seesr.run": 3,
    "seesr.pipeline": 4,
}
MODULES = [path for folder in ("seesr", "ram") for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"]
EVERYTHING = [*MODULES, *ROOT.glob("predict*.py"), *(ROOT / "scripts").glob("*.py")]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Modules that a file imports at run time; `from seesr import images` counts as seesr.images."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "seesr" else {node.module}
            )
    return found


def test_every_module_has_a_level() -> None:
    assert {name_of(path) for path in MODULES} == LEVELS.keys()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_point_down(path: Path) -> None:
    name = name_of(path)
    ours = {module for module in imports(path) if module in LEVELS}
    # settings are the one level-0 module that its neighbours may read
    assert all(LEVELS[module] < LEVELS[name] or module == "seesr.settings" for module in ours), ours
    assert name.startswith("seesr") or not any(module.startswith("seesr") for module in ours)
    assert not any(module.split(".")[0] in ("predict", "scripts", "cog") for module in imports(path))


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("cog", {"predict", "predict_many", "scripts.cog_server"}),
        ("PIL", {"seesr.images"}),
        ("xformers", set()),
        ("safetensors", {"seesr.weights", "scripts.convert"}),
        ("urllib", {"scripts.cog_server", "scripts.download"}),
        ("requests", {"scripts.download"}),
        ("huggingface_hub", set()),
    ],
)
def test_packages_stay_where_they_belong(package: str, allowed: set[str]) -> None:
    users = {name_of(path) for path in EVERYTHING if package in {module.split(".")[0] for module in imports(path)}}
    assert users <= allowed


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"torch\.cuda", {"seesr.hardware"}),
        (r"torch\.load|import pickle", {"scripts.convert", "scripts.train_tiny"}),
        (r"strict ?= ?False", {"none"}),
        (r"except( Exception)?:", {"none"}),
        (r"torch\.load\((?!.*weights_only=True)", {"none"}),
    ],
)
def test_words_stay_where_they_belong(pattern: str, allowed: set[str]) -> None:
    users = {name_of(path) for path in EVERYTHING if re.search(pattern, path.read_text())}
    assert users <= allowed
