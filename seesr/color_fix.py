"""Colours and fidelity: make an upscaled image match its input in colour, and in detail as far as asked."""

import warnings
from collections.abc import Callable

import pywt
import torch
from torch import Tensor
from torch.nn import functional as F

from seesr.settings import NEUTRAL_FIDELITY, ColorFix

LEVELS = 5  # blurs of the wavelet split: radii 1, 2, 4, 8, 16, so colours are matched over about 60 pixels


PEAK_IMAGES: dict[ColorFix, tuple[int, int]] = {"wavelet": (3, 4), "dwt": (4, 0), "adain": (5, 0), "none": (2, 0)}
FIDELITY_PEAK_IMAGES = (3, 6)
"""What match_color and set_fidelity hold at their peak: whole images (their two arguments too), and strips."""


def match_color(image: Tensor, control: Tensor, mode: ColorFix, strip: int = 512) -> Tensor:
    """(B, 3, H, W) in [0, 1] twice -> (B, 3, H, W) in [0, 1], float32: `image` with the colours of `control`

    "wavelet" keeps the image's detail and takes the control's low frequencies, split by five dilated binomial blurs
    (StableSR's and SeeSR's fix). "dwt" exchanges the approximation band of an orthogonal wavelet transform (PyWavelets'
    db2). "adain" matches each channel's mean and standard deviation. "none" returns the image. "wavelet" takes `strip`
    rows at a time, which changes only the memory it needs. Raises ValueError if the sizes differ.
    """
    if image.shape != control.shape:
        raise ValueError(f"image and control must have one size, got {tuple(image.shape)} and {tuple(control.shape)}")
    image, control = image.float(), control.float()
    if mode == "wavelet":
        # high(image) + low(control), where high = image - low: by linearity one cascade instead of two.
        return _add_filtered(image, control, low_frequencies, 2**LEVELS - 1, strip).clamp_(0, 1)
    if mode == "dwt":
        return _dwt(image, control).clamp_(0, 1)
    if mode == "adain":
        return _adain(image, control).clamp_(0, 1)
    return image


def set_fidelity(image: Tensor, control: Tensor, fidelity: float, strip: int = 2048) -> Tensor:
    """(B, 3, H, W) in [0, 1] twice -> (B, 3, H, W) in [0, 1], float32: `control` plus a scaled difference to `image`

    From neutral to 1 the finest band of the difference shrinks to 0.5 of what it was. From neutral to 0 it grows to 2,
    and the rest of the difference to 1.19. `strip` is how many rows are taken at a time.
    """
    fine = 2 ** (2 * (NEUTRAL_FIDELITY - fidelity))
    rest = max(1.0, fine**0.25)

    def scaled(difference: Tensor) -> Tensor:
        low = low_frequencies(difference, 1)
        return difference.mul_(fine).add_(low, alpha=rest - fine)

    return _add_filtered(control, image, scaled, 1, strip).clamp_(0, 1)


def low_frequencies(image: Tensor, levels: int = LEVELS) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W): `levels` blurs by [1 2 1] / 4 each way, dilated by 1, 2, 4, ..., edges repeated"""
    for level in range(levels):
        radius = 2**level
        padded = F.pad(image, (radius,) * 4, mode="replicate")
        # Memory traffic is the cost, so sums are in place. Powers of two are exact.
        rows = padded[:, :, : -2 * radius] + padded[:, :, 2 * radius :]
        rows.add_(padded[:, :, radius:-radius], alpha=2)
        image = rows[..., : -2 * radius] + rows[..., 2 * radius :]
        image.add_(rows[..., radius:-radius], alpha=2).div_(16)
    return image


def _add_filtered(base: Tensor, other: Tensor, change: Callable[[Tensor], Tensor], reach: int, strip: int) -> Tensor:
    """base + change(other - base), `strip` rows at a time; `change` may look `reach` rows up and down"""
    result, height = torch.empty_like(base), base.shape[2]
    for top in range(0, height, strip):
        first, bottom = max(0, top - reach), min(height, top + strip)
        read, rows = slice(first, bottom + reach), slice(top, bottom)
        added = change(other[:, :, read] - base[:, :, read])
        torch.add(base[:, :, rows], added[:, :, top - first : bottom - first], out=result[:, :, rows])
    return result


def _dwt(image: Tensor, control: Tensor) -> Tensor:
    # The transform is linear: only the approximation band of the difference is moved.
    difference = (control - image).cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a small image is all border; it is matched all the same
        band = pywt.wavedec2(difference, "db2", mode="symmetric", level=LEVELS, axes=(-2, -1))
    band[1:] = [tuple(part * 0 for part in details) for details in band[1:]]
    low = torch.from_numpy(pywt.waverec2(band, "db2", mode="symmetric", axes=(-2, -1)))
    return image + low[:, :, : image.shape[2], : image.shape[3]].to(image)


def _adain(image: Tensor, control: Tensor) -> Tensor:
    mean, std = _statistics(image)
    wanted_mean, wanted_std = _statistics(control)
    return (image - mean) / std * wanted_std + wanted_mean


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Per image and channel: mean and standard deviation (unbiased variance + 1e-5), (B, C, 1, 1) each"""
    correction = 1 if image.shape[2] * image.shape[3] > 1 else 0  # a single pixel has no unbiased variance
    variance, mean = torch.var_mean(image, dim=(2, 3), keepdim=True, correction=correction)
    return mean, (variance + 1e-5).sqrt()
