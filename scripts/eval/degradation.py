"""The damage of real small images: blur, reduction, noise, JPEG. Training and evaluation share it."""

import cv2
import numpy as np

SCALE = 4


def degrade(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8, sides multiples of 4 -> (H/4, W/4, 3) uint8

    Blur of sigma 0.2 to 1.5, x4 reduction by area, noise of sigma 0 to 8 levels, JPEG quality 60 to 95, each uniform.
    """
    blurred = cv2.GaussianBlur(image, (0, 0), random.uniform(0.2, 1.5))
    small = shrink(blurred, SCALE).astype(np.float32)
    small += random.normal(0, random.uniform(0, 8), small.shape)
    pixels = np.clip(small, 0, 255).round().astype(np.uint8)
    done, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(60, 96))])
    assert done
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1])


def damage(truth: np.ndarray, scale: int, random: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8, sides multiples of `scale` (2, 4 or 8) -> (H/scale, W/scale, 3) uint8, damaged by `degrade`

    At 2 and 8 the photograph is first resized to 4 times the small size. Blur, noise and JPEG then act on the small
    image as strongly as at 4.
    """
    if scale < SCALE:
        truth = truth.repeat(SCALE // scale, axis=0).repeat(SCALE // scale, axis=1)
    return degrade(shrink(truth, scale // SCALE) if scale > SCALE else truth, random)


def shrink(image: np.ndarray, scale: int) -> np.ndarray:
    """(H, W, 3) uint8, sides multiples of `scale` -> (H/scale, W/scale, 3) uint8, by area, without damage"""
    height, width = image.shape[:2]
    return cv2.resize(image, (width // scale, height // scale), interpolation=cv2.INTER_AREA)
