"""Convert pixels of other colour spaces to sRGB, in strips of rows, so that a large image takes little memory."""

import functools
import io
import logging
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from PIL import Image, ImageCms

from seesr.images import icc
from seesr.images.icc import SRGB_CURVE, SRGB_PRIMARIES, Curve
from seesr.images.pixels import to_bytes

log = logging.getLogger(__name__)

PQ, HLG = 16, 18  # ITU-T H.273 table 3
REFERENCE_WHITE, HDR_PEAK = 203.0, 1000.0  # cd/m²: ITU-R BT.2408, and the nominal peak of HLG
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC

STRIP = 2**20  # pixels
_XYZ_TO_RGB = np.linalg.inv(icc.rgb_to_d50(SRGB_PRIMARIES))
_PQ = (2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128)  # m1, m2, c1, c2, c3 of SMPTE ST 2084


def strips(pixels: np.ndarray) -> Iterator[slice]:
    """Rows of `pixels`, an even number each but for the last."""
    rows = 2 * max(1, STRIP // 2 // pixels.shape[1])
    return (slice(start, start + rows) for start in range(0, len(pixels), rows))


def from_linear(pixels: np.ndarray, curves: Sequence[Curve], to_d50: np.ndarray | None) -> np.ndarray:
    """By one curve a channel, and the matrix from linear RGB to XYZ under D50; None for grey."""
    stored = np.linspace(0, 1, np.iinfo(pixels.dtype).max + 1)
    tables = [curve(stored).astype(np.float32) for curve in curves]
    matrix = None if to_d50 is None else _XYZ_TO_RGB @ to_d50

    def convert(strip: np.ndarray) -> np.ndarray:
        light = np.stack([table[strip[..., channel]] for channel, table in enumerate(tables)], 2)
        return _encode(light if matrix is None else cv2.transform(light, matrix))

    return _by_strips(pixels, len(tables), convert)


def from_profile(pixels: np.ndarray, mode: str, source: ImageCms.ImageCmsProfile) -> np.ndarray:
    """By the tables of a profile, in 8 bits: relative colorimetric with black point compensation."""
    grey = mode == "L"
    target = io.BytesIO(icc.build_profile("sRGB", SRGB_CURVE, None if grey else SRGB_PRIMARIES))
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    turn = ImageCms.buildTransform(source, target, mode, "L" if grey else "RGB", INTENT, flags)
    if pixels.dtype != np.uint8:
        log.warning("This colour profile is applied in 8 bits: finer steps of the image are lost.")

    def convert(strip: np.ndarray) -> np.ndarray:
        data = strip if strip.dtype == np.uint8 else to_bytes(strip)
        image = Image.frombytes(mode, data.shape[1::-1], data.tobytes())
        converted = np.asarray(ImageCms.applyTransform(image, turn)).reshape(*data.shape[:2], -1)
        return converted if strip.dtype == np.uint8 else converted * np.uint16(257)

    return _by_strips(pixels, 1 if grey else 3, convert)


def from_cmyk(pixels: np.ndarray) -> np.ndarray:
    """Without a profile: (1 - ink) (1 - black)."""

    def convert(strip: np.ndarray) -> np.ndarray:
        paper = 1 - _to_unit(strip)
        return paper[..., :3] * paper[..., 3:]

    return _by_strips(pixels, 3, convert)


def from_lab(pixels: np.ndarray, white: Sequence[float] | None = None) -> np.ndarray:
    """CIELAB under the xy `white`, by default D50. 128 (of 255) or 32768 (of 65535) is added to a and b."""
    one = np.float32(1 if pixels.dtype == np.uint8 else 256)
    x, y = white[:2] if white and len(white) >= 2 and min(white[:2]) > 0.1 and sum(white[:2]) < 0.95 else (0, 0)
    light = np.array([x / y, 1, (1 - x - y) / y]) if y else icc.D50
    to_rgb = _XYZ_TO_RGB @ icc.adapt_to_d50(light)

    def convert(strip: np.ndarray) -> np.ndarray:
        y = (_to_unit(strip[..., 0]) * 100 + 16) / 116
        x, z = y + (strip[..., 1] / one - 128) / 500, y - (strip[..., 2] / one - 128) / 200
        root = np.dstack([x, y, z])
        xyz = np.where(root > 6 / 29, root * root * root, (116 * root - 16) / (24389 / 27)) * light.astype(np.float32)
        return _encode(cv2.transform(xyz, to_rgb))

    return _by_strips(pixels, 3, convert)


def from_hdr(pixels: np.ndarray, primaries: Sequence[float], transfer: int) -> np.ndarray:
    """PQ or HLG -> the sRGB curve, in the same primaries. Reference white (203 cd/m²) comes close to white.

    The brightest channel goes through the EETF of ITU-R BT.2390 (5.4.1) from HDR_PEAK to REFERENCE_WHITE; the others
    keep their ratio to it, and so the hue. What is below 94 cd/m² stays exact, HDR_PEAK and above become white. HLG has
    the system gamma 1.2 of ITU-R BT.2100 for a display of 1000 cd/m².
    """
    signal = np.linspace(0, 1, np.iinfo(pixels.dtype).max + 1)
    table = (_pq_to_light(signal) if transfer == PQ else _hlg_to_scene(signal)).astype(np.float32)
    luma = icc.rgb_to_xyz(primaries)[1].astype(np.float32) if pixels.shape[2] == 3 else np.ones(1, np.float32)
    levels = np.linspace(0, HDR_PEAK, 65536)[1:]
    scales = np.append(1, _eetf(levels) / levels).astype(np.float32)

    def convert(strip: np.ndarray) -> np.ndarray:
        light = table[strip]
        if transfer == HLG:
            light *= HDR_PEAK * (light @ luma)[..., None] ** np.float32(0.2)
        peak = functools.reduce(np.maximum, np.moveaxis(light, 2, 0))
        level = np.round(np.minimum(peak, HDR_PEAK) * (65535 / HDR_PEAK)).astype(np.uint16)
        scale = scales[level] * (HDR_PEAK / REFERENCE_WHITE) / np.maximum(peak, HDR_PEAK)
        return _encode(light * scale[..., None])

    return _by_strips(pixels, pixels.shape[2], convert)


def _by_strips(pixels: np.ndarray, channels: int, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`convert` gives float32 in [0, 1], or integers of the type of `pixels`, for a strip."""
    result = np.empty((*pixels.shape[:2], channels), pixels.dtype)
    for rows in strips(pixels):
        values = convert(pixels[rows])
        result[rows] = values if values.dtype == pixels.dtype else np.round(values * np.iinfo(pixels.dtype).max)
    return result


def _to_unit(strip: np.ndarray) -> np.ndarray:
    return strip / np.float32(np.iinfo(strip.dtype).max)


def _encode(light: np.ndarray) -> np.ndarray:
    """Linear light -> values of the sRGB curve (IEC 61966-2-1), clipped to [0, 1]."""
    light = np.clip(light, 0, 1)
    power = 1.055 * light ** np.float32(1 / 2.4) - 0.055
    return np.maximum(12.92 * np.minimum(light, 0.0031308), power)  # the power is below the line up to where they meet


def _pq_to_light(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: signal in [0, 1] -> cd/m²."""
    m1, m2, c1, c2, c3 = _PQ
    root = signal ** (1 / m2)
    return 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _light_to_pq(light: np.ndarray) -> np.ndarray:
    m1, m2, c1, c2, c3 = _PQ
    power = (light / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def _hlg_to_scene(signal: np.ndarray) -> np.ndarray:
    """ARIB STD-B67: signal -> scene light, both in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def _eetf(light: np.ndarray) -> np.ndarray:
    """cd/m² up to HDR_PEAK -> cd/m² up to REFERENCE_WHITE."""
    source, target = _light_to_pq(np.array([HDR_PEAK, REFERENCE_WHITE]))
    value, most = _light_to_pq(light) / source, target / source
    knee = 1.5 * most - 0.5
    t = np.maximum(value - knee, 0) / (1 - knee)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return np.where(value < knee, light, _pq_to_light(curve * source))
