"""Give an upscaled picture the colours of the picture it came from, and hold its detail to it as asked."""

import warnings

import pywt
import torch
from torch import Tensor
from torch.nn import functional as F

from seesr.settings import NEUTRAL, ColorFix

LEVELS = 5
"""Blurs of the wavelet split: radii 1, 2, 4, 8, 16, so colours are matched over about 60 pixels."""


def match_color(image: Tensor, control: Tensor, mode: ColorFix, strip: int = 512) -> Tensor:
    """(B, 3, H, W) in [0, 1] twice -> (B, 3, H, W) in [0, 1], float32: `image` with the colours of `control`

    "wavelet" keeps the image's detail and takes the control's low frequencies, split by five dilated binomial blurs
    (StableSR's and SeeSR's fix). "dwt" exchanges the approximation band of an orthogonal wavelet transform
    (PyWavelets' db2). "adain" matches each channel's mean and standard deviation.
    "none" leaves the image alone. `strip` is how many rows the wavelet split takes at a time; it changes the memory
    that this needs and nothing else. Raises ValueError if the sizes differ.
    """
    if image.shape != control.shape:
        raise ValueError(f"image and control must have one size, got {tuple(image.shape)} and {tuple(control.shape)}")
    image, control = image.float(), control.float()
    if mode == "none":
        return image
    matched = (
        _wavelet(image, control, strip) if mode == "wavelet" else {"dwt": _dwt, "adain": _adain}[mode](image, control)
    )
    return matched.clamp_(0, 1)


def set_fidelity(image: Tensor, control: Tensor, fidelity: float, strip: int = 2048) -> Tensor:
    """(B, 3, H, W) in [0, 1] twice -> (B, 3, H, W) in [0, 1], float32: what `image` adds to `control`, more or less

    Between neutral and 1 the finest band of the difference of the two shrinks, to a half; between neutral and 0 it
    grows, to 2, and the rest to 1.19 of what it was. `strip` as above.
    """
    fine = 2 ** (2 * (NEUTRAL - fidelity))
    rest, height = max(1.0, fine**0.25), image.shape[2]
    changed = torch.empty_like(image)
    for top in range(0, height, strip):
        first, last = max(0, top - 1), min(height, top + strip + 1)
        difference = image[:, :, first:last] - control[:, :, first:last]
        low = low_frequencies(difference, 1)
        added = difference.mul_(fine).add_(low, alpha=rest - fine)
        rows = slice(top, min(height, top + strip))
        torch.add(control[:, :, rows], added[:, :, top - first : rows.stop - first], out=changed[:, :, rows])
    return changed.clamp_(0, 1)


def low_frequencies(image: Tensor, levels: int = LEVELS) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W): `levels` blurs by [1 2 1] / 4 each way, dilated by 1, 2, 4, ..., edges repeated"""
    for level in range(levels):
        radius = 2**level
        padded = F.pad(image, (radius,) * 4, mode="replicate")
        # Sums in place: what this costs is memory traffic, and powers of two are exact.
        rows = padded[:, :, : -2 * radius] + padded[:, :, 2 * radius :]
        rows.add_(padded[:, :, radius:-radius], alpha=2)
        image = rows[..., : -2 * radius] + rows[..., 2 * radius :]
        image.add_(rows[..., radius:-radius], alpha=2).div_(16)
    return image


def _wavelet(image: Tensor, control: Tensor, strip: int) -> Tensor:
    # high(image) + low(control), where high = picture - low: by linearity one cascade instead of two.
    matched, height, reach = torch.empty_like(image), image.shape[2], 2**LEVELS - 1
    for top in range(0, height, strip):
        first, last = max(0, top - reach), min(height, top + strip + reach)
        low = low_frequencies(control[:, :, first:last] - image[:, :, first:last])
        rows = slice(top, min(height, top + strip))
        torch.add(image[:, :, rows], low[:, :, top - first : rows.stop - first], out=matched[:, :, rows])
    return matched


def _dwt(image: Tensor, control: Tensor) -> Tensor:
    # The transform is linear too: move only the approximation band of the difference.
    difference = (control - image).cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a small picture is all border: it is matched all the same
        band = pywt.wavedec2(difference, "db2", mode="symmetric", level=LEVELS, axes=(-2, -1))
    band[1:] = [tuple(part * 0 for part in details) for details in band[1:]]
    low = torch.from_numpy(pywt.waverec2(band, "db2", mode="symmetric", axes=(-2, -1)))
    return image + low[:, :, : image.shape[2], : image.shape[3]].to(image)


def _adain(image: Tensor, control: Tensor) -> Tensor:
    mean, std = _statistics(image)
    wanted_mean, wanted_std = _statistics(control)
    return (image - mean) / std * wanted_std + wanted_mean


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Per picture and channel: mean and standard deviation (unbiased variance + 1e-5), (B, C, 1, 1) each"""
    correction = 1 if image.shape[2] * image.shape[3] > 1 else 0  # a single pixel has no unbiased variance
    variance, mean = torch.var_mean(image, dim=(2, 3), keepdim=True, correction=correction)
    return mean, (variance + 1e-5).sqrt()
