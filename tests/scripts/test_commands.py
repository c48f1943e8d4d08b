"""The commands as a newcomer runs them: from any folder, with messages of one line and no warnings of libraries."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from scripts.cog_server import CogServer, schema
from scripts.predict import MAX_FILE, read_answer, read_inputs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/animal.jpg"
ECHO = """
from typing import Optional
from cog import BasePredictor, Input, Path

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

class Lengths(BasePredictor):
    def predict(self, file: Path = Input(description="A file.")) -> list[int]:
        return [file.stat().st_size] * 2
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
def test_predict_reports_as_json_and_takes_the_format_from_the_name(tmp_path: Path) -> None:
    small = Image.open(EXAMPLE).reduce(4)
    small.save(tmp_path / "small.png")
    inputs = ["-i", "image=@~/small.png", "-i", "num_inference_steps=1", "-i", "seed=7"]
    done = predict(*inputs, "-o", "out.webp", "--json", cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    result, report = Image.open(tmp_path / "out.webp"), json.loads(done.stdout)
    assert result.format == "WEBP"
    assert [report.pop(name) for name in ("output", "width", "height")] == ["out.webp", *result.size]
    assert report.pop("bytes") == (tmp_path / "out.webp").stat().st_size
    metrics = report.pop("metrics")
    assert metrics["seed"] == 7
    assert {"tag", "denoise", "file"} <= metrics["seconds"].keys()
    assert report.pop("seconds") > metrics["predict_time"]
    assert report == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "out.webp", "-i", "output_format=png"], "-o out.webp asks for webp, but output_format is png: change"),
        (["-o", "out.gif"], "-o must end in .png, .webp, .jpg, .tiff, .jpeg, .tif, got out.gif"),
        (["-o", "."], "-o must name a file, got the folder .; name a file in it, such as out.png"),
        (["-o", "results/"], "-o must name a file, got the folder results/; name a file in it"),
        (["-o", "/dev/null"], "-o must name a file, got the device /dev/null; name another"),
        (["-o", "nowhere/out.png"], "a folder that can be written, got nowhere (No such file or directory); make it"),
        (["-o", "/proc/out.png"], "the result needs a folder that can be written, got /proc ("),
        (["-i", "wrong=1"], "there is no input 'wrong'; the inputs are image, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_fault_is_named_before_the_server_starts(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = predict("-i", f"image=@{EXAMPLE}", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("predict: ")
    assert sentence in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_refused_input_ends_with_the_server_s_message(tmp_path: Path) -> None:
    done = predict("-i", f"image=@{EXAMPLE}", "-i", "num_inference_steps=9", "-o", "out.png", cwd=tmp_path)
    assert done.returncode == 1
    message = "predict: num_inference_steps: 9 is greater than the maximum of 4"
    assert done.stderr.splitlines()[-1].startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_missing_weights_end_with_what_to_do(tmp_path: Path) -> None:
    done = predict("-i", f"image=@{EXAMPLE}", cwd=tmp_path, SEESR_WEIGHTS="weights/nowhere")
    assert done.returncode == 1
    assert "SEESR_WEIGHTS names weights/nowhere" in done.stderr.splitlines()[-1]


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
        with pytest.raises(RuntimeError, match="the predictor must return one file, got 'hello 2 a 0'"):
            read_answer(status, answer)
        assert server.predict(text="hello", steps=5)[0] == 422
        assert not any("Warning" in line for line in server.lines)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_the_largest_file_fits_into_a_request_and_several_results_are_refused(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    with (tmp_path / "large.tif").open("wb") as file:
        file.truncate(MAX_FILE)
    inputs = read_inputs([f"file=@{file.name}"], schema(tmp_path, "echo.py:Lengths"))
    with CogServer(tmp_path, "echo.py:Lengths") as server:
        status, answer = server.predict(**inputs)
    assert (status, answer["output"]) == (200, [MAX_FILE] * 2)
    with pytest.raises(RuntimeError, match="the predictor must return one file, got a list of 2; call its HTTP API"):
        read_answer(status, answer)


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
    assert done.stderr == "setup: takes run, deploy, ray, dev, eval or playground, got 'everything'\n"


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
