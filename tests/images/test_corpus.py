"""Every file of the corpus gives the right image or one clear sentence within a second, and leaves nothing behind."""

import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seesr import images
from tests.corpus import CASES, DATA, STORED, Case, Expected

SECONDS = 1.0
"""CPU time until a file is refused. Other work on the machine does not count."""


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Loads Pillow's plugins and the colour engine before anything is timed."""
    Image.init()
    images.open_image(DATA / "profile-wide.png")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_read_or_refused_as_expected(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        check_image(result, case.picture)


@pytest.mark.parametrize("case", [case for case in CASES if case.picture and not case.file], ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_read_or_refused(case: Case, tmp_path: Path) -> None:
    """A good file that is shortened or has a few bytes changed raises nothing but a refusal."""
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


def opened(path: Path) -> images.OpenedImage | str:
    """The image, or the sentence of the refusal."""
    try:
        return images.open_image(path)
    except ValueError as error:
        if type(error) is not ValueError:  # a subclass, such as UnicodeDecodeError, is not our sentence
            raise
        return str(error)


def check_image(found: images.OpenedImage, expected: Expected) -> None:
    assert found.rgb.mode == "RGB"
    assert found.rgb.size == expected.size
    assert expected.grey is None or found.grey == expected.grey
    # Colours under alpha 0 are not those of the file.
    seen = [(at, value) for at, value in expected.colors if not found.alpha or found.alpha.getpixel(at) != 0]
    check_points(found.rgb, seen, expected.tolerance)
    if expected.alpha == ():
        assert found.alpha is None
    elif expected.alpha:
        assert found.alpha is not None
        assert (found.alpha.mode, found.alpha.size) == ("L", expected.size)
        check_points(found.alpha, expected.alpha, expected.tolerance)


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


def test_every_stored_file_is_a_small_case() -> None:
    files = {path.name: path for path in DATA.iterdir()}
    assert files.keys() - {"README.md", "cases.json", ".gitattributes"} == {case.name for case in STORED}
    assert all(files[case.name].stat().st_size < 2000 for case in STORED)
