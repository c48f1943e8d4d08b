"""The README's first command, as a newcomer runs it."""

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def predict(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/predict"), *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)


def test_predict_writes_the_picture_and_says_where(tmp_path: Path) -> None:
    example = ROOT / "examples/animal.jpg"
    done = predict("-i", f"image=@{example}", "-i", "num_inference_steps=1", "-i", "seed=7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    small = Image.open(example)
    result = Image.open(tmp_path / "output.png")
    assert result.size == (4 * small.width, 4 * small.height)
    assert done.stdout.startswith(f"output.png  {result.width} x {result.height}  ")
    assert "Seed 7" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["output.png"]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (["-i", "num_inference_steps=9"], "predict: num_inference_steps: 9 is greater than the maximum of 4"),
        (["-i", "latent_tiled_size=9"], "latent_tiled_size must be 0 or between 32 and 480, got 9"),
        (["-i", "wrong=1"], "there is no input 'wrong'"),
    ],
)
def test_faults_end_with_the_server_s_words(tmp_path: Path, inputs: list[str], sentence: str) -> None:
    done = predict("-i", f"image=@{ROOT / 'examples/text.jpg'}", *inputs, "-o", "out.png", cwd=tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_end_with_what_to_do(tmp_path: Path) -> None:
    done = predict("-i", f"image=@{ROOT / 'examples/text.jpg'}", cwd=tmp_path, SEESR_WEIGHTS="weights/nowhere")
    assert done.returncode == 1
    assert "SEESR_WEIGHTS names weights/nowhere" in done.stderr.splitlines()[-1]
