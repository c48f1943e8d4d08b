"""The reference's recorded outputs and its tiny checkpoints in upstream's own formats, unpacked once per run.

Recorded by running cswry/SeeSR on small random weights of the real structure, fp32 on a CPU. Weights are stored in
fp16 and the outputs were computed from exactly those values. In the text encoder the rows of words that no test says
are zero, and RAM's caption half is left out but for a few tensors, so that the archive stays small.
"""

import atexit
import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent / "data"
ROOT = Path(tempfile.mkdtemp(prefix="seesr-golden-"))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
with tarfile.open(DATA / "golden.tar.xz") as archive:
    archive.extractall(ROOT, filter="data")

UPSTREAM = ROOT / "upstream"
"""sd_turbo/ and seesr/ as their repositories have them, ram/ with the pickles, the tags and the thresholds."""
shutil.copytree(DATA.parent.parent / "weights/tiny/tokenizer", UPSTREAM / "sd_turbo/tokenizer")


def recorded(name: str) -> dict[str, Tensor]:
    """The tensors of one recorded file: pipeline, unet, e2e, text, vae, ram or colour."""
    return load_file(ROOT / "recorded" / f"{name}.safetensors")


def manifest(name: str) -> dict:
    """Full-size tensor names -> shapes of an upstream file, or its config."""
    return json.loads((ROOT / "recorded/manifests.json").read_text())[name]
