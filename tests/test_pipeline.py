"""The whole model against the reference's recorded outputs, and what an upscale promises."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import recorded
from torch import Tensor
from torch.overrides import TorchFunctionMode

from seesr import hardware, images, vae_tiling
from seesr.pipeline import Pictures, SeeSR, working_size
from seesr.settings import Settings
from seesr.tiling import TileGrid

DATA = Path(__file__).parent / "data"
UNET = recorded("unet")
UNET_CASES = {"t999_b2_16x24": (999, 1.0), "t249_b2_8x40": (249, 0.7)}
LOOP = recorded("pipeline") | {"tokens": recorded("ram")["lr_a.image_embeds"]}
LOOP_CASES = json.loads((DATA / "pipeline.json").read_text())


@pytest.mark.parametrize("case", UNET_CASES)
def test_one_controlnet_and_unet_call_equals_the_reference(golden: SeeSR, case: str) -> None:
    t, conditioning_scale = UNET_CASES[case]
    torch.testing.assert_close(predict(golden, case, t, conditioning_scale), UNET[f"{case}.out"], atol=1e-4, rtol=0)


def test_an_embedded_picture_gives_the_same_output(golden: SeeSR) -> None:
    case = "t999_b2_16x24"
    embedded = golden.parts.controlnet.controlnet_cond_embedding(UNET[f"{case}.controlnet_cond"] / 255)
    assert predict(golden, case, 999, 1.0).equal(predict(golden, case, 999, 1.0, embedded))


def predict(seesr: SeeSR, case: str, t: int, conditioning_scale: float, control: Tensor | None = None) -> Tensor:
    return seesr.predict_noise(
        UNET[f"{case}.sample"],
        t,
        UNET[f"{case}.controlnet_cond"] / 255 if control is None else control,
        UNET[f"{case}.encoder_hidden_states"],
        UNET[f"{case}.image_encoder_hidden_states"].float(),
        conditioning_scale=conditioning_scale,
    )


def sample(seesr: SeeSR, name: str) -> Tensor:
    """Run a recorded case with its recorded noise; tiled ones with the reference's grid and weights."""
    case = LOOP_CASES[name]
    control = LOOP[case["control"]].permute(2, 0, 1)[None] / 255
    settings = Settings(
        num_inference_steps=case["steps"],
        cfg_scale=case["guidance"],
        conditioning_scale=case["conditioning_scale"],
        start_point=case["start_point"],
    )
    size = (control.shape[2] // 8, control.shape[3] // 8)
    grid = reference_grid(size, case["latent_tiled_size"], case["latent_tiled_overlap"])
    return seesr.sample(
        control,
        LOOP["text"],
        LOOP["tokens"],
        settings,
        noise=lambda draw, shape: LOOP[f"{name}.noise_{draw}"].reshape(shape),
        negative_text=LOOP["negative_text"],
        grid=grid,
    )


@pytest.mark.parametrize("name", LOOP_CASES)
def test_the_whole_loop_equals_the_reference(golden: SeeSR, name: str) -> None:
    torch.testing.assert_close(sample(golden, name), LOOP[f"{name}.latent"], atol=1e-3, rtol=0)


@pytest.mark.slow
def test_batches_of_tiles_change_nothing(golden: SeeSR) -> None:
    batched = SeeSR(golden.parts, replace(golden.profile, tile_batch=4))
    torch.testing.assert_close(sample(batched, "s2_g1_tiled"), sample(golden, "s2_g1_tiled"), atol=1e-3, rtol=0)
    torch.testing.assert_close(sample(batched, "s1_g3_neg_tiled"), sample(golden, "s1_g3_neg_tiled"), atol=1e-3, rtol=0)


def test_upstream_s_own_script_gives_the_same_picture(golden: SeeSR) -> None:
    """From the small picture and upstream's prompt to the decoded picture, before its colour fix."""
    e2e = recorded("e2e")
    small, control, wanted = (
        e2e[key].permute(2, 0, 1)[None] / 255 for key in ("lr_uint8", "control_uint8", "before_colour_fix_uint8")
    )
    tags, tokens = golden.parts.tagger(small)
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


def reference_grid(size: tuple[int, int], tile: int, overlap: int) -> TileGrid:
    """Upstream's tiles: by area, square, the last shifted back inside, Gaussian weights half a pixel off in y."""
    if size[0] * size[1] <= tile**2:
        return TileGrid(size, size, (0,), (0,), torch.ones(size[0]), torch.ones(size[1]))
    tile = min(tile, *size)

    def starts(length: int) -> tuple[int, ...]:
        count = max(1, math.ceil((length - tile) / (tile - overlap)) + 1)
        return tuple(min(i * (tile - overlap), length - tile) for i in range(count))

    def gauss(middle: float) -> Tensor:
        place = torch.arange(tile, dtype=torch.float64)
        return torch.exp(-(((place - middle) / tile) ** 2) / 0.02) / math.sqrt(0.02 * math.pi)

    return TileGrid(size, (tile, tile), starts(size[0]), starts(size[1]), gauss(tile / 2), gauss((tile - 1) / 2))


def test_reference_tile_grids_are_the_recorded_ones() -> None:
    for name, wanted in json.loads((DATA / "schedule.json").read_text())["tile_grids"].items():
        if not wanted["tiled"]:
            continue
        height, width, tile, overlap = (int("".join(filter(str.isdigit, part))) for part in name.split("_"))
        grid = reference_grid((height, width), tile, overlap)
        assert (list(grid.lefts), list(grid.tops)) == (wanted["x_offsets"], wanted["y_offsets"]), name


@pytest.mark.parametrize(
    ("size", "scale", "target", "working"),
    [
        ((128, 128), 4, (512, 512), (512, 512)),
        ((100, 200), 4, (400, 800), (512, 1024)),
        ((200, 100), 2.5, (500, 250), (1024, 512)),
        ((300, 301), 2, (600, 602), (600, 602)),
        ((49, 60), 4, (196, 240), (512, 627)),
        ((1, 1), 1, (1, 1), (512, 512)),
        ((1, 4000), 4, (4, 16000), (4, 16000)),
        ((33, 65), 1.5, (50, 98), (512, 1004)),
    ],
)
def test_working_size(size: tuple[int, int], scale: float, target: tuple[int, int], working: tuple[int, int]) -> None:
    assert working_size(size, scale, 512) == (target, working)


@pytest.mark.parametrize(
    ("size", "scale", "working"),
    [
        ((100, 80), 2, (400, 320)),
        ((100, 80), 1, (400, 320)),
        ((100, 80), 3, (400, 320)),
        ((100, 80), 4, (400, 320)),
        ((100, 80), 8, (800, 640)),
        ((1024, 1024), 1, (2048, 2048)),
        ((2048, 2048), 2, (4096, 4096)),
    ],
)
def test_a_least_scale_is_worked_at_up_to_four_megapixels(
    size: tuple[int, int], scale: float, working: tuple[int, int]
) -> None:
    found = working_size(size, scale, 64, least_scale=4)
    assert found == ((round(scale * size[0]), round(scale * size[1])), working)


def test_a_result_beyond_the_limit_is_refused() -> None:
    assert working_size((1024, 1024), 8, 512)[0] == (8192, 8192)
    with pytest.raises(ValueError, match=r"at most 67 megapixels, scale_factor 8 would give 16000 x 8000"):
        working_size((1000, 2000), 8, 512)


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """A picture with edges and gradients, (1, 3, 41, 67) in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 41), torch.linspace(0, 1, 67), indexing="ij")
    return torch.stack([x, y, ((x * 9).sin() > 0).float() * 0.5 + 0.25])[None]


@pytest.mark.parametrize("scale", [1, 2, 3.3, 4])
def test_upscale_gives_exactly_the_size_asked_for(golden: SeeSR, photograph: Tensor, scale: float) -> None:
    result = golden.upscale(images.to_image(photograph), Settings(scale_factor=scale, num_inference_steps=1, seed=1))
    assert result.image.size == (round(scale * 67), round(scale * 41))
    assert result.image.mode == "RGB"


@pytest.mark.parametrize("settings", [{"cfg_scale": 2.0}, {"use_kds": True, "num_particles": 3}])
def test_at_one_step_each_tile_is_embedded_once_and_only_the_latest_is_kept(
    tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Three particles in batches of two: a tile's particles are in two batches."""
    kept: list[int] = []
    get = Pictures.__getitem__

    def watched(self: Pictures, number: int) -> Tensor:
        result = get(self, number)
        kept.append(len(self._known))
        return result

    embedded: list[int] = []
    monkeypatch.setattr(Pictures, "__getitem__", watched)
    monkeypatch.setattr(tiny, "profile", replace(tiny.profile, tile_batch=2))
    hook = tiny.parts.controlnet.controlnet_cond_embedding.register_forward_hook(
        lambda _, args, __: embedded.append(args[0].shape[1] == 3)
    )
    try:
        picture = images.to_image(torch.rand(1, 3, 48, 96))
        wanted = Settings(num_inference_steps=1, seed=1, latent_tiled_size=48, latent_tiled_overlap=8, **settings)
        result = tiny.upscale(picture, wanted)
    finally:
        hook.remove()
    assert sum(embedded) == result.tiles > 1
    assert set(kept) == {1}


def test_a_large_picture_is_encoded_at_a_smaller_size_and_stays_what_it_is(
    tiny: SeeSR, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves the result by a fraction of what another seed does."""
    assert vae_tiling.encoded_size((256, 256)) == (256, 256)
    assert vae_tiling.encoded_size((512, 512)) == (256, 256)
    assert vae_tiling.encoded_size((513, 512)) == (256, 255)
    assert vae_tiling.encoded_size((1, 90000)) == (1, 76800)
    for size in itertools.product((200, 257, 511, 767, 1024), (256, 300, 513, 1023, 4000)):
        encoded = vae_tiling.encoded_size(size)
        assert 64000 < encoded[0] * encoded[1] <= 256 * 256 or encoded == size
        assert encoded[0] / encoded[1] == pytest.approx(size[0] / size[1], rel=0.02)
    picture = images.open_image(DATA / "astronaut.jpg").rgb.crop((64, 32, 192, 128))
    settings = Settings(num_inference_steps=1, seed=1)
    whole, other = (images.to_tensor(tiny.upscale(picture, replace(settings, seed=s)).image) for s in (1, 2))
    shapes, encode = [], vae_tiling.encode

    def watched(vae: Any, image: Tensor, *tiles: Any) -> Tensor:
        shapes.append(tuple(image.shape[2:]))
        return encode(vae, image, *tiles)

    monkeypatch.setattr(vae_tiling, "WHOLE_ATTENTION", 48 * 64)
    monkeypatch.setattr(vae_tiling, "encode", watched)
    reduced = images.to_tensor(tiny.upscale(picture, settings).image)
    assert shapes == [(192, 256)]  # half of 384 x 512
    moved, differing = ((one - whole).square().mean().sqrt() * 255 for one in (reduced, other))
    assert 0 < moved < 0.25 < differing


def test_a_grey_picture_stored_in_colour_gets_no_tint(tiny: SeeSR) -> None:
    photograph = images.open_image(DATA / "astronaut.jpg").rgb.crop((64, 32, 128, 80))
    grey = photograph.convert("L").convert("RGB")
    settings = Settings(num_inference_steps=1, seed=1)
    assert images.is_colourless(grey)
    assert not images.is_colourless(photograph)
    assert images.is_colourless(tiny.upscale(grey, settings).image)
    assert not images.is_colourless(tiny.upscale(grey, replace(settings, color_fix="none")).image)


def test_warming_up_runs_two_steps_of_a_tile_as_gpus_have_it(tiny: SeeSR) -> None:
    seen: list[tuple[int, ...]] = []
    hook = tiny.parts.unet.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    try:
        tiny.warm_up()
    finally:
        hook.remove()
    assert {profile.latent_tile for profile in hardware.GPUS.values()} == {64}
    assert seen == [(1, tiny.parts.unet.config["in_channels"], 64, 64)] * 2


def test_a_seed_repeats_and_seeds_differ(golden: SeeSR, photograph: Tensor) -> None:
    picture = images.to_image(photograph)
    first, again, other = (golden.upscale(picture, Settings(num_inference_steps=2, seed=s)) for s in (0, 0, 1))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != other.image.tobytes()
    assert first.seed == 0
    drawn = golden.upscale(picture, Settings(num_inference_steps=2))
    repeated = golden.upscale(picture, Settings(num_inference_steps=2, seed=drawn.seed))
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


def test_the_working_picture_is_never_smaller_than_the_process_size(golden: SeeSR) -> None:
    """A long thin picture is enlarged as far as is sensible and then padded: 4 x 1400 holds no 160 rows."""
    shapes: list[tuple[int, ...]] = []

    def noise(_: str, shape: tuple[int, ...]) -> Tensor:
        shapes.append(shape)
        return torch.zeros(shape)

    picture = images.to_image(torch.rand(1, 3, 1, 350))
    result = golden.upscale(picture, Settings(num_inference_steps=1, scale_factor=4, latent_tiled_size=32), noise)
    assert shapes[0] == (1, 4, golden.parts.process_size // 8, 175)
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


def test_overlap_is_checked_against_the_machine_s_tile(golden: SeeSR) -> None:
    with pytest.raises(ValueError, match=r"at most half of this machine's tile \(128\), got 65"):
        golden.sample(torch.zeros(1, 3, 64, 64), LOOP["text"], LOOP["tokens"], Settings(latent_tiled_overlap=65))


def test_an_overflow_in_half_precision_is_done_again_in_float32(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = SeeSR.load(tiny_bundle, device="cpu", dtype=torch.float16)
    whole = SeeSR.load(tiny_bundle, device="cpu")
    latent = torch.randn(1, 16, 8, 8) * 2e5  # beyond float16's 65504 behind the scale factor
    picture = half.decode(latent)
    assert "overflowed in torch.float16" in caplog.text
    assert half.parts.vae.dtype == torch.float16
    assert (picture - whole.decode(latent)).abs().mean() < 0.01


def test_a_picture_that_is_not_finite_is_never_returned(golden: SeeSR) -> None:
    with pytest.raises(RuntimeError, match="not finite"):
        golden.decode(torch.full((1, 4, 8, 8), float("nan")))


class OverflowingAttention(TorchFunctionMode):
    """Within the block attention of half-precision values gives inf."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        attention = func is torch.nn.functional.scaled_dot_product_attention
        return result * float("inf") if attention and args[0].dtype == torch.float16 else result


@pytest.mark.slow
@pytest.mark.parametrize("way", ["attention", "everything"])
def test_an_overflow_of_the_unet_is_done_again_in_higher_precision(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """An inf planted where half precision computes: in its attention, or in a layer that only float32 spares."""
    half, whole = (SeeSR.load(tiny_bundle, "cpu", dtype) for dtype in (torch.float16, torch.float32))
    picture = images.to_image(torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(2)))
    settings = Settings(num_inference_steps=2, seed=1)
    wanted = whole.upscale(picture, settings)

    def overflow(_: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * float("inf") if inputs[0].dtype == torch.float16 else output

    if way == "everything":
        half.parts.unet.conv_out.register_forward_hook(overflow)
    else:
        denoise = half._denoise

        def planted(*args: Any) -> Tensor:
            with OverflowingAttention():
                return denoise(*args)

        monkeypatch.setattr(half, "_denoise", planted)
    result = half.upscale(picture, settings)
    assert result.recoveries == {"overflow in denoise": 1 if way == "attention" else 2}
    assert "The UNet overflowed in torch.float16: again by attention_in_float32" in caplog.text
    assert half.parts.unet.dtype == half.parts.controlnet.dtype == torch.float16
    apart = torch.from_numpy(np.asarray(result.image).astype(int) - np.asarray(wanted.image)).abs().float()
    assert apart.mean() < 3
    again = half.upscale(picture, settings) if way == "attention" else result
    assert again.image.tobytes() == result.image.tobytes()


@pytest.mark.slow
def test_a_damaged_unet_gives_no_picture(golden_bundle: Path) -> None:
    broken = SeeSR.load(golden_bundle, "cpu")
    broken.parts.unet.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the UNet's result is not finite"):
        broken.upscale(images.to_image(torch.rand(1, 3, 40, 40)), Settings(num_inference_steps=1))


@pytest.mark.slow
def test_batch_size_changes_no_level(tiny: SeeSR) -> None:
    picture = images.to_image(torch.rand(1, 3, 60, 90, generator=torch.Generator().manual_seed(3)))
    settings = Settings(num_inference_steps=2, seed=4, latent_tiled_size=16, cfg_scale=1.0)
    batched = SeeSR(tiny.parts, replace(tiny.profile, tile_batch=5))
    one, five = (np.asarray(seesr.upscale(picture, settings).image).astype(int) for seesr in (tiny, batched))
    assert np.abs(one - five).max() <= 1
