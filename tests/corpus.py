"""Good, odd and hostile image files, and what reading each must give."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DATA = Path(__file__).parent / "data/images"
RED = (200, 30, 40)

# What a refusal must say.
NO_FILE = r"file|folder|exist"
FOLDER = r"folder|directory"
ANY = r""

Write = Callable[[Path], object]
Points = tuple[tuple[tuple[int, int], Any], ...]
"""((x, y), value there) for a few pixels."""


@dataclass(frozen=True)
class Expected:
    """An image that is read: its (width, height) upright, its colours, and its alpha, () for none and None for any."""

    size: tuple[int, int]
    colors: Points = ()
    tolerance: int = 2
    grey: bool | None = False
    alpha: Points | None = ()


@dataclass(frozen=True)
class Case:
    """One file. If both `picture` and `error` are set, either result is right."""

    name: str
    write: Write
    picture: Expected | None = None
    error: str | None = None
    file: str = ""

    def path(self, folder: Path) -> Path:
        """The case's file in `folder`. Its name is that of the case if `file` is empty."""
        return folder / (self.file or self.name)


def expected(
    size: Sequence[int], colors: Sequence[str] = (), alpha: Sequence[int] | None = (), **more: Any
) -> Expected:
    """An entry of cases.json. One value stands for the first and the last pixel, four for the centres of quarters."""
    width, height = size
    centres = [(x, y) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    places = {0: [], 1: [(0, 0), (width - 1, height - 1)], 4: centres}

    def points(values: Sequence[Any]) -> Points:
        return tuple((at, values[index % len(values)]) for index, at in enumerate(places[len(values)]))

    rgb = [tuple(bytes.fromhex(color)) for color in colors]
    return Expected((width, height), points(rgb), alpha=None if alpha is None else points(alpha), **more)


# Ways to write ------------------------------------------------------------------------------------------------------


def copy_of(name: str) -> Write:
    return lambda path: shutil.copyfile(DATA / name, path)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def profile_of(name: str) -> bytes:
    with Image.open(DATA / name) as image:
        return image.info["icc_profile"]


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> np.ndarray:
    return np.asarray(image)[y, x].astype(int)


def write_long_exif(path: Path) -> None:
    """A JPEG with a camera's note of 60 kB."""
    with Image.open(DATA / "orientation-6.jpg") as image:
        exif = image.getexif()
        exif.get_ifd(0x8769)[0x927C] = b"x" * 60_000
        image.save(path, quality="keep", exif=exif)


def write_large_profile(path: Path) -> None:
    """A colour profile of 2 MB."""
    profile = profile_of("profile-wide.png") + bytes(2_000_000)
    profile = struct.pack(">I", len(profile)) + profile[4:]  # it begins with its size
    with Image.open(DATA / "profile-wide.png") as image:
        image.save(path, quality=95, icc_profile=profile)


def png_bomb(kind: bytes, start: bytes, at: int) -> Write:
    """A PNG with a chunk of 100 MB of zeros, compressed, at byte `at` of the file."""

    def write(path: Path) -> None:
        packer = zlib.compressobj(9)
        zeros = b"".join(packer.compress(bytes(1_000_000)) for _ in range(100)) + packer.flush()
        body = kind + start + zeros
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        data = (DATA / "rgb.png").read_bytes()
        path.write_bytes(data[:at] + chunk + data[at:])

    return write


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def nothing(path: Path) -> None:
    """The path stays missing."""


# The cases ----------------------------------------------------------------------------------------------------------


def stored_cases() -> list[Case]:
    """The files of tests/data/images."""
    table: dict[str, dict[str, Any]] = json.loads((DATA / "cases.json").read_text())
    cases = []
    for name, entry in table.items():
        error = entry.pop("error", None)
        cases.append(Case(name, copy_of(name), expected(**entry) if entry else None, error))
    return cases


def made_cases(stored: dict[str, Expected | None]) -> list[Case]:
    """Files that are too large to store, odd file names, and paths that are not files."""
    rgb, wide = stored["rgb.png"], stored["profile-wide.png"]
    good = copy_of("rgb.png")
    after_header, before_end = 33, -12
    return [
        Case("exif-60-kB.jpg", write_long_exif, stored["orientation-6.jpg"]),
        Case("profile-wide-2-MB.png", write_large_profile, wide),
        Case("profile-wide-2-MB.jpg", write_large_profile, wide),
        Case("profile-bomb.png", png_bomb(b"iCCP", b"icc\0\0", after_header), rgb, ANY),
        Case("text-bomb.png", png_bomb(b"zTXt", b"Comment\0\0", after_header), rgb, ANY),
        Case("late-text-bomb.png", png_bomb(b"iTXt", b"Comment\0\1\0\0\0", before_end), rgb, ANY),
        Case("1x4000.bmp", Image.new("RGB", (1, 4000), RED).save, stored["1x4000.png"]),
        Case("4000x1.bmp", Image.new("RGB", (4000, 1), RED).save, stored["4000x1.png"]),
        *(Case(name, good, rgb) for name in ("png-named.jpg", "png-named.heic", "no-suffix", "upper-case.PNG")),
        Case("letters", good, rgb, file="für 東京 %20 'a' & b.png"),
        Case("line-break", good, rgb, file="a\nb.png"),
        Case("long-name", good, rgb, file="n" * 240 + ".png"),
        Case("folder", Path.mkdir, error=FOLDER),
        Case("fifo", make_fifo, error=NO_FILE),
        Case("missing.png", nothing, error=NO_FILE),
        Case("missing-line-break", nothing, error=NO_FILE, file="missing\nline.png"),
        Case("missing-long", nothing, error=NO_FILE, file="n" * 251 + ".png"),
        Case("missing-too-long", nothing, error=NO_FILE, file="n" * 400 + ".png"),
        Case("below-a-file", lambda path: good(path.parent), error=NO_FILE, file="parent.png/child.png"),
    ]


STORED = stored_cases()
CASES = [*STORED, *made_cases({case.name: case.picture for case in STORED})]
