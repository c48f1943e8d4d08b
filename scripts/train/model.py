"""The networks of the embedded bundle, and one module that holds them all with what a training step needs of them."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ram.model import Ram, RamConfig
from ram.tagger import Tagger
from scripts.train import structured_start
from scripts.train.data import TAGS, Batch
from seesr.bundle import Components, ControlImageEmbedding
from seesr.color_fix import low_frequencies
from seesr.denoise import embed_control_image, run_controlnet_unet
from seesr.image_attention import add_image_attention
from seesr.schedule import Schedule

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

LATENT_CHANNELS = 16
TEXT_DIM = 64
TOKEN_DIM = 128
POSITIVE = "clean, high-resolution, 8k"
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "clip_sample": False,
}


def build_vae() -> AutoencoderKL:
    """16 channels at a quarter of the image size: at 4x the latent grid is the pixel grid of the input."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 24, 24),
        layers_per_block=0,  # type: ignore[arg-type]
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=512,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
    )


def build_unet() -> UNet2DConditionModel:
    """Three levels with attention at the deepest only; at full latent size it would cost more than all the rest."""
    return UNet2DConditionModel(
        sample_size=128,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=2,  # diffusers reads it as the number of heads
        norm_num_groups=4,
        use_linear_projection=True,
    )


def build_models() -> tuple[AutoencoderKL, UNet2DConditionModel, ControlNetModel]:
    """All three with the structured start. `structured_start.connect` completes the UNet."""
    vae, unet = build_vae(), build_unet()
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(16, 24, 48), load_weights_from_unet=False
    )
    for model in (unet, controlnet):
        add_image_attention(model, TOKEN_DIM)
    structured_start.start_vae(vae)
    structured_start.start_controlnet(controlnet)
    structured_start.start_unet(unet)
    controlnet.controlnet_cond_embedding.__class__ = ControlImageEmbedding
    return vae, unet, controlnet


def build_tagger(tags: int) -> Ram:
    return Ram(
        RamConfig(
            image_size=96,
            embed_dim=32,
            depths=(2, 2, 2),
            num_heads=(1, 2, 4),
            window_size=6,
            token_dim=TOKEN_DIM,
            tag_dim=64,
            tag_mlp_dim=128,
            tags=tags,
        )
    )


def build_text_encoder() -> CLIPTextModel:
    """CLIP's vocabulary at width 64. It is not trained: random states tell prompts apart well enough."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_DIM,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=0,
        )
    )


class Bundle(nn.Module):
    """All networks of the embedded bundle. Its state_dict is what checkpoints hold."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.vae, self.unet, self.controlnet = build_models()
        self.ram = build_tagger(len(TAGS))
        nn.init.normal_(self.ram.label_embed, std=0.5)
        self.text = build_text_encoder().requires_grad_(False)
        self.tokenizer = tokenizer
        self.schedule = Schedule(DDPMScheduler(**SCHEDULER))
        self.scale, self.shift = 1.0, 0.0
        self.tagger = Tagger(self.ram, TAGS, torch.full((len(TAGS),), 0.5))
        self._states: dict[str, Tensor] = {}
        structured_start.mask_constants(self.vae, self.unet)
        for model in (self.vae, self.unet, self.controlnet):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def adopt(self, components: Components) -> None:
        """Start from the weights of a finished bundle. Of a tagger with other tags only the Swin is taken."""
        tagger = components.tagger
        pairs: list[tuple[nn.Module, nn.Module]] = [
            (self.vae, components.vae),
            (self.unet, components.unet),
            (self.controlnet, components.controlnet),
            (self.text, components.text_encoder),
            (self.ram.swin, tagger.model.swin),
            (self.ram.image_proj, tagger.model.image_proj),
        ]
        if tagger.tags == self.tagger.tags:
            pairs.append((self.ram, tagger.model))
            self.tagger.thresholds = tagger.thresholds
        for ours, theirs in pairs:
            ours.load_state_dict(theirs.state_dict())
        config = components.vae.config
        self.scale, self.shift = config["scaling_factor"], config["shift_factor"]

    def move(self, device: torch.device) -> None:
        """To `device`. The cached text states, which are on another one, are dropped."""
        self._states.clear()
        self.to(device)

    @torch.no_grad()
    def text_states(self, prompts: list[str]) -> Tensor:
        """B prompts -> (B, 77, D), cached"""
        for prompt in prompts:
            if prompt not in self._states:
                ids = self.tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
                self._states[prompt] = self.text(torch.tensor([ids], device=self.device)).last_hidden_state
        return torch.cat([self._states[prompt] for prompt in prompts])

    def tokens(self, small: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> image tokens (B, L, D)"""
        return self.ram.tokens(self.tagger.preprocess(small))

    def x0(self, latent: Tensor, t: int, control: Tensor, text: Tensor, tokens: Tensor) -> Tensor:
        """One ControlNet and UNet call -> the predicted clean latent; `control` is (B, 3, H, W) in [-1, 1]"""
        embedding = embed_control_image(self.controlnet, control / 2 + 0.5)
        output = run_controlnet_unet(self.controlnet, self.unet, latent, t, embedding, text, tokens)
        return self.schedule.predict_x0(latent, output, t)

    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w), scaled -> (B, 3, H, W) in [-1, 1]"""
        return self.vae.decode(latent / self.scale + self.shift).sample  # type: ignore[union-attr]

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> a sample of the posterior (B, C, h, w), scaled"""
        return (self.vae.encode(image).latent_dist.sample() - self.shift) * self.scale  # type: ignore[union-attr]

    @torch.no_grad()
    def upscale(self, batch: Batch, steps: int, seed: int = 5) -> Tensor:
        """The sampler of seesr.pipeline with its colour fix -> (B, 3, H, W) in [-1, 1], on the CPU"""
        torch.manual_seed(seed)
        batch = batch.to(self.device)
        tokens = self.tokens(batch.small)
        likely = self.ram.logits(tokens).sigmoid().cpu() > self.tagger.thresholds
        prompts = (", ".join([*(TAGS[tag] for tag in row.nonzero().flatten().tolist()), POSITIVE]) for row in likely)
        text = self.text_states(list(prompts))
        latent = self.encode(batch.control)
        latent = self.schedule.add_noise(latent, torch.randn_like(latent), 999)
        times = self.schedule.timesteps(steps)
        for t, previous in zip(times, [*times[1:], -1], strict=True):
            x0 = self.x0(latent, t, batch.control, text, tokens)
            latent = x0 if previous < 0 else self.schedule.step(latent, x0, t, previous, torch.randn_like(latent))
        image = self.decode(latent)
        return (image + low_frequencies(batch.control - image)).clamp(-1, 1).cpu()
