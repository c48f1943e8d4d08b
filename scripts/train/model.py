"""A bundle in training: all its networks in one module, with what a training step needs of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scripts.train.data import Batch
from seesr.bundle import Components
from seesr.color_fix import low_frequencies
from seesr.denoise import embed_control_image, run_controlnet_unet
from seesr.schedule import Schedule
from seesr.settings import Settings

from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D


class Bundle(nn.Module):
    """The networks of `components`, in float32. UNet, ControlNet and decoder are trained, in place.

    Its state_dict is what checkpoints hold.
    """

    def __init__(self, components: Components) -> None:
        super().__init__()
        self.components, self.tagger = components, components.tagger
        self.unet, self.controlnet, self.vae = components.unet, components.controlnet, components.vae
        self.text, self.ram = components.text_encoder, components.tagger.model
        self.schedule = Schedule(components.scheduler)
        self.scale, self.shift = (components.vae.config[f"{name}_factor"] for name in ("scaling", "shift"))
        self.requires_grad_(False)
        for model in (self.unet, self.controlnet, self.vae.decoder):
            model.requires_grad_(True)  # type: ignore[union-attr]
        for model in (self.unet, self.controlnet, self.vae):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        mask_constants(self.vae.decoder, self.unet)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @torch.no_grad()
    def text_states(self, prompts: list[str]) -> Tensor:
        """B prompts -> (B, 77, D)"""
        settings: dict[str, Any] = {"padding": "max_length", "max_length": 77, "truncation": True}
        ids = [self.components.tokenizer(prompt, **settings).input_ids for prompt in prompts]
        return torch.cat([self.text(torch.tensor([row], device=self.device)).last_hidden_state for row in ids])

    @torch.no_grad()
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

    def noisy(self, control: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> its latent (B, C, h, w) with the noise of the first step"""
        latent = self.encode(control)
        return self.schedule.add_noise(latent, torch.randn_like(latent), self.schedule.start)

    @torch.no_grad()
    def upscale(self, batch: Batch, steps: int, seed: int = 5) -> Tensor:
        """The sampler of seesr.pipeline with its colour fix, for one image -> (1, 3, H, W) in [-1, 1], on the CPU"""
        torch.manual_seed(seed)
        batch = batch.to(self.device)
        tags, tokens = self.tagger(batch.small)
        text = self.text_states([", ".join([*tags, Settings.positive_prompt])])
        latent = self.noisy(batch.control)
        times = self.schedule.timesteps(steps)
        for t, previous in zip(times, [*times[1:], -1], strict=True):
            x0 = self.x0(latent, t, batch.control, text, tokens)
            latent = x0 if previous < 0 else self.schedule.step(latent, x0, t, previous, torch.randn_like(latent))
        image = self.decode(latent)
        return (image + low_frequencies(batch.control - image)).clamp(-1, 1).cpu()


def mask_constants(decoder: Any, unet: Any) -> None:
    """Keep gradients out of all weights that write or read the first two channels.

    The embedded bundle was started with constants there, which fix the scale of each GroupNorm that they pass.
    """
    last = unet.up_blocks[-1].resnets[-1]
    resnets = [module for module in decoder.modules() if isinstance(module, ResnetBlock2D)]
    upsamplers: list[Any] = [module.conv for module in decoder.modules() if isinstance(module, Upsample2D)]
    conv: Any
    for conv in (decoder.conv_in, last.conv_shortcut, last.conv2, *(resnet.conv2 for resnet in resnets), *upsamplers):
        conv.weight.register_hook(_zero_first_two(0))
        conv.bias.register_hook(_zero_first_two(0))
    for conv in (decoder.conv_out, unet.conv_out, *(resnet.conv1 for resnet in resnets), *upsamplers):
        conv.weight.register_hook(_zero_first_two(1))


def _zero_first_two(dimension: int) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.index_fill(dimension, torch.tensor([0, 1], device=gradient.device), 0)
