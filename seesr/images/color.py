"""Colour spaces, greyness, and the colours below transparent pixels.

RGB and grey pixels stay as they are and the result states their space. Only what no viewer shows right is converted.
"""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, ImageChops, ImageCms

from seesr.images import icc, srgb
from seesr.images.icc import SRGB_CURVE, SRGB_PRIMARIES, Curve

log = logging.getLogger(__name__)

LOWEST_GAMMA, HIGHEST_GAMMA = 1.6, 2.8  # of the curves that are carried
PRIMARIES = {  # ITU-T H.273 table 2: xy of white, red, green and blue. 2 is "unspecified".
    1: SRGB_PRIMARIES,
    2: SRGB_PRIMARIES,
    4: (0.31, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),  # BT.470 M
    5: (0.3127, 0.329, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),  # BT.601 625 lines
    **dict.fromkeys((6, 7), (0.3127, 0.329, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07)),  # BT.601 525 lines, SMPTE 240M
    8: (0.31, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),  # film
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # DCI P3
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
    22: (0.3127, 0.329, 0.63, 0.34, 0.295, 0.605, 0.155, 0.077),  # EBU 3213
}
_BT709 = Curve(1 / 0.45, 1 / 1.09929682680944, 0.09929682680944 / 1.09929682680944, 1 / 4.5, 4.5 * 0.018053968510807)
CURVES = {  # table 3
    **dict.fromkeys((1, 6, 11, 12, 14, 15), _BT709),
    **dict.fromkeys((2, 13), SRGB_CURVE),
    4: Curve(2.2),
    5: Curve(2.8),
    7: Curve(1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 4 * 0.0228),  # SMPTE 240M
    8: Curve(),
    17: Curve(2.6),  # SMPTE 428
}

_NOT_FOR_IMAGES = (b"link", b"abst", b"nmcl")  # classes of profiles
Found = tuple[np.ndarray, "ColorSpace"]


@dataclass(frozen=True)
class ColorSpace:
    """What the numbers of the result mean. Empty: sRGB, stated nowhere."""

    icc: bytes | None = None
    """RGB or grey profile for every format; None for sRGB."""
    png: tuple[tuple[bytes, bytes], ...] = ()
    """Chunks (type, data) for a PNG, instead of iCCP."""


@dataclass(frozen=True)
class StatedColors:
    """What a file states about its colours."""

    icc: bytes | None = None
    cicp: tuple[int, int, int, int] | None = None
    """Primaries, transfer, matrix, full range: PNG cICP, or nclx of AVIF and HEIC."""
    gamma: float | None = None
    """PNG gAMA: 0.45455 for a display of gamma 2.2."""
    chromaticities: tuple[float, ...] | None = None
    """PNG cHRM: xy of white, red, green and blue."""
    srgb_intent: int | None = None
    """PNG sRGB."""


SRGB = ColorSpace(png=((b"sRGB", b"\0"),))


def understand(pixels: np.ndarray, mode: str, stated: StatedColors) -> Found:
    """(H, W, C) uint8 or uint16 of mode L, RGB, CMYK or LAB -> (H, W, 1 or 3) of that dtype, and what its numbers mean.

    RGB and grey are carried: `pixels` itself is returned, with a profile or PNG chunks of the same meaning. CMYK, Lab
    and curves of a gamma outside LOWEST_GAMMA to HIGHEST_GAMMA, such as linear light, are converted to sRGB. PQ and HLG
    are tone-mapped. Each conversion is logged. The first of these holds, as in the PNG specification: cICP, iCCP, sRGB,
    gAMA with cHRM. LAB has 128 (of 255) or 32768 (of 65535) added to a and b.
    """
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if mode == "CMYK":
        return _from_cmyk(pixels, stated.icc), SRGB
    if mode == "LAB":
        log.info("The colours of the image are converted from CIELAB to sRGB.")
        return srgb.from_lab(pixels, stated.chromaticities), SRGB
    for statement in (_by_cicp, _by_profile, _by_chunks):
        found = statement(pixels, stated)
        if found:
            return found
    return pixels, ColorSpace()


# Statements ---------------------------------------------------------------------------------------------------------


def _by_cicp(pixels: np.ndarray, stated: StatedColors) -> Found | None:
    """By codes of ITU-T H.273. Unspecified primaries or curve are those of sRGB."""
    primaries, transfer = (stated.cicp or (2, 2))[:2]
    if (primaries, transfer) == (2, 2):
        return None
    if primaries not in PRIMARIES or transfer not in (*CURVES, srgb.PQ, srgb.HLG):
        log.warning(
            "The colour codes %d/%d of the image are not for RGB or logarithmic: left out.", primaries, transfer
        )
        return None
    if transfer in (srgb.PQ, srgb.HLG):
        log.info("The image is HDR (%s): tone-mapped to SDR by ITU-R BT.2390.", "PQ" if transfer == srgb.PQ else "HLG")
        pixels, transfer = srgb.from_hdr(pixels, PRIMARIES[primaries], transfer), 13
    codes = (1 if primaries == 2 else primaries, 13 if transfer == 2 else transfer)
    return _carry_or_convert(pixels, CURVES[transfer], PRIMARIES[primaries], ((b"cICP", bytes([*codes, 0, 1])),))


def _by_profile(pixels: np.ndarray, stated: StatedColors) -> Found | None:
    """By an ICC profile. None and a warning if it is not usable."""
    profile, mode = stated.icc, "L" if pixels.shape[2] == 1 else "RGB"
    if not profile:
        return None
    try:
        tags = icc.read_tags(profile)
        source = _open_profile(profile, mode)
        codes = tags.get(b"cicp", b"")[8:10]
        if len(codes) == 2 and codes[1] in (srgb.PQ, srgb.HLG):
            return _by_cicp(pixels, replace(stated, cicp=(*codes, 0, 1)))
        light, tints = _measure(source, mode)
        if np.ptp(light[:240]) < 0.05:  # of the lightest the colour engine makes white
            raise ValueError("it makes all tones equal")
        gamma, like_rgb = icc.effective_gamma(light), mode == "L" or _are_red_green_blue(tints)
        if like_rgb and LOWEST_GAMMA - 0.03 < gamma < HIGHEST_GAMMA + 0.03:  # it is measured in 8 bits
            return pixels, ColorSpace(profile)
        why = f"a profile of gamma {gamma:.2f}" if like_rgb else "a profile whose channels are not red, green and blue"
        log.info("The colours of the image (%s) are converted to sRGB.", why)
        try:
            names = (b"kTRC",) if mode == "L" else (b"rTRC", b"gTRC", b"bTRC")
            curves = [icc.read_curve(tags.get(name, b"")) for name in names]
            return srgb.from_linear(pixels, curves, None if mode == "L" else icc.read_matrix(tags)), SRGB
        except ValueError:  # it has tables in place of curves and a matrix
            return srgb.from_profile(pixels, mode, source), SRGB
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning("The colour profile of the image is not usable and is left out: %s", error)
        return None


def _by_chunks(pixels: np.ndarray, stated: StatedColors) -> Found | None:
    """By sRGB, or gAMA and cHRM, of a PNG."""
    gamma, primaries = stated.gamma, stated.chromaticities
    if stated.srgb_intent is not None:
        return pixels, ColorSpace(png=((b"sRGB", bytes([stated.srgb_intent])),))
    chunks = []
    if gamma is not None and 0.1 <= gamma <= 10:
        chunks.append((b"gAMA", _png_numbers(gamma)))
    elif gamma is not None:
        log.warning("The gamma %g of the image is not usable and is left out.", gamma)
        gamma = None
    try:
        if primaries and icc.rgb_to_xyz(primaries) is not None:
            chunks.append((b"cHRM", _png_numbers(*primaries)))
    except ValueError as error:
        log.warning("The chromaticities of the image are left out: %s", error)
        primaries = None
    if not chunks:
        return None
    if primaries is None or np.abs(np.subtract(primaries, SRGB_PRIMARIES)).max() < 0.002:
        primaries = SRGB_PRIMARIES
    like_srgb = primaries == SRGB_PRIMARIES and gamma is not None and abs(gamma - 0.45455) < 0.005
    curve = SRGB_CURVE if gamma is None or like_srgb else Curve(1 / gamma)
    return _carry_or_convert(pixels, curve, primaries, tuple(chunks))


def _png_numbers(*values: float) -> bytes:
    return np.round(np.multiply(values, 100000)).astype(">u4").tobytes()


def _carry_or_convert(
    pixels: np.ndarray, curve: Curve, primaries: Sequence[float], chunks: tuple[tuple[bytes, bytes], ...]
) -> Found:
    gamma, grey = icc.effective_gamma(curve(np.linspace(0, 1, 1024))), pixels.shape[2] == 1
    if not LOWEST_GAMMA <= round(gamma, 3) <= HIGHEST_GAMMA:
        log.info("The colours of the image (gamma %.2f) are converted to sRGB.", gamma)
        return srgb.from_linear(pixels, [curve] * pixels.shape[2], None if grey else icc.rgb_to_d50(primaries)), SRGB
    if curve is SRGB_CURVE and (grey or primaries == SRGB_PRIMARIES):
        return pixels, ColorSpace(png=chunks)
    name = f"Built from {' and '.join(kind.decode() for kind, _ in chunks)}"
    return pixels, ColorSpace(icc.build_profile(name, curve, None if grey else primaries), chunks)


# Profiles -----------------------------------------------------------------------------------------------------------


def _open_profile(profile: bytes, mode: str) -> ImageCms.ImageCmsProfile:
    """ValueError if the profile is not for images of `mode`; PyCMSError or OSError if it is damaged."""
    space, kind = profile[16:20].decode("latin-1").strip(), profile[12:16]
    if space != {"L": "GRAY"}.get(mode, mode):
        raise ValueError(f"it is for {space}, the image is {mode}")
    if kind in _NOT_FOR_IMAGES:
        raise ValueError(f"it is of the class {kind.decode()}, which is not for images")
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


def _measure(source: ImageCms.ImageCmsProfile, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """The light of 256 greys under a profile; a and b in CIELAB of these greys and of pure red, green and blue."""
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], len(mode), 1)
    corners = (255 * np.eye(3, dtype=np.uint8))[:, : len(mode)]
    image = Image.frombytes(mode, (259, 1), np.concatenate([greys, corners]).tobytes())
    turn = ImageCms.buildTransform(source, ImageCms.createProfile("LAB"), mode, "LAB", srgb.INTENT)
    lab = np.asarray(ImageCms.applyTransform(image, turn))[0].view(np.int8)
    lightness = lab[:256, 0].view(np.uint8) * (100 / 255)
    return np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / (24389 / 27)), lab[:, 1:].astype(int)


def _are_red_green_blue(tints: np.ndarray) -> bool:
    """Whether a profile's channels are what people call so: opponent channels (XYB) are not, nor swapped ones."""
    greys, (red, green, blue) = tints[:256], tints[256:]
    return bool(np.hypot(*greys.T).mean() < 30 and red[0] > 0 > green[0] and blue[1] < 0)


def grey_for_rgb(profile: bytes | None) -> bytes | None:
    """A grey profile -> an RGB profile under which equal channels mean what the grey value means; others unchanged.

    For formats without grey.
    """
    if not profile or profile[16:20] != b"GRAY":
        return profile
    curve = icc.read_tags(profile).get(b"kTRC")
    if curve is None or profile[20:24] != b"XYZ ":  # under a Lab profile the curve gives lightness, not light
        light, _ = _measure(_open_profile(profile, "L"), "L")
        curve = Curve(samples=light)
    return icc.build_profile("Grey", curve, SRGB_PRIMARIES)


def _from_cmyk(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """By the profile, or without a usable one by (1 - ink) (1 - black)."""
    if profile:
        try:
            result = srgb.from_profile(pixels, "CMYK", _open_profile(profile, "CMYK"))
            log.info("The colours of the image are converted from CMYK to sRGB by its profile.")
            return result
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            log.warning("The colour profile of the image is not usable and is left out: %s", error)
    log.info("The colours of the image are converted from CMYK to sRGB without a profile: they are approximate.")
    return srgb.from_cmyk(pixels)


# Greyness and transparency ------------------------------------------------------------------------------------------


def is_grayscale(rgb: Image.Image) -> bool:
    """Whether the three channels of an RGB image are equal in every pixel, up to one level of rounding."""
    red, green, blue = rgb.split()
    return all(max(ImageChops.difference(green, other).histogram()[2:]) == 0 for other in (red, blue))


def alpha_bleed(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, C), (H, W) of uint8 or uint16 -> (H, W, C): pixels of alpha 0 get the colours around them.

    Push-pull interpolation (Gortler et al. 1996, "The Lumigraph"): colours come from an image of half the size, which
    has 16 bits. `color` itself is returned where nothing is to fill or nothing is visible.
    """
    if alpha.all() or not alpha.any():
        return color
    half = alpha_bleed(*_halve(color, alpha))
    result, scale = color.copy(), np.iinfo(color.dtype).max / np.float32(65535)
    for rows in srgb.strips(color):
        hidden = (alpha[rows] == 0).view(np.uint8)
        if hidden.any():
            filled = _enlarge_rows(half, color.shape, rows) * scale + np.float32(0.5)
            cv2.copyTo(filled.astype(color.dtype), hidden, result[rows])
    return result


def _halve(color: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means weighted by alpha, as uint16, and 1 where there is any alpha."""
    height, width, channels = color.shape
    size = ((height + 1) // 2, (width + 1) // 2)
    half, known = np.empty((*size, channels), np.uint16), np.empty(size, np.uint8)
    scale = np.float32(65535 / np.iinfo(color.dtype).max)
    for rows in srgb.strips(color):
        weight = alpha[rows].astype(np.float32)
        part = slice(rows.start // 2, (rows.start + len(weight) + 1) // 2)
        sums = _mean_of_four(weight)
        known[part] = sums > 0
        share = scale / np.maximum(sums, np.float32(0.25))  # a sum is 0 or at least that
        for channel in range(channels):
            half[part, :, channel] = _mean_of_four(color[rows, :, channel] * weight) * share + np.float32(0.5)
    return half, known


def _mean_of_four(plane: np.ndarray) -> np.ndarray:
    """(H, W) float32 -> half the size. Beyond an odd border is 0."""
    plane = cv2.copyMakeBorder(plane, 0, plane.shape[0] % 2, 0, plane.shape[1] % 2, cv2.BORDER_CONSTANT, value=0)
    return cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def _enlarge_rows(half: np.ndarray, shape: Sequence[int], rows: slice) -> np.ndarray:
    """These rows of an image of `shape`, interpolated linearly from one of half the size."""
    height, width, channels = shape
    places = np.maximum((np.arange(*rows.indices(height)) + 0.5) * (len(half) / height) - 0.5, 0)
    above = places.astype(int)
    below = np.minimum(above + 1, len(half) - 1)
    share = (places - above).astype(np.float32)[:, None, None]
    mixed = half[above] * (1 - share) + half[below] * share
    return cv2.resize(mixed, (width, len(mixed)), interpolation=cv2.INTER_LINEAR).reshape(-1, width, channels)
