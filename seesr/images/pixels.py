"""Conversions between tensors, arrays and Pillow images, and resizing."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image, device: str = "cpu") -> Tensor:
    """Image -> (1, 3, H, W) in [0, 1], float32. Bytes are moved to `device` and converted to float there."""
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float().div_(255)


def to_image(tensor: Tensor) -> Image.Image:
    """(1, 3, H, W) in [0, 1] -> RGB image, rounded to 8 bits."""
    pixels = torch.empty((*tensor.shape[2:], 3), dtype=torch.uint8)
    for rows in torch.arange(tensor.shape[2]).split(1024):  # strips keep the temporary tensors small
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        pixels[part] = (tensor[0, :, part].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()
    return from_pixels(pixels.numpy())


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 -> RGB image."""
    return Image.fromarray(pixels)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to `size` (height, width), bicubic with antialiasing. Returns `image` itself if it has that size."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
