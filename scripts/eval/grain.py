"""Fine grain: luma normalised by local contrast (Mittal et al. 2012), and its spectrum."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 32
"""Side of a window of the spectrum, in pixels"""
FINE = 5 / WINDOW
"""Cycles per pixel from which on grain is fine: below, the normalisation of a blurred image makes a hill of its own."""


def local_moments(image: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) -> mean and variance of every `side` x `side` pixels, (B, C, H - side + 1, W - side + 1) each"""
    channels = image.shape[1]
    box = image.new_full((channels, 1, side, side), side**-2)  # five times as fast as avg_pool2d on a CPU
    mean, square = (F.conv2d(values, box, groups=channels) for values in (image, image.square()))
    return mean, (square - mean.square()).clamp(min=0)


def normalize(image: Tensor, floor: float) -> Tensor:
    """(B, C, H, W) -> (B, C, H - 6, W - 6): minus the mean of 7 x 7 pixels, divided by their deviation + `floor`"""
    mean, variance = local_moments(image, 7)
    return (image[..., 3:-3, 3:-3] - mean) / (variance + 1e-6).sqrt().add(floor)


def grain(image: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 1, H - 6, W - 6), luma (BT.601) of about unit variance"""
    return normalize((image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True), 1 / 127.5)


def spectrum(image: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> amplitudes of its grain (B, S, S // 2 + 1), 1 for white grain of unit variance

    S is WINDOW, or the side of a smaller image without its border of 3. Frequencies are those of `torch.fft.rfft2`.
    Powers are means over windows that overlap by half.
    """
    fine = grain(image)[:, 0]
    side = min(WINDOW, *fine.shape[1:])
    hann = torch.hann_window(side, False, device=image.device)
    hann = hann[:, None] * hann
    windows = fine.unfold(1, side, side // 2).unfold(2, side, side // 2)
    power = torch.fft.rfft2(windows * (hann / hann.square().sum().sqrt())).abs().square()
    return (power.mean((1, 2)) + 1e-3).sqrt()


def mesh(image: np.ndarray, truth: np.ndarray) -> float:
    """(H, W, 3) uint8 twice -> by how much the strongest line in the spectrum of fine grain exceeds the original's

    A network that repeats one pattern instead of grain has such a line, and BRISQUE and sharpness take it for detail.
    """
    ours, theirs = (
        spectrum(torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None])[0] for pixels in (image, truth)
    )
    down, right = torch.fft.fftfreq(len(ours)), torch.fft.rfftfreq(len(ours))
    return float((ours - theirs)[torch.hypot(down[:, None], right) >= FINE].max())
