"""The Cog interface: inputs, which bundle to load, and where results go. seesr/ does the rest."""

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

from seesr import locate
from seesr.settings import Settings, check_upload

ROOT = FilePath(__file__).resolve().parent


class Inputs:
    """Every input once. Cog reads these lines as text: one literal per keyword, whatever its length."""

    image = Input(description="The photograph to enlarge.")
    images = Input(description="The photographs to enlarge, in order. All of them succeed or the request fails.")
    user_prompt = Input(default="", description="What the image shows, in your words. May be empty: the model tags the image by itself.")
    positive_prompt = Input(default="clean, high-resolution, 8k", description="Qualities to aim for, added to the prompt.")
    negative_prompt = Input(default="dotted, noise, blur, lowres, smooth", description="Qualities to avoid. Acts only when cfg_scale is above 1.")
    num_inference_steps = Input(default=4, ge=1, le=4, description="Denoising steps. 1 is fastest. Time grows linearly with the number of steps.")
    scale_factor = Input(default=4.0, ge=1, le=8, description="How many times larger each side gets.")
    target_long_side = Input(default=0, ge=0, le=8192, description="Longer side of the result in pixels, 64 to 8192 and 1 to 8 times that of the image. 0 leaves the size to scale_factor.")
    cfg_scale = Input(default=1.0, ge=0.5, le=10, description="Guidance: how strongly to follow the prompt and avoid the negative prompt. Above 1 each step costs twice as much.")
    latent_tiled_size = Input(default=0, ge=0, le=480, description="Largest side of the denoised tiles in latent pixels (8 image pixels each with the full model, 4 with the embedded bundle). 0 lets the GPU decide, else 32 to 480. Smaller tiles need less memory.")
    latent_tiled_overlap = Input(default=0, ge=0, le=240, description="Overlap of the tiles in latent pixels. 0 takes an eighth of the tile; at most half of the tile is used.")
    color_fix = Input(default="wavelet", choices=["wavelet", "dwt", "adain", "none"], description="How the input's colours are restored: wavelet (as the reference does), dwt (the same by an orthogonal wavelet), adain (mean and contrast per channel), none.")
    seed = Input(default=None, ge=0, le=9007199254740991, description="The same seed gives the same image. Empty draws a seed and reports it.")
    output_format = Input(default="png", choices=["png", "webp", "jpg", "tiff"], description="File format of the result. png and tiff keep 16 bits per channel; jpg has no transparency.")
    output_quality = Input(default=95, ge=1, le=100, description="Quality of webp and jpg; png and tiff are lossless.")
    use_kds = Input(default=False, description="Kernel density steering: denoise num_particles times with different noise, steer the particles to where most agree, and keep the most central one. Steadier between seeds. Denoising takes num_particles times as long.")
    num_particles = Input(default=4, ge=1, le=16, description="Number of particles of use_kds. Each costs one more denoising.")
    bandwidth = Input(default=0.6, ge=0.1, le=0.8, description="How alike particles must be for use_kds to average them: 0.1 leaves each nearly unchanged, 0.8 nearly averages all.")
    fidelity = Input(default=0.5, ge=0, le=1, description="0.5 is the model's own result. 1 is softer and nearer to your image; 0 is sharper and further from it.")
    fast_vae = Input(default=False, description="Encode and decode with a small autoencoder: 15 times less work there, fine detail a little softer.")
    sample_times = Input(default=1, ge=1, le=4, description="Variations of each image, with the seeds seed, seed + 1 and so on. Time grows linearly with their number.")


class Predictor(BasePredictor):
    def setup(self) -> None:  # type: ignore[override]
        """Load the bundle onto the GPU, or onto the CPU where there is none."""
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        mimetypes.add_type("image/webp", ".webp")
        self.output: Optional[FilePath] = None
        self.healthy = True
        bundle, start = choose_bundle(), time.perf_counter()
        gc.disable()  # garbage collection would take a quarter of the import's time
        from seesr.pipeline import SeeSR  # imported here: reading the interface must not cost seconds

        gc.enable()
        gc.freeze()
        imported = time.perf_counter()
        self.seesr = SeeSR.load(bundle, gpu=os.environ.get("SEESR_GPU"))
        loaded = time.perf_counter()
        self.seesr.warm_up()
        seconds = (imported - start, loaded - imported, time.perf_counter() - loaded)
        logging.info("Setup: %.1f s for imports, %.1f s for weights, %.1f s to warm up.", *seconds)

    def predict(
        self,
        image: Path = Inputs.image, user_prompt: str = Inputs.user_prompt, positive_prompt: str = Inputs.positive_prompt,
        negative_prompt: str = Inputs.negative_prompt, num_inference_steps: int = Inputs.num_inference_steps,
        scale_factor: float = Inputs.scale_factor, target_long_side: int = Inputs.target_long_side,
        cfg_scale: float = Inputs.cfg_scale, latent_tiled_size: int = Inputs.latent_tiled_size,
        latent_tiled_overlap: int = Inputs.latent_tiled_overlap, color_fix: str = Inputs.color_fix,
        seed: Optional[int] = Inputs.seed, output_format: str = Inputs.output_format,
        output_quality: int = Inputs.output_quality, use_kds: bool = Inputs.use_kds,
        num_particles: int = Inputs.num_particles, bandwidth: float = Inputs.bandwidth, fidelity: float = Inputs.fidelity,
        fast_vae: bool = Inputs.fast_vae,
    ) -> Path:
        """Enlarge a photograph and restore it."""
        inputs = {name: value for name, value in locals().items() if name not in ("self", "image")}
        check_upload("image", image)
        return self.upscale([(image, inputs)])[0]

    def upscale(self, jobs: list[tuple[Path, dict[str, Any]]], work: Any = (1,)) -> list[Path]:
        """Every file in turn, all or none, each with the other inputs of predict() by name; `work` is each one's."""
        from seesr import hardware, progress
        checked = [(file, Settings(**inputs)) for file, inputs in jobs]
        self._remove_output()
        folder = self.output = FilePath(tempfile.mkdtemp(prefix="seesr-"))
        bar = progress.ProgressBar(work)
        try:
            return [self._upscale_one(*job, folder, number, bar) for number, job in enumerate(checked)]
        except BaseException as error:  # cancelled or failed: no partial output stays
            self._remove_output()
            self.healthy = hardware.responds(self.seesr.device)
            if not self.healthy:
                raise RuntimeError(hardware.STOPPED) from error
            raise

    def healthcheck(self) -> bool:
        """Whether the worker can go on; False makes the server UNHEALTHY, so that the platform restarts it."""
        return self.healthy

    def _upscale_one(self, file: Path, settings: Settings, folder: FilePath, number: int, bar: Any) -> Path:
        from seesr import images, memory
        opened = images.open_checked(file, settings)
        result = self.seesr.upscale(opened, settings, on_progress=bar)
        name = f"output-{number + 1}" if number else "output"
        path, start = folder / f"{name}.{settings.output_format}", time.perf_counter()
        memory.retry_on_oom("file", lambda: images.save_image(opened, result, path, settings))
        result.timings["file"] = time.perf_counter() - start
        bar.finish_image()
        logging.info("Seed %d, %d tiles, %.2f s in all.", result.seed, result.tiles, sum(result.timings.values()))
        metrics = result.metrics() | {"model": self.seesr.components.name, "device": self.seesr.device}
        for name, value in (metrics | {"steps": settings.num_inference_steps}).items():
            self.record_metric(f"{name}_{number + 1}" if number else name, value)
        return Path(path)

    def _remove_output(self) -> None:
        """Cog uploads an output after predict() returns and never deletes it: the next request does."""
        if self.output is not None:
            shutil.rmtree(self.output, ignore_errors=True)
            self.output = None


class BatchPredictor(Predictor):
    """Several images per request. Put `predict: "predict.py:BatchPredictor"` into cog.yaml."""

    def predict(  # type: ignore[override]
        self,
        images: list[Path] = Inputs.images,
        user_prompt: str = Inputs.user_prompt, positive_prompt: str = Inputs.positive_prompt,
        negative_prompt: str = Inputs.negative_prompt, num_inference_steps: int = Inputs.num_inference_steps,
        scale_factor: float = Inputs.scale_factor, target_long_side: int = Inputs.target_long_side,
        cfg_scale: float = Inputs.cfg_scale, latent_tiled_size: int = Inputs.latent_tiled_size,
        latent_tiled_overlap: int = Inputs.latent_tiled_overlap, color_fix: str = Inputs.color_fix,
        seed: Optional[int] = Inputs.seed, output_format: str = Inputs.output_format,
        output_quality: int = Inputs.output_quality, use_kds: bool = Inputs.use_kds,
        num_particles: int = Inputs.num_particles, bandwidth: float = Inputs.bandwidth, fidelity: float = Inputs.fidelity,
        fast_vae: bool = Inputs.fast_vae, sample_times: int = Inputs.sample_times,
    ) -> list[Path]:
        """Enlarge photographs and restore them."""
        inputs = {name: value for name, value in locals().items() if name not in ("self", "images", "sample_times")}
        from seesr.images import open_checked
        settings = Settings(**inputs)
        if not images:
            raise ValueError("images must hold at least one image, got none")
        for number, image in enumerate(images):
            check_upload(f"images, number {number + 1},", image)
        seeds, work = [None if seed is None else seed + number for number in range(int(sample_times))], []
        for number, image in enumerate(images):  # a bad image is named before the work on the others
            try:
                work += len(seeds) * [self.seesr.predict_work(open_checked(image, settings).rgb, settings)]
            except ValueError as error:
                raise ValueError(f"images, number {number + 1}: {error}") from error
        return self.upscale([(image, inputs | {"seed": seed}) for image in images for seed in seeds], work)


def choose_bundle() -> FilePath:
    """SEESR_WEIGHTS if set; else the full bundle where it exists; else the embedded one, with a warning."""
    bundle = locate.choose_bundle(ROOT)
    if (asked := os.environ.get("SEESR_WEIGHTS")) and not locate.is_bundle(bundle):
        advice = "make it with scripts/download.py and scripts/convert.py (README.md), or unset it for the embedded one"
        raise RuntimeError(f"SEESR_WEIGHTS names {asked}, where no bundle is: {advice}")
    return bundle
