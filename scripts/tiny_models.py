"""The embedded bundle's architecture, and a start for its training that already equals bicubic.

The structured start uses silu(x) - silu(-x) = x: pairs of channels (+c, -c) carry the colours unchanged through
convolutions and activations, and two constant channels (+K, -K) pin the scale of each GroupNorm they pass. The
constants' gradients are masked, so the colours stay carried while everything else learns.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ram.model import Ram, RamConfig
from seesr.image_attention import add_image_attention

LATENT_CHANNELS = 16
TEXT_DIM = 64
TOKEN_DIM = 128
VAE_CONSTANT, UNET_CONSTANT = 8.0, 4.0

Tap = tuple[int, int, float]
CENTRE: list[Tap] = [(1, 1, 1.0)]
AREA: list[Tap] = [(y, x, 0.25) for y in (1, 2) for x in (1, 2)]
AREA_UNPADDED: list[Tap] = [(y, x, 0.25) for y in (0, 1) for x in (0, 1)]
BINOMIAL: list[Tap] = [(y, x, a * b) for y, a in enumerate((0.25, 0.5, 0.25)) for x, b in enumerate((0.25, 0.5, 0.25))]


def build_vae() -> AutoencoderKL:
    """4x latents of 16 channels: the latent grid is the grid of the input picture itself."""
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
    """Three levels, attention at the deepest only (at full latent size it would cost more than all the rest)."""
    unet = UNet2DConditionModel(
        sample_size=128,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=2,  # the number of heads, whatever its name says
        norm_num_groups=4,
        use_linear_projection=True,
    )
    return unet


def build_models() -> tuple[AutoencoderKL, UNet2DConditionModel, ControlNetModel]:
    """All three with the structured start; the UNet still lacks its map from colours to latents (`connect`)."""
    vae, unet = build_vae(), build_unet()
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(16, 24, 48), load_weights_from_unet=False
    )
    for model in (unet, controlnet):
        add_image_attention(model, TOKEN_DIM)
    start_vae(vae)
    start_controlnet(controlnet)
    start_unet(unet)
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
    """CLIP's own vocabulary at width 64. It stays as it starts: random states tell prompts apart well enough."""
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


def random_weights(conv: nn.Conv2d, gain: float, keep_constants: bool = False) -> None:
    """Fan-in scaled normal weights and no bias; with `keep_constants` blind to the two constant channels."""
    conv.weight.normal_(0, gain / math.sqrt(conv.weight[0].numel()))
    if conv.bias is not None:
        conv.bias.zero_()
    if keep_constants:
        conv.weight[:, :2] = 0


def carry_pairs(conv: nn.Conv2d, source: str, taps: Sequence[Tap], first_out: int, first_in: int) -> None:
    """Write three colours as pairs +c, -c to channels `first_out`...; `source` says how the input holds them.

    "colours": one channel each. "pairs": as pairs that no activation touched. "silu": as pairs behind a SiLU.
    """
    for colour in range(3):
        for sign, out in ((1, first_out + 2 * colour), (-1, first_out + 2 * colour + 1)):
            conv.weight[out] = 0
            if conv.bias is not None:
                conv.bias[out] = 0
            for y, x, weight in taps:
                plus, minus = first_in + 2 * colour, first_in + 2 * colour + 1
                if source == "silu":
                    conv.weight[out, plus, y, x], conv.weight[out, minus, y, x] = sign * weight, -sign * weight
                elif source == "pairs":
                    conv.weight[out, plus if sign > 0 else minus, y, x] = weight
                else:
                    conv.weight[out, first_in + colour, y, x] = sign * weight


def set_constants(conv: nn.Conv2d, value: float) -> None:
    assert conv.bias is not None
    conv.weight[:2] = 0
    conv.bias[0], conv.bias[1] = value, -value


def pass_constants(conv: nn.Conv2d, tap: int) -> None:
    assert conv.bias is not None
    conv.weight[:2], conv.bias[:2] = 0, 0
    for channel in (0, 1):
        conv.weight[channel, channel, tap, tap] = 1


def resnets(model: nn.Module) -> Iterable[Any]:
    return (module for module in model.modules() if isinstance(module, ResnetBlock2D))


def resamplers(block: Any) -> list[Any]:
    return list(getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or [])


@torch.no_grad()
def start_vae(vae: AutoencoderKL) -> None:
    encoder: Any = vae.encoder
    decoder: Any = vae.decoder
    scale = math.sqrt(2 * VAE_CONSTANT**2 / vae.config["block_out_channels"][0])
    for resnet in resnets(vae):
        random_weights(resnet.conv1, 1.4, keep_constants=True)
        random_weights(resnet.conv2, 0.02)
        resnet.conv2.weight[:2] = 0
        resnet.norm1.weight.fill_(scale)
    random_weights(encoder.conv_in, 2.0)
    set_constants(encoder.conv_in, VAE_CONSTANT)
    carry_pairs(encoder.conv_in, "colours", CENTRE, 2, 0)
    for block, taps, tap in [(b, AREA_UNPADDED, 0) for b in encoder.down_blocks] + [
        (b, BINOMIAL, 1) for b in decoder.up_blocks
    ]:
        for resampler in resamplers(block):
            random_weights(resampler.conv, 1.0, keep_constants=True)
            pass_constants(resampler.conv, tap)
            carry_pairs(resampler.conv, "pairs", taps, 2, 2)
    encoder.conv_norm_out.weight.fill_(scale)
    random_weights(encoder.conv_out, 1.4, keep_constants=True)
    channels = vae.config["latent_channels"]
    encoder.conv_out.weight[:3] = 0
    for colour in range(3):
        encoder.conv_out.weight[colour, 2 + 2 * colour, 1, 1] = 1
        encoder.conv_out.weight[colour, 3 + 2 * colour, 1, 1] = -1
    encoder.conv_out.weight[channels:] = 0
    encoder.conv_out.bias[channels:] = -7.0  # log variance: a posterior that hardly spreads
    random_weights(decoder.conv_in, 1.4)
    set_constants(decoder.conv_in, VAE_CONSTANT)
    carry_pairs(decoder.conv_in, "colours", CENTRE, 2, 0)
    decoder.conv_norm_out.weight.fill_(scale)
    random_weights(decoder.conv_out, 0.2, keep_constants=True)
    for colour in range(3):
        decoder.conv_out.weight[colour, :8] = 0
        decoder.conv_out.weight[colour, 2 + 2 * colour, 1, 1] = 1
        decoder.conv_out.weight[colour, 3 + 2 * colour, 1, 1] = -1


@torch.no_grad()
def start_controlnet(controlnet: ControlNetModel) -> None:
    embedding: Any = controlnet.controlnet_cond_embedding
    random_weights(embedding.conv_in, 1.7)
    carry_pairs(embedding.conv_in, "colours", CENTRE, 0, 0)
    embedding.conv_in.weight[:6] *= 2  # the picture comes in [0, 1], the pairs carry [-1, 1]
    for out in range(6):
        embedding.conv_in.bias[out] = -1 if out % 2 == 0 else 1
    for conv in embedding.blocks:
        random_weights(conv, 1.7)
        carry_pairs(conv, "silu", AREA if conv.stride[0] == 2 else CENTRE, 0, 0)
    random_weights(embedding.conv_out, 1.0)
    embedding.conv_out.weight[:2] = 0
    carry_pairs(embedding.conv_out, "silu", CENTRE, 2, 0)
    random_weights(controlnet.conv_in, 0.2)
    controlnet.conv_in.weight[:8] = 0
    for tap in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        tap.weight.zero_()
        tap.weight[:, :, 0, 0] = torch.eye(tap.weight.shape[0])
        tap.bias.zero_()
    calm_blocks(controlnet)


@torch.no_grad()
def start_unet(unet: UNet2DConditionModel) -> None:
    """Carry the ControlNet's colour pairs from the first skip to `conv_out`."""
    width = unet.config["block_out_channels"][0]
    group = width // unet.config["norm_num_groups"]
    random_weights(unet.conv_in, 0.2)
    unet.conv_in.weight[:8] = 0
    calm_blocks(unet)
    blocks: Any = unet.up_blocks
    last = blocks[-1].resnets[-1]
    shortcut = last.conv_shortcut
    skip = shortcut.weight.shape[1] - width
    shortcut.weight[:8], shortcut.bias[:8] = 0, 0
    shortcut.bias[0], shortcut.bias[1] = UNET_CONSTANT, -UNET_CONSTANT
    for channel in range(2, 8):
        shortcut.weight[channel, skip + channel, 0, 0] = 1
    random_weights(last.conv2, 0.05)
    last.conv2.weight[:2] = 0
    norm: Any = unet.conv_norm_out
    norm.weight[:8] = math.sqrt(2 * UNET_CONSTANT**2 / group + 0.3)
    random_weights(unet.conv_out, 0.1, keep_constants=True)


def calm_blocks(model: nn.Module) -> None:
    """Resnets and both attentions start as small corrections, not as noise."""
    for resnet in resnets(model):
        random_weights(resnet.conv2, 0.3)
    for module in model.modules():
        if isinstance(module, Transformer2DModel):
            module.proj_out.weight.mul_(0.1)


@torch.no_grad()
def connect(unet: UNet2DConditionModel, weight: Tensor, bias: Tensor) -> None:
    """Let `conv_out` map the carried colours to latents: weight (C, 3, 3, 3), bias (C,), of `fit_latents`.

    Negated, because at t = 999 a v prediction is -x0 but for a 7 % share of the noise.
    """
    unet.conv_out.weight[:, :8] = 0
    for colour in range(3):
        unet.conv_out.weight[:, 2 + 2 * colour] = -weight[:, colour]
        unet.conv_out.weight[:, 3 + 2 * colour] = weight[:, colour]
    assert unet.conv_out.bias is not None
    unet.conv_out.bias.copy_(-bias)


@torch.no_grad()
def fit_latents(latent: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares from 4x4 means of (B, 3, H, W) in [-1, 1] to (B, C, H/4, W/4): weight (C, 3, 3, 3), bias (C,)"""
    small = nn.functional.avg_pool2d(picture, 4)
    inputs = nn.functional.unfold(small, 3).transpose(1, 2).reshape(-1, 27)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
    targets = latent[:, :, 1:-1, 1:-1].permute(0, 2, 3, 1).reshape(-1, latent.shape[1]).double()
    ridge = 1e-5 * len(inputs) * torch.eye(28, dtype=torch.float64)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets).float()
    return solution[:27].T.reshape(-1, 3, 3, 3).contiguous(), solution[27].contiguous()


@torch.no_grad()
def calibrate(norm: nn.GroupNorm, run: Callable[[], object], channels: int | None = None) -> None:
    """Set a GroupNorm's weight so that on what `run` computes it changes no scale (its first `channels` only)."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].unflatten(1, (norm.num_groups, -1)).flatten(2).std(2).mean(0))

    handle = norm.register_forward_pre_hook(hook)
    run()
    handle.remove()
    scale = seen[0].repeat_interleave(norm.num_channels // norm.num_groups)
    norm.weight[:channels] = scale[:channels]


def mask_constants(vae: AutoencoderKL, unet: UNet2DConditionModel) -> None:
    """Keep gradients out of everything that writes or reads the constant channels."""
    encoder: Any = vae.encoder
    decoder: Any = vae.decoder
    for resnet in resnets(vae):
        _mask(resnet.conv1, rows=False)
        _mask(resnet.conv2, columns=False)
    for block in [*encoder.down_blocks, *decoder.up_blocks]:
        for resampler in resamplers(block):
            _mask(resampler.conv)
    for conv in (encoder.conv_in, decoder.conv_in):
        _mask(conv, columns=False)
    for conv in (encoder.conv_out, decoder.conv_out, unet.conv_out):
        _mask(conv, rows=False)
    blocks: Any = unet.up_blocks
    _mask(blocks[-1].resnets[-1].conv_shortcut, columns=False)
    _mask(blocks[-1].resnets[-1].conv2, columns=False)


def _mask(conv: nn.Conv2d, rows: bool = True, columns: bool = True) -> None:
    def weight_hook(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        if columns:
            gradient[:, :2] = 0
        if rows:
            gradient[:2] = 0
        return gradient

    def bias_hook(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:2] = 0
        return gradient

    conv.weight.register_hook(weight_hook)
    if rows and conv.bias is not None:
        conv.bias.register_hook(bias_hook)
