"""Encode and decode in tiles that no seam betrays: each reads all the pixels its convolutions reach, and shares one
set of GroupNorm statistics.

The reference's tiles see only themselves: their statistics leave out how tiles differ, their attention is local and
their halos are shorter than the convolutions reach, so its tiled pictures differ from its untiled ones. Here a tile
starts with exactly the border that its convolutions use up, attention sees the whole latent, and at every GroupNorm
the tiles wait for each other and pool their statistics. Where not all waiting tiles fit into memory, an evenly spread
sample of them settles the statistics and the others follow one by one.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seesr.upsampling import double

WHOLE_ATTENTION = 256 * 256
"""Latent pixels up to which every one attends to every other. A larger picture is encoded at this size, and decoded
with attention to what is near and a sample of the others."""

SAMPLED_KEYS = 128 * 128
WINDOW, MARGIN = 64, 16
"""Beyond it: about how large the sample is, the side of the blocks that share keys, and how far around them is near."""

Span = tuple[int, int]
Statistics = tuple[Tensor, Tensor]
"""Variance and mean of each group, (B, groups) each, in the precision that the norm is computed in."""


@dataclass(frozen=True)
class Piece:
    """A tile between two layers: `hidden` (B, C, h, w) covers `rows` x `columns` of a map of `size` (H, W).

    `core` is what the tile answers for, rows and columns, in pixels of the same map.
    """

    hidden: Tensor
    rows: Span
    columns: Span
    size: tuple[int, int]
    core: tuple[Span, Span]

    def crop(self, rows: Span, columns: Span) -> Tensor:
        top, left = self.rows[0], self.columns[0]
        return self.hidden[:, :, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]


Wait = Generator[Callable[[], Statistics], Statistics, Piece]
"""A tile under way: it yields how to measure its share of a GroupNorm's statistics and is sent the pooled ones."""


def encoded_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) at which a picture of a latent of `size` is encoded: at most WHOLE_ATTENTION latent pixels"""
    share = math.sqrt(WHOLE_ATTENTION / math.prod(size))
    return size if share >= 1 else (max(1, int(size[0] * share)), max(1, int(size[1] * share)))


def encode(vae: Any, image: Tensor, tile: int = 0, together: int | None = None) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> posterior moments (B, 2C, h, w): mean and log variance, in the VAE's dtype

    `tile` is in latent pixels; 0, or a tile that holds the latent, means no tiles. `together` is how
    many tiles at most settle the statistics; None means all, which equals the untiled encoder. H and W must be
    multiples of the VAE's factor.
    """
    encoder = vae.encoder
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    size = (image.shape[2] // factor, image.shape[3] // factor)
    if tile == 0 or tile >= max(size):
        moments = _untiled(encoder, image)
    else:
        width = vae.config["block_out_channels"][-1]
        hidden = image.new_empty(image.shape[0], width, *size)
        layers = _layers_of(vae, "encode")
        _run(lambda core: _encode_tile(encoder, _cut(image, core, factor, layers)), hidden, size, tile, together)
        hidden = middle(encoder.mid_block, hidden)
        hidden = F.silu(encoder.conv_norm_out(hidden), inplace=True)
        moments = encoder.conv_out(hidden)
    return moments if vae.quant_conv is None else vae.quant_conv(moments)


def decode(vae: Any, latent: Tensor, tile: int = 0, together: int | None = None) -> Tensor:
    """(B, C, h, w), unscaled -> (B, 3, H, W) in about [-1, 1], in the VAE's dtype

    `tile` and `together` as for `encode`.
    """
    decoder = vae.decoder
    latent = latent if vae.post_quant_conv is None else vae.post_quant_conv(latent)
    size = (latent.shape[2], latent.shape[3])
    if tile == 0 or tile >= max(size):
        return _untiled(decoder, latent)
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    hidden = middle(decoder.mid_block, decoder.conv_in(latent))
    result = latent.new_empty(latent.shape[0], 3, size[0] * factor, size[1] * factor)
    layers = _layers_of(vae, "decode")
    _run(lambda core: _decode_tile(decoder, _cut(hidden, core, 1, layers)), result, size, tile, together)
    return result


def _untiled(coder: Any, hidden: Tensor) -> Tensor:
    """A VAE's own encoder or decoder, but for the attention of large pictures."""
    hidden = coder.conv_in(hidden)
    for block in getattr(coder, "down_blocks", ()):
        hidden = block(hidden)
    hidden = middle(coder.mid_block, hidden)
    for block in getattr(coder, "up_blocks", ()):
        hidden = block(hidden)
    return coder.conv_out(F.silu(coder.conv_norm_out(hidden)))


def tile_count(size: tuple[int, int], tile: int) -> int:
    """Tiles over a latent of `size` (height, width); 1 where one holds it all."""
    return 1 if tile == 0 else math.prod(len(_spans(length, tile)) for length in size)


def dry_tile(vae: Any, way: str, tile: tuple[int, int]) -> Iterator[None]:
    """A tile of (height, width) latent pixels amid others, on the meta device: stops at its start and at its norms."""
    channels = [3, *vae.config["block_out_channels"]]
    encoding = way == "encode"
    factor = 2 ** (len(channels) - 2) if encoding else 1
    shape = (channels[0] if encoding else channels[-1], *(3 * side * factor for side in tile))
    source = torch.empty(1, *shape, dtype=vae.dtype, device="meta")
    core = ((tile[0], 2 * tile[0]), (tile[1], 2 * tile[1]))
    piece = _cut(source, core, factor, _layers_of(vae, way))
    yield
    running = _encode_tile(vae.encoder, piece) if encoding else _decode_tile(vae.decoder, piece)
    del piece
    statistics: Statistics | None = None
    while not isinstance(measure := _advance(running, statistics), Piece):
        yield
        statistics = _pool([measure()])


def border_share(vae: Any, size: tuple[int, int], tile: int) -> tuple[float, float]:
    """What the encoder's tiles over a latent of `size` read, the mean and the largest, of one amid others."""
    layers = _layers_of(vae, "encode")
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    mean = most = 1.0
    for length in size:
        spans = [(a * factor, b * factor) for a, b in _spans(length, tile)]
        read = [b - a for a, b in (_reach(span, length * factor, layers) for span in spans)]
        start, stop = _reach((length * factor, length * factor + spans[0][1]), 3 * length * factor, layers)
        mean *= sum(read) / len(read) / (stop - start)
        most *= max(read) / (stop - start)
    return mean, most


def _encode_tile(encoder: Any, piece: Piece) -> Wait:
    """Its norms are computed in the next wider precision: moments reach 45, and rounding adds up to 1e-4 of them."""
    dtype = torch.float32 if piece.hidden.itemsize < 4 else torch.float64
    piece = _convolve(encoder.conv_in, piece)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            piece = yield from _resnet(resnet, piece, dtype)
        for downsampler in block.downsamplers or ():
            piece = _downsample(downsampler.conv, piece)
    return piece


def _decode_tile(decoder: Any, piece: Piece) -> Wait:
    dtype = torch.promote_types(piece.hidden.dtype, torch.float32)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            piece = yield from _resnet(resnet, piece, dtype)
        for upsampler in block.upsamplers or ():
            piece = _upsample(upsampler.conv, piece)
    statistics = yield lambda: _measure(decoder.conv_norm_out, piece, dtype)
    return _convolve(decoder.conv_out, piece, (decoder.conv_norm_out, statistics))


def _resnet(block: Any, piece: Piece, dtype: torch.dtype) -> Wait:
    """A ResnetBlock2D without time embedding, its norms computed in `dtype`."""
    statistics = yield lambda: _measure(block.norm1, piece, dtype)
    inner = _convolve(block.conv1, piece, (block.norm1, statistics))
    statistics = yield lambda: _measure(block.norm2, inner, dtype)
    inner = _convolve(block.conv2, inner, (block.norm2, statistics))
    skip = piece.crop(inner.rows, inner.columns)
    if block.conv_shortcut is not None:
        skip = block.conv_shortcut(skip)
    inner.hidden.add_(skip)
    if block.output_scale_factor != 1:
        inner.hidden.div_(block.output_scale_factor)
    return inner


def _run(
    start: Callable[[tuple[Span, Span]], Wait], result: Tensor, size: tuple[int, int], tile: int, together: int | None
) -> None:
    """Run the tiles of a latent of `size` and put their cores into `result`; a sample settles the statistics.

    `start` takes a core, rows and columns in latent pixels.
    """
    rows, columns = (_spans(length, tile) for length in size)
    cores = list(itertools.product(rows, columns))
    sample = _spread(len(rows), len(columns), together)
    settled: list[Statistics] = []
    for piece in _in_step([start(cores[number]) for number in sample], settled):
        _place(piece, result)
    for number in sorted(set(range(len(cores))) - set(sample)):
        _place(_alone(start(cores[number]), settled), result)


def _in_step(tiles: list[Wait], settled: list[Statistics]) -> Iterator[Piece]:
    """Take all tiles from one GroupNorm to the next; `settled` collects the statistics that they pool there."""
    statistics: Statistics | None = None
    while True:
        waiting = []
        for tile in tiles:
            found = _advance(tile, statistics)
            if isinstance(found, Piece):
                yield found
            else:
                waiting.append(found())
        if not waiting:
            return
        statistics = _pool(waiting)
        settled.append(statistics)


def _alone(tile: Wait, settled: list[Statistics]) -> Piece:
    found = _advance(tile, None)
    for statistics in settled:
        found = _advance(tile, statistics)
    assert isinstance(found, Piece)
    return found


def _advance(tile: Wait, statistics: Statistics | None) -> Piece | Callable[[], Statistics]:
    """To the tile's next GroupNorm, or to its end."""
    try:
        return next(tile) if statistics is None else tile.send(statistics)
    except StopIteration as stop:
        return stop.value


def _spread(rows: int, columns: int, count: int | None) -> list[int]:
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


def _measure(norm: nn.GroupNorm, piece: Piece, dtype: torch.dtype) -> Statistics:
    """Variance and mean of the tile's core, each (B, groups + 1): the last column counts the values."""
    part = piece.crop(*piece.core).unflatten(1, (norm.num_groups, -1))
    # Few of many groups at a time keep the wider copy small; var_mean is stable where sums of squares are not.
    step = max(1, norm.num_groups // 8)
    pairs = [torch.var_mean(some.to(dtype), dim=(2, 3, 4), correction=0) for some in part.split(step, dim=1)]
    count = pairs[0][0].new_full((len(part), 1), part[0, 0].numel())
    variance, mean = (torch.cat([*values, count], dim=1) for values in zip(*pairs, strict=True))
    return variance, mean


def _pool(parts: list[Statistics]) -> Statistics:
    """What `_measure` found in several tiles -> variance and mean of them all, (B, groups) each"""
    variances, means = (torch.stack(values) for values in zip(*parts, strict=True))
    dtype, variances, means = variances.dtype, variances.double(), means.double()
    share = variances[:, :, -1:] / variances[:, :, -1:].sum(0)
    variances, means = variances[:, :, :-1], means[:, :, :-1]
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    return variance.to(dtype), mean.to(dtype)


def _normalize(norm: nn.GroupNorm, statistics: Statistics, hidden: Tensor) -> Tensor:
    """GroupNorm of (B, C, h, w) with given statistics, then SiLU; computed in their precision, rounded once."""
    batch, channels = hidden.shape[:2]
    variance, mean = (values.repeat_interleave(channels // norm.num_groups, dim=1).flatten() for values in statistics)
    weight, bias = (values.to(mean.dtype).repeat(batch) for values in (norm.weight, norm.bias))
    flat = hidden.reshape(1, batch * channels, *hidden.shape[2:])
    if mean.dtype != torch.float64:  # kernels widen shorter values by themselves
        normal = F.batch_norm(flat, mean, variance, weight, bias, eps=norm.eps)
        return F.silu(normal, inplace=True).view(hidden.shape)
    result = torch.empty_like(flat)
    step = max(1, batch * channels // 8)  # a few channels at a time, so that the wider copies stay small
    for some in (slice(start, start + step) for start in range(0, batch * channels, step)):
        normal = F.batch_norm(
            flat[:, some].double(), mean[some], variance[some], weight[some], bias[some], eps=norm.eps
        )
        result[:, some] = F.silu(normal, inplace=True)
    return result.view(hidden.shape)


def _convolve(conv: Any, piece: Piece, norm: tuple[nn.GroupNorm, Statistics] | None = None) -> Piece:
    """A 3x3 convolution, of `piece` behind `norm` and SiLU where that is given: it uses up one pixel on every side
    but the map's own, where zeros stand."""
    rows, columns = (
        _shrunk(span, length) for span, length in zip((piece.rows, piece.columns), piece.size, strict=True)
    )
    hidden = piece.hidden if norm is None else _normalize(*norm, piece.hidden)
    edges = [1 if at else 0 for at in _touching(piece)]
    if any(edges):
        hidden = F.pad(hidden, edges)
    return replace(piece, hidden=F.conv2d(hidden, conv.weight, conv.bias), rows=rows, columns=columns)


def _downsample(conv: Any, piece: Piece) -> Piece:
    """Diffusers' halving: zeros right and below the whole map only, then a 3x3 convolution of stride 2."""
    size = (piece.size[0] // 2, piece.size[1] // 2)
    rows, columns = (
        ((span[0] + 1) // 2, length if span[1] == 2 * length else (span[1] - 1) // 2)
        for span, length in zip((piece.rows, piece.columns), size, strict=True)
    )
    hidden = piece.hidden[:, :, rows[0] * 2 - piece.rows[0] :, columns[0] * 2 - piece.columns[0] :]
    hidden = F.pad(hidden, (0, int(columns[1] == size[1]), 0, int(rows[1] == size[0])))
    core = tuple((a // 2, b // 2) for a, b in piece.core)
    return Piece(F.conv2d(hidden, conv.weight, conv.bias, stride=2), rows, columns, size, core)  # type: ignore[arg-type]


def _upsample(conv: Any, piece: Piece) -> Piece:
    """Nearest-neighbour doubling and its 3x3 convolution."""
    rows, columns, size = ((2 * a, 2 * b) for a, b in (piece.rows, piece.columns, piece.size))
    core = tuple((2 * a, 2 * b) for a, b in piece.core)
    left, right, top, bottom = (int(at) for at in _touching(piece))
    hidden = double(piece.hidden, conv, (left, right, top, bottom))
    return Piece(hidden, _shrunk(rows, size[0]), _shrunk(columns, size[1]), size, core)  # type: ignore[arg-type]


def middle(block: Any, hidden: Tensor, stride: int | None = None) -> Tensor:
    """The middle block over a whole latent-sized map (B, C, h, w); beyond WHOLE_ATTENTION with a sample of the keys.

    `stride` is every how manieth row and column of the keys is taken; None decides by the size.
    """
    pixels = hidden.shape[2] * hidden.shape[3]
    if stride is None:
        stride = 1 if pixels <= WHOLE_ATTENTION else round(math.sqrt(pixels / SAMPLED_KEYS))
    if stride <= 1:
        return block(hidden)
    hidden = block.resnets[0](hidden, None)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            hidden = _sampled_attention(attention, hidden, stride)
        hidden = resnet(hidden, None)
    return hidden


def _sampled_attention(attention: Any, hidden: Tensor, stride: int) -> Tensor:
    """Self-attention of every block of pixels to all that are near it and to every n-th row and column of the others.

    A sampled key counts for the stride² pixels that it stands for, so that the sum is about that of whole attention
    where keys are alike (within a tenth at borders that the stride does not divide); near keys are exact, so that what
    looks at itself finds itself.
    """
    inner = attention.group_norm(hidden.flatten(2)).unflatten(2, hidden.shape[2:])
    height, width = inner.shape[2:]
    y, x = (torch.arange(stride // 2, side, stride, device=inner.device) for side in (height, width))
    far = _keys(attention, inner[:, :, stride // 2 :: stride, stride // 2 :: stride])
    result = torch.empty_like(inner)
    for top, left in itertools.product(range(0, height, WINDOW), range(0, width, WINDOW)):
        rows, columns = ((max(0, start - MARGIN), start + WINDOW + MARGIN) for start in (top, left))
        near = _keys(attention, inner[:, :, slice(*rows), slice(*columns)])
        inside = ((y >= rows[0]) & (y < rows[1]))[:, None] & ((x >= columns[0]) & (x < columns[1]))
        bias = torch.where(inside.flatten(), -1e4, 2 * math.log(stride))
        block = (slice(None), slice(None), slice(top, top + WINDOW), slice(left, left + WINDOW))
        states = _attend(attention, inner[block], near, far, bias)
        result[block] = states.transpose(1, 2).unflatten(2, result[block].shape[2:])
    if attention.residual_connection:
        result.add_(hidden)
    return result.div_(attention.rescale_output_factor)


def _keys(attention: Any, part: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) -> keys and values, (B, heads, h * w, D) each"""
    states = part.flatten(2).transpose(1, 2)
    return _heads(attention, attention.to_k(states)), _heads(attention, attention.to_v(states))


def _heads(attention: Any, states: Tensor) -> Tensor:
    return states.unflatten(2, (attention.heads, -1)).transpose(1, 2)


def _attend(
    attention: Any, part: Tensor, near: tuple[Tensor, Tensor], far: tuple[Tensor, Tensor], bias: Tensor
) -> Tensor:
    """(B, C, h, w) to `near` keys and to `far` ones, whose scores `bias` is added to -> (B, h * w, C)

    The bias travels as one more channel, which is 1 in every query: a mask would be as large as the scores.
    """
    query = _heads(attention, attention.to_q(part.flatten(2).transpose(1, 2)))
    width = query.shape[-1]
    scaled = (bias * math.sqrt(width)).clamp(min=torch.finfo(query.dtype).min)
    added = torch.cat([bias.new_zeros(near[0].shape[2]), scaled]).to(query.dtype)
    key, value = (torch.cat(pair, dim=2) for pair in zip(near, far, strict=True))
    query, key, value = (F.pad(states, (0, 8)) for states in (query, key, value))  # 8 keeps kernels aligned
    query[..., width] = 1
    key[..., width] = added
    states = F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)[..., :width]
    return attention.to_out[0](states.transpose(1, 2).flatten(2))


def _layers_of(vae: Any, way: str) -> list[str]:
    """What the layers of the tiled part of `way` do to the pixels that they read, in order."""
    if way == "encode":
        return ["conv", *_layers(vae.encoder.down_blocks)]
    return [*_layers(vae.decoder.up_blocks), "conv"]


def _layers(blocks: Any) -> list[str]:
    layers: list[str] = []
    for block in blocks:
        layers += ["conv"] * (2 * len(block.resnets))
        layers += ["down"] if getattr(block, "downsamplers", None) else []
        layers += ["up", "conv"] if getattr(block, "upsamplers", None) else []
    return layers


def _cut(source: Tensor, core: tuple[Span, Span], factor: int, layers: Sequence[str]) -> Piece:
    """What a tile needs of `source` (B, C, H, W), `factor` times the latent, for a core given in latent pixels."""
    size = (source.shape[2], source.shape[3])
    inside = tuple((a * factor, b * factor) for a, b in core)
    rows, columns = (_reach(span, length, layers) for span, length in zip(inside, size, strict=True))
    return Piece(source[:, :, slice(*rows), slice(*columns)], rows, columns, size, inside)  # type: ignore[arg-type]


def _reach(span: Span, length: int, layers: Sequence[str]) -> Span:
    """The pixels of an axis of `length` that decide those behind `layers` which stand where `span` does."""
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


def _spans(length: int, side: int) -> list[Span]:
    """Even spans of at most `side` that cover range(length)."""
    count = -(-length // max(1, side))
    edges = [round(i * length / count) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _place(piece: Piece, result: Tensor) -> None:
    rows, columns = piece.core
    result[:, :, slice(*rows), slice(*columns)] = piece.crop(rows, columns)


def _touching(piece: Piece) -> tuple[bool, bool, bool, bool]:
    """Whether the tile lies at the map's left, right, top, bottom edge: the order of F.pad."""
    (top, bottom), (left, right), (height, width) = piece.rows, piece.columns, piece.size
    return left == 0, right == width, top == 0, bottom == height


def _shrunk(span: Span, length: int) -> Span:
    return span[0] + (span[0] > 0), span[1] - (span[1] < length)
