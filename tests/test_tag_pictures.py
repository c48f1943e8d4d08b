"""The labelled pictures that the embedded bundle's tagger learns from and is examined on."""

import numpy as np
import pytest
from tag_pictures import NOT_SHOWN, SHOWN, TAGS, Score, examination, examine, random_picture, tags_of


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
def test_pixels_say_their_light_and_colours(colour: tuple[int, int, int], shown: set[str]) -> None:
    tags = tags_of(np.full((8, 8, 3), colour, np.uint8))
    assert tuple(tags) == TAGS
    assert {tag for tag, answer in tags.items() if answer == SHOWN} == shown


def test_what_is_between_is_not_asked() -> None:
    half = np.full((8, 8, 3), 128, np.uint8)
    half[:, :3] = (60, 140, 50)
    assert tags_of(half)["green"] not in (SHOWN, NOT_SHOWN)


def test_learned_pictures_show_each_tag_sometimes() -> None:
    random = np.random.default_rng(4)
    photograph = random.integers(40, 200, (60, 90, 3), dtype=np.uint8)
    photograph[:, :30] = (60, 140, 50)
    photograph[:, 60:] = (220, 120, 60)
    pictures = [random_picture(photograph, random) for _ in range(200)]
    for tag in TAGS:
        assert {SHOWN, NOT_SHOWN} <= {picture.tags[tag] for picture in pictures}


def test_an_examination_counts_right_and_wrong_answers() -> None:
    photograph = np.random.default_rng(1).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    pictures = examination([photograph])
    always, never = (examine(lambda _, said=said: said, pictures)["dark"] for said in (["dark"], []))
    assert always.shown == never.shown > 0
    assert always.right + never.right == pytest.approx(1)
    assert (always.tagged, never.tagged) == (always.pictures, 0)
    assert max(always.right, never.right) == pytest.approx(always.baseline)
    assert Score(10, 4, 5, 3).right == pytest.approx(0.7)
