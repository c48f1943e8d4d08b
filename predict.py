"""The Cog interface: inputs, which bundle, and where the result goes. What happens to a picture is in seesr/."""

import logging
import mimetypes
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path as FilePath
from typing import Optional

from cog import BasePredictor, Input, Path

ROOT = FilePath(__file__).resolve().parent
FULL, EMBEDDED = "weights/seesr-turbo", "weights/tiny"


class Predictor(BasePredictor):
    def setup(self) -> None:  # type: ignore[override]
        """Load the bundle onto the GPU, or onto the CPU where there is none."""
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        mimetypes.add_type("image/webp", ".webp")
        start = time.perf_counter()
        bundle = choose_bundle()
        from seesr.pipeline import SeeSR  # imported here: reading the interface must not cost seconds

        self.seesr = SeeSR.load(bundle, gpu=os.environ.get("SEESR_GPU"))
        self.output: Optional[FilePath] = None
        logging.info("Ready after %.1f s.", time.perf_counter() - start)

    # Cog reads these lines as text: one literal per keyword, whatever its length.
    # fmt: off
    def predict(
        self,
        image: Path = Input(description="The photograph to enlarge."),
        user_prompt: str = Input(default="", description="What the picture shows, in your words. May be empty: the model tags the picture by itself."),
        positive_prompt: str = Input(default="clean, high-resolution, 8k", description="Qualities to aim for, added to the prompt."),
        negative_prompt: str = Input(default="dotted, noise, blur, lowres, smooth", description="Qualities to stay away from. Acts only when cfg_scale is above 1."),
        num_inference_steps: int = Input(default=4, ge=1, le=4, description="Denoising steps. 1 is fastest; more add detail and take proportionally longer."),
        scale_factor: float = Input(default=4.0, ge=1, le=8, description="How many times larger each side gets."),
        cfg_scale: float = Input(default=1.0, ge=1, le=10, description="How strongly to follow the prompt and avoid the negative prompt. Above 1 each step costs twice as much."),
        latent_tiled_size: int = Input(default=0, ge=0, le=480, description="Side of the tiles that are denoised, in latent pixels (8 picture pixels each): 0 lets the GPU decide, else 32 to 480. Smaller needs less memory."),
        latent_tiled_overlap: int = Input(default=0, ge=0, le=240, description="Overlap of the tiles in latent pixels: 0 chooses an eighth of the tile; at most half of it."),
        color_fix: str = Input(default="wavelet", choices=["wavelet", "dwt", "adain", "none"], description="How the input's colours are given back: wavelet (the reference), dwt (faster on large pictures on a CPU), adain (overall tone only), none."),
        seed: Optional[int] = Input(default=None, ge=0, description="The same seed gives the same picture. Empty draws one and reports it."),
        output_format: str = Input(default="png", choices=["png", "webp", "jpg"], description="File format of the result. jpg has no transparency."),
        output_quality: int = Input(default=95, ge=1, le=100, description="Quality of webp and jpg; png has no loss."),
    ) -> Path:
        """Enlarge a photograph and restore it."""
        # fmt: on
        from seesr import images
        from seesr.settings import Settings

        if 0 < latent_tiled_size < 32:
            raise ValueError(f"latent_tiled_size must be 0 or between 32 and 480, got {latent_tiled_size}")
        settings = Settings(
            user_prompt=user_prompt,
            positive_prompt=positive_prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            scale_factor=scale_factor,
            cfg_scale=cfg_scale,
            latent_tiled_size=latent_tiled_size,
            latent_tiled_overlap=latent_tiled_overlap,
            color_fix=color_fix,  # type: ignore[arg-type]
            seed=seed,
            output_format=output_format,  # type: ignore[arg-type]
            output_quality=output_quality,
        )
        self._remove_last_output()
        picture = images.open_image(image)
        result = self.seesr.upscale(picture.rgb, settings)
        self.output = FilePath(tempfile.mkdtemp(prefix="seesr-")) / f"output.{output_format}"
        start = time.perf_counter()
        images.save_image(picture, result.image, self.output, settings)
        seconds = result.timings | {"file": time.perf_counter() - start}
        logging.info("Seed %d, %d tiles, %s", result.seed, result.tiles, seconds_text(seconds))
        self.record_metric("seed", result.seed)
        self.record_metric("tags", result.tags)
        self.record_metric("tiles", result.tiles)
        self.record_metric("steps", num_inference_steps)
        self.record_metric("seconds", {name: round(value, 4) for name, value in seconds.items()})
        self.record_metric("model", self.seesr.parts.name)
        self.record_metric("device", self.seesr.device)
        return Path(self.output)

    def _remove_last_output(self) -> None:
        """Cog uploads an output after predict() returns and never deletes it: the next request does."""
        if self.output is not None:
            shutil.rmtree(self.output.parent, ignore_errors=True)
            self.output = None


def choose_bundle() -> FilePath:
    """SEESR_WEIGHTS if it is set; else the real bundle where it is, else the embedded one, which is said."""
    asked = os.environ.get("SEESR_WEIGHTS")
    bundle = ROOT / (asked or FULL)
    if (bundle / "bundle.json").is_file():
        return bundle
    if asked:
        raise RuntimeError(
            f"SEESR_WEIGHTS names {asked}, where no bundle is: make it with scripts/download.py and scripts/convert.py "
            "(see README.md), or unset SEESR_WEIGHTS for the small embedded one"
        )
    logging.warning("Using the small embedded bundle: %s is not here. README.md says how to get the full model.", FULL)
    return ROOT / EMBEDDED


def seconds_text(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
