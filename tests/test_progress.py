"""Progress: shares of predicted work that never fall, and a bar that Replicate's clients read."""

import io
import re
from pathlib import Path

import pytest
import torch

from scripts.bench import flops
from seesr import images, progress
from seesr.memory import TilePlan, VaeTilePlan
from seesr.pipeline import SeeSR
from seesr.progress import ProgressBar, predicted_work
from seesr.settings import Settings
from seesr.vae.tiling import Direction

DATA = Path(__file__).parent / "data"
LINE = re.compile(r"^\s*(\d+)%\s*\|.+?\|\s*(\d+)/(\d+)")
"""What both official clients look for, from the last line of the log backwards."""


def watched(seesr: SeeSR, settings: Settings, side: int = 40) -> list[tuple[float, str]]:
    seen: list[tuple[float, str]] = []
    image = images.open_image(DATA / "astronaut.jpg").rgb.crop((100, 40, 100 + side, 40 + side))
    seesr.upscale(image, settings, on_progress=lambda share, stage: seen.append((share, stage)))
    return seen


def test_an_upscale_reports_every_stage_and_never_falls(tiny: SeeSR) -> None:
    seen = watched(tiny, Settings(num_inference_steps=2, latent_tiled_size=32, seed=1))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1 - progress.FILE_SHARE)
    stages = list(dict.fromkeys(stage for _, stage in seen))
    assert stages == ["tag", "text", "resize", "encode", "denoise", "decode", "color"]
    tiles = {share for share, stage in seen if stage == "denoise"}
    assert len(tiles) == 1 + 2 * 4, "a share for each tile of each step"


@pytest.mark.parametrize(("direction", "shape"), [("encode", (1, 3, 128, 128)), ("decode", (1, 4, 16, 16))])
@torch.inference_mode()
def test_every_tile_of_the_vae_is_reported(golden: SeeSR, direction: Direction, shape: tuple[int, ...]) -> None:
    for stats_tiles in (None, 2):
        shares: list[float] = []
        golden.codec.run_vae(direction, torch.zeros(shape), VaeTilePlan(8, stats_tiles), shares.append)
        assert shares == sorted(shares)
        assert shares[-1] == 1
        assert len(shares) % 4 == 0  # four tiles, each from norm to norm


def test_a_stage_that_runs_again_waits_until_it_is_as_far_as_before(
    tiny: SeeSR, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls = tiny.codec.__class__.decode, []

    def failing(self: object, *args: object) -> object:
        calls.append(1)
        result = decode(self, *args)  # type: ignore[arg-type]
        if len(calls) == 1:
            raise MemoryError
        return result

    monkeypatch.setattr(tiny.codec.__class__, "decode", failing)
    shares = [share for share, _ in watched(tiny, Settings(num_inference_steps=1, seed=1))]
    assert len(calls) == 2
    assert shares == sorted(shares)
    assert shares[-1] == 1 - progress.FILE_SHARE


@pytest.mark.parametrize("fast", [False, True])
def test_predicted_work_is_about_the_counted_one(tiny: SeeSR, fast: bool) -> None:
    settings = Settings(num_inference_steps=2, cfg_scale=2, fast_vae=fast)
    size = tiny.sizes((96, 128), 4)[2]
    latent = (size[0] // tiny.vae_scale_factor, size[1] // tiny.vae_scale_factor)
    plan = TilePlan.wanted(tiny.profile, settings)
    counted = {
        name: count.flops
        for name, count in flops.count_upscale(flops.without_values(tiny), (96, 128), settings, plan).items()
    }
    counted["denoise"] = counted["ControlNet"] + counted["UNet"]
    for stage, work in predicted_work(tiny.components.flops, latent, settings, plan).items():
        assert work == pytest.approx(counted[stage], rel=0.2), stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_bar_prints_two_lines_a_second_at_most_and_ends_at_100(clock: list[float]) -> None:
    stream = io.StringIO()
    bar = ProgressBar((30, 30), stream)
    for _ in range(2):
        for step in range(100):
            clock[0] += 0.1
            bar(step / 100, "denoise")
        bar.finish_image()
    lines = stream.getvalue().splitlines()
    assert stream.getvalue().endswith("\n")
    found = [tuple(map(int, match.groups())) for match in map(LINE.match, lines) if match]
    assert len(found) == len(lines) <= 2 * 20 + 1
    percents = [percent for percent, _, _ in found]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert 50 in percents
    assert all(percent == current and total == 100 for percent, current, total in found)
    assert "denoise" in lines[1]


def test_images_count_by_their_work(clock: list[float]) -> None:
    stream = io.StringIO()
    bar = ProgressBar((1, 3), stream)
    for _ in range(2):
        clock[0] += 1
        bar(0.5, "denoise")
        clock[0] += 1
        bar.finish_image()
    percents = [int(match[1]) for match in map(LINE.match, stream.getvalue().splitlines()) if match]
    assert percents == [0, 12, 25, 62, 100]
