"""The photographs and tags that training draws."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.train.data import TAGS, Photographs, flatten, read_listing, tags_of
from scripts.train.pack import pack


def test_the_listing_credits_every_photograph_once() -> None:
    entries = read_listing()
    assert len({entry["file"] for entry in entries}) == len(entries) == 245
    assert all(entry["credit"] and entry["licence"] for entry in entries)
    assert all(entry["file"].startswith(f"{entry['package']}/usr/share/") for entry in entries)


def test_a_missing_photograph_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"0\.png is missing; remove .*package to have it fetched again"):
        Photographs(tmp_path, [{"package": "package", "file": "package/0.png"}])


@pytest.mark.parametrize("kind", range(6))
def test_flat_crops_are_flat_somewhere(kind: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    flat = flatten(pixels, np.random.default_rng(kind))
    assert flat.shape == pixels.shape
    steps = np.abs(np.diff(flat.astype(int), axis=0))[:, :-1] + np.abs(np.diff(flat.astype(int), axis=1))[:-1]
    assert (steps.max(2) <= 26).mean() > 0.1
    assert (pixels != flat).any()


@pytest.mark.parametrize(
    ("colour", "shown"),
    [
        ((20, 20, 20), {"dark", "black and white"}),
        ((220, 220, 220), {"bright", "black and white"}),
        ((220, 120, 60), {"warm colors"}),
        ((60, 140, 50), {"green"}),
        ((40, 90, 210), set()),
    ],
)
def test_tags_follow_from_light_and_colours(colour: tuple[int, int, int], shown: set[str]) -> None:
    assert set(tags_of(np.full((8, 8, 3), colour, np.uint8))) == shown


def test_tags_are_those_of_the_embedded_bundle(tiny_bundle: Path) -> None:
    assert (tiny_bundle / "ram/tags.txt").read_text().splitlines() == list(TAGS)


def test_photographs_are_packed_once_in_a_small_size(tmp_path: Path) -> None:
    random, entries = np.random.default_rng(1), []
    for name, height in (("large.jpg", 120), ("small.png", 40)):
        (tmp_path / "from/ours").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "from/ours" / name), random.integers(0, 256, (height, 60, 3), dtype=np.uint8))
        entries.append({"package": "ours", "file": f"ours/{name}"})
    size = pack(entries, tmp_path / "from", tmp_path / "to", side=60)
    shapes = [pixels.shape for pixels, _ in Photographs(tmp_path / "to", entries).items]
    assert shapes == [(60, 30, 3), (40, 60, 3)]
    written = [path for path in (tmp_path / "to").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in written) == size
    times = [path.stat().st_mtime_ns for path in written]
    assert pack(entries, tmp_path / "from", tmp_path / "to", side=60) == size
    assert [path.stat().st_mtime_ns for path in written] == times
