"""VAE encode and decode in tiles that equal the untiled VAE within rounding.

A tile starts with exactly the halo that its convolutions use up. Attention sees the whole latent. At every GroupNorm
all tiles wait, and their statistics are merged. If not all waiting tiles fit into memory, an evenly spread sample of
tiles decides the statistics, and the other tiles follow one by one.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seesr.sizes import Size
from seesr.vae import vae_scale_factor
from seesr.vae.attention import mid_block
from seesr.vae.group_norm import Statistics, merge_stats, norm_silu_conv, normalize, tile_stats
from seesr.vae.padding import pad
from seesr.vae.resnet import resnet_block
from seesr.vae.upsampling import upsample

Direction = Literal["encode", "decode"]
Span = tuple[int, int]
Report = Callable[[float], None]  # called with the share of the tiles' work that is done, in [0, 1]


@dataclass(frozen=True)
class Tile:
    """A tile between two layers: `hidden` (B, C, h, w) is `rows` x `columns` of a map; `interior` is without halo."""

    hidden: Tensor
    rows: Span
    columns: Span
    size: Size
    interior: tuple[Span, Span]

    def crop(self, rows: Span, columns: Span) -> Tensor:
        """The given rows and columns of the map, (B, C, h, w)."""
        top, left = self.rows[0], self.columns[0]
        return self.hidden[:, :, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]

    def paste(self, result: Tensor) -> None:
        """Write the interior to its place in `result`."""
        rows, columns = self.interior
        result[:, :, slice(*rows), slice(*columns)] = self.crop(rows, columns)

    def stats(self, norm: nn.GroupNorm, dtype: torch.dtype) -> Statistics:
        """The interior's share of a GroupNorm's statistics."""
        return tile_stats(norm, self.crop(*self.interior), dtype)

    def padding(self) -> tuple[int, int, int, int]:
        """1 where the tile lies at the map's left, right, top, bottom border, else 0: the order of F.pad."""
        (top, bottom), (left, right), (height, width) = self.rows, self.columns, self.size
        return int(left == 0), int(right == width), int(top == 0), int(bottom == height)


# One tile under way. At each GroupNorm it yields a function that measures its statistics and receives the merged ones.
TileCoroutine = Generator[Callable[[], Statistics], Statistics, Tile]


def encode(
    vae: Any, image: Tensor, tile: int = 0, stats_tiles: int | None = None, report: Report = lambda _: None
) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> posterior moments (B, 2C, h, w): mean and log variance, in the VAE's dtype

    `tile` is in latent pixels; 0, or a tile that holds the latent, means no tiles. At most `stats_tiles` tiles decide
    the statistics; None means all, which equals the untiled encoder. H and W must be multiples of the scale factor.
    """
    encoder, factor = vae.encoder, vae_scale_factor(vae)
    size = (image.shape[2] // factor, image.shape[3] // factor)
    if tile == 0 or tile >= max(size):
        moments = _untiled(encoder, image)
    else:
        hidden = image.new_empty(image.shape[0], vae.config["block_out_channels"][-1], *size)
        _run_tiles(vae, "encode", image, hidden, size, tile, stats_tiles, report)
        hidden = mid_block(encoder.mid_block, hidden)
        moments = norm_silu_conv(encoder.conv_norm_out, encoder.conv_out, hidden)
    return moments if vae.quant_conv is None else vae.quant_conv(moments)


def decode(
    vae: Any, latent: Tensor, tile: int = 0, stats_tiles: int | None = None, report: Report = lambda _: None
) -> Tensor:
    """(B, C, h, w), unscaled -> (B, 3, H, W) in about [-1, 1], in the VAE's dtype; the rest as for `encode`"""
    decoder, factor = vae.decoder, vae_scale_factor(vae)
    latent = latent if vae.post_quant_conv is None else vae.post_quant_conv(latent)
    size = (latent.shape[2], latent.shape[3])
    if tile == 0 or tile >= max(size):
        return _untiled(decoder, latent)
    hidden = mid_block(decoder.mid_block, decoder.conv_in(latent))
    result = latent.new_empty(latent.shape[0], 3, size[0] * factor, size[1] * factor)
    _run_tiles(vae, "decode", hidden, result, size, tile, stats_tiles, report)
    return result


def _untiled(coder: Any, hidden: Tensor) -> Tensor:
    """A VAE's encoder or decoder, but for the attention of large images."""
    hidden = coder.conv_in(hidden)
    for block in getattr(coder, "down_blocks", ()):
        hidden = _untiled_block(block.resnets, block.downsamplers, hidden)
    hidden = mid_block(coder.mid_block, hidden)
    for block in getattr(coder, "up_blocks", ()):
        hidden = _untiled_block(block.resnets, block.upsamplers, hidden)
    return norm_silu_conv(coder.conv_norm_out, coder.conv_out, hidden)


def _untiled_block(resnets: Any, samplers: Any, hidden: Tensor) -> Tensor:
    for resnet in resnets:
        hidden = resnet_block(resnet, hidden)
    for sampler in samplers or ():
        hidden = sampler(hidden)
    return hidden


def start_tile(vae: Any, direction: Direction, source: Tensor, interior: tuple[Span, Span]) -> TileCoroutine:
    """One tile of `source`, the image to encode or the mid block's output to decode; `interior` is in latent pixels."""
    layers = layers_of(vae, direction)
    if direction == "decode":
        return _decode_tile(vae.decoder, crop_with_halo(source, interior, layers))
    factor = vae_scale_factor(vae)
    scaled = [(start * factor, stop * factor) for start, stop in interior]
    return _encode_tile(vae.encoder, crop_with_halo(source, (scaled[0], scaled[1]), layers))


def _encode_tile(encoder: Any, tile: Tile) -> TileCoroutine:
    """Norms are computed in the next wider precision: moments reach 45, and rounding adds up to 1e-4 of them."""
    dtype = torch.float32 if tile.hidden.itemsize < 4 else torch.float64
    tile = _convolve(encoder.conv_in, tile)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            tile = yield from _resnet(resnet, tile, dtype)
        for downsampler in block.downsamplers or ():
            tile = _downsample(downsampler.conv, tile)
    return tile


def _decode_tile(decoder: Any, tile: Tile) -> TileCoroutine:
    dtype = torch.promote_types(tile.hidden.dtype, torch.float32)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            tile = yield from _resnet(resnet, tile, dtype)
        for upsampler in block.upsamplers or ():
            tile = _upsample(upsampler.conv, tile)
    statistics = yield lambda: tile.stats(decoder.conv_norm_out, dtype)
    return _convolve(decoder.conv_out, tile, (decoder.conv_norm_out, statistics))


def _resnet(block: Any, tile: Tile, dtype: torch.dtype) -> TileCoroutine:
    """A ResnetBlock2D without time embedding, its norms computed in `dtype`."""
    statistics = yield lambda: tile.stats(block.norm1, dtype)
    inner = _convolve(block.conv1, tile, (block.norm1, statistics))
    statistics = yield lambda: inner.stats(block.norm2, dtype)
    inner = _convolve(block.conv2, inner, (block.norm2, statistics))
    skip = tile.crop(inner.rows, inner.columns)
    if block.conv_shortcut is not None:
        skip = block.conv_shortcut(skip)
    inner.hidden.add_(skip)
    if block.output_scale_factor != 1:
        inner.hidden.div_(block.output_scale_factor)
    return inner


def _run_tiles(
    vae: Any,
    direction: Direction,
    source: Tensor,
    result: Tensor,
    size: Size,
    tile: int,
    stats_tiles: int | None,
    report: Report,
) -> None:
    """Run all tiles of a latent of `size`, `stats_tiles` of them in lockstep; paste their interiors into `result`."""
    rows, columns = (split_evenly(length, tile) for length in size)
    interiors = list(itertools.product(rows, columns))
    sample = sample_tiles(len(rows), len(columns), stats_tiles)
    collected: list[Statistics] = []
    layers = layers_of(vae, direction)
    stops = len(interiors) * (layers.count("conv") - layers.count("up") + (direction == "decode"))
    done = itertools.count(1)

    def start(number: int) -> TileCoroutine:
        return start_tile(vae, direction, source, interiors[number])

    def stopped() -> None:
        report(next(done) / stops)

    for finished in run_lockstep([start(number) for number in sample], collected, stopped):
        finished.paste(result)
    for number in sorted(set(range(len(interiors))) - set(sample)):
        run_with_stats(start(number), collected, stopped).paste(result)


def run_lockstep(
    tiles: list[TileCoroutine], collected: list[Statistics], stopped: Callable[[], None]
) -> Iterator[Tile]:
    """Run all tiles from one GroupNorm to the next; append the merged statistics of each to `collected`.

    `stopped` is called when a tile has come to a GroupNorm or to its end.
    """
    while True:
        waiting = []
        for tile in tiles:
            found = resume(tile, collected[-1] if collected else None)
            stopped()
            if isinstance(found, Tile):
                yield found
            else:
                waiting.append(found())
        if not waiting:
            return
        collected.append(merge_stats(waiting))


def run_with_stats(tile: TileCoroutine, collected: list[Statistics], stopped: Callable[[], None]) -> Tile:
    """Run one tile to its end with the statistics of other tiles; `stopped` as for `run_lockstep`."""
    found = resume(tile, None)
    stopped()
    for statistics in collected:
        found = resume(tile, statistics)
        stopped()
    assert isinstance(found, Tile)
    return found


def resume(tile: TileCoroutine, statistics: Statistics | None) -> Tile | Callable[[], Statistics]:
    """Run to the tile's next GroupNorm -> its measuring function, or to its end -> the Tile"""
    try:
        return next(tile) if statistics is None else tile.send(statistics)
    except StopIteration as stop:
        return stop.value


def sample_tiles(rows: int, columns: int, count: int | None) -> list[int]:
    """`count` tiles of a grid (None or too many: all), spread evenly by the R2 sequence (Roberts 2018)."""
    if count is None or count >= rows * columns:
        return list(range(rows * columns))
    chosen: dict[int, None] = {}
    for i in itertools.count(1):
        y, x = (i / 1.32471795724 + 0.5) % 1, (i / 1.32471795724**2 + 0.5) % 1
        chosen[int(y * rows) * columns + int(x * columns)] = None
        if len(chosen) == max(1, count):
            break
    return sorted(chosen)


def _convolve(conv: Any, tile: Tile, norm: tuple[nn.GroupNorm, Statistics] | None = None) -> Tile:
    """A 3x3 convolution, after `norm` and SiLU if given. It uses up one pixel of halo; the map's borders get zeros."""
    rows, columns = valid_span(tile.rows, tile.size[0]), valid_span(tile.columns, tile.size[1])
    hidden = tile.hidden if norm is None else normalize(*norm, tile.hidden)
    hidden = pad(hidden, tile.padding(), conv.weight)
    return replace(tile, hidden=F.conv2d(hidden, conv.weight, conv.bias), rows=rows, columns=columns)


def _downsample(conv: Any, tile: Tile) -> Tile:
    """Diffusers' halving: zeros at the right and bottom of the map, then a 3x3 convolution of stride 2."""
    size = (tile.size[0] // 2, tile.size[1] // 2)
    rows, columns = (
        ((span[0] + 1) // 2, length if span[1] == 2 * length else (span[1] - 1) // 2)
        for span, length in zip((tile.rows, tile.columns), size, strict=True)
    )
    hidden = tile.hidden[:, :, rows[0] * 2 - tile.rows[0] :, columns[0] * 2 - tile.columns[0] :]
    hidden = F.pad(hidden, (0, int(columns[1] == size[1]), 0, int(rows[1] == size[0])))
    (top, bottom), (left, right) = tile.interior
    interior = (top // 2, bottom // 2), (left // 2, right // 2)
    return Tile(F.conv2d(hidden, conv.weight, conv.bias, stride=2), rows, columns, size, interior)


def _upsample(conv: Any, tile: Tile) -> Tile:
    """Nearest-neighbour doubling and its 3x3 convolution."""
    spans = (tile.rows, tile.columns, tile.size, *tile.interior)
    rows, columns, size, inner_rows, inner_columns = [(2 * a, 2 * b) for a, b in spans]
    hidden = upsample(tile.hidden, conv, tile.padding())
    rows, columns = valid_span(rows, size[0]), valid_span(columns, size[1])
    return Tile(hidden, rows, columns, size, (inner_rows, inner_columns))


def layers_of(vae: Any, direction: Direction) -> list[str]:
    """The tiled layers of `direction` in order: "conv", "down" or "up"."""
    encoding = direction == "encode"
    layers: list[str] = []
    for block in vae.encoder.down_blocks if encoding else vae.decoder.up_blocks:
        layers += ["conv"] * (2 * len(block.resnets))
        layers += ["down"] if getattr(block, "downsamplers", None) else []
        layers += ["up", "conv"] if getattr(block, "upsamplers", None) else []
    return ["conv", *layers] if encoding else [*layers, "conv"]


def crop_with_halo(source: Tensor, interior: tuple[Span, Span], layers: Sequence[str]) -> Tile:
    """The tile of `source` (B, C, H, W) with the halo that `layers` need."""
    size = (source.shape[2], source.shape[3])
    rows, columns = receptive_field(interior[0], size[0], layers), receptive_field(interior[1], size[1], layers)
    return Tile(source[:, :, slice(*rows), slice(*columns)], rows, columns, size, interior)


def receptive_field(span: Span, length: int, layers: Sequence[str]) -> Span:
    """The pixels along an input axis of `length` that decide the outputs of `layers` in the place of `span`."""
    for layer in layers:
        if layer != "conv":
            double = layer == "up"
            length = length * 2 if double else length // 2
            span = (span[0] * 2, span[1] * 2) if double else (span[0] // 2, span[1] // 2)
    for layer in reversed(layers):
        start, stop = span
        if layer == "conv":
            span = (max(0, start - 1), min(length, stop + 1))
        elif layer == "up":
            span, length = (start // 2, -(-stop // 2)), length // 2
        else:
            length *= 2
            span = (2 * start, min(length, 2 * stop + 1))
    return span


def tile_count(size: Size, tile: int) -> int:
    """Number of VAE tiles over a latent of `size`; 1 where one holds it all."""
    return 1 if tile == 0 else math.prod(len(split_evenly(length, tile)) for length in size)


def split_evenly(length: int, side: int) -> list[Span]:
    """Even spans of at most `side` that cover range(length)."""
    count = -(-length // max(1, side))
    borders = [round(i * length / count) for i in range(count + 1)]
    return list(itertools.pairwise(borders))


def valid_span(span: Span, length: int) -> Span:
    """What a 3x3 convolution leaves of `span`: one pixel less on each side that is not the map's border."""
    return span[0] + (span[0] > 0), span[1] - (span[1] < length)
