"""Every file of the corpus gives the right picture or one clear sentence, soon, and leaves nothing behind."""

import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import CASES, WIDE_RGB, Case, Expected, saved, wide_profile
from PIL import Image

from seesr import images

SECONDS = 1.0
"""Of the processor, until a file is refused: other work on the machine must not fail a test."""


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pillow's plugins and the colour engine are loaded before anything is timed."""
    path = tmp_path_factory.mktemp("warm") / "a.png"
    saved(WIDE_RGB, "PNG", icc_profile=wide_profile())(path)
    Image.init()
    images.open_image(path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_picture_or_sentence(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, temporary = tmp_path / "in", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    case.write(case.path(folder))
    before = sorted(tmp_path.rglob("*"))
    start = time.thread_time()
    result = opened(case.path(folder))
    seconds = time.thread_time() - start
    assert sorted(tmp_path.rglob("*")) == before
    if isinstance(result, str):
        assert seconds < SECONDS
        assert case.error is not None, f"refused: {result}"
        check_sentence(result, case.error, tmp_path)
    else:
        assert case.picture is not None, f"read as {result}"
        check_picture(result, case.picture)


@pytest.mark.parametrize("case", [case for case in CASES if case.picture and not case.file], ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_damage_gives_a_sentence_or_a_picture(case: Case, tmp_path: Path) -> None:
    """Shorter, or with a few bytes changed, a good file is still read or refused, never anything else."""
    case.write(tmp_path / case.name)
    for data in damaged((tmp_path / case.name).read_bytes()):
        (tmp_path / case.name).write_bytes(data)
        result = opened(tmp_path / case.name)
        if isinstance(result, str):
            check_sentence(result, "", tmp_path)


def damaged(data: bytes) -> list[bytes]:
    """Six shorter files, and six with up to four bytes changed, half of them near the start."""
    random = np.random.default_rng(1)
    files = [data[: len(data) * share // 7] for share in range(1, 7)]
    for number in range(6):
        file = bytearray(data)
        for place in random.integers(0, min(len(data), 400 if number % 2 else len(data)), 1 + number % 4):
            file[place] = random.integers(256)
        files.append(bytes(file))
    return files


def opened(path: Path) -> images.Picture | str:
    """The picture, or the words with which it is refused."""
    try:
        return images.open_image(path)
    except ValueError as error:
        if type(error) is not ValueError:  # a subclass, such as UnicodeDecodeError, has no words of ours
            raise
        return str(error)


def check_picture(picture: images.Picture, expected: Expected) -> None:
    assert picture.rgb.mode == "RGB"
    assert picture.rgb.size == expected.size
    assert expected.grey is None or picture.grey == expected.grey
    # Colours under alpha 0 are nobody's: they continue those around.
    seen = [(at, value) for at, value in expected.colours if not picture.alpha or picture.alpha.getpixel(at) != 0]
    check_points(picture.rgb, seen, expected.tolerance)
    if expected.alpha == ():
        assert picture.alpha is None
    elif expected.alpha:
        assert picture.alpha is not None
        assert (picture.alpha.mode, picture.alpha.size) == ("L", expected.size)
        check_points(picture.alpha, expected.alpha, expected.tolerance)


def check_points(image: Image.Image, points: Iterable[tuple[tuple[int, int], Any]], tolerance: int) -> None:
    for point, value in points:
        assert image.getpixel(point) == pytest.approx(value, abs=tolerance), point


def check_sentence(message: str, pattern: str, folder: Path) -> None:
    assert re.match(r"image\b", message), message
    assert re.search(pattern, message), message
    assert len(message.splitlines()) == 1, message
    assert len(message) < 300, message
    for leak in (str(folder), "Traceback", 'File "', "site-packages", " object at 0x"):
        assert leak not in message


def test_corpus_is_wide_enough() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({case.path(Path()) for case in CASES}) == len(CASES)
