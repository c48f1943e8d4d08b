"""Settings refuse what is out of range with a sentence that names the input, the range and the value."""

import pytest

from seesr.settings import Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_inference_steps", 0),
        ("num_inference_steps", 5),
        ("num_inference_steps", 1.5),
        ("num_inference_steps", True),
        ("scale_factor", 0.5),
        ("scale_factor", 9),
        ("scale_factor", float("nan")),
        ("cfg_scale", 0),
        ("cfg_scale", float("inf")),
        ("latent_tiled_size", -8),
        ("latent_tiled_overlap", -1),
        ("color_fix", "Wavelet"),
        ("seed", -1),
        ("output_format", "gif"),
        ("output_quality", 0),
        ("start_point", "image"),
        ("conditioning_scale", -0.1),
        ("num_particles", 17),
        ("num_particles", 2.5),
        ("seed", 2**53),
        ("target_long_side", 63),
        ("target_long_side", 8193),
        ("target_long_side", -1),
        ("target_long_side", 640.5),
        ("cfg_scale", 0.4),
        ("bandwidth", 0.05),
        ("bandwidth", 0.9),
        ("fidelity", -0.1),
        ("fidelity", 1.5),
        ("fidelity", float("nan")),
    ],
)
def test_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .*got .*{value}"):
        Settings(**{field: value})  # type: ignore[arg-type]


def test_whole_floats_are_integers() -> None:
    settings = Settings(num_inference_steps=2.0, seed=7.0, latent_tiled_size=64.0)  # type: ignore[arg-type]
    assert settings == Settings(num_inference_steps=2, seed=7, latent_tiled_size=64)
    assert type(settings.seed) is type(settings.num_inference_steps) is int


def test_guidance_acts_only_above_one() -> None:
    assert [Settings(cfg_scale=scale).branches for scale in (0.5, 1, 1.01)] == [1, 1, 2]


def test_a_target_long_side_of_zero_leaves_the_size_to_scale_factor() -> None:
    assert Settings().target_long_side == 0
    assert [Settings(target_long_side=side).target_long_side for side in (0, 64, 8192)] == [0, 64, 8192]


def test_seed_zero_is_a_seed() -> None:
    assert Settings(seed=0).seed == 0
    assert Settings().seed is None
