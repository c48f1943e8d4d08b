"""The photographs and tags that training draws."""

from pathlib import Path

import numpy as np
import pytest

from scripts.train.data import NOT_SHOWN, SHOWN, TAGS, Photographs, flatten, random_image, read_listing, tags_of


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
    tags = tags_of(np.full((8, 8, 3), colour, np.uint8))
    assert tuple(tags) == TAGS
    assert {tag for tag, answer in tags.items() if answer == SHOWN} == shown


def test_between_the_limits_a_tag_is_unsure() -> None:
    half = np.full((8, 8, 3), 128, np.uint8)
    half[:, :3] = (60, 140, 50)
    assert tags_of(half)["green"] not in (SHOWN, NOT_SHOWN)


def test_random_images_show_each_tag_sometimes() -> None:
    random = np.random.default_rng(4)
    photograph = random.integers(40, 200, (60, 90, 3), dtype=np.uint8)
    photograph[:, :30] = (60, 140, 50)
    photograph[:, 60:] = (220, 120, 60)
    found = [random_image(photograph, random)[1] for _ in range(200)]
    for tag in TAGS:
        assert {SHOWN, NOT_SHOWN} <= {tags[tag] for tags in found}
