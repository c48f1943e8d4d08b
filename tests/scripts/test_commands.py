"""The commands as a newcomer runs them: from any folder, with messages of one line and no warnings of libraries."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts.cog_server import CogServer, schema

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/animal.jpg"
PROGRAMS = [path for path in sorted((ROOT / "scripts").rglob("*.py")) if "__main__" in path.read_text()]
ECHO = """
from typing import Optional
from cog import BasePredictor, Input

class Inputs:
    text = Input(description="A text.")
    steps = Input(default=2, ge=1, le=4, description="Steps.")
    mode = Input(default="a", choices=["a", "b"], description="A mode.")
    seed = Input(default=None, ge=0, description="A seed.")

class Declared(BasePredictor):
    def predict(self, text: str = Inputs.text, steps: int = Inputs.steps, mode: str = Inputs.mode,
                seed: Optional[int] = Inputs.seed) -> str:
        return f"{text} {steps} {mode} {seed}"

class Inline(BasePredictor):
    def predict(self, text: str = Input(description="A text."),
                steps: int = Input(default=2, ge=1, le=4, description="Steps."),
                mode: str = Input(default="a", choices=["a", "b"], description="A mode."),
                seed: Optional[int] = Input(default=None, ge=0, description="A seed.")) -> str:
        return f"{text} {steps} {mode} {seed}"
"""


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    arguments = [str(word) for word in command]
    return subprocess.run(arguments, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)


def predict(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "scripts/predict", *arguments, cwd=cwd, **env)


@pytest.mark.slow
def test_predict_writes_the_image_and_prints_where(tmp_path: Path) -> None:
    done = predict("-i", f"image=@{EXAMPLE}", "-i", "num_inference_steps=1", "-i", "seed=7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    small = Image.open(EXAMPLE)
    result = Image.open(tmp_path / "output.png")
    assert result.size == (4 * small.width, 4 * small.height)
    assert done.stdout.startswith(f"output.png  {result.width} x {result.height}  ")
    assert "Seed 7" in done.stderr
    assert "Warning" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["output.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (["-i", "num_inference_steps=9"], "predict: num_inference_steps: 9 is greater than the maximum of 4"),
        (["-i", "seed=9223372036854775808"], "seed must be between 0 and 9223372036854775807"),
        (["-i", "wrong=1"], "there is no input 'wrong'"),
    ],
)
def test_a_refused_input_ends_with_the_server_s_message(tmp_path: Path, inputs: list[str], sentence: str) -> None:
    done = predict("-i", f"image=@{EXAMPLE}", *inputs, "-o", "out.png", cwd=tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_missing_weights_end_with_what_to_do(tmp_path: Path) -> None:
    done = predict("-i", f"image=@{EXAMPLE}", cwd=tmp_path, SEESR_WEIGHTS="weights/nowhere")
    assert done.returncode == 1
    assert "SEESR_WEIGHTS names weights/nowhere" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_program_explains_itself_without_warnings(path: Path, tmp_path: Path) -> None:
    """As a module from anywhere, and those directly in scripts/ as a file too."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for command in (["-m", module], [str(path)])[: 2 if path.parent.name == "scripts" else 1]:
        done = run(sys.executable, *command, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: ")
        assert done.stderr == ""


def test_inputs_declared_once_give_the_schema_of_inputs_in_the_signature(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    declared, inline = (schema(tmp_path, f"echo.py:{name}") for name in ("Declared", "Inline"))
    assert declared == inline
    assert declared["components"]["schemas"]["Input"]["required"] == ["text"]


def test_the_server_runs_any_predictor_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    with CogServer(tmp_path, "echo.py:Declared") as server:
        folder, pid = server.folder, server.pid
        assert server.health["status"] == "READY"
        assert folder.is_dir()
        status, answer = server.predict(text="hello", seed=0)
        assert (status, answer["output"]) == (200, "hello 2 a 0")
        assert server.predict(text="hello", steps=5)[0] == 422
        assert not any("Warning" in line for line in server.lines)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_predictor_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text("import nowhere_at_all")
    with (
        pytest.raises(RuntimeError, match=r"Cog cannot read echo\.py:Declared.*"),
        CogServer(tmp_path, "echo.py:Declared"),
    ):
        pass


def test_setup_refuses_an_unknown_kind(tmp_path: Path) -> None:
    done = run(ROOT / "scripts/setup", "everything", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "setup: takes run, dev or eval, got 'everything'\n"


def test_setup_refuses_an_unsupported_python(tmp_path: Path) -> None:
    tree, programs = tmp_path / "tree", tmp_path / "bin"
    (tree / "scripts").mkdir(parents=True)
    programs.mkdir()
    shutil.copy(ROOT / "scripts/setup", tree / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tree)
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (programs / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.4\n')
        (programs / name).chmod(0o755)
    done = run(tree / "scripts/setup", cwd=tmp_path, PATH=f"{programs}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert done.stderr == "setup: Python 3.11, 3.12 or 3.13 is needed, found Python 3.10.4\n"
    assert not (tree / ".venv").exists()
