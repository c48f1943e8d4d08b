"""Every rule about sizes: target, working, padded and encoded images, and latent tiles. Sizes are (height, width)."""

import logging
import math
from fractions import Fraction

log = logging.getLogger(__name__)

Size = tuple[int, int]  # (height, width)

OUTPUT_PIXELS = 8192 * 8192  # the largest result
SCALE_RANGE = (1, 8)  # of a request, by scale_factor or by target_long_side
LONG_SIDE_RANGE = (64, 8192)  # of target_long_side, in pixels
MIN_SCALE_MAX_PIXELS = 2048 * 2048  # the largest working image that a bundle's `least_scale` may ask for
ENCODE_MAX_PIXELS = 256 * 256  # latent pixels from which on the working image is encoded at half its size or less
TILE_RANGE = (32, 480)  # the latent tiles that a request may ask for, in latent pixels
FLAT_MARGIN = 4  # latent pixels added at a flat border: beyond them the networks' zero padding changes no colour
MIN_TILE, TILE_MULTIPLE = 64, 8  # of an even grid: the training size of SD-Turbo and SeeSR; sides are multiples of 8


def scale_of(size: Size, scale_factor: float, target_long_side: int = 0) -> Fraction:
    """The exact scale of a request: `scale_factor` as written, or what makes the longer side `target_long_side` pixels.

    Raises ValueError if `target_long_side` asks for a scale outside SCALE_RANGE.
    """
    if not target_long_side:
        return Fraction(str(scale_factor))  # 1.15 is 115/100, not its neighbour among the floats
    low, high = (scale * max(size) for scale in SCALE_RANGE)
    if not low <= target_long_side <= high:
        low, high = max(low, LONG_SIDE_RANGE[0]), min(high, LONG_SIDE_RANGE[1])
        asked = f"ask for {low} to {high}" if low <= high else "use scale_factor"
        wanted = f"target_long_side must be 1 to 8 times the longer side of the image of {size[1]} x {size[0]}"
        raise ValueError(f"{wanted}, got {target_long_side}; {asked}")
    return Fraction(target_long_side, max(size))


def working_size(
    size: Size, scale: Fraction | float, process_size: int, limit: int = OUTPUT_PIXELS, least_scale: float = 1.0
) -> tuple[Size, Size]:
    """Input size -> target size, scale * side with halves rounded up, and working size.

    Both are the same unless the target's short side is below `process_size`. Then the working image is larger by one
    factor, but no longer than 8 * `process_size` or the target itself (the rest of a long thin image is padded).
    Below `least_scale` it is larger too, as if that scale had been asked for, up to MIN_SCALE_MAX_PIXELS.
    Raises ValueError for a target of more than `limit` pixels.
    """
    exact = Fraction(str(scale))
    height, width = (max(1, math.floor(exact * side + Fraction(1, 2))) for side in size)
    target, scale = (height, width), float(exact)
    if target[0] * target[1] > limit:
        found = f"scale_factor {scale:g} would give {target[1]} x {target[0]}; lower it or make the image smaller"
        raise ValueError(f"the result may have at most {limit / 1e6:.0f} megapixels, {found}")
    short, long = sorted(target)
    grow = min(max(1.0, process_size / short), max(1.0, 8 * process_size / long))
    grow = max(grow, min(least_scale / scale, math.sqrt(MIN_SCALE_MAX_PIXELS / (short * long))))
    if grow == 1.0:
        return target, target
    return target, (math.ceil(target[0] * grow - 1e-6), math.ceil(target[1] * grow - 1e-6))


def padded_size(working: Size, process_size: int, vae_scale_factor: int) -> Size:
    """Working size -> sides of at least `process_size`, rounded up to multiples of `vae_scale_factor`."""
    height, width = (-(-max(side, process_size) // vae_scale_factor) * vae_scale_factor for side in working)
    return height, width


def place(
    working: Size, flat: tuple[bool, bool, bool, bool], process_size: int, vae_scale_factor: int
) -> tuple[Size, tuple[int, int]]:
    """Working size -> padded size, with FLAT_MARGIN at each `flat` side (top, bottom, left, right), and (top, left)."""
    top, bottom, left, right = (side * FLAT_MARGIN * vae_scale_factor for side in flat)
    with_margins = (working[0] + top + bottom, working[1] + left + right)
    return padded_size(with_margins, process_size, vae_scale_factor), (top, left)


def encode_size(latent: Size) -> Size:
    """Latent size -> the latent size at which the image is encoded: at most ENCODE_MAX_PIXELS latent pixels."""
    share = math.sqrt(ENCODE_MAX_PIXELS / math.prod(latent))
    if share > 1:
        return latent
    height, width = (max(1, int(side * min(share, 0.5))) for side in latent)
    return height, width


def default_overlap(tile: int) -> int:
    """The overlap of `tile` if none is asked for: an eighth."""
    return math.ceil(tile / 8)


def legal_tile(tile: int) -> int:
    """A requested latent tile -> the nearest one in TILE_RANGE, logged if it differs; 0 (automatic) stays 0."""
    low, high = TILE_RANGE
    legal = min(max(tile, low), high) if tile else 0
    if legal != tile:
        log.warning("latent_tiled_size %d is outside %d to %d: using %d.", tile, low, high, legal)
    return legal


def legal_overlap(overlap: int, tile: int) -> int:
    """A requested overlap of `tile` -> at most half of the tile, logged if it differs; 0 (automatic) stays 0."""
    if overlap <= tile // 2:
        return overlap
    log.warning("latent_tiled_overlap %d is more than half of the tile (%d): using %d.", overlap, tile, tile // 2)
    return tile // 2


def shrink_overlap(overlap: int, tile: int) -> int:
    """The overlap of a tile that out-of-memory made smaller: at most a quarter of it."""
    return min(overlap, math.ceil(tile / 4))


def tile_count(length: int, tile: int, overlap: int) -> int:
    """Number of tiles along an axis of `length` that overlap by at least `overlap`."""
    return 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))


def tile_side(length: int, tile: int, overlap: int, count: int) -> int:
    """Side of `count` even tiles along `length`: as small as TILE_MULTIPLE and MIN_TILE allow, at most `tile`."""
    needed = -(-(length + (count - 1) * overlap) // (TILE_MULTIPLE * count)) * TILE_MULTIPLE
    return min(length, tile, max(needed, MIN_TILE))
