"""Which profile a machine gets: by name and memory; a real card is asked only where there is one."""

from pathlib import Path

import pytest
import torch

from seesr import hardware, images
from seesr.hardware import CPU, GPUS
from seesr.pipeline import SeeSR
from seesr.settings import Settings


@pytest.mark.parametrize(
    ("card", "memory", "name"),
    [
        ("Tesla T4", 15.8, "t4"),
        ("Tesla V100-SXM2-16GB", 16.9, "v100"),
        ("NVIDIA A40", 47.7, "a40-large"),
        ("NVIDIA L40S", 47.7, "l40s"),
        ("NVIDIA A100-SXM4-80GB", 85.1, "a100-large"),
        ("NVIDIA H100 80GB HBM3", 85.0, "h100"),
    ],
)
def test_known_cards(card: str, memory: float, name: str) -> None:
    assert hardware.profile_of_card(card, memory) is GPUS[name]


@pytest.mark.parametrize(
    ("card", "memory", "most"),
    [
        ("NVIDIA GeForce RTX 3060", 12.6, 16),
        ("NVIDIA A4000", 16.9, 16),
        ("NVIDIA RTX 6000 Ada", 51.0, 48),
        ("X", 143.0, 80),
    ],
)
def test_other_cards_get_one_that_fits(card: str, memory: float, most: int) -> None:
    assert hardware.profile_of_card(card, memory).memory == most


@pytest.mark.parametrize("requested", [None, "", "auto", "t4", "h100"])
def test_the_cpu_is_the_cpu_whatever_was_asked_for(requested: str | None) -> None:
    assert hardware.profile("cpu", requested) is CPU


@pytest.mark.parametrize(
    ("card", "memory", "requested", "name", "warns"),
    [
        ("Tesla T4", 15.8, "t4", "t4", False),
        ("NVIDIA A40", 47.7, "t4", "t4", False),
        ("NVIDIA A40", 47.7, "auto", "a40-large", False),
        ("NVIDIA A40", 47.7, None, "a40-large", False),
        ("NVIDIA H200", 150.0, "h100", "h100", False),
        ("Tesla T4", 15.8, "a100-large", "a100-large", True),
        ("NVIDIA GeForce RTX 3060", 12.6, "auto", "t4", True),
    ],
)
def test_seesr_gpu_decides_the_profile(
    card: str, memory: float, requested: str | None, name: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names card and profile once. It warns only about a card with less memory than the profile."""
    with caplog.at_level("INFO"):
        assert hardware.choose_profile(card, memory, requested) is GPUS[name]
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines[0] == ("INFO", f"Card {card} ({memory:.0f} GB), profile {name}.")
    assert [level for level, _ in lines[1:]] == ["WARNING"] * warns


def test_a_cpu_always_responds_and_a_gpu_does_unless_its_calls_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> None:
        def ones(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(torch, "ones", ones)

    assert hardware.responds("cpu")
    fail(RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."))
    assert not hardware.responds("cuda")
    fail(torch.OutOfMemoryError("CUDA out of memory"))
    assert hardware.responds("cuda")


def test_profiles_are_those_of_their_cards() -> None:
    for name, profile in GPUS.items():
        assert profile.name == name
        assert profile.dtype == torch.float16
        assert profile.output_pixels == 8192**2
        assert profile.latent_tile == 64  # one for all: a seed gives the same image on every card
        assert profile.tile_batch == {16: 8, 48: 16, 80: 32}[profile.memory]
        assert profile.vae_tile == (128 if profile.memory == 16 else 256)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SEESR_GPU must be one of auto, t4, v100, .*got 'tpu'"):
        hardware.profile("cpu", "tpu")


def test_heads_that_xformers_takes(tiny: SeeSR, golden: SeeSR) -> None:
    """Widths of upstream's recorded networks are not all multiples of 8."""
    assert {width % 8 for width in hardware.head_widths(tiny.components.unet)} == {0}
    assert {width % 8 for width in hardware.head_widths(golden.components.unet)} > {0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_real_card_has_a_profile() -> None:
    assert hardware.profile("cuda").name in GPUS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("dtype", "levels"), [(torch.float32, 1), (torch.float16, 4)])
def test_a_seed_gives_the_same_image_on_a_gpu(tiny: SeeSR, tiny_bundle: Path, dtype: torch.dtype, levels: int) -> None:
    image = images.open_image(Path(__file__).parent / "data/astronaut.jpg").rgb.crop((100, 40, 160, 90))
    card = SeeSR.load(tiny_bundle, "cuda", dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        here, there = (images.to_tensor(seesr.upscale(image, Settings(seed=1)).image) * 255 for seesr in (tiny, card))
    assert (here - there).abs().max() <= levels + 0.01
