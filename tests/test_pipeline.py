"""The whole model against the reference's recorded outputs, and what an upscale promises."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from seesr import hardware, images
from seesr.pipeline import SeeSR
from seesr.settings import Settings
from tests.golden import LOOP, LOOP_CASES, UNET, UNET_CASES, predict, recorded, reference_grid, sample

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("case", UNET_CASES)
def test_one_controlnet_and_unet_call_equals_the_reference(golden: SeeSR, case: str) -> None:
    t, conditioning_scale = UNET_CASES[case]
    torch.testing.assert_close(predict(golden, case, t, conditioning_scale), UNET[f"{case}.out"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", LOOP_CASES)
def test_the_whole_loop_equals_the_reference(golden: SeeSR, name: str) -> None:
    torch.testing.assert_close(sample(golden, name), LOOP[f"{name}.latent"], atol=1e-3, rtol=0)


@pytest.mark.slow
def test_batches_of_tiles_change_nothing(golden: SeeSR) -> None:
    batched = SeeSR(golden.components, replace(golden.profile, tile_batch=4))
    torch.testing.assert_close(sample(batched, "s2_g1_tiled"), sample(golden, "s2_g1_tiled"), atol=1e-3, rtol=0)
    torch.testing.assert_close(sample(batched, "s1_g3_neg_tiled"), sample(golden, "s1_g3_neg_tiled"), atol=1e-3, rtol=0)


def test_upstream_s_own_script_gives_the_same_image(golden: SeeSR) -> None:
    """From the small image and upstream's prompt to the decoded image, before its colour fix."""
    e2e = recorded("e2e")
    small, control, wanted = (
        e2e[key].permute(2, 0, 1)[None] / 255 for key in ("lr_uint8", "control_uint8", "before_colour_fix_uint8")
    )
    tags, tokens = golden.components.tagger(small)
    assert tags == ["boat", "bottle", "castle", "cloud", "curtain", "fabric", "forest", "kite"]
    draws = {"init": e2e["draw0"], "vae": e2e["draw1"], "step0": e2e["draw2"]}
    latent = golden.sample(
        control,
        golden.encode_text(", ".join([*tags, "a photo, sharp,clean, high-resolution, 8k"])),
        tokens,
        Settings(num_inference_steps=2),
        noise=lambda draw, shape: draws[draw].reshape(shape),
        grid=reference_grid((control.shape[2] // 8, control.shape[3] // 8), 16, 6),
    )
    levels = ((golden.decode(latent) * 255).round() - wanted * 255).abs()
    assert levels.max() <= 1.001
    assert (levels > 0.5).float().mean() <= 0.001


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """A image with edges and gradients, (1, 3, 41, 67) in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 41), torch.linspace(0, 1, 67), indexing="ij")
    return torch.stack([x, y, ((x * 9).sin() > 0).float() * 0.5 + 0.25])[None]


@pytest.mark.parametrize("scale", [1, 2, 3.3, 4])
def test_upscale_gives_exactly_the_size_asked_for(golden: SeeSR, photograph: Tensor, scale: float) -> None:
    result = golden.upscale(images.to_image(photograph), Settings(scale_factor=scale, num_inference_steps=1, seed=1))
    assert result.image.size == (round(scale * 67), round(scale * 41))
    assert result.image.mode == "RGB"


def test_a_gray_image_stored_in_colour_gets_no_tint(tiny: SeeSR) -> None:
    photograph = images.open_image(DATA / "astronaut.jpg").rgb.crop((64, 32, 128, 80))
    grey = photograph.convert("L").convert("RGB")
    settings = Settings(num_inference_steps=1, seed=1)
    assert images.is_grayscale(grey)
    assert not images.is_grayscale(photograph)
    assert images.is_grayscale(tiny.upscale(grey, settings).image)
    assert not images.is_grayscale(tiny.upscale(grey, replace(settings, color_fix="none")).image)


def test_warming_up_runs_two_steps_of_a_tile_as_gpus_have_it(tiny: SeeSR) -> None:
    seen: list[tuple[int, ...]] = []
    hook = tiny.components.unet.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    try:
        tiny.warm_up()
    finally:
        hook.remove()
    assert {profile.latent_tile for profile in hardware.GPUS.values()} == {64}
    assert seen == [(1, tiny.components.unet.config["in_channels"], 64, 64)] * 2


def test_a_cpu_is_not_warmed_up_for_a_large_model(tiny: SeeSR) -> None:
    large = replace(tiny.components, flops={stage: 1000 * flops for stage, flops in tiny.components.flops.items()})
    hook = tiny.components.unet.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    try:
        SeeSR(large, tiny.profile).warm_up()
    finally:
        hook.remove()


def test_a_seed_repeats_and_seeds_differ(golden: SeeSR, photograph: Tensor) -> None:
    image = images.to_image(photograph)
    first, again, other = (golden.upscale(image, Settings(num_inference_steps=2, seed=s)) for s in (0, 0, 1))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != other.image.tobytes()
    assert first.seed == 0
    drawn = golden.upscale(image, Settings(num_inference_steps=2))
    repeated = golden.upscale(image, Settings(num_inference_steps=2, seed=drawn.seed))
    assert drawn.image.tobytes() == repeated.image.tobytes()


def test_draws_come_in_order_and_by_name(golden: SeeSR, photograph: Tensor) -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []

    def noise(name: str, shape: tuple[int, ...]) -> Tensor:
        asked.append((name, shape))
        return torch.zeros(shape)

    result = golden.upscale(images.to_image(photograph), Settings(num_inference_steps=4, scale_factor=4), noise)
    assert [name for name, _ in asked] == ["init", "vae", "step0", "step1", "step2"]
    assert {shape for _, shape in asked} == {(1, 4, 21, 34)}  # 164 x 268 pixels, padded to multiples of 8
    assert set(result.timings) == {"tag", "text", "encode", "denoise", "decode", "color", "resize"}
    assert result.tiles == 1


@pytest.mark.slow
def test_the_working_image_is_never_smaller_than_the_process_size(golden: SeeSR) -> None:
    """A long thin image is enlarged as far as is sensible and then padded: 4 x 1400 holds no 160 rows."""
    shapes: list[tuple[int, ...]] = []

    def noise(_: str, shape: tuple[int, ...]) -> Tensor:
        shapes.append(shape)
        return torch.zeros(shape)

    image = images.to_image(torch.rand(1, 3, 1, 350))
    result = golden.upscale(image, Settings(num_inference_steps=1, scale_factor=4, latent_tiled_size=32), noise)
    assert shapes[0] == (1, 4, golden.components.process_size // 8, 175)
    assert result.image.size == (1400, 4)


def test_guidance_uses_the_negative_prompt_only_above_one(golden: SeeSR) -> None:
    control = LOOP["control_128x192_seed31"].permute(2, 0, 1)[None] / 255

    def latent(cfg_scale: float, negative_prompt: str) -> Tensor:
        settings = Settings(num_inference_steps=1, cfg_scale=cfg_scale, negative_prompt=negative_prompt, seed=3)
        return golden.sample(control, LOOP["text"], LOOP["tokens"], settings)

    assert latent(1.0, "blur").equal(latent(1.0, "noise"))
    assert not latent(2.0, "blur").equal(latent(2.0, "noise"))


def test_control_that_does_not_fit_the_latent_is_refused(golden: SeeSR) -> None:
    with pytest.raises(ValueError, match=r"multiples of 8, got \(60, 64\)"):
        golden.sample(torch.zeros(1, 3, 60, 64), LOOP["text"], LOOP["tokens"], Settings())


@pytest.mark.slow
def test_batch_size_changes_no_level(tiny: SeeSR) -> None:
    image = images.to_image(torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(3)))
    settings = Settings(num_inference_steps=2, seed=4, latent_tiled_size=16, cfg_scale=1.0)
    batched = SeeSR(tiny.components, replace(tiny.profile, tile_batch=5))
    one, five = (np.asarray(seesr.upscale(image, settings).image).astype(int) for seesr in (tiny, batched))
    assert np.abs(one - five).max() <= 1


@pytest.mark.parametrize("colour", [(0, 255, 0), (255, 0, 0), (255, 255, 255), (30, 60, 200)])
def test_a_flat_colour_is_right_to_the_border(tiny: SeeSR, colour: tuple[int, int, int]) -> None:
    """Zero padding in the networks moved the outer lines by up to 37 levels."""
    flat = Image.new("RGB", (40, 32), colour)
    result = np.asarray(tiny.upscale(flat, Settings(num_inference_steps=1, seed=1)).image).astype(int)
    assert result.shape == (128, 160, 3)
    assert np.abs(result - np.array(colour)).max() <= 2
    same = tiny.upscale(flat, Settings(num_inference_steps=1, scale_factor=1, seed=1)).image
    assert np.abs(np.asarray(same).astype(int) - np.array(colour)).max() <= 2


def test_sixteen_bits_stay(tiny: SeeSR, tmp_path: Path) -> None:
    """A smooth sky over 8 of 255 levels has no bands: its result has hundreds of levels, not 9."""
    y, x = np.mgrid[0:48, 0:64]
    sky = np.stack([20000 + 20 * y + 15 * x, 30000 + 30 * y + 8 * x, 40000 + 25 * y + 12 * x], 2).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "sky.png"), sky[:, :, ::-1])
    opened = images.open_image(tmp_path / "sky.png")
    assert opened.pixels is not None
    assert np.array_equal(opened.pixels, sky)
    for kind in ("png", "tiff"):
        settings = Settings(num_inference_steps=1, scale_factor=2, seed=1, output_format=kind)
        result = tiny.upscale(opened, settings)
        assert result.pixels is not None
        images.save_image(opened, result, tmp_path / f"out.{kind}", settings)
        written = cv2.imread(str(tmp_path / f"out.{kind}"), cv2.IMREAD_UNCHANGED)
        assert written is not None
        assert written.dtype == np.uint16
        assert np.array_equal(written[:, :, ::-1], result.pixels)
        wanted = cv2.resize(sky.astype(np.float32), (128, 96), interpolation=cv2.INTER_CUBIC)
        assert np.abs(written[:, :, ::-1] - wanted).mean() / 257 < 1
        assert len(np.unique(written[:, :, 0])) > 500
    settings = Settings(num_inference_steps=1, scale_factor=2, seed=1, output_format="webp")
    assert tiny.upscale(opened, settings).pixels is None
