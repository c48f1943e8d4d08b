"""Good, odd and hostile input files, made on the spot, each with what reading it must give.

python tests/corpus.py FOLDER writes them all and prints a table.
"""

import argparse
import base64
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, features

Write = Callable[[Path], object]
Colour = tuple[int, int, int]
Points = tuple[tuple[tuple[int, int], Any], ...]
"""((x, y), value there) for a few pixels."""

# What a refusal must say, as little as makes it clear.
NO_FILE = r"file|folder|exist"
FOLDER = r"folder|directory"
EMPTY = r"empty"
NO_PICTURE = r"must be a picture"
DAMAGED = r"damaged|whole picture"
BROKEN = rf"{DAMAGED}|{NO_PICTURE}"
TOO_LARGE = r"at most \d+ megapixels"
ANY = r""

SIZE = (64, 32)
"""(width, height) of the test picture: quarters of 32 x 16, which fit JPEG's blocks of 16, so that no colour bleeds."""

RED, GREEN, BLUE, LIGHT = (200, 30, 40), (20, 150, 60), (30, 60, 190), (240, 240, 230)
COLOURS = (RED, GREEN, BLUE, LIGHT)
GREYS = (30, 110, 180, 240)
ALPHAS = (255, 128, 64, 255)
CORNERS = ((16, 8), (48, 8), (16, 24), (48, 24))


@dataclass(frozen=True)
class Expected:
    """A picture: its (width, height) the right way up, its colours, and its alpha, () for none and None for any."""

    size: tuple[int, int] = SIZE
    colours: Points = ()
    tolerance: int = 2
    grey: bool | None = False
    alpha: Points | None = ()


@dataclass(frozen=True)
class Case:
    """One file. With `picture` and `error` both set, either will do."""

    name: str
    write: Write
    picture: Expected | None = None
    error: str | None = None
    file: str = ""

    def path(self, folder: Path) -> Path:
        """Where in `folder` the case lies; its name is the file's unless it says otherwise."""
        return folder / (self.file or self.name)


def quarters(values: Any) -> np.ndarray:
    """Four values -> (32, 64) or (32, 64, C): a quarter of the test picture each"""
    grid = np.array(values)
    grid = grid.reshape(2, 2, *grid.shape[1:])
    return grid.repeat(SIZE[1] // 2, 0).repeat(SIZE[0] // 2, 1)


def at_corners(values: Any) -> Points:
    return tuple(zip(CORNERS, values, strict=True))


QUARTERS = at_corners(COLOURS)
GREY_QUARTERS = at_corners([(value,) * 3 for value in GREYS])
ALPHA_QUARTERS = at_corners(ALPHAS)
KEYED = at_corners((255, 255, 255, 0))
"""The last quarter transparent by a colour key."""

PIXELS = quarters(COLOURS).astype(np.uint8)
GREY_PIXELS = quarters(GREYS).astype(np.uint8)
ALPHA_PIXELS = quarters(ALPHAS).astype(np.uint8)

RGB = Image.fromarray(PIXELS)
GREY = Image.fromarray(GREY_PIXELS)
RGBA = Image.fromarray(np.dstack([PIXELS, ALPHA_PIXELS]))
LA = Image.merge("LA", (GREY, Image.fromarray(ALPHA_PIXELS)))
BILEVEL = Image.fromarray(quarters((0, 255, 255, 0)).astype(np.uint8)).convert("1")
BILEVEL_QUARTERS = at_corners([(value,) * 3 for value in (0, 255, 255, 0)])
TURNED = RGB.transpose(Image.Transpose.ROTATE_180)
CMYK = RGB.convert("CMYK")
GREY_16 = Image.fromarray(quarters(GREYS).astype(np.uint16) * 257)


def palette() -> Image.Image:
    """The test picture with four palette entries in the order of the quarters."""
    image = Image.fromarray(quarters((0, 1, 2, 3)).astype(np.uint8))
    image.putpalette([channel for colour in COLOURS for channel in colour])
    return image


PALETTE = palette()


# Ways to write ------------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **options: Any) -> Write:
    return lambda path: image.save(path, format=kind, **options)


def raw(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def cut(data: bytes, keep: float) -> Write:
    """The first `keep` bytes; a share of them up to 1, a number left out where negative."""
    return raw(data[: int(len(data) * keep)] if 0 <= keep <= 1 else data[: int(keep)])


def make_folder(path: Path) -> None:
    path.mkdir(exist_ok=True)


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def nothing(path: Path) -> None:
    """The path stays missing."""


# PNG by hand --------------------------------------------------------------------------------------------------------

_PNG = b"\x89PNG\r\n\x1a\n"
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, and the steps of both, of the seven passes (PNG specification, 8.2)."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int = 8, kind: int = 2, interlaced: bool = False) -> bytes:
    return _PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))


def scanlines(pixels: np.ndarray) -> bytes:
    """(H, W, C) of uint8 or uint16 -> rows with filter 0"""
    return b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)


def png(pixels: np.ndarray, *extra: bytes, interlaced: bool = False) -> bytes:
    """(H, W, 1 to 4) of uint8 or uint16 -> a PNG with `extra` chunks ahead of its data"""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    passes = [pixels[y::dy, x::dx] for y, x, dy, dx in _ADAM7] if interlaced else [pixels]
    data = zlib.compress(b"".join(scanlines(part) for part in passes))
    start = header(width, height, pixels.dtype.itemsize * 8, kind, interlaced)
    return start + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def sixteen(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint16) * 257


def zeros_compressed(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1_000_000)) for _ in range(megabytes)) + packer.flush()


def write_text_bomb(path: Path) -> None:
    path.write_bytes(png(PIXELS, chunk(b"zTXt", b"Comment\0\0" + zeros_compressed(100))))


def write_late_text_bomb(path: Path) -> None:
    """The bomb behind the data, where it's read only once the picture is."""
    bomb = chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros_compressed(100))
    path.write_bytes(png(PIXELS)[:-12] + bomb + chunk(b"IEND", b""))


def write_profile_bomb(path: Path) -> None:
    path.write_bytes(png(PIXELS, chunk(b"iCCP", b"icc\0\0" + zeros_compressed(100))))


# TIFF by hand -------------------------------------------------------------------------------------------------------

_OFFSETS = (273, 279, 324, 325)


def tiff(data: bytes, bits: tuple[int, ...], photometric: int, tags: dict[int, list[int]] | None = None) -> bytes:
    """Uncompressed samples of the test picture -> little-endian TIFF; `tags` add to the usual or replace them"""
    width, height = SIZE
    wanted = {256: [width], 257: [height], 258: list(bits), 259: [1], 262: [photometric], 277: [len(bits)]}
    if tags is None or 322 not in tags:
        wanted |= {273: [8], 278: [height], 279: [len(data)]}
    wanted |= tags or {}
    end = 8 + len(data)
    entries, tail = b"", b""
    for tag, values in sorted(wanted.items()):
        kind, code = (4, "I") if tag in _OFFSETS else (3, "H")
        packed = struct.pack(f"<{len(values)}{code}", *values)
        if len(packed) > 4:
            packed, tail = struct.pack("<I", end + 6 + 12 * len(wanted) + len(tail)), tail + packed
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", end) + data + struct.pack("<H", len(wanted)) + entries + bytes(4) + tail


def tiled_tiff() -> bytes:
    tiles = [PIXELS[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32, 48)]
    sizes = [len(tile) for tile in tiles]
    starts = [8 + sum(sizes[:index]) for index in range(len(sizes))]
    return tiff(b"".join(tiles), (8, 8, 8), 2, {322: [16], 323: [16], 324: starts, 325: sizes})


def premultiplied_tiff() -> bytes:
    share = ALPHA_PIXELS[..., None] / 255
    data = np.dstack([(PIXELS * share).round().astype(np.uint8), ALPHA_PIXELS])
    return tiff(data.tobytes(), (8, 8, 8, 8), 2, {338: [1]})


def planar_tiff() -> bytes:
    plane = SIZE[0] * SIZE[1]
    starts = [8, 8 + plane, 8 + 2 * plane]
    data = PIXELS.transpose(2, 0, 1).tobytes()
    return tiff(data, (8, 8, 8), 2, {284: [2], 273: starts, 279: [plane] * 3})


# Colour profiles ----------------------------------------------------------------------------------------------------

_WIDE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
_SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""RGB -> XYZ at D50: red, green and blue in the columns."""

_WHITE = (0.9642, 1.0, 0.8249)


def _xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Tags -> ICC profile, version 2 (ICC.1:2001-04)"""
    name = b"made up"
    description = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(1 + 4 + 4 + 2 + 1 + 67)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(_WHITE)} | tags
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for key, data in tags.items():
        table += key + struct.pack(">II", start + len(body), len(data))
        body += data.ljust(-(-len(data) // 4) * 4, b"\0")
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += b"".join(struct.pack(">i", round(value * 65536)) for value in _WHITE)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def wide_profile(**more: bytes) -> bytes:
    """RGB wider than sRGB, gamma 2.2; `more` tags are of four letters."""
    tags = {key: _xyz(_WIDE[:, index]) for index, key in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= {key: _gamma(2.2) for key in (b"rTRC", b"gTRC", b"bTRC")}
    return _profile(b"RGB ", tags | {key.encode(): data for key, data in more.items()})


def grey_profile() -> bytes:
    """Grey with values in proportion to light."""
    return _profile(b"GRAY", {b"kTRC": _gamma(1.0)})


def _to_srgb(light: np.ndarray) -> tuple[int, ...]:
    """Linear sRGB -> 0 to 255 (IEC 61966-2-1)"""
    light = np.clip(light, 0, 1)
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return tuple(int(value) for value in (values * 255).round())


def from_wide(colour: Colour) -> tuple[int, ...]:
    """A colour under wide_profile -> sRGB"""
    return _to_srgb(np.linalg.inv(_SRGB) @ _WIDE @ (np.array(colour) / 255) ** (round(2.2 * 256) / 256))


MUTED = ((150, 110, 100), (110, 140, 110), (100, 110, 150), (128, 128, 128))
"""Colours that sRGB holds when they are read under the wide profile."""

WIDE_PIXELS = quarters(MUTED).astype(np.uint8)
WIDE_RGB = Image.fromarray(WIDE_PIXELS)
WIDE_QUARTERS = at_corners([from_wide(colour) for colour in MUTED])
LINEAR_QUARTERS = at_corners([_to_srgb(np.full(3, value / 255)) for value in GREYS])


def wide_palette() -> Image.Image:
    image = PALETTE.copy()
    image.putpalette([channel for colour in MUTED for channel in colour])
    return image


def built_in_profile(space: Any) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()


# EXIF ---------------------------------------------------------------------------------------------------------------

_FLIP = Image.Transpose
_STORED = {
    2: _FLIP.FLIP_LEFT_RIGHT,
    3: _FLIP.ROTATE_180,
    4: _FLIP.FLIP_TOP_BOTTOM,
    5: _FLIP.TRANSPOSE,
    6: _FLIP.ROTATE_90,
    7: _FLIP.TRANSVERSE,
    8: _FLIP.ROTATE_270,
}
"""How the upright picture lies in a file with that orientation."""


def exif(orientation: int, note: int = 0) -> bytes:
    """EXIF with an orientation, and a camera's note of so many bytes."""
    data = Image.Exif()
    data[0x0112] = orientation
    if note:
        data.get_ifd(0x8769)[0x927C] = b"x" * note
    return data.tobytes()


def stored(orientation: int) -> Image.Image:
    return RGB.transpose(_STORED[orientation]) if orientation in _STORED else RGB


def exif_entry(kind: int, count: int, value: int) -> bytes:
    """EXIF whose orientation is of any type, count and value."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, kind, count, value) + bytes(4)


BROKEN_EXIF = {
    "garbage": b"Exif\0\0" + b"\xa5" * 50,
    "empty": b"Exif\0\0",
    "cut": exif(6)[:20],
    "wild-offset": b"Exif\0\0II*\0\xf0\xff\xff\xff",
    "loop": b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8),
    "orientation-0": exif_entry(3, 1, 0),
    "orientation-99": exif_entry(3, 1, 99),
    "orientation-text": exif_entry(2, 4, 0x00363636),
    "orientation-fraction-of-0": exif_entry(5, 1, 0),
    "orientation-list": exif_entry(3, 2, 0x00010006),
    "orientation-wild": exif_entry(3, 0x7FFFFFFF, 0xFFFFFFF0),
    "type-unknown": exif_entry(99, 1, 6),
}


# The cases ----------------------------------------------------------------------------------------------------------


def picture(name: str, write: Write, colours: Points = QUARTERS, *, file: str = "", **expected: Any) -> Case:
    return Case(name, write, Expected(colours=colours, **expected), file=file)


def refused(name: str, write: Write, error: str, file: str = "") -> Case:
    return Case(name, write, error=error, file=file)


def either(name: str, write: Write, colours: Points = QUARTERS, error: str = ANY, **expected: Any) -> Case:
    return Case(name, write, Expected(colours=colours, **expected), error)


def grey(name: str, write: Write, colours: Points = GREY_QUARTERS, **expected: Any) -> Case:
    return picture(name, write, colours, grey=True, **expected)


def png_cases() -> list[Case]:
    key = chunk(b"tRNS", struct.pack(">3H", *LIGHT))
    opaque = Image.fromarray(np.dstack([PIXELS, np.full_like(ALPHA_PIXELS, 255)]))
    rgba, la = np.dstack([PIXELS, ALPHA_PIXELS]), np.dstack([GREY_PIXELS, ALPHA_PIXELS])
    line = GREY_PIXELS[..., None]
    return [
        picture("rgb.png", saved(RGB, "PNG")),
        grey("grey.png", saved(GREY, "PNG")),
        picture("palette.png", saved(PALETTE, "PNG")),
        picture("palette-trns.png", saved(PALETTE, "PNG", transparency=bytes(ALPHAS)), alpha=ALPHA_QUARTERS),
        picture("palette-trns-opaque.png", saved(PALETTE, "PNG", transparency=b"\xff" * 4)),
        grey("one-bit.png", saved(BILEVEL, "PNG"), BILEVEL_QUARTERS),
        grey("grey-alpha.png", saved(LA, "PNG"), alpha=ALPHA_QUARTERS),
        picture("rgba.png", saved(RGBA, "PNG"), alpha=ALPHA_QUARTERS),
        picture("rgba-opaque.png", saved(opaque, "PNG")),
        grey("grey-16.png", saved(GREY_16, "PNG")),
        picture("rgb-16.png", raw(png(sixteen(PIXELS)))),
        picture("rgba-16.png", raw(png(sixteen(rgba))), alpha=ALPHA_QUARTERS),
        grey("grey-alpha-16.png", raw(png(sixteen(la))), alpha=ALPHA_QUARTERS),
        picture("interlaced.png", raw(png(PIXELS, interlaced=True))),
        picture("interlaced-16.png", raw(png(sixteen(PIXELS), interlaced=True))),
        grey("interlaced-grey.png", raw(png(line, interlaced=True))),
        picture("rgb-key.png", raw(png(PIXELS, key)), alpha=KEYED),
        picture("rgb-key-unused.png", raw(png(PIXELS, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))))),
        grey("grey-key.png", raw(png(line, chunk(b"tRNS", struct.pack(">H", GREYS[3])))), alpha=KEYED),
        grey(
            "grey-16-key.png", raw(png(sixteen(line), chunk(b"tRNS", struct.pack(">H", GREYS[3] * 257)))), alpha=KEYED
        ),
        picture(
            "rgb-16-key.png",
            raw(png(sixteen(PIXELS), chunk(b"tRNS", struct.pack(">3H", *(value * 257 for value in LIGHT))))),
            alpha=KEYED,
        ),
        picture("animated.png", saved(RGB, "PNG", save_all=True, append_images=[TURNED])),
        picture("orientation-6.png", saved(stored(6), "PNG", exif=exif(6))),
        picture("trailing-bytes.png", raw(png(PIXELS) + b"more" * 100)),
    ]


def jpeg_cases() -> list[Case]:
    lossy = partial(picture, tolerance=6)
    photo = encoded(RGB, "JPEG", quality=95)
    turned = [
        lossy(f"orientation-{turn}.jpg", saved(stored(turn), "JPEG", quality=95, exif=exif(turn)))
        for turn in range(1, 9)
    ]
    broken = [
        lossy(f"exif-{name}.jpg", saved(RGB, "JPEG", quality=95, exif=data))
        for name, data in BROKEN_EXIF.items()
        if name not in ("cut", "orientation-list", "type-unknown")
    ]
    readable = [
        lossy(f"exif-{name}.jpg", saved(stored(1), "JPEG", exif=BROKEN_EXIF[name]), (), size=size)
        for name, size in (("cut", SIZE), ("type-unknown", SIZE), ("orientation-list", (SIZE[1], SIZE[0])))
    ]
    return [
        lossy("rgb.jpg", raw(photo)),
        grey("grey.jpg", saved(GREY, "JPEG", quality=95), tolerance=6),
        lossy("cmyk.jpg", saved(CMYK, "JPEG", quality=95)),
        lossy("progressive.jpg", saved(RGB, "JPEG", quality=95, progressive=True)),
        lossy("stored-as-rgb.jpg", saved(RGB, "JPEG", quality=95, keep_rgb=True)),
        lossy("restart-markers.jpg", saved(RGB, "JPEG", quality=95, restart_marker_blocks=1)),
        lossy("exif-60-kB.jpg", saved(stored(6), "JPEG", quality=95, exif=exif(6, note=60_000))),
        lossy("motion-photo.jpg", raw(photo + MP4)),
        lossy("two-pictures.mpo", saved(RGB, "MPO", quality=95, save_all=True, append_images=[TURNED])),
        *turned,
        *broken,
        *readable,
    ]


def webp_cases() -> list[Case]:
    return [
        picture("lossy.webp", saved(RGB, "WEBP", quality=95), tolerance=6),
        picture("lossless.webp", saved(RGB, "WEBP", lossless=True)),
        picture("alpha.webp", saved(RGBA, "WEBP", lossless=True), alpha=ALPHA_QUARTERS),
        picture("lossy-alpha.webp", saved(RGBA, "WEBP", quality=95), alpha=ALPHA_QUARTERS, tolerance=8),
        picture("animated.webp", saved(RGB, "WEBP", lossless=True, save_all=True, append_images=[TURNED])),
        picture("orientation-6.webp", saved(stored(6), "WEBP", lossless=True, exif=exif(6))),
    ]


def gif_cases() -> list[Case]:
    pair = {"save_all": True, "append_images": [PALETTE.transpose(_FLIP.ROTATE_180)]}
    return [
        picture("palette.gif", saved(PALETTE, "GIF")),
        picture("grey.gif", saved(GREY, "GIF"), GREY_QUARTERS, grey=None),
        picture("transparent.gif", saved(PALETTE, "GIF", transparency=3), at_corners(COLOURS)[:3], alpha=KEYED),
        picture("transparent-unused.gif", saved(PALETTE, "GIF", transparency=200)),
        picture("animated.gif", saved(PALETTE, "GIF", **pair)),
        picture(
            "animated-transparent.gif",
            saved(PALETTE, "GIF", transparency=3, disposal=2, **pair),
            at_corners(COLOURS)[:3],
            alpha=KEYED,
        ),
        either("frame-beyond-screen.gif", patched(encoded(PALETTE, "GIF"), 6, struct.pack("<HH", 10, 10)), alpha=None),
    ]


def tiff_cases() -> list[Case]:
    values = quarters(GREYS).astype(np.float32)
    broken = values.copy()
    broken[0, 0], broken[0, 1] = np.nan, np.inf
    rgba = np.dstack([PIXELS, ALPHA_PIXELS])
    return [
        picture("rgb.tif", saved(RGB, "TIFF")),
        grey("grey.tif", saved(GREY, "TIFF")),
        grey("one-bit.tif", saved(BILEVEL, "TIFF", compression="group4"), BILEVEL_QUARTERS),
        grey("grey-16.tif", saved(GREY_16, "TIFF")),
        grey("grey-16-lzw.tif", saved(GREY_16, "TIFF", compression="tiff_lzw")),
        picture("rgb-16.tif", raw(tiff(sixteen(PIXELS).tobytes(), (16,) * 3, 2))),
        picture("rgba-16.tif", raw(tiff(sixteen(rgba).tobytes(), (16,) * 4, 2, {338: [2]})), alpha=ALPHA_QUARTERS),
        picture("rgba.tif", saved(RGBA, "TIFF"), alpha=ALPHA_QUARTERS),
        picture("premultiplied.tif", raw(premultiplied_tiff()), alpha=ALPHA_QUARTERS, tolerance=4),
        picture("cmyk.tif", saved(CMYK, "TIFF")),
        picture("lzw.tif", saved(RGB, "TIFF", compression="tiff_lzw")),
        picture("deflate.tif", saved(RGB, "TIFF", compression="tiff_adobe_deflate")),
        picture("ycbcr-jpeg.tif", saved(RGB, "TIFF", compression="jpeg", quality=95), tolerance=6),
        picture("pages.tif", saved(RGB, "TIFF", save_all=True, append_images=[GREY.resize((9, 9))])),
        picture("big.tif", saved(RGB, "TIFF", big_tiff=True)),
        picture("palette.tif", saved(PALETTE, "TIFF")),
        picture("tiled.tif", raw(tiled_tiff())),
        picture("planar.tif", raw(planar_tiff())),
        grey("white-is-zero.tif", raw(tiff((255 - GREY_PIXELS).tobytes(), (8,), 0))),
        picture("orientation-6.tif", saved(stored(6), "TIFF", tiffinfo={274: 6})),
        grey("float32.tif", saved(Image.fromarray(values), "TIFF")),
        grey("float32-to-1.tif", saved(Image.fromarray(values / 255), "TIFF")),
        grey("float32-nan.tif", saved(Image.fromarray(broken), "TIFF")),
        either("lab.tif", saved(lab(), "TIFF"), tolerance=6),
    ]


def lab() -> Image.Image:
    image = ImageCms.profileToProfile(
        RGB, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert image is not None
    return image


def other_cases() -> list[Case]:
    """BMP, AVIF and HEIC, which must be read, and the kinds that may be read or refused."""
    sixteen_grey = b"P5 64 32 65535\n" + (quarters(GREYS) * 257).astype(">u2").tobytes()
    return [
        picture("24-bit.bmp", saved(RGB, "BMP")),
        picture("32-bit.bmp", saved(RGBA, "BMP"), alpha=None),
        picture("8-bit.bmp", saved(PALETTE, "BMP")),
        grey("grey.bmp", saved(GREY, "BMP")),
        grey("1-bit.bmp", saved(BILEVEL, "BMP"), BILEVEL_QUARTERS),
        either("icon.ico", saved(RGB, "ICO", sizes=[SIZE])),
        either("icon-alpha.ico", saved(RGBA, "ICO", sizes=[SIZE]), alpha=ALPHA_QUARTERS),
        either("rgb.ppm", saved(RGB, "PPM")),
        either("grey.pgm", saved(GREY, "PPM"), GREY_QUARTERS, grey=True),
        either("grey-16.pgm", raw(sixteen_grey), GREY_QUARTERS, grey=True),
        either("rgb.tga", saved(RGB, "TGA")),
        either("rgba.tga", saved(RGBA, "TGA"), alpha=ALPHA_QUARTERS),
        either("rgb.pcx", saved(RGB, "PCX")),
        either("rgb.jp2", saved(RGB, "JPEG2000")),
        either("rgba.qoi", saved(RGBA, "QOI"), alpha=ALPHA_QUARTERS),
        either("rgb.sgi", saved(RGB, "SGI")),
        *(avif_cases() if features.check("avif") else []),
        *heif_cases(),
    ]


def avif_cases() -> list[Case]:
    quick = {"quality": 95, "speed": 10}
    return [
        picture("rgb.avif", saved(RGB, "AVIF", **quick), tolerance=8),
        picture("alpha.avif", saved(RGBA, "AVIF", **quick), alpha=ALPHA_QUARTERS, tolerance=8),
        picture("orientation-6.avif", saved(stored(6), "AVIF", exif=exif(6), **quick), tolerance=8),
        refused("cut-in-half.avif", cut(encoded(RGB, "AVIF", **quick), 0.5), BROKEN),
    ]


def heif_cases() -> list[Case]:
    """What a telephone sends. Nothing that is installed writes HEIC: these were written by libheif's x265 encoder."""
    plain = base64.b64decode(HEIC)
    at = plain.index(b"ispe") + 8
    return [
        picture("rgb.heic", raw(plain), tolerance=8),
        picture("alpha.heic", raw(base64.b64decode(HEIC_ALPHA)), alpha=ALPHA_QUARTERS, tolerance=8),
        picture("orientation-6.heic", raw(base64.b64decode(HEIC_TURNED)), tolerance=8),
        refused("cut-in-half.heic", cut(plain, 0.5), BROKEN),
        refused("60000x60000.heic", patched(plain, at, struct.pack(">II", 60000, 60000)), f"{TOO_LARGE}|{BROKEN}"),
    ]


HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9j"
    "AAAAAERAAAEAAQAAAAABoQABAAAAAAAAAPEAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/Wlw"
    "cnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AA"
    "AAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAA"
    "QAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAIAAAAAEAAAAAAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWB"
    "AgMFhAAAAPltZGF0AAAA7SgBrwT4QTJpb/4lf///ODHZftMNFvnxl/dLal/W2F//zlCJYpY45Na+GWNfn8Xx+CD4igZo4zv8669T2U1pJEe/"
    "cP6IlH/6i6wn177/65H2Hngv/zuUtn9+zrpAo/X0rLD4DzTiu3LTA+X+3jHzJeTMatmCpWB4tLzRjG5PQc2+f35IsZAoLPxfLNW1Sox8n8wd"
    "UgbFaY8InEnYUAS6QQddJUfq1wLQpKP+btmiL3M/IsLIU52SBKoZJmggADfzh6lTwnSzZB94h2Jts2tHDPdrvHu1TIT5R0v0sRwvyVGx/L/l"
    "fj+/fv/8HgEywA=="
)
HEIC_ALPHA = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAmttZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9j"
    "AAAAAERAAAIAAQAAAAACjwABAAAAAAAAAPEAAgAAAAADgAABAAAAAAAAAP8AAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAA"
    "ABVpbmZlAgAAAAACAABodmMxAAAAAA5waXRtAAAAAAABAAABqmlwcnAAAAGCaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNg"
    "AAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZE"
    "AcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAIAAAAAEAAAAAAAAAAv///+AA"
    "AAACAAAAEHBpeGkAAAAAAwgICAAAAHBodmNDAQQIAAAAn/gAAAAAHvAA/Pz4+AAADwNgAAEAF0ABDAH//wQIAAADAJ/4AAADAAAeugJAYQAB"
    "ACVCAQEECAAAAwCf+AAAAwAAHsCCBBZbq5Ka5sCAAAAMgAAAAwCEYgABAAZEAcFzwIkAAAAOcGl4aQAAAAABCAAAACdhdXhDAAAAAHVybjpt"
    "cGVnOmhldmM6MjAxNTphdXhpZDoxAAAAACBpcG1hAAAAAAAAAAIAAQWBAgMFhAACBYYDB4iEAAAAGmlyZWYAAAAAAAAADmF1eGwAAgABAAEA"
    "AAH4bWRhdAAAAO0oAa8E+EEyaW/+JX///zgx2X7TDRb58Zf3S2pf1thf/85QiWKWOOTWvhljX5/F8fgg+IoGaOM7/OuvU9lNaSRHv3D+iJR/"
    "+ousJ9e+/+uR9h54L/87lLZ/fs66QKP19Kyw+A804rty0wPl/t4x8yXkzGrZgqVgeLS80YxuT0HNvn9+SLGQKCz8XyzVtUqMfJ/MHVIGxWmP"
    "CJxJ2FAEukEHXSVH6tcC0KSj/m7Zoi9zPyLCyFOdkgSqGSZoIAA384epU8J0s2QfeIdibbNrRwz3a7x7tUyE+UdL9LEcL8lRsfy/5X4/v37/"
    "/B4BMsAAAAD7KAGuCfDcAjpkv/0ruV0aH/aRoUMcPM6eWIxP6+kdvT6e+efghSkKGllRZvdBR2kpbzXY1/eaRDHLymWrJjkvWJi9aVUEs1CY"
    "wlHDaAolYf983VIo1b4X/bNphDR3+E6FP79W6YSbjYxva2mfk5p8rT8x/NX22cJtlRLgHk7nf0GYy/O8OP+Jy/4AWZRAHk7nf0GYy/O8OP+J"
    "y/4Ab0vgADFAOC7KmEtsEdyfP+t8wI8AALEdGM+nVOfYU+0VTUAUUoc22O3uh2z+MpEYsLKmOHxRblpJRvttfn+VCpOlXUPTcWQfm2T2zosr"
    "vyVAH3ePuxNtVvPED1tjS4A="
)
HEIC_TURNED = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9j"
    "AAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAIcAAgAAAAACcwABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAA"
    "ABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNg"
    "AAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZE"
    "AcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAACAAAAABAAAAQAAAAAH////gAAAAAgAAAAAA"
    "AAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAA"
    "ALNtZGF0AAAAgygBrwT4QTJpb/yu///8ym//+H+Hv1fwR1iXyHOF+idc42dauKGiaoR3vCS2sEDrJg3KvQ7rbtWZ2BTvne8VBF3aK3vC8b/J"
    "U+r7kdv1SFixn6HNtFVilH7z3/l9rfmBurBD8PmRPlfH/63pZu+m+hDhVLKPSJ3bpTCm1zAIDCc9KND8AAAABkV4aWYAAE1NACoAAAAIAAEB"
    "EgADAAAAAQAGAAAAAAAA"
)


def profile_cases() -> list[Case]:
    wide, linear, srgb = wide_profile(), grey_profile(), built_in_profile("sRGB")
    wide_rgba = Image.fromarray(np.dstack([WIDE_PIXELS, ALPHA_PIXELS]))
    large = wide_profile(zzzz=b"data\0\0\0\1" + bytes(2_000_000))
    chunk_16 = chunk(b"iCCP", b"icc\0\0" + zlib.compress(wide))
    converted = partial(picture, colours=WIDE_QUARTERS, tolerance=3)
    return [
        picture("profile-srgb.png", saved(RGB, "PNG", icc_profile=srgb)),
        picture("profile-srgb.jpg", saved(RGB, "JPEG", quality=95, icc_profile=srgb), tolerance=6),
        converted("profile-wide.png", saved(WIDE_RGB, "PNG", icc_profile=wide)),
        converted("profile-wide-alpha.png", saved(wide_rgba, "PNG", icc_profile=wide), alpha=ALPHA_QUARTERS),
        converted("profile-wide-palette.png", saved(wide_palette(), "PNG", icc_profile=wide)),
        converted("profile-wide-16.png", raw(png(sixteen(WIDE_PIXELS), chunk_16))),
        converted("profile-wide.jpg", saved(WIDE_RGB, "JPEG", quality=95, icc_profile=wide)),
        converted("profile-wide.tif", saved(WIDE_RGB, "TIFF", icc_profile=wide)),
        converted("profile-wide.webp", saved(WIDE_RGB, "WEBP", lossless=True, icc_profile=wide)),
        converted(
            "profile-wide-alpha.webp", saved(wide_rgba, "WEBP", lossless=True, icc_profile=wide), alpha=ALPHA_QUARTERS
        ),
        converted("profile-wide-2-MB.png", saved(WIDE_RGB, "PNG", icc_profile=large)),
        converted("profile-wide-2-MB.jpg", saved(WIDE_RGB, "JPEG", quality=95, icc_profile=large)),
        grey("profile-grey.png", saved(GREY, "PNG", icc_profile=linear), LINEAR_QUARTERS, tolerance=3),
        grey("profile-grey.jpg", saved(GREY, "JPEG", quality=95, icc_profile=linear), LINEAR_QUARTERS, tolerance=8),
        grey("profile-grey-16.png", saved(GREY_16, "PNG", icc_profile=linear), LINEAR_QUARTERS, tolerance=3),
        grey(
            "profile-grey-alpha.png",
            saved(LA, "PNG", icc_profile=linear),
            LINEAR_QUARTERS,
            alpha=ALPHA_QUARTERS,
            tolerance=3,
        ),
        grey("profile-of-rgb-on-grey.png", saved(GREY, "PNG", icc_profile=srgb)),
        picture("profile-of-grey-on-rgb.png", saved(RGB, "PNG", icc_profile=linear)),
        picture("profile-of-rgb-on-cmyk.jpg", saved(CMYK, "JPEG", quality=95, icc_profile=wide), tolerance=6),
        picture("profile-lab.png", saved(RGB, "PNG", icc_profile=built_in_profile("LAB"))),
        picture("profile-xyz.png", saved(RGB, "PNG", icc_profile=built_in_profile("XYZ")), (), tolerance=255),
        picture("profile-cut.png", saved(RGB, "PNG", icc_profile=wide[:200])),
        picture("profile-garbage.jpg", saved(RGB, "JPEG", quality=95, icc_profile=b"\xa5" * 500), tolerance=6),
        picture("profile-wild-offsets.png", saved(RGB, "PNG", icc_profile=wide[:132] + b"\xff" * (len(wide) - 132))),
        picture("profile-not-compressed.png", raw(png(PIXELS, chunk(b"iCCP", b"icc\0\0" + wide)))),
        either("profile-bomb.png", write_profile_bomb),
    ]


def size_cases() -> list[Case]:
    sizes = ((1, 1), (1, 4000), (4000, 1), (2, 3), (7, 5))
    return [
        picture(f"{width}x{height}.{kind.lower()}", saved(Image.new("RGB", size, RED), kind), points, size=size)
        for size in sizes
        for kind in ("PNG", "BMP")
        for width, height in [size]
        for points in [(((0, 0), RED), ((width - 1, height - 1), RED))]
    ]


def name_cases() -> list[Case]:
    """Good pictures under odd names, and paths with no file."""
    good = saved(RGB, "PNG")
    return [
        picture("png-named.jpg", good),
        picture("png-named.heic", good),
        picture("no-suffix", good),
        picture("upper-case.PNG", good),
        picture("letters", good, file="für 東京 %20 'a' & b.png"),
        picture("line-break", good, file="a\nb.png"),
        picture("long-name", good, file="n" * 240 + ".png"),
        refused("folder", make_folder, FOLDER),
        refused("fifo", make_fifo, NO_FILE),
        refused("missing.png", nothing, NO_FILE),
        refused("missing-line-break", nothing, NO_FILE, file="missing\nline.png"),
        refused("missing-long", nothing, NO_FILE, file="n" * 251 + ".png"),
        refused("missing-too-long", nothing, NO_FILE, file="n" * 400 + ".png"),
        refused("below-a-file", good_parent, NO_FILE, file="parent.png/child.png"),
    ]


def good_parent(path: Path) -> None:
    RGB.save(path.parent)


MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0\0\1\0moov" + bytes(248)


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as pack:
        pack.writestr("picture.png", png(PIXELS))
    return file.getvalue()


def foreign_cases() -> list[Case]:
    """Files that are no pictures, as people upload them."""
    page = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>"
    drawing = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64" height="32"></svg>'
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n%%EndComments\nshowpage\n%%EOF\n"
    files = {
        "page.html": page,
        "page.png": page,
        "text.txt": b"A photograph of a cat.\n" * 20,
        "text-utf-16.txt": "A photograph of a cat.".encode("utf-16"),
        "reply.json": json.dumps({"error": "expired", "image": None}).encode(),
        "data-uri.txt": b"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk",
        "document.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        "archive.zip": archive(),
        "drawing.svg": drawing,
        "drawing.eps": postscript,
        "drawing.wmf": b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x40\0\x20\0\x60\0\0\0\0\0\0\0\1\0\x09\0" + bytes(60),
        "film.mp4": MP4,
        "film.mpg": b"\0\0\1\xb3\x04\0\x20\x13" + bytes(60),
        "sound.wav": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + bytes(40),
        "array.h5": b"\x89HDF\r\n\x1a\n" + bytes(90),
        "zeros.png": bytes(1000),
    }
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    return [
        refused("empty.png", raw(b""), EMPTY),
        refused("one-byte.png", raw(b"\x89"), BROKEN),
        refused("header-only.heic", raw(heic), BROKEN),
        *(refused(name, raw(data), NO_PICTURE) for name, data in files.items()),
    ]


def random_cases() -> list[Case]:
    """Random bytes, alone and behind the first bytes of each format."""
    starts = {
        "none": b"",
        "png": _PNG,
        "png-header": header(64, 32),
        "jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
        "gif": b"GIF89a\x40\0\x20\0",
        "webp": b"RIFF\xf0\x01\0\0WEBPVP8 ",
        "tif": b"II*\0\x08\0\0\0",
        "bmp": b"BM\0\2\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
        "ico": b"\0\0\1\0\1\0",
        "psd": b"8BPS\0\1",
        "avif": b"\0\0\0\x1cftypavif\0\0\0\0",
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
        "dds": b"DDS \x7c\0\0\0",
    }
    return [
        refused(f"random-{name}", raw(start + np.random.default_rng(index).bytes(500)), f"{BROKEN}|{TOO_LARGE}")
        for index, (name, start) in enumerate(starts.items())
    ]


def patched(data: bytes, start: int, new: bytes) -> Write:
    return raw(data[:start] + new + data[start + len(new) :])


def cut_cases() -> list[Case]:
    """Uploads that ended too early, and files with a few bytes wrong."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    large = Image.fromarray(noise)
    whole, photo = png(noise), encoded(large, "JPEG")
    webp, gif, page = encoded(large, "WEBP"), encoded(large, "GIF"), encoded(large, "TIFF")
    area: Any = {"size": (64, 64), "colours": (), "grey": False}
    flat = png(PIXELS)
    return [
        refused("cut-in-header.png", cut(whole, 20), BROKEN),
        refused("cut-after-header.png", cut(whole, 33), BROKEN),
        refused("cut-in-data.png", cut(whole, 0.5), DAMAGED),
        either("cut-last-byte.png", cut(whole, -1), **area),
        either("cut-end-chunk.png", cut(whole, -12), **area),
        refused("cut-in-header.jpg", cut(photo, 20), BROKEN),
        refused("cut-in-half.jpg", cut(photo, 0.5), DAMAGED),
        either("cut-last-bytes.jpg", cut(photo, -2), **area),
        refused("cut-in-half-progressive.jpg", cut(encoded(large, "JPEG", progressive=True), 0.5), DAMAGED),
        refused("cut-in-half.webp", cut(webp, 0.5), BROKEN),
        refused("cut-in-header.webp", cut(webp, 24), BROKEN),
        refused("cut-in-half.gif", cut(gif, 0.5), DAMAGED),
        refused("cut-in-header.gif", cut(gif, 8), BROKEN),
        refused("cut-in-half.tif", cut(page, 0.5), BROKEN),
        refused("cut-in-half-lzw.tif", cut(encoded(large, "TIFF", compression="tiff_lzw"), 0.5), BROKEN),
        refused("cut-in-half.bmp", cut(encoded(large, "BMP"), 0.5), DAMAGED),
        refused("cut-in-half.ico", cut(encoded(large, "ICO", sizes=[(64, 64)]), 0.5), BROKEN),
        refused("directory-offset-wild.tif", patched(page, 4, struct.pack("<I", 0xFFFFFFF0)), BROKEN),
        refused("strip-offset-wild.tif", raw(tiff(b"", (8, 8, 8), 2, {273: [0xFFFFFF00], 279: [6144]})), BROKEN),
        refused("checksum-of-header.png", patched(flat, 29, b"\0\0\0\0"), BROKEN),
        either("checksum-of-data.png", patched(flat, len(flat) - 16, b"\0\0\0\0")),
        refused("data-not-zlib.png", raw(header(*SIZE) + chunk(b"IDAT", b"\xa5" * 500) + chunk(b"IEND", b"")), DAMAGED),
        refused("no-data.png", raw(header(*SIZE) + chunk(b"IEND", b"")), BROKEN),
        either("too-few-rows.png", raw(header(*SIZE) + chunk(b"IDAT", zlib.compress(scanlines(PIXELS[:9])))), ()),
        either("no-palette.png", raw(header(*SIZE, kind=3) + flat[33:]), (), grey=None, alpha=None),
        refused("impossible-depth.png", raw(header(*SIZE, depth=7) + flat[33:]), BROKEN),
    ]


def resized_jpeg(width: int, height: int) -> bytes:
    """The test picture as JPEG, claiming another size in its frame header."""
    data = encoded(RGB, "JPEG", quality=95)
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def claimed(width: int, height: int) -> bytes:
    """A tiny PNG that claims any size."""
    return header(width, height) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def icon(data: bytes) -> bytes:
    """A PNG of any size -> an icon that says 64 x 32"""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, *SIZE, 0, 0, 1, 32, len(data), 22) + data


def bomb_cases() -> list[Case]:
    """Small files that claim or hold a lot, or no pixel at all."""
    gif = encoded(PALETTE, "GIF")
    bmp = encoded(RGB, "BMP")
    lossless = struct.pack("<I", 16382 | 16382 << 14)
    webp = b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0\x2f" + lossless + bytes(9)
    return [
        refused("60000x60000.png", raw(claimed(60000, 60000)), TOO_LARGE),
        refused("two-billion-a-side.png", raw(claimed(2**31 - 1, 2**31 - 1)), f"{TOO_LARGE}|{BROKEN}"),
        refused("9000x9000.png", raw(claimed(9000, 9000)), TOO_LARGE),
        either("7000x7000.png", raw(claimed(7000, 7000)), (), size=(7000, 7000)),
        refused("65500x65500.jpg", raw(resized_jpeg(65500, 65500)), TOO_LARGE),
        either("7000x7000.jpg", raw(resized_jpeg(7000, 7000)), (), size=(7000, 7000)),
        refused("65535x65535.gif", patched(gif, 6, struct.pack("<HH", 65535, 65535)), TOO_LARGE),
        refused("60000x60000.bmp", patched(bmp, 18, struct.pack("<ii", 60000, 60000)), TOO_LARGE),
        refused("60000x60000.tif", raw(tiff(b"", (8, 8, 8), 2, {256: [60000], 257: [60000]})), TOO_LARGE),
        refused("16383x16383.webp", raw(webp), f"{TOO_LARGE}|{BROKEN}"),
        refused("60000x60000.ppm", raw(b"P6 60000 60000 255\n" + bytes(100)), f"{TOO_LARGE}|{BROKEN}"),
        refused("60000x60000.ico", raw(icon(claimed(60000, 60000))), f"{TOO_LARGE}|{BROKEN}"),
        either("text-bomb.png", write_text_bomb),
        either("late-text-bomb.png", write_late_text_bomb),
        refused("0x5.png", raw(claimed(0, 5)), BROKEN),
        refused("5x0.png", raw(claimed(5, 0)), BROKEN),
        refused("0x5.jpg", raw(resized_jpeg(0, 5)), BROKEN),
        refused("0x5.bmp", patched(bmp, 18, struct.pack("<ii", 0, 5)), BROKEN),
        refused("0x5.tif", raw(tiff(b"", (8, 8, 8), 2, {256: [0], 257: [5]})), BROKEN),
        refused("0x5.ppm", raw(b"P6 0 5 255\n"), BROKEN),
        refused("minus-5.bmp", patched(bmp, 18, struct.pack("<ii", -5, 5)), f"{BROKEN}|{TOO_LARGE}"),
    ]


CASES: list[Case] = [
    *png_cases(),
    *jpeg_cases(),
    *webp_cases(),
    *gif_cases(),
    *tiff_cases(),
    *other_cases(),
    *profile_cases(),
    *size_cases(),
    *name_cases(),
    *foreign_cases(),
    *random_cases(),
    *cut_cases(),
    *bomb_cases(),
]


def describe(case: Case) -> str:
    """What is expected, in a few words."""
    words = []
    if case.picture:
        width, height = case.picture.size
        words.append(
            f"{width} x {height}{', grey' if case.picture.grey else ''}{', alpha' if case.picture.alpha else ''}"
        )
    if case.error is not None:
        words.append(f"error /{case.error}/")
    return " or ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        path = case.path(folder)
        case.write(path)
        size = path.stat().st_size if case.picture or case.error != NO_FILE else 0
        print(f"{case.name:32} {size:9,}  {describe(case)}")
    print(f"{len(CASES)} cases in {folder}")


if __name__ == "__main__":
    main()
