"""Colour profiles, greyness, and the colours below transparent pixels."""

import io
import logging

import torch
from PIL import Image, ImageChops, ImageCms
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger(__name__)


def to_srgb(image: Image.Image, profile: bytes | None, grey: bool) -> tuple[Image.Image, bytes | None]:
    """Image under an ICC profile -> RGB image in sRGB, and the profile if the result can carry it (RGB or grey).

    A profile that does not fit the image is left out, and a warning is logged.
    """
    plain = image.convert("L" if grey else "CMYK" if image.mode == "CMYK" else "RGB")
    if not profile:
        return plain.convert("RGB"), None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()  # pyright: ignore
        if space != {"L": "GRAY"}.get(plain.mode, plain.mode):
            raise ImageCms.PyCMSError(f"it is for {space}, the image is {plain.mode}")
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None
        return converted, None if plain.mode == "CMYK" else profile
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning("The colour profile of the image is not usable and is left out: %s", error)
        return plain.convert("RGB"), None


def from_srgb(image: Image.Image, profile: bytes | None, grey: bool) -> tuple[Image.Image, bytes | None]:
    """RGB image in sRGB -> image under `profile` (L if `grey`) and `profile`; in sRGB and None if it can't convert."""
    mode = "L" if grey else "RGB"
    if profile is not None:
        try:
            target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, outputMode=mode)
            assert converted is not None
            return converted, profile
        except (ImageCms.PyCMSError, OSError) as error:
            log.warning("The colour profile of the image converts only to sRGB: the result is in sRGB. (%s)", error)
    return image.convert(mode), None


def is_grayscale(rgb: Image.Image) -> bool:
    """Whether the three channels of an RGB image are equal in every pixel, up to one level of rounding."""
    red, green, blue = rgb.split()
    return all(max(ImageChops.difference(green, other).histogram()[2:]) == 0 for other in (red, blue))


def alpha_bleed(color: Tensor, weight: Tensor) -> Tensor:
    """(1, 3, H, W), (1, 1, H, W) in [0, 1] -> (1, 3, H, W): pixels of weight 0 get the colours around them.

    Push-pull interpolation (Gortler et al. 1996, "The Lumigraph"): colours come from an image of half the size.
    """
    if weight.min() > 0 or weight.max() == 0 or max(weight.shape) == 1:
        return color
    sums = F.avg_pool2d(torch.cat([color * weight, weight], 1), 2, ceil_mode=True)
    half = alpha_bleed(sums[:, :3] / sums[:, 3:].clamp(min=1e-8), (sums[:, 3:] > 0).float())
    return torch.where(weight > 0, color, F.interpolate(half, size=color.shape[2:], mode="bilinear"))
