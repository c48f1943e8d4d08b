"""The Cog interface as text and as the schema that the playground is drawn from."""

import ast
from pathlib import Path

import pytest
from cog_server import read_inputs, schema

from seesr.settings import Settings

SOURCE = (Path(__file__).resolve().parent.parent / "predict.py").read_text()
INPUTS = [
    "image",
    "user_prompt",
    "positive_prompt",
    "negative_prompt",
    "num_inference_steps",
    "scale_factor",
    "cfg_scale",
    "latent_tiled_size",
    "latent_tiled_overlap",
    "color_fix",
    "seed",
    "output_format",
    "output_quality",
    "use_kds",
    "num_particles",
    "bandwidth",
    "fidelity",
]


@pytest.fixture(scope="module")
def document() -> dict:
    return schema()


def test_predictor_is_short() -> None:
    assert len(SOURCE.splitlines()) < 120


def test_inputs_are_plain_literals() -> None:
    """Cog reads the file as text: names, sums, f-strings and "a" "b" are dropped or garbled in silence."""
    calls = [
        node
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Input"
    ]
    assert len(calls) == len(INPUTS)
    for call in calls:
        assert not call.args
        for keyword in call.keywords:
            ast.literal_eval(keyword.value)
            segment = ast.get_source_segment(SOURCE, keyword.value)
            assert segment is not None
            if isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str):
                assert segment.count('"') == 2, f"one literal, not a sequence of them: {segment}"


def test_schema_has_the_inputs_in_order_with_their_ranges(document: dict) -> None:
    found = document["components"]["schemas"]["Input"]
    properties = found["properties"]
    assert list(properties) == INPUTS
    assert [properties[name]["x-order"] for name in INPUTS] == list(range(len(INPUTS)))
    assert found["required"] == ["image"]
    limits = {name: (p["minimum"], p["maximum"]) for name, p in properties.items() if "maximum" in p}
    assert limits == {
        "num_inference_steps": (1, 4),
        "scale_factor": (1, 8),
        "cfg_scale": (1, 10),
        "latent_tiled_size": (0, 480),
        "latent_tiled_overlap": (0, 240),
        "output_quality": (1, 100),
        "num_particles": (1, 16),
        "bandwidth": (0.1, 0.8),
        "fidelity": (0, 1),
    }
    assert properties["image"]["format"] == "uri"
    assert properties["seed"]["nullable"] is True
    assert all(properties[name]["description"] for name in INPUTS)


def test_defaults_are_the_settings_own(document: dict) -> None:
    properties, settings = document["components"]["schemas"]["Input"]["properties"], Settings()
    for name in INPUTS[1:]:
        assert properties[name]["default"] == getattr(settings, name), name


def test_choices_are_the_settings_own(document: dict) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["color_fix"]["enum"] == ["wavelet", "dwt", "adain", "none"]
    assert schemas["output_format"]["enum"] == ["png", "webp", "jpg"]
    assert document["components"]["schemas"]["Output"] == {"type": "string", "format": "uri", "title": "Output"}


def test_the_predictor_for_lists_has_the_same_inputs(document: dict) -> None:
    many = schema(predictor="predict_many.py:ManyPredictor")["components"]["schemas"]
    ours, theirs = document["components"]["schemas"]["Input"]["properties"], many["Input"]["properties"]
    assert list(theirs) == ["images", *INPUTS[1:], "sample_times"]
    assert (theirs["sample_times"]["minimum"], theirs["sample_times"]["maximum"]) == (1, 4)
    assert theirs["images"]["type"] == "array"
    assert many["Output"]["type"] == "array"
    told = ("user_prompt", "seed", "output_format")  # of several pictures, in other words
    for name in INPUTS[1:]:
        hidden = "description" if name in told else ""
        assert {k: v for k, v in theirs[name].items() if k != hidden} == {
            k: v for k, v in ours[name].items() if k != hidden
        }


def test_command_line_inputs(document: dict, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"abc")
    inputs = read_inputs([f"image=@{file}", "seed=3", "scale_factor=2.5", "user_prompt=a = b"], document)
    assert inputs == {
        "image": "data:image/png;base64,YWJj",
        "seed": 3,
        "scale_factor": 2.5,
        "user_prompt": "a = b",
    }


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("seed", "must be name=value, got 'seed'"),
        ("sed=3", "no input 'sed'; the inputs are image, user_prompt"),
        ("seed=three", "seed must be a integer, got 'three'"),
        ("image=@nowhere.png", "nowhere.png, which does not exist"),
    ],
)
def test_command_line_faults_are_named(document: dict, pair: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_inputs([pair], document)
