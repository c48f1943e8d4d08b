"""The memory model against what an upscale really holds, the plans that follow, and retry on out-of-memory."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.bench import random_bundle
from scripts.dry_run import FusedAttention, TensorMemoryTracker
from seesr import denoise, hardware, images, pipeline, sizes
from seesr.bundle import Components
from seesr.context import UpscaleContext
from seesr.memory import MemoryModel, TilePlan, VaeTilePlan, retry_on_oom
from seesr.pipeline import SeeSR
from seesr.settings import ColorFix, Settings
from seesr.vae import attention, tiling
from seesr.vae import tiny as tiny_vae

EXACT = TilePlan(128, 16, 1, VaeTilePlan(256), VaeTilePlan(256))
STAGES = ("tag", "text", "resize", "encode", "denoise", "decode", "color")


@pytest.fixture(scope="module")
def full_size() -> Components:
    """Of the real widths, without their weights, in fp16."""
    return random_bundle.build("meta", torch.float16)


def measured(seesr: SeeSR, image: Tensor, settings: Settings, plan: TilePlan, patch: pytest.MonkeyPatch) -> dict:
    """Bytes at each stage's worst moment of a real upscale."""
    tracker, peaks, stage = TensorMemoryTracker(), Counter(), UpscaleContext.stage

    def watched(context: UpscaleContext, name: str, work: Callable[[], Any]) -> Any:
        tracker.peak = tracker.now
        result = stage(context, name, work)
        peaks[name] = max(peaks[name], tracker.peak)
        return result

    with patch.context() as within:
        within.setattr(UpscaleContext, "stage", watched)
        within.setattr(seesr, "plan", lambda *_: plan)
        with tracker:
            seesr.upscale(images.to_image(image), settings)
    return peaks


@pytest.mark.parametrize("bundle", ["tiny", pytest.param("golden", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("size", "steps", "guidance", "plan"),
    [
        ((64, 96), 1, 1.0, EXACT),
        ((96, 128), 2, 2.0, replace(EXACT, latent_tile=32, overlap=4, tile_batch=4)),
        (
            (120, 160),
            1,
            1.0,
            replace(EXACT, latent_tile=64, overlap=8, encode=VaeTilePlan(64), decode=VaeTilePlan(64), strip=256),
        ),
        (
            (120, 160),
            3,
            1.0,
            replace(EXACT, latent_tile=64, overlap=8, encode=VaeTilePlan(32), decode=VaeTilePlan(24, 4)),
        ),
    ],
)
def test_predicted_peaks_are_the_measured_ones(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    bundle: str,
    size: tuple[int, int],
    steps: int,
    guidance: float,
    plan: TilePlan,
) -> None:
    seesr: SeeSR = request.getfixturevalue(bundle)
    settings = Settings(num_inference_steps=steps, cfg_scale=guidance, seed=1)
    padded = seesr.sizes(size, 4.0)[2]
    predicted = seesr.memory.peaks(padded, settings, plan)
    real = measured(seesr, torch.rand(1, 3, *size), settings, plan, monkeypatch)
    assert max(predicted.values()) == pytest.approx(max(real.values()), rel=0.15)
    for stage, peak in predicted.items():
        assert 0.85 * real[stage] < peak < 1.3 * real[stage], stage


@pytest.mark.parametrize("tile", [0, 40])
def test_encoding_at_a_smaller_size_is_counted(tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(sizes, "ENCODE_MAX_PIXELS", 60 * 80)
    plan = replace(EXACT, encode=VaeTilePlan(tile))
    assert plan.encode_size((120, 160)) == (60, 80)
    settings = Settings(num_inference_steps=1, seed=1)
    predicted = tiny.memory.peaks((480, 640), settings, plan)
    real = measured(tiny, torch.rand(1, 3, 120, 160), settings, plan, monkeypatch)
    assert predicted["encode"] == pytest.approx(real["encode"], rel=0.06)


@pytest.mark.parametrize("tile", [0, 64, pytest.param(24, marks=pytest.mark.slow)])
def test_the_small_autoencoder_is_counted(tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    vae = VaeTilePlan(tile, fast=True)
    plan, settings = replace(EXACT, encode=vae, decode=vae), Settings(num_inference_steps=1, seed=1, fast_vae=True)
    predicted = tiny.memory.peaks((480, 640), settings, plan)
    real = measured(tiny, torch.rand(1, 3, 120, 160), settings, plan, monkeypatch)
    for stage in ("encode", "decode"):
        assert 0.95 * real[stage] < predicted[stage] < 1.25 * real[stage], stage


@pytest.mark.slow
@pytest.mark.parametrize(("particles", "steps", "side"), [(4, 1, 64), (8, 2, 96)])
def test_particles_are_counted(
    tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, particles: int, steps: int, side: int
) -> None:
    settings = Settings(num_inference_steps=steps, use_kds=True, num_particles=particles, seed=1)
    plan = replace(EXACT, latent_tile=side // 2, overlap=side // 16, tile_batch=4)
    predicted = tiny.memory.peaks((4 * side, 6 * side), settings, plan)
    real = measured(tiny, torch.rand(1, 3, side, side * 3 // 2), settings, plan, monkeypatch)
    assert predicted["denoise"] == pytest.approx(real["denoise"], rel=0.2)
    assert plan.shrink("denoise", (32, 32), particles=8) == replace(plan, tile_batch=2)


@pytest.mark.parametrize(
    "color_fix", ["wavelet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dwt", "none"))]
)
def test_the_fidelity_dial_is_counted(tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, color_fix: ColorFix) -> None:
    settings = Settings(num_inference_steps=1, fidelity=0.9, color_fix=color_fix, seed=1)
    plan = replace(EXACT, strip=256)
    predicted = tiny.memory.peaks((600, 800), settings, plan)
    real = measured(tiny, torch.rand(1, 3, 150, 200), settings, plan, monkeypatch)
    assert predicted["color"] == pytest.approx(real["color"], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_sampled_attention_is_predicted_by_the_pixel(full_size: Components, direction: str) -> None:
    """What the middle block of a large image holds grows with its pixels, not with its windows."""
    block = getattr(full_size.vae, f"{direction}r").mid_block
    with torch.inference_mode(), torch.device("meta"), FusedAttention(), TensorMemoryTracker() as tracker:
        hidden = torch.empty(1, 512, 1024, 1024, dtype=torch.float16)
        attention.mid_block(block, hidden)
    predicted = full_size.memory_constants[direction]["mid_block_sampled"]
    assert predicted == pytest.approx(tracker.peak / 1024**2, rel=0.2)


def test_the_tracker_counts_what_lives() -> None:
    with TensorMemoryTracker() as tracker:
        first = torch.zeros(1000)
        second = first + 1
        assert tracker.now == 8000
        view = second[10:].view(-1)
        del first
        assert tracker.now == 4000
        del second
        assert tracker.now == 4000
        del view
        assert tracker.now == 0
    assert tracker.peak == 8000


@pytest.mark.slow
def test_a_plan_shrinks_until_it_fits(golden: SeeSR) -> None:
    size, settings = (1024, 1536), Settings(num_inference_steps=1)
    wanted = replace(EXACT, tile_batch=4)
    peaks = golden.memory.peaks(size, settings, wanted)
    assert golden.memory.fit(size, settings, wanted, max(peaks.values())) is wanted
    plan = golden.memory.fit(size, settings, wanted, max(peaks.values()) // 2)
    assert max(golden.memory.peaks(size, settings, plan).values()) <= max(peaks.values()) // 2
    assert plan.decode.tile < wanted.decode.tile
    with pytest.raises(ValueError, match=r"1536 x 1024 pixels needs about 0\.\d GB .* stage, 0\.0 GB are free; lower"):
        golden.memory.fit(size, settings, wanted, 1_000_000)


def test_what_shrinks_in_which_order() -> None:
    latent, plan = (256, 200), TilePlan(128, 16, 4, VaeTilePlan(0), VaeTilePlan(0))
    seen = []
    while (smaller := plan.shrink("denoise", latent)) is not None:
        plan = smaller
        seen.append((plan.latent_tile, plan.overlap, plan.tile_batch))
    assert seen == [(128, 16, 2), (128, 16, 1), (64, 16, 1), (32, 8, 1), (16, 4, 1)]
    seen = []
    while (smaller := plan.shrink("decode", latent)) is not None:
        plan = smaller
        seen.append((plan.decode.tile, plan.decode.stats_tiles))
    assert seen == [(128, None), (64, None), (64, 8), (32, 8), (16, 8)]
    fast, seen = replace(plan, decode=VaeTilePlan(128, fast=True)), []
    while (smaller := fast.shrink("decode", latent)) is not None:
        fast = smaller
        seen.append(fast.decode)
    assert seen == [VaeTilePlan(tile, fast=True) for tile in (64, 32, 16)]
    assert plan.encode == VaeTilePlan(0)
    assert plan.shrink("color", latent) == replace(plan, strip=256)
    assert replace(plan, strip=128).shrink("color", latent) is None
    assert plan.shrink("tag", latent) is None


PLACES = {
    "tag": (SeeSR, "tag"),
    "text": (SeeSR, "encode_text"),
    "resize": (images, "resize"),
    "encode": (tiling, "encode"),
    "denoise": (denoise, "run_controlnet_unet"),
    "decode": (tiling, "decode"),
    "color": (pipeline, "match_color"),
}


def run_out(patch: pytest.MonkeyPatch, stage: str, times: int, error: Exception) -> None:
    """Let the heart of `stage` fail with `error` the first so many times, half-way where it is called often."""
    owner, name = PLACES[stage]
    real, left = getattr(owner, name), [times]

    def failing(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if left[0] > 0:
            left[0] -= 1
            raise error
        return result

    patch.setattr(owner, name, failing)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory"), pytest.param(MemoryError(), marks=pytest.mark.slow)],
    ids=["cuda", "host"],
)
def test_running_out_of_memory_anywhere_gives_the_image_of_smaller_tiles(
    golden: SeeSR, monkeypatch: pytest.MonkeyPatch, stage: str, error: Exception
) -> None:
    image = images.to_image(torch.rand(1, 3, 60, 80, generator=torch.Generator().manual_seed(1)))
    settings = Settings(num_inference_steps=2, seed=5, latent_tiled_size=32)
    with monkeypatch.context() as within:
        run_out(within, stage, 1, error)
        recovered = golden.upscale(image, settings)
    assert recovered.recoveries == {f"out of memory in {stage}": 1}
    with monkeypatch.context() as within:
        within.setattr(golden, "plan", lambda *_: recovered.plan)
        undisturbed = golden.upscale(image, settings)
    assert undisturbed.recoveries == {}
    assert recovered.image.tobytes() == undisturbed.image.tobytes()
    if stage in ("denoise", "decode", "encode", "color"):
        assert recovered.plan != golden.plan((240, 320), settings)


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_running_out_of_memory_halves_the_tiles_of_the_small_autoencoder(
    tiny: SeeSR, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    image, settings = images.to_image(torch.rand(1, 3, 40, 60)), Settings(num_inference_steps=1, seed=1, fast_vae=True)
    whole = tiny.upscale(image, settings)
    run, failed = getattr(tiny_vae, stage), []

    def failing_once(vae: Any, source: Tensor, tile: int, *rest: Any) -> Tensor:
        failed.append(tile)
        if len(failed) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return run(vae, source, tile, *rest)

    monkeypatch.setattr(tiny_vae, stage, failing_once)
    recovered = tiny.upscale(image, settings)
    assert recovered.recoveries == {f"out of memory in {stage}": 1}
    assert failed[1] == getattr(recovered.plan, stage).tile == 30
    difference = images.to_tensor(recovered.image) - images.to_tensor(whole.image)
    assert difference.abs().max() < 1.5 / 255


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_at_the_floor_there_is_a_sentence(golden: SeeSR, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    run_out(monkeypatch, stage, 99, MemoryError())
    with pytest.raises(
        MemoryError, match=f"not enough memory for the {stage} stage, even with the smallest tiles; low"
    ):
        golden.upscale(images.to_image(torch.rand(1, 3, 40, 40)), Settings(num_inference_steps=1))


def test_other_errors_pass() -> None:
    def broken() -> None:
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        retry_on_oom("tag", broken)
    assert hardware.is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert hardware.is_out_of_memory(RuntimeError("could not create a primitive"))  # oneDNN, under a limit
    assert not hardware.is_out_of_memory(ValueError("CUDA out of memory"))


def test_the_container_s_limit_counts(tmp_path: Path) -> None:
    for name, text in (("memory.max", "1000\n"), ("memory.current", "400\n"), ("memory.stat", "inactive_file 50\n")):
        (tmp_path / name).write_text(text)
    assert hardware.cgroup_memory(tmp_path) == 650
    (tmp_path / "memory.max").write_text("max\n")
    assert hardware.cgroup_memory(tmp_path) == 2**62
    assert hardware.cgroup_memory(tmp_path / "none") == 2**62
    assert 0 < hardware.free_memory("cpu") < 2**50


def test_a_tenth_of_the_free_memory_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    assert hardware.free_memory("cpu") == 900_000


@pytest.mark.slow
def test_the_real_models_fit_a_card_of_16_gb(full_size: Components) -> None:
    """Up to 8192 x 8192 beside 4.2 GB of weights, by the memory model, with the T4's tiles; 2048 x 2048 exactly."""
    settings = Settings(num_inference_steps=4)
    wanted, free = TilePlan.wanted(hardware.GPUS["t4"], settings), int(0.9 * (15.5e9 - 4.2e9))
    model = MemoryModel.of(full_size.controlnet, full_size.vae, full_size.memory_constants)
    for side in (2048, 4096, 8192):
        plan = model.fit((side, side), settings, wanted, free)
        assert max(model.peaks((side, side), settings, plan).values()) <= free
        assert (plan.decode.stats_tiles is None) == (side == 2048)
    fast = replace(settings, fast_vae=True)
    wanted = TilePlan.wanted(hardware.GPUS["t4"], fast)
    assert model.fit((8192, 8192), fast, wanted, free) == wanted
    assert max(model.peaks((8192, 8192), fast, wanted).values()) < 0.8 * free
