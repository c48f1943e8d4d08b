"""Pictures whose tags are known, for the embedded bundle's tagger: light and colours, which pixels themselves tell."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from degradation import SCALE, degrade

SHOWN, NOT_SHOWN, UNSURE = 1, 0, -1
LIGHT = {"dark": (50, 75), "bright": (185, 160)}
"""Mean luma, of 255: from the first value on the tag is shown, from the second on it is not."""
GREY = (4, 14)
"""Mean distance of the strongest and the weakest colour, of 255: likewise, for "black and white"."""
HUES = {"warm colors": (165, 30), "green": (33, 85)}
"""First and last hue, in OpenCV's half degrees, of pixels that have a colour."""
ENOUGH, LITTLE = 0.45, 0.25
"""Share of a picture's pixels: from here on a hue is shown; up to here it is not."""
TAGS = ("black and white", "bright", "dark", "green", "warm colors")
PARTS = ((0, 0, 1, 1), *((y, x, y + 0.5, x + 0.5) for y in (0, 0.5) for x in (0, 0.5)))
"""top, left, bottom, right of what the tagger is examined on: the whole photograph and its quarters"""


@dataclass(frozen=True)
class Tagged:
    """`pixels` (H, W, 3) uint8; per tag SHOWN, NOT_SHOWN, or UNSURE: neither taught nor measured."""

    pixels: np.ndarray
    tags: dict[str, int]


@dataclass(frozen=True)
class Score:
    """One tag over the pictures of which it is known: how many there are, show it, were tagged, and rightly so."""

    pictures: int
    shown: int
    tagged: int
    hits: int

    @property
    def right(self) -> float:
        """Share of right answers, yes or no."""
        return (self.pictures - self.shown - self.tagged + 2 * self.hits) / self.pictures

    @property
    def baseline(self) -> float:
        """Share of right answers of the better of always yes and always no."""
        return max(self.shown, self.pictures - self.shown) / self.pictures


def tags_of(pixels: np.ndarray) -> dict[str, int]:
    """(H, W, 3) uint8 -> what its pixels say, per tag of TAGS"""
    mean = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean()
    spread = (pixels.max(2).astype(int) - pixels.min(2)).mean()
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    found = {
        "dark": answer(-mean, *(-limit for limit in LIGHT["dark"])),
        "bright": answer(mean, *LIGHT["bright"]),
        "black and white": answer(-spread, *(-limit for limit in GREY)),
    }
    for tag, (first, last) in HUES.items():
        inside = (hue >= first) & (hue <= last) if first < last else (hue >= first) | (hue <= last)
        found[tag] = answer((inside & (saturation > 50) & (value > 30)).mean(), ENOUGH, LITTLE)
    return {tag: found[tag] for tag in TAGS}


def answer(value: float, shown: float, not_shown: float) -> int:
    return SHOWN if value >= shown else NOT_SHOWN if value <= not_shown else UNSURE


def random_picture(pixels: np.ndarray, random: np.random.Generator) -> Tagged:
    """A part of a photograph, made small, its light and colours shifted; sometimes grey, dark, bright or tinted."""
    height, width = pixels.shape[:2]
    sides = [max(8, int(side * random.uniform(0.15, 1))) for side in (height, width)]
    top, left = (int(random.integers(whole - side + 1)) for whole, side in zip((height, width), sides, strict=True))
    part = pixels[top : top + sides[0], left : left + sides[1]]
    size = tuple(int(32 * 8**share) for share in random.uniform(0, 1, 2))
    light = cv2.resize(part, size, interpolation=cv2.INTER_AREA).astype(np.float32) * random.uniform(0.8, 1.15)
    kind = random.random()
    if kind < 0.15:
        light = np.repeat(light.mean(2, keepdims=True), 3, axis=2)
    if 0.08 < kind < 0.25:
        light *= random.uniform(0.1, 0.4)
    elif 0.25 < kind < 0.4:
        light = 255 - (255 - light) * random.uniform(0.2, 0.6)
    elif kind > 0.6:
        light *= random.uniform(0.5, 1.4, 3)
    clean = light.clip(0, 255).astype(np.uint8)
    noise = random.normal(0, random.uniform(0, 6), (*clean.shape[:2], 1 if kind < 0.15 else 3))
    return Tagged((clean + noise).clip(0, 255).astype(np.uint8), tags_of(clean))


def examination(photographs: Iterable[np.ndarray], seed: int = 1) -> list[Tagged]:
    """Small damaged pictures of photographs: whole, by quarters, made grey, darkened and brightened."""
    random, found = np.random.default_rng(seed), []
    for pixels in photographs:
        height, width = pixels.shape[:2]
        pictures = [
            pixels[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
            for top, left, bottom, right in PARTS
        ]
        pictures.append(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))
        pictures.append((pixels * random.uniform(0.15, 0.35)).astype(np.uint8))
        pictures.append((255 - (255 - pixels.astype(float)) * random.uniform(0.2, 0.5)).astype(np.uint8))
        for picture in pictures:
            rows, columns = (side // SCALE * SCALE for side in picture.shape[:2])
            picture = np.ascontiguousarray(picture[:rows, :columns])
            found.append(Tagged(degrade(picture, random), tags_of(picture)))
    return found


def examine(say: Callable[[np.ndarray], list[str]], pictures: Iterable[Tagged]) -> dict[str, Score]:
    """`say` gives the tags of a picture (H, W, 3) uint8 -> a Score per tag of TAGS"""
    answers = [(set(say(picture.pixels)), picture.tags) for picture in pictures]
    scores = {}
    for tag in TAGS:
        asked = [(tag in said, known[tag] == SHOWN) for said, known in answers if known[tag] != UNSURE]
        shown, tagged = sum(truth for _, truth in asked), sum(said for said, _ in asked)
        scores[tag] = Score(len(asked), shown, tagged, sum(said and truth for said, truth in asked))
    return scores


def table(scores: Mapping[str, Score]) -> str:
    """Markdown: per tag what was asked, what was right, and what always giving the commoner answer would get right"""
    lines = ["| tag | pictures | show it | tagged | of them rightly | right | always the commoner |", "|---" * 7 + "|"]
    for tag, score in scores.items():
        numbers = (score.pictures, score.shown, score.tagged, score.hits)
        shares = (f"{score.right:.0%}", f"{score.baseline:.0%}")
        lines.append(f"| {' | '.join([tag, *(str(number) for number in numbers), *shares])} |")
    return "\n".join(lines)
