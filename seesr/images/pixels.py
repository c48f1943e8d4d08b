"""Conversions between tensors, arrays and Pillow images, and resizing, with 8 or 16 bits a channel."""

from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Pixels = TypeVar("Pixels", Image.Image, np.ndarray)  # an RGB image, or (H, W, C) uint16


def to_tensor(image: Image.Image | np.ndarray, device: str = "cpu") -> Tensor:
    """Image or (H, W, 3) uint16 -> (1, 3, H, W) in [0, 1], float32. Integers are moved to `device`, then converted."""
    if isinstance(image, Image.Image):
        image = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    largest = np.iinfo(image.dtype).max
    return torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float().div_(largest)


def to_image(tensor: Tensor) -> Image.Image:
    """(1, 3, H, W) in [0, 1] -> RGB image, rounded to 8 bits."""
    return from_pixels(_to_integers(tensor, torch.uint8))


def to_result(tensor: Tensor, size: tuple[int, int], grey: bool, deep: bool) -> tuple[Image.Image, np.ndarray | None]:
    """(1, 3, H, W) in [0, 1] -> an RGB image of `size` (height, width) and, if `deep`, the same as (H, W, 3) uint16

    `grey` makes the channels equal.
    """
    if not deep:
        image = resize(to_image(tensor), size)
        return (image.convert("L").convert("RGB") if grey else image), None
    pixels = resize(to_pixels(tensor), size)
    if grey:
        pixels = np.repeat(to_grey(pixels), 3, axis=2)
    return from_pixels(pixels), pixels


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint16 -> (H, W, 1) uint16: the luma of ITU-R 601, as Pillow's mode L has it"""
    grey = np.empty((*pixels.shape[:2], 1), pixels.dtype)
    for top in range(0, len(pixels), 1024):
        red, green, blue = np.moveaxis(pixels[top : top + 1024].astype(np.uint64), 2, 0)
        grey[top : top + 1024, :, 0] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return grey


def to_pixels(tensor: Tensor) -> np.ndarray:
    """(1, 3, H, W) in [0, 1] -> (H, W, 3) uint16, rounded."""
    return _to_integers(tensor, torch.uint16)


def _to_integers(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    pixels = torch.empty((*tensor.shape[2:], 3), dtype=dtype)
    largest = torch.iinfo(dtype).max
    for rows in torch.arange(tensor.shape[2]).split(1024):  # strips keep the temporary tensors small
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        values = (tensor[0, :, part].clamp(0, 1) * largest).round()
        pixels[part] = values.to(torch.int32).permute(1, 2, 0).cpu().to(dtype)
    return pixels.numpy()


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 -> RGB image; uint16 is rounded to 8 bits."""
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else to_bytes(pixels))


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint16 -> uint8 of the same share of white, rounded."""
    result = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), 1024):
        result[top : top + 1024] = (pixels[top : top + 1024].astype(np.uint32) + 128) // 257
    return result


def flat_sides(image: Image.Image | np.ndarray) -> tuple[bool, bool, bool, bool]:
    """Whether an RGB image or (H, W, 3) uint16 goes on unchanged at its top, bottom, left and right, as graphics do.

    That is: its two outer lines differ by at most 1 of 255 anywhere.
    """
    width, height = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
    if min(width, height) < 2:
        return False, False, False, False

    def lines(left: int, top: int, right: int, bottom: int) -> np.ndarray:
        if isinstance(image, Image.Image):
            return np.asarray(image.crop((left, top, right, bottom))).astype(int)
        return image[top:bottom, left:right].astype(int) // 257

    rows = [lines(0, 0, width, 2), lines(0, height - 2, width, height)]
    columns = [lines(0, 0, 2, height), lines(width - 2, 0, width, height)]
    top, bottom = (bool(np.abs(pair[0] - pair[1]).max() <= 1) for pair in rows)
    left, right = (bool(np.abs(pair[:, 0] - pair[:, 1]).max() <= 1) for pair in columns)
    return top, bottom, left, right


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize to `size` (height, width), bicubic with antialiasing. Returns `image` itself if it has that size."""
    height, width = size
    if isinstance(image, Image.Image):
        return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
    if image.shape[:2] == size:
        return image
    result = np.empty((height, width, *image.shape[2:]), image.dtype)
    for channel in range(result.size // (height * width)):
        index = (..., channel) if image.ndim == 3 else ...
        floats = Image.fromarray(image[index].astype(np.float32))
        values = np.asarray(floats.resize((width, height), Image.Resampling.BICUBIC))
        result[index] = np.clip(values, 0, 65535).round()
    return result
