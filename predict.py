"""The Cog interface: inputs, which bundle, and where the result goes. What happens to a picture is in seesr/."""

import gc
import logging
import mimetypes
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path as FilePath
from typing import Any, Optional

from cog import BasePredictor, Input, Path

ROOT = FilePath(__file__).resolve().parent
FULL, EMBEDDED = "weights/seesr-turbo", "weights/tiny"


class Predictor(BasePredictor):
    def setup(self) -> None:  # type: ignore[override]
        """Load the bundle onto the GPU, or onto the CPU where there is none."""
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        mimetypes.add_type("image/webp", ".webp")
        self.output: Optional[FilePath] = None
        bundle, start = choose_bundle(), time.perf_counter()
        gc.disable()  # it would take a quarter of the import's time to look at what stays
        from seesr.pipeline import SeeSR  # imported here: reading the interface must not cost seconds

        gc.enable()
        gc.freeze()
        imported = time.perf_counter()
        self.seesr = SeeSR.load(bundle, gpu=os.environ.get("SEESR_GPU"))
        loaded = time.perf_counter()
        self.seesr.warm_up()
        spent = (imported - start, loaded - imported, time.perf_counter() - loaded)
        logging.info("Setup: %.1f s for imports, %.1f s for weights, %.1f s to warm up.", *spent)

    # Cog reads these lines as text: one literal per keyword, whatever its length.
    # fmt: off
    def predict(
        self,
        image: Path = Input(description="The photograph to enlarge."),
        user_prompt: str = Input(default="", description="What the picture shows, in your words. May be empty: the model tags the picture by itself."),
        positive_prompt: str = Input(default="clean, high-resolution, 8k", description="Qualities to aim for, added to the prompt."),
        negative_prompt: str = Input(default="dotted, noise, blur, lowres, smooth", description="Qualities to stay away from. Acts only when cfg_scale is above 1."),
        num_inference_steps: int = Input(default=4, ge=1, le=4, description="Denoising steps. 1 is fastest; each further one costs one more denoising."),
        scale_factor: float = Input(default=4.0, ge=1, le=8, description="How many times larger each side gets."),
        cfg_scale: float = Input(default=1.0, ge=1, le=10, description="How strongly to follow the prompt and avoid the negative prompt. Above 1 each step costs twice as much."),
        latent_tiled_size: int = Input(default=0, ge=0, le=480, description="Side of the tiles that are denoised, in latent pixels (8 picture pixels each with the real weights, 4 with the embedded ones): 0 lets the GPU decide, else 32 to 480. Smaller needs less memory."),
        latent_tiled_overlap: int = Input(default=0, ge=0, le=240, description="Overlap of the tiles in latent pixels: 0 chooses an eighth of the tile; at most half of it."),
        color_fix: str = Input(default="wavelet", choices=["wavelet", "dwt", "adain", "none"], description="How the input's colours are given back: wavelet (the reference), dwt (the same by an orthogonal wavelet), adain (overall tone only), none."),
        seed: Optional[int] = Input(default=None, ge=0, description="The same seed gives the same picture. Empty draws one and reports it."),
        output_format: str = Input(default="png", choices=["png", "webp", "jpg"], description="File format of the result. jpg has no transparency."),
        output_quality: int = Input(default=95, ge=1, le=100, description="Quality of webp and jpg; png has no loss."),
        use_kds: bool = Input(default=False, description="Kernel density steering: make the picture num_particles times with different noise, draw the runs to what most agree on, and keep the one in the middle. Steadier between seeds and a little truer, most at 4 steps; denoising takes num_particles times as long."),
        num_particles: int = Input(default=4, ge=1, le=16, description="How many runs use_kds makes. Each costs one more denoising; acts only with use_kds."),
        bandwidth: float = Input(default=0.6, ge=0.1, le=0.8, description="How alike runs must be for use_kds to draw them together: 0.1 leaves each nearly as it is, 0.8 averages all. Costs nothing; acts only with use_kds."),
        fidelity: float = Input(default=0.5, ge=0, le=1, description="How true to your picture: 0.5 is the model's own result, 1 holds back what it adds (softer, nearer to your picture), 0 brings it out (sharper, further away). Costs next to nothing."),
    ) -> Path:
        """Enlarge a photograph and restore it."""
        # fmt: on
        inputs = {name: value for name, value in locals().items() if name not in ("self", "image")}
        return self.upscale([(image, inputs)])[0]

    def upscale(self, works: list[tuple[Path, dict[str, Any]]]) -> list[Path]:
        """Every file in turn, all or none, each with the other inputs of predict() by name."""
        from seesr.settings import Settings

        for _, inputs in works:
            if 0 < (tile := inputs["latent_tiled_size"]) < 32:
                raise ValueError(f"latent_tiled_size must be 0 or between 32 and 480, got {tile}")
        checked = [(file, Settings(**inputs)) for file, inputs in works]
        self._remove_output()
        folder = self.output = FilePath(tempfile.mkdtemp(prefix="seesr-"))
        try:
            return [self._upscale_one(*work, folder, number) for number, work in enumerate(checked)]
        except BaseException:  # cancelled or failed: nothing half-written stays
            self._remove_output()
            raise

    def _upscale_one(self, file: Path, settings: Any, folder: FilePath, number: int) -> Path:
        from seesr import images
        from seesr.memory import attempt

        picture = images.open_image(file)
        width, height = (round(settings.scale_factor * side) for side in picture.rgb.size)
        images.check_output((width, height), settings)  # before the work, not after it
        result = self.seesr.upscale(picture.rgb, settings)
        name = f"output-{number + 1}" if number else "output"
        path, start = folder / f"{name}.{settings.output_format}", time.perf_counter()
        attempt("file", lambda: images.save_image(picture, result.image, path, settings))
        result.timings["file"] = time.perf_counter() - start
        logging.info("Seed %d, %d tiles, %.2f s in all.", result.seed, result.tiles, sum(result.timings.values()))
        about = {"steps": settings.num_inference_steps, "model": self.seesr.parts.name, "device": self.seesr.device}
        for name, value in (result.metrics() | about).items():
            self.record_metric(f"{name}_{number + 1}" if number else name, value)
        return Path(path)

    def _remove_output(self) -> None:
        """Cog uploads an output after predict() returns and never deletes it: the next request does."""
        if self.output is not None:
            shutil.rmtree(self.output, ignore_errors=True)
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
