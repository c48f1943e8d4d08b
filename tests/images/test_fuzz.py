"""Changed and shortened files end in an image or in one sentence."""

import io
import re

import numpy as np
import pytest

from seesr import images
from tests.corpus import DATA, STORED

FILES = [DATA / case.name for case in STORED if case.picture and not case.error]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Cut off, or up to seven places changed, half of the time near the start, where the structure is."""
    kind, file = random.integers(4), bytearray(data)
    if kind == 0:
        return data[: random.integers(1, len(data))]
    for _ in range(random.integers(1, 8)):
        at = random.integers(0, min(len(file), 600 if kind == 1 else len(file)))
        change = random.integers(3)
        if change == 0:
            file[at] = random.integers(256)
        elif change == 1:
            file[at] ^= 1 << random.integers(8)
        else:
            file[at : at + 4] = bytes([random.choice([0, 1, 127, 128, 255])] * len(file[at : at + 4]))
    return bytes(file)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore")
def test_a_changed_file_is_read_or_refused(seed: int) -> None:
    """500 in all."""
    random = np.random.default_rng(seed)
    for _ in range(100):
        path = FILES[random.integers(len(FILES))]
        try:
            sentence = images.open_image(io.BytesIO(mutated(path.read_bytes(), random))) and ""
        except ValueError as error:
            sentence = str(error) if type(error) is ValueError else repr(error)
        assert not sentence or re.fullmatch(r"image must [^\n]{20,280}", sentence), path.name


def test_all_formats_are_changed() -> None:
    assert len(FILES) >= 60
    assert {path.suffix for path in FILES} >= {
        ".png",
        ".jpg",
        ".webp",
        ".avif",
        ".heic",
        ".tif",
        ".bmp",
        ".gif",
        ".ppm",
    }
