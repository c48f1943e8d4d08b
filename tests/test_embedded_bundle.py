"""What the embedded bundle promises: it beats bicubic on a photograph, every input acts, flat areas stay flat."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.eval.degradation import damage, degrade, shrink
from scripts.eval.metrics import psnr, sharpness, ssim
from seesr import images
from seesr.pipeline import SeeSR
from seesr.settings import ColorFix, Settings

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DATA = Path(__file__).parent / "data"
BASE = Settings(num_inference_steps=1, scale_factor=4, seed=3)


@pytest.fixture(scope="module")
def animal() -> Image.Image:
    return images.open_image(EXAMPLES / "animal.jpg").rgb.crop((20, 10, 84, 58))


def pixels(tiny: SeeSR, image: Image.Image, settings: Settings) -> np.ndarray:
    return np.asarray(tiny.upscale(image, settings).image).astype(int)


@pytest.mark.parametrize(
    "changed",
    [
        {"user_prompt": "an old oil painting of a ship"},
        {"positive_prompt": "blurry"},
        {"num_inference_steps": 2},
        {"scale_factor": 3.0},
        {"cfg_scale": 3.0},
        {"latent_tiled_size": 32},
        {"color_fix": "dwt"},
        {"color_fix": "adain"},
        {"color_fix": "none"},
        {"seed": 4},
        {"start_point": "noise"},
        {"conditioning_scale": 0.5},
        {"fidelity": 0.4},
    ],
    ids=str,
)
def test_every_input_acts(tiny: SeeSR, animal: Image.Image, changed: dict) -> None:
    before, after = pixels(tiny, animal, BASE), pixels(tiny, animal, replace(BASE, **changed))
    assert before.shape != after.shape or np.abs(before - after).max() >= 1


def test_negative_prompt_and_overlap_act_where_they_are_used(tiny: SeeSR, animal: Image.Image) -> None:
    guided = replace(BASE, cfg_scale=4.0)
    other = replace(guided, negative_prompt="sharp, detailed")
    assert np.abs(pixels(tiny, animal, guided) - pixels(tiny, animal, other)).max() >= 1
    tiled = replace(BASE, latent_tiled_size=32)
    assert (
        np.abs(pixels(tiny, animal, tiled) - pixels(tiny, animal, replace(tiled, latent_tiled_overlap=14))).max() >= 1
    )


def test_tiles_stay_near_the_untiled_result(tiny: SeeSR, animal: Image.Image) -> None:
    whole, tiled = (pixels(tiny, animal, replace(BASE, latent_tiled_size=size)) for size in (0, 32))
    assert np.abs(whole - tiled).mean() < 2.5


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_it_beats_bicubic_on_a_photograph_it_never_saw(tiny: SeeSR, steps: int) -> None:
    """Eileen Collins (NASA, public domain), with the damage of the evaluation."""
    truth = np.asarray(images.open_image(DATA / "astronaut.jpg").rgb)
    image = Image.fromarray(degrade(truth, np.random.default_rng(2)))
    ours = pixels(tiny, image, replace(BASE, num_inference_steps=steps)).astype(np.uint8)
    bicubic = np.asarray(images.resize(image, (256, 256)))
    assert psnr(ours, truth) > psnr(bicubic, truth)
    assert ssim(ours, truth) > ssim(bicubic, truth)


@pytest.mark.parametrize(("color_fix", "steps"), [("wavelet", 1), ("none", 1), ("wavelet", 4)])
def test_the_fidelity_dial_is_monotone(tiny: SeeSR, color_fix: ColorFix, steps: int) -> None:
    """PSNR to the input and to the truth rises, sharpness falls. The neutral value changes nothing."""
    truth = np.asarray(images.open_image(DATA / "astronaut.jpg").rgb)[:192, 32:224]
    image = Image.fromarray(degrade(truth, np.random.default_rng(2)))
    enlarged = np.asarray(images.resize(image, (192, 192)))
    base = replace(BASE, color_fix=color_fix, num_inference_steps=steps)
    dialled = [pixels(tiny, image, replace(base, fidelity=value)).astype(np.uint8) for value in (0, 0.25, 0.5, 0.75, 1)]
    assert np.array_equal(dialled[2], pixels(tiny, image, base))
    to_input = [psnr(one, enlarged) for one in dialled]
    assert all(after - before > 0.2 for before, after in pairwise(to_input))
    assert all(after < 0.95 * before for before, after in pairwise(sharpness(one) for one in dialled))
    to_truth = [psnr(one, truth) for one in dialled]
    assert all(after > before for before, after in pairwise(to_truth))


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 2), (17, 31)])
def test_any_size_gives_exactly_the_size(tiny: SeeSR, size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    for scale in (1, 2.5, 8):
        result = tiny.upscale(image, replace(BASE, scale_factor=scale))
        assert result.image.size == tuple(int(scale * side + 0.5) for side in size)


def test_a_flat_image_stays_flat_and_keeps_its_colour(tiny: SeeSR) -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (40, 120, 200)):
        off = np.abs(pixels(tiny, Image.new("RGB", (48, 48), colour), BASE) - colour)
        assert off.mean() <= 1.5
        assert np.percentile(off, 99) <= 6


@pytest.mark.parametrize("steps", [1, 4])
def test_a_noisy_sky_becomes_smooth(tiny: SeeSR, steps: int) -> None:
    """A clear sky with camera noise and JPEG loses a fifth of its grain or more."""
    fade = np.linspace(0, 1, 192)[:, None, None]
    truth = np.broadcast_to(np.array([70, 130, 210]) * (1 - fade) + np.array([180, 205, 230]) * fade, (192, 192, 3))
    noisy = degrade(truth.round().astype(np.uint8), np.random.default_rng(13))
    image = Image.fromarray(noisy)
    ours = pixels(tiny, image, replace(BASE, num_inference_steps=steps))
    bicubic = np.asarray(images.resize(image, (192, 192))).astype(int)
    grain_in, grain_out = ((result - truth).std() for result in (bicubic, ours))
    assert grain_in > 1.5
    assert grain_out < 0.8 * grain_in


def test_tile_borders_do_not_show(tiny: SeeSR) -> None:
    """Neighbouring pixels differ at tile borders by no more than in the untiled result or elsewhere."""
    image = images.open_image(DATA / "astronaut.jpg").rgb.resize((64, 64))
    whole, tiled = (tiny.upscale(image, replace(BASE, latent_tiled_size=size)) for size in (64, 32))
    assert (whole.tiles, tiled.tiles) == (1, 9)
    borders = [4 * edge - 1 for edge in (16, 32, 48)]
    for axis in (0, 1):
        before, after = (np.abs(np.diff(np.asarray(r.image).astype(float), axis=axis)) for r in (whole, tiled))
        excess = (after - before).mean((1 - axis, 2))
        elsewhere = np.delete(excess, borders)
        assert excess[borders].max() <= max(0.3, elsewhere.max())
        assert excess[borders].mean() <= elsewhere.mean() + 0.2


def test_colours_stay_where_they_were(tiny: SeeSR, animal: Image.Image) -> None:
    ours = pixels(tiny, animal, BASE)
    bicubic = np.asarray(images.resize(animal, (192, 256))).astype(int)
    difference = (ours - bicubic).reshape(4, 48, 4, 64, 3).mean((1, 3))
    assert np.abs(difference.mean((0, 1))).max() < 0.5
    assert np.abs(difference).max() < 3


def test_tags_act_on_the_result(tiny: SeeSR, animal: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tags and no tags give different prompts and different results."""
    tagger, found = tiny.components.tagger, []
    for threshold in (-1.0, 2.0):
        monkeypatch.setattr(tagger, "thresholds", torch.full((len(tagger.tags),), threshold))
        found.append(tiny.upscale(animal, BASE))
    every, none = found
    assert every.tags == tagger.tags
    assert none.tags == []
    assert every.prompt.startswith(", ".join(tagger.tags))
    apart = np.abs(np.asarray(every.image).astype(int) - np.asarray(none.image))
    assert apart.max() >= 1
    assert apart.mean() < 5


def test_the_tagger_is_right_about_light_and_colours(tiny: SeeSR, animal: Image.Image) -> None:
    """A ginger cat in colour, in grey and in the dark; a meadow; a white page."""
    random = np.random.default_rng(8)

    def tags(image: Image.Image) -> set[str]:
        return set(tiny.components.tagger(images.to_tensor(image))[0])

    def noisy(colour: tuple[int, int, int]) -> Image.Image:
        return images.from_pixels((np.array(colour) + random.normal(0, 4, (60, 80, 3))).clip(0, 255).astype(np.uint8))

    assert tags(animal) == {"warm colors"}
    assert "black and white" in tags(animal.convert("L").convert("RGB"))
    assert "dark" in tags(animal.point([value // 5 for value in range(256)] * 3))
    assert tags(noisy((80, 150, 60))) == {"green"}
    assert "bright" in tags(noisy((235, 236, 234)))


@pytest.mark.parametrize("clean", [False, True], ids=["damaged", "clean"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_every_scale_is_at_least_as_good_as_bicubic(tiny: SeeSR, scale: int, clean: bool) -> None:
    truth = np.asarray(images.open_image(DATA / "astronaut.jpg").rgb)
    small = shrink(truth, scale) if clean else damage(truth, scale, np.random.default_rng(1))
    image = images.from_pixels(small)
    ours = pixels(tiny, image, replace(BASE, scale_factor=scale)).astype(np.uint8)
    assert psnr(ours, truth) > psnr(np.asarray(images.resize(image, (256, 256))), truth)


def test_tags_come_from_the_list(tiny: SeeSR, animal: Image.Image) -> None:
    assert set(tiny.upscale(animal, BASE).tags) <= set(tiny.components.tagger.tags)
