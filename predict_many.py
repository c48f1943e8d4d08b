"""The same model for a list of pictures per request: put `predict: "predict_many.py:ManyPredictor"` into cog.yaml."""

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
        num_inference_steps: int = Input(default=4, ge=1, le=4, description="Denoising steps. 1 is fastest; more add detail and take proportionally longer."),
        scale_factor: float = Input(default=4.0, ge=1, le=8, description="How many times larger each side gets."),
        cfg_scale: float = Input(default=1.0, ge=1, le=10, description="How strongly to follow the prompt and avoid the negative prompt. Above 1 each step costs twice as much."),
        latent_tiled_size: int = Input(default=0, ge=0, le=480, description="Side of the tiles that are denoised, in latent pixels (8 picture pixels each): 0 lets the GPU decide, else 32 to 480. Smaller needs less memory."),
        latent_tiled_overlap: int = Input(default=0, ge=0, le=240, description="Overlap of the tiles in latent pixels: 0 chooses an eighth of the tile; at most half of it."),
        color_fix: str = Input(default="wavelet", choices=["wavelet", "dwt", "adain", "none"], description="How the input's colours are given back: wavelet (the reference), dwt (the same by an orthogonal wavelet), adain (overall tone only), none."),
        seed: Optional[int] = Input(default=None, ge=0, description="The same seed gives the same pictures. Empty draws one for each and reports it."),
        output_format: str = Input(default="png", choices=["png", "webp", "jpg"], description="File format of the results. jpg has no transparency."),
        output_quality: int = Input(default=95, ge=1, le=100, description="Quality of webp and jpg; png has no loss."),
        use_kds: bool = Input(default=False, description="Kernel density steering: denoise several times and keep what most runs agree on. Costs num_particles times the denoising."),
        num_particles: int = Input(default=4, ge=1, le=16, description="Runs of the picture with use_kds. More agree better and take proportionally longer."),
        bandwidth: float = Input(default=0.3, ge=0.1, le=0.8, description="How near runs must be to count as agreeing with use_kds: low keeps detail, high averages."),
    ) -> list[Path]:
        """Enlarge photographs and restore them."""
        # fmt: on
        from seesr.images import open_image

        inputs = {name: value for name, value in locals().items() if name not in ("self", "images", "open_image")}
        if not images:
            raise ValueError("images must hold at least one picture, got none")
        for number, image in enumerate(images):
            try:
                open_image(image)  # a bad one is told before the work on the others
            except ValueError as error:
                raise ValueError(f"images, number {number + 1}: {error}") from error
        return self.upscale(images, inputs)
