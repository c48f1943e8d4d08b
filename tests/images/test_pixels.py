"""Conversions between tensors and images, and resizing."""

import torch
from PIL import Image

from seesr import images


def test_to_image_inverts_to_tensor() -> None:
    image = Image.effect_noise((9, 7), 90).convert("RGB")
    tensor = images.to_tensor(image)
    assert tensor.shape == (1, 3, 7, 9)
    assert tensor.dtype == torch.float32
    assert images.to_image(tensor).tobytes() == image.tobytes()


def test_resize_takes_the_height_first() -> None:
    image = Image.new("RGB", (9, 7))
    assert images.resize(image, (14, 18)).size == (18, 14)
    assert images.resize(image, (7, 9)) is image
