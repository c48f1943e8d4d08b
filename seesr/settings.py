"""One upscale request, checked once."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from seesr.sizes import LONG_SIDE_RANGE, Size, scale_of

ColorFix = Literal["wavelet", "dwt", "adain", "none"]
OutputFormat = Literal["png", "webp", "jpg", "tiff"]
StartPoint = Literal["lr", "noise"]

NEUTRAL_FIDELITY = 0.5  # leaves the model's result unchanged

_RANGES: dict[str, tuple[float, float]] = {
    "num_inference_steps": (1, 4),
    "scale_factor": (1, 8),
    "cfg_scale": (0.5, 10),
    "output_quality": (1, 100),
    "conditioning_scale": (0, 10),
    "seed": (0, 2**53 - 1),  # the largest integer that every JSON reader keeps
    "num_particles": (1, 16),
    "bandwidth": (0.1, 0.8),
    "fidelity": (0, 1),
}
_CHOICES = {
    "color_fix": get_args(ColorFix),
    "output_format": get_args(OutputFormat),
    "start_point": get_args(StartPoint),
}
_TILES = ("latent_tiled_size", "latent_tiled_overlap")
_INTEGERS = ("num_inference_steps", "target_long_side", "output_quality", "seed", "num_particles", *_TILES)


_FORMATS = {"jpeg": "jpg", "tif": "tiff"}  # endings of files that differ from the name of their format


def format_of(output: str, choices: Sequence[str]) -> str | None:
    """The output_format of `choices` that the ending of a file asks for; None where it has no ending.

    Raises ValueError for another ending.
    """
    ending = os.path.splitext(output)[1][1:].lower()
    if not ending:
        return None
    if (chosen := _FORMATS.get(ending, ending)) not in choices:
        legal = [*choices, *(other for other, name in _FORMATS.items() if name in choices)]
        raise ValueError(f"-o must end in .{', .'.join(legal)}, got {output}")
    return chosen


def check_upload(name: str, file: object) -> None:
    """Raise ValueError if the server left `file` a string: it is no URL, and may be a path on the server's machine."""
    if isinstance(file, str):
        wanted = "an http(s) URL, a data URI (data:image/png;base64,...) or an upload"
        raise ValueError(f"{name} must be {wanted}, got {file[:40]!r}")


@dataclass(frozen=True)
class Settings:
    """One request. Names, defaults and ranges equal the Cog inputs; the last two fields exist in the library only.

    `target_long_side` is in pixels; 0 means that `scale_factor` acts. `latent_tiled_size` and `latent_tiled_overlap`
    are in latent pixels; 0 means automatic, and `seesr.sizes` brings other values into their legal range. `seed` None
    draws a seed. Raises ValueError for a value out of range.
    """

    user_prompt: str = ""
    positive_prompt: str = "clean, high-resolution, 8k"
    negative_prompt: str = "dotted, noise, blur, lowres, smooth"
    num_inference_steps: int = 4
    scale_factor: float = 4.0
    target_long_side: int = 0
    cfg_scale: float = 1.0
    latent_tiled_size: int = 0
    latent_tiled_overlap: int = 0
    color_fix: ColorFix = "wavelet"
    seed: int | None = None
    output_format: OutputFormat = "png"
    output_quality: int = 95
    use_kds: bool = False
    num_particles: int = 4
    bandwidth: float = 0.6
    fidelity: float = NEUTRAL_FIDELITY
    fast_vae: bool = False
    start_point: StartPoint = "lr"
    conditioning_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in _INTEGERS:
            value = getattr(self, name)
            if isinstance(value, float) and value.is_integer():  # JSON clients send 4.0 for 4
                object.__setattr__(self, name, int(value))
            elif value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must be between {low} and {high}, got {value}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        low, high = LONG_SIDE_RANGE
        if self.target_long_side and not low <= self.target_long_side <= high:
            text = f"target_long_side must be 0 (scale_factor acts) or between {low} and {high}"
            raise ValueError(f"{text}, got {self.target_long_side}")
        for name in _TILES:
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} must be 0 (automatic) or more, got {value}")

    def scale(self, size: Size) -> Fraction:
        """The exact scale for an image of `size` (height, width). Raises ValueError as `sizes.scale_of` does."""
        return scale_of(size, self.scale_factor, self.target_long_side)

    @property
    def particles(self) -> int:
        """Number of particles: 1 without kernel density steering."""
        return self.num_particles if self.use_kds else 1

    @property
    def branches(self) -> int:
        """Number of prompts per tile: guidance adds the negative prompt."""
        return 2 if self.cfg_scale > 1 else 1
