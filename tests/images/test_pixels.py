"""Conversions between tensors and images, and resizing."""

import numpy as np
import pytest
import torch
from PIL import Image

from seesr import images
from seesr.images import pixels


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


def test_sixteen_bits_go_through_a_tensor_unchanged() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (1100, 5, 3)).astype(np.uint16)
    assert np.array_equal(pixels.to_pixels(images.to_tensor(values)), values)
    assert pixels.to_pixels(torch.tensor([-0.1, 0.5, 1.1]).view(1, 3, 1, 1)).tolist() == [[[0, 32768, 65535]]]


def test_sixteen_bits_become_eight_by_rounding() -> None:
    values = np.array([0, 128, 129, 385, 386, 65406, 65407, 65535], np.uint16)
    assert pixels.to_bytes(values).tolist() == [0, 0, 1, 1, 2, 254, 255, 255]


def test_sixteen_bits_are_resized_as_eight_are() -> None:
    coarse = np.random.default_rng(0).integers(60, 200, (8, 10, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC)
    deep = pixels.resize(np.asarray(image).astype(np.uint16) * 257, (33, 91))
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - np.asarray(images.resize(image, (33, 91)))).max() <= 1.5  # Pillow rounds 8 bits twice
    grey = deep[:, :, 0]
    assert pixels.resize(grey, (33, 91)) is grey
    assert pixels.resize(grey, (10, 10)).shape == (10, 10)


def test_grey_of_sixteen_bits_is_the_luma_that_pillow_takes() -> None:
    deep = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint16) * 257
    wanted = np.asarray(Image.fromarray((deep // 257).astype(np.uint8)).convert("L"))
    assert np.abs(pixels.to_grey(deep)[:, :, 0] / 257 - wanted).max() <= 0.51


@pytest.mark.parametrize("deep", [False, True])
def test_flat_sides_are_those_whose_two_outer_lines_agree(deep: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    assert images.flat_sides(Image.fromarray(values)) == (False,) * 4
    values[:2], values[:, -2:] = (0, 200, 0), (9, 9, 9)
    values[0, 0] += 1
    found = values.astype(np.uint16) * 257 if deep else Image.fromarray(values)
    assert images.flat_sides(found) == (True, False, False, True)
    assert images.flat_sides(Image.new("RGB", (1, 9))) == (False,) * 4
