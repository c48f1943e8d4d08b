"""JPEG: a missing end marker is not damage, missing pixels are, and kinds that are not read are named."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seesr import images
from tests.corpus import DATA

KINDS: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"restart_marker_rows": 1},
    {"quality": 95, "subsampling": 0},
]


def jpeg(**options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((120, 88), Image.Resampling.BICUBIC).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_missing_end_marker_is_not_damage(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    data = jpeg(**options)
    assert data[-2:] == b"\xff\xd9"
    wanted = np.asarray(Image.open(io.BytesIO(data)))
    for cut in (1, 2):
        assert np.array_equal(np.asarray(images.open_image(io.BytesIO(data[:-cut])).rgb), wanted)
    assert "The JPEG lacks its end marker. Its pixels are complete." in caplog.text


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_missing_pixels_are_damage(options: dict[str, Any]) -> None:
    """Cut anywhere in the last scan, however little is missing."""
    data = jpeg(**options)
    for cut in [*range(3, 40), *range(40, len(data) - data.rindex(b"\xff\xda") - 20, 97)]:
        with pytest.raises(ValueError, match=r"got a damaged file \(JPEG\); upload it again"):
            images.open_image(io.BytesIO(data[:-cut]))


@pytest.mark.parametrize(
    ("frame", "depth", "words"),
    [
        (0xC1, 12, "a JPEG of 12 bits a channel, which is not read; save it as PNG or as a JPEG of 8 bits"),
        (0xC3, 8, "a lossless or hierarchical JPEG, which is not read; save it as PNG or as baseline JPEG"),
        (0xC3, 16, "a lossless or hierarchical JPEG"),
        (0xC5, 8, "a lossless or hierarchical JPEG"),
        (0xF7, 8, "a JPEG-LS file"),
    ],
)
def test_a_kind_that_is_not_read_is_named(frame: int, depth: int, words: str) -> None:
    data = bytearray((DATA / "rgb.jpg").read_bytes())
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = frame, depth
    with pytest.raises(ValueError, match=words):
        images.open_image(io.BytesIO(bytes(data)))


def test_the_size_is_checked_before_pixels_are_read() -> None:
    data = bytearray((DATA / "rgb.jpg").read_bytes())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 60000, 60001)
    with pytest.raises(ValueError, match="at most 64 megapixels, got 60001 x 60000; make it smaller"):
        images.open_image(io.BytesIO(bytes(data)))
