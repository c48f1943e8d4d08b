"""What one request asks for, checked once."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

ColorFix = Literal["wavelet", "dwt", "adain", "none"]
OutputFormat = Literal["png", "webp", "jpg"]
StartPoint = Literal["lr", "noise"]

NEUTRAL = 0.5
"""The fidelity at which a result stays as the model made it."""

_RANGES = {
    "num_inference_steps": (1, 4),
    "scale_factor": (1, 8),
    "cfg_scale": (1, 10),
    "output_quality": (1, 100),
    "conditioning_scale": (0, 10),
    "seed": (0, 2**63 - 1),
    "num_particles": (1, 16),
    "bandwidth": (0.1, 0.8),
    "fidelity": (0, 1),
}
_CHOICES = {
    "color_fix": get_args(ColorFix),
    "output_format": get_args(OutputFormat),
    "start_point": get_args(StartPoint),
}
_WHOLE = ("num_inference_steps", "latent_tiled_size", "latent_tiled_overlap", "output_quality", "seed", "num_particles")


@dataclass(frozen=True)
class Settings:
    """One request. Names, defaults and ranges are the Cog inputs'; the last two are for callers of the library.

    Sizes of tiles are in latent pixels. 0 means: let the hardware decide the tile, and the tile its overlap.
    `seed` None means: draw one and report it. Raises ValueError with one sentence for anything out of range.
    """

    user_prompt: str = ""
    positive_prompt: str = "clean, high-resolution, 8k"
    negative_prompt: str = "dotted, noise, blur, lowres, smooth"
    num_inference_steps: int = 4
    scale_factor: float = 4.0
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
    fidelity: float = NEUTRAL
    start_point: StartPoint = "lr"
    conditioning_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in _WHOLE:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must be between {low} and {high}, got {value}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        self._check_tiles()

    @property
    def particles(self) -> int:
        """How many runs of the picture there are: one without kernel density steering."""
        return self.num_particles if self.use_kds else 1

    @property
    def branches(self) -> int:
        """How many prompts each tile is denoised by: guidance adds the negative one."""
        return 2 if self.cfg_scale > 1 else 1

    @property
    def network_calls(self) -> int:
        """How often each tile goes through ControlNet and UNet."""
        return self.num_inference_steps * self.particles * self.branches

    def _check_tiles(self) -> None:
        tile, overlap = self.latent_tiled_size, self.latent_tiled_overlap
        if tile != 0 and not 8 <= tile <= 1024:
            raise ValueError(f"latent_tiled_size must be 0 (decided by the GPU) or between 8 and 1024, got {tile}")
        if overlap < 0:
            raise ValueError(f"latent_tiled_overlap must be 0 (decided by the tile) or more, got {overlap}")
        if tile and overlap > tile // 2:
            raise ValueError(
                f"latent_tiled_overlap must be at most half of latent_tiled_size ({tile}), got {overlap}; "
                "lower it, or leave it at 0 to have it chosen"
            )
