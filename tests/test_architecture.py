"""Who may import whom, held by rules over the source: predict and scripts -> seesr -> ram, and no way back."""

import ast
import functools
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = [path for folder in ("seesr", "ram") for path in sorted((ROOT / folder).rglob("*.py"))]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
EVERYTHING = [*PRODUCT, ROOT / "predict.py", *SCRIPTS]
ROOMS = ("bench", "eval", "train", "batch", "page")
NETWORK = {"requests", "huggingface_hub", "urllib.request", "urllib.error", "http", "httpx", "replicate", "socket"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in EVERYTHING}


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) that a file imports at run time; a module of ours is named in full, its name then is empty."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full, "") if full in NAMES else (node.module, alias.name)


@functools.cache
def modules(path: Path) -> set[str]:
    return {module for module, _ in imports(path)}


def users_of(package: str) -> set[str]:
    return {
        name_of(path)
        for path in EVERYTHING
        if any(module == package or module.startswith(f"{package}.") for module in modules(path))
    }


def test_the_product_imports_downwards_only() -> None:
    graph = {name_of(path): modules(path) & NAMES - {name_of(path)} for path in PRODUCT}
    packages = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    order = list(TopologicalSorter({name: needs - packages for name, needs in graph.items()}).static_order())
    assert order, "no cycle was found"
    for name, needs in graph.items():
        assert name.startswith("seesr") or not any(module.startswith("seesr") for module in needs), name
        assert not any(module.split(".")[0] in ("predict", "scripts", "tests") for module in needs), name
        if not name.startswith("seesr.batch."):
            assert "seesr.pipeline" not in needs, f"{name}: the pipeline is the top"
            assert not any(module.startswith("seesr.batch") for module in needs), f"{name}: batch is above the model"


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_the_rooms_of_scripts_do_not_import_each_other(path: Path) -> None:
    room = path.relative_to(ROOT / "scripts").parts[0]
    for module in modules(path):
        assert module.split(".")[0] != "predict", "what scripts need of the product is in seesr"
        other = module.removeprefix("scripts.").split(".")[0]
        if module.startswith("scripts.") and {room, other} <= set(ROOMS) and other != room:
            assert (room, other) == ("train", "eval")
        if module.split(".")[0] == "tests":
            assert name_of(path) in ("scripts.bench.parity", "scripts.bench.upstream_files")
            assert module == "tests.golden", "recorded outputs and names only"


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_nobody_uses_the_private_names_of_another_module(path: Path) -> None:
    tree = ast.parse(path.read_text())
    ours = {alias.rsplit(".", 1)[-1] for alias in modules(path) & NAMES}
    for module, name in imports(path):
        assert not (module in NAMES and name.startswith("_") and not name.startswith("__")), f"{module}.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            assert owner not in ours, f"{owner}.{node.attr}"
            assert owner in ("self", "cls") or path in PRODUCT or not _is_ours(node.attr), f"{owner}.{node.attr}"


def _is_ours(attribute: str) -> bool:
    """Whether a private attribute of this name is set by a class of seesr."""
    return any(f"self.{attribute} " in path.read_text() or f"def {attribute}(" in path.read_text() for path in PRODUCT)


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("cog", r"predict|scripts\.cog_server"),
        ("PIL", r"seesr\.images\..*"),
        ("cv2", r"seesr\.images\..*|scripts\.(eval|train|bench)\..*"),
        ("xformers", r"none"),
        ("safetensors", r"seesr\.bundle|scripts\.(bundle_writer|convert)"),
        ("pickle", r"scripts\.convert"),
        ("gradio", r"scripts\.page\.(layout|parts|widgets)"),
    ],
)
def test_packages_stay_where_they_belong(package: str, allowed: str) -> None:
    assert [user for user in users_of(package) if not re.fullmatch(allowed, user)] == []


def test_only_downloads_and_servers_use_the_network() -> None:
    allowed = r"scripts\.(download|deploy|cog_server|bench\.hub|playground|page\.(job|cog_client))|seesr\.batch\..*"
    users = set().union(*(users_of(package) for package in NETWORK))
    assert [user for user in users if not re.fullmatch(allowed, user)] == []


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"torch\.cuda\b", r"seesr\.hardware"),
        (r"torch\.load\(", r"scripts\.(convert|train\.train)"),
        (r"torch\.load\((?!.*weights_only=True)", r"none"),
        (r"strict ?= ?False(?!\))", r"none"),
        (r"except\s*:", r"none"),
        (r"sys\.path", r"none"),
    ],
)
def test_words_stay_where_they_belong(pattern: str, allowed: str) -> None:
    users = [name_of(path) for path in EVERYTHING if re.search(pattern, path.read_text())]
    assert [user for user in users if not re.fullmatch(allowed, user)] == []
