"""The same model for a list of pictures, and variations of each, per request.

Put `predict: "predict_many.py:ManyPredictor"` into cog.yaml.
"""

from typing import Optional

from cog import Input, Path

from predict import Predictor


class ManyPredictor(Predictor):
    # Cog reads these lines as text: one literal per keyword, whatever its length.
    # fmt: off
    def predict(  # type: ignore[override]
        self,
        images: list[Path] = Input(description="The photographs to enlarge, in turn. All of them succeed or the request fails."),
        user_prompt: str = Input(default="", description="What the pictures show, in your words. May be empty: the model tags each picture by itself."),
        positive_prompt: str = Input(default="clean, high-resolution, 8k", description="Qualities to aim for, added to the prompt."),
        negative_prompt: str = Input(default="dotted, noise, blur, lowres, smooth", description="Qualities to stay away from. Acts only when cfg_scale is above 1."),
        num_inference_steps: int = Input(default=4, ge=1, le=4, description="Denoising steps. 1 is fastest; each further one costs one more denoising."),
        scale_factor: float = Input(default=4.0, ge=1, le=8, description="How many times larger each side gets."),
        cfg_scale: float = Input(default=1.0, ge=1, le=10, description="How strongly to follow the prompt and avoid the negative prompt. Above 1 each step costs twice as much."),
        latent_tiled_size: int = Input(default=0, ge=0, le=480, description="Side of the tiles that are denoised, in latent pixels (8 picture pixels each with the real weights, 4 with the embedded ones): 0 lets the GPU decide, else 32 to 480. Smaller needs less memory."),
        latent_tiled_overlap: int = Input(default=0, ge=0, le=240, description="Overlap of the tiles in latent pixels: 0 chooses an eighth of the tile; at most half of it."),
        color_fix: str = Input(default="wavelet", choices=["wavelet", "dwt", "adain", "none"], description="How the input's colours are given back: wavelet (the reference), dwt (the same by an orthogonal wavelet), adain (overall tone only), none."),
        seed: Optional[int] = Input(default=None, ge=0, description="The same seed gives the same pictures. Empty draws one for each and reports it."),
        output_format: str = Input(default="png", choices=["png", "webp", "jpg"], description="File format of the results. jpg has no transparency."),
        output_quality: int = Input(default=95, ge=1, le=100, description="Quality of webp and jpg; png has no loss."),
        use_kds: bool = Input(default=False, description="Kernel density steering: make the picture num_particles times with different noise, draw the runs to what most agree on, and keep the one in the middle. Steadier between seeds and a little truer, most at 4 steps; denoising takes num_particles times as long."),
        num_particles: int = Input(default=4, ge=1, le=16, description="How many runs use_kds makes. Each costs one more denoising; acts only with use_kds."),
        bandwidth: float = Input(default=0.6, ge=0.1, le=0.8, description="How alike runs must be for use_kds to draw them together: 0.1 leaves each nearly as it is, 0.8 averages all. Costs nothing; acts only with use_kds."),
        fidelity: float = Input(default=0.5, ge=0, le=1, description="How true to your picture: 0.5 is the model's own result, 1 holds back what it adds (softer, nearer to your picture), 0 brings it out (sharper, further away). Costs next to nothing."),
        sample_times: int = Input(default=1, ge=1, le=4, description="Variations of each picture, from the seeds seed, seed + 1 and so on. Each takes as long as the first."),
    ) -> list[Path]:
        """Enlarge photographs and restore them."""
        # fmt: on
        inputs = {name: value for name, value in locals().items() if name not in ("self", "images", "sample_times")}
        from seesr.images import check_output, open_image
        from seesr.pipeline import working_size
        from seesr.settings import Settings

        settings = Settings(**inputs)
        if not images:
            raise ValueError("images must hold at least one picture, got none")
        for number, image in enumerate(images):
            try:
                width, height = open_image(image).rgb.size  # a bad one is told before the work on the others
                target, _ = working_size((height, width), scale_factor, process_size=1)
                check_output((target[1], target[0]), settings)
            except ValueError as error:
                raise ValueError(f"images, number {number + 1}: {error}") from error
        seeds = [None if seed is None else seed + number for number in range(sample_times)]
        return self.upscale([(image, inputs | {"seed": seed}) for image in images for seed in seeds])
