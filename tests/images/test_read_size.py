"""The size of an image by its header."""

import io
from pathlib import Path

import pytest

from seesr import images
from tests.corpus import STORED


@pytest.mark.filterwarnings("ignore")
def test_it_is_that_of_the_opened_image(tmp_path: Path) -> None:
    for case in STORED:
        path = case.path(tmp_path)
        case.write(path)
        with path.open("rb") as file:
            found = images.read_size(file)
            assert case.picture is None or found == case.picture.size[::-1], case.name
            file.seek(0)
            assert images.read_size(io.BytesIO(file.read())) == found, f"{case.name}, not on a disk"
