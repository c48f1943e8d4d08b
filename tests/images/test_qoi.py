"""QOI: the pixels that Pillow's decoder finds, which takes one at a time."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from seesr import images
from seesr.images import qoi


def encoded(values: np.ndarray) -> bytes:
    """(H, W, 3 or 4) -> as the specification's own encoder writes it."""
    height, width, channels = values.shape
    out, table = bytearray(b"qoif" + width.to_bytes(4) + height.to_bytes(4)), [(0, 0, 0, 0)] * 64
    out += bytes([channels, 0])
    last, run = (0, 0, 0, 255), 0
    for pixel in map(tuple, values.reshape(-1, channels).tolist()):
        pixel = pixel if channels == 4 else (*pixel, 255)
        run += pixel == last
        if run and (pixel != last or run == 62):
            out.append(0xC0 | run - 1)
            run = 0
        if pixel != last:
            slot = (pixel[0] * 3 + pixel[1] * 5 + pixel[2] * 7 + pixel[3] * 11) % 64
            red, green, blue = ((new - old + 128) % 256 - 128 for new, old in zip(pixel[:3], last[:3], strict=True))
            if table[slot] == pixel:
                out.append(slot)
            elif pixel[3] != last[3]:
                out += bytes([0xFF, *pixel])
            elif all(-2 <= step <= 1 for step in (red, green, blue)):
                out.append(0x40 | red + 2 << 4 | green + 2 << 2 | blue + 2)
            elif -32 <= green <= 31 and all(-8 <= step - green <= 7 for step in (red, blue)):
                out += bytes([0x80 | green + 32, red - green + 8 << 4 | blue - green + 8])
            else:
                out += bytes([0xFE, *pixel[:3]])
            table[slot] = last = pixel
    return bytes(out) + (bytes([0xC0 | run - 1]) if run else b"") + bytes(7) + b"\1"


def smooth(height: int, width: int, channels: int, coarse: int) -> np.ndarray:
    noise = np.random.default_rng(coarse).integers(0, 256, (coarse, coarse, channels), np.uint8)
    bands = [Image.fromarray(noise[..., band]).resize((width, height)) for band in range(channels)]
    return np.dstack([np.asarray(band) for band in bands])


def pictures() -> list[np.ndarray]:
    """Noise, smooth, few colours, alpha of few and of many values, runs, and one that begins transparent."""
    random = np.random.default_rng(0)
    few = random.integers(0, 256, (20, 4), np.uint8)[random.integers(0, 20, (61, 83))]
    faded = np.dstack([smooth(61, 83, 3, 9), np.clip(smooth(61, 83, 1, 4).astype(int) * 3 - 300, 0, 255)]).astype(
        np.uint8
    )
    return [
        random.integers(0, 256, (61, 83, 3), np.uint8),
        random.integers(0, 256, (61, 83, 4), np.uint8),
        smooth(61, 83, 3, 5),
        smooth(61, 83, 4, 5),
        few,
        few[..., :3],
        faded,
        faded // 128 * 128,
        np.zeros((61, 83, 4), np.uint8),
        np.full((1, 1, 3), 7, np.uint8),
        smooth(200, 150, 4, 30) // 2,
    ]


@pytest.mark.parametrize("values", pictures(), ids=lambda values: str(values.shape))
def test_what_is_encoded_is_read(values: np.ndarray) -> None:
    data = encoded(values)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), values)
    found = qoi.read(data)
    assert np.array_equal(found.pixels, values[..., :3])
    if values.shape[2] == 4:
        assert found.alpha is not None
        assert np.array_equal(found.alpha, values[..., 3])
    else:
        assert found.alpha is None


@pytest.mark.parametrize("curve", [1, 7])
def test_the_named_curve_changes_nothing(curve: int) -> None:
    data = bytearray(encoded(smooth(61, 83, 3, 5)))
    data[13] = curve
    assert np.array_equal(qoi.read(bytes(data)).pixels, smooth(61, 83, 3, 5))


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:200] + data[-8:], lambda data: data[:9]])
def test_a_file_that_ends_early_is_damaged(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"got a damaged file \(QOI\)"):
        images.open_image(io.BytesIO(damage(encoded(smooth(61, 83, 3, 5)))))


def test_many_pixels_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ValueError, match="at most 64 megapixels, got 60000 x 60000"):
        images.open_image(io.BytesIO(b"qoif" + (60000).to_bytes(4) * 2 + bytes(20)))


def test_operations_that_no_encoder_writes_give_what_pillow_finds() -> None:
    """All hashes have been seen before; else an index may name no pixel."""
    random = np.random.default_rng(0)
    all_hashes = b"".join(bytes([0xFF, red * 43 % 256, 0, 0, 255]) for red in range(64))
    kinds = random.integers(0, 256, 50 * 40 - 64, np.uint8)
    kinds[(kinds >= 192) & (kinds < 254)] = 5  # no run: the pixels end where the operations do
    rest = [4 if kind == 255 else 3 if kind == 254 else int(kind >> 6 == 2) for kind in kinds.tolist()]
    operations = [bytes([kind, *random.integers(0, 256, more)]) for kind, more in zip(kinds, rest, strict=True)]
    stream = all_hashes + b"".join(operations)
    data = b"qoif" + (50).to_bytes(4) + (40).to_bytes(4) + bytes([4, 0]) + stream + bytes(7) + b"\1"
    found, wanted = qoi.read(data), np.asarray(Image.open(io.BytesIO(data)))
    assert found.alpha is not None
    assert np.array_equal(np.dstack([found.pixels, found.alpha]), wanted)
