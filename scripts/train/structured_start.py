"""Initial weights that already equal bicubic resizing.

The structured start uses silu(x) - silu(-x) = x: pairs of channels (+c, -c) carry the colours unchanged through
convolutions and activations, and two constant channels (+K, -K) fix the scale of each GroupNorm that they pass.
Gradients of the constant channels are masked, so the colours pass while everything else is trained.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

VAE_CONSTANT, UNET_CONSTANT = 8.0, 4.0

Tap = tuple[int, int, float]
"""Row and column in a 3x3 kernel, and the weight there."""
CENTRE: list[Tap] = [(1, 1, 1.0)]
AREA: list[Tap] = [(y, x, 0.25) for y in (1, 2) for x in (1, 2)]
AREA_UNPADDED: list[Tap] = [(y, x, 0.25) for y in (0, 1) for x in (0, 1)]
BINOMIAL: list[Tap] = [(y, x, a * b) for y, a in enumerate((0.25, 0.5, 0.25)) for x, b in enumerate((0.25, 0.5, 0.25))]


def random_weights(conv: nn.Conv2d, gain: float, keep_constants: bool = False) -> None:
    """Normal weights scaled by the fan-in, and no bias; zero for the constant channels if `keep_constants`."""
    conv.weight.normal_(0, gain / math.sqrt(conv.weight[0].numel()))
    if conv.bias is not None:
        conv.bias.zero_()
    if keep_constants:
        conv.weight[:, :2] = 0


def carry_pairs(conv: nn.Conv2d, source: str, taps: Sequence[Tap], first_out: int, first_in: int) -> None:
    """Write three colours as pairs +c, -c to the channels from `first_out` on.

    `source` says how the input holds them: "colours", one channel each; "pairs", before an activation; "silu", pairs
    after a SiLU.
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
    """Write +value and -value to the constant channels."""
    assert conv.bias is not None
    conv.weight[:2] = 0
    conv.bias[0], conv.bias[1] = value, -value


def pass_constants(conv: nn.Conv2d, tap: int) -> None:
    """Copy the constant channels from position (tap, tap) of the kernel."""
    assert conv.bias is not None
    conv.weight[:2], conv.bias[:2] = 0, 0
    for channel in (0, 1):
        conv.weight[channel, channel, tap, tap] = 1


def read_pairs(conv: nn.Conv2d) -> None:
    """Let the first three outputs of a convolution be the colours of pairs in channels 2 to 7."""
    for colour in range(3):
        conv.weight[colour, 2 + 2 * colour, 1, 1] = 1
        conv.weight[colour, 3 + 2 * colour, 1, 1] = -1


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
    down, up = (encoder.down_blocks, AREA_UNPADDED, 0), (decoder.up_blocks, BINOMIAL, 1)
    for blocks, taps, tap in (down, up):
        for resampler in (resampler for block in blocks for resampler in resamplers(block)):
            random_weights(resampler.conv, 1.0, keep_constants=True)
            pass_constants(resampler.conv, tap)
            carry_pairs(resampler.conv, "pairs", taps, 2, 2)
    encoder.conv_norm_out.weight.fill_(scale)
    random_weights(encoder.conv_out, 1.4, keep_constants=True)
    channels = vae.config["latent_channels"]
    encoder.conv_out.weight[:3] = 0
    read_pairs(encoder.conv_out)
    encoder.conv_out.weight[channels:] = 0
    encoder.conv_out.bias[channels:] = -7.0  # log variance: a posterior of nearly no spread
    random_weights(decoder.conv_in, 1.4)
    set_constants(decoder.conv_in, VAE_CONSTANT)
    carry_pairs(decoder.conv_in, "colours", CENTRE, 2, 0)
    decoder.conv_norm_out.weight.fill_(scale)
    random_weights(decoder.conv_out, 0.2, keep_constants=True)
    decoder.conv_out.weight[:, :8] = 0
    read_pairs(decoder.conv_out)


@torch.no_grad()
def start_controlnet(controlnet: ControlNetModel) -> None:
    embedding: Any = controlnet.controlnet_cond_embedding
    random_weights(embedding.conv_in, 1.7)
    carry_pairs(embedding.conv_in, "colours", CENTRE, 0, 0)
    embedding.conv_in.weight[:6] *= 2  # the image comes in [0, 1], the pairs carry [-1, 1]
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
    for conv in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        conv.weight.zero_()
        conv.weight[:, :, 0, 0] = torch.eye(conv.weight.shape[0])
        conv.bias.zero_()
    calm_blocks(controlnet)


@torch.no_grad()
def start_unet(unet: UNet2DConditionModel) -> None:
    """Carry the colour pairs of the ControlNet from the first skip connection to `conv_out`."""
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
    """Make resnets and both attentions start as small corrections."""
    for resnet in resnets(model):
        random_weights(resnet.conv2, 0.3)
    for module in model.modules():
        if isinstance(module, Transformer2DModel):
            module.proj_out.weight.mul_(0.1)


@torch.no_grad()
def connect(unet: UNet2DConditionModel, latent: Tensor, image: Tensor) -> None:
    """Let `conv_out` map the carried colours to latents, fitted to examples.

    `latent` (B, C, H/4, W/4) belongs to `image` (B, 3, H, W) in [-1, 1]. Least squares from 3x3 of its 4x4 means. The
    sign is negative: at t = 999 a v prediction is -x0 up to 7 % of the noise.
    """
    inputs = nn.functional.unfold(nn.functional.avg_pool2d(image, 4), 3).transpose(1, 2).reshape(-1, 27)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1).double()
    targets = latent[:, :, 1:-1, 1:-1].permute(0, 2, 3, 1).reshape(-1, latent.shape[1]).double()
    ridge = 1e-5 * len(inputs) * torch.eye(28, dtype=torch.float64)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets).float()
    weight = solution[:27].T.reshape(-1, 3, 3, 3)
    unet.conv_out.weight[:, :8] = 0
    unet.conv_out.weight[:, 2:8:2], unet.conv_out.weight[:, 3:8:2] = -weight, weight
    assert unet.conv_out.bias is not None
    unet.conv_out.bias.copy_(-solution[27])


@torch.no_grad()
def calibrate(norm: nn.GroupNorm, run: Callable[[], object], channels: int | None = None) -> None:
    """Set the weight of a GroupNorm to the scale of its input in `run`, so that it changes no scale.

    Of the first `channels` only (None: of all).
    """
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].unflatten(1, (norm.num_groups, -1)).flatten(2).std(2).mean(0))

    handle = norm.register_forward_pre_hook(hook)
    run()
    handle.remove()
    scale = seen[0].repeat_interleave(norm.num_channels // norm.num_groups)
    norm.weight[:channels] = scale[:channels]


def mask_constants(vae: AutoencoderKL, unet: UNet2DConditionModel) -> None:
    """Keep gradients out of all weights that write or read the constant channels."""
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
    def mask(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        if rows:
            gradient[:2] = 0
        if columns and gradient.ndim > 1:
            gradient[:, :2] = 0
        return gradient

    conv.weight.register_hook(mask)
    if rows and conv.bias is not None:
        conv.bias.register_hook(mask)
