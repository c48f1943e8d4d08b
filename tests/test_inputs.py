"""The Cog interface: how Cog reads its text, and the schema that web forms are drawn from."""

import argparse
import ast
import json
from pathlib import Path

import pytest

from scripts.cog_server import schema
from scripts.predict import choose_format, read_inputs
from seesr.settings import Settings

SOURCE = (Path(__file__).resolve().parent.parent / "predict.py").read_text()
SCHEMAS = Path(__file__).parent / "data/schemas.json"
TABLE = Path(__file__).resolve().parent.parent / "seesr/batch/inputs.json"
INPUTS = [
    "image",
    "user_prompt",
    "positive_prompt",
    "negative_prompt",
    "num_inference_steps",
    "scale_factor",
    "target_long_side",
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
    "fast_vae",
]


@pytest.fixture(scope="module")
def document() -> dict:
    return schema()


@pytest.fixture(scope="module")
def batch() -> dict:
    return schema(predictor="predict.py:BatchPredictor")


def test_inputs_are_plain_literals() -> None:
    """Cog reads the file as text: names, sums, f-strings and "a" "b" are dropped or garbled in silence."""
    calls = [
        node
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Input"
    ]
    assert len(calls) == len(INPUTS) + 2  # images and sample_times of BatchPredictor
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
        "target_long_side": (0, 8192),
        "seed": (0, 2**53 - 1),
        "cfg_scale": (0.5, 10),
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
    assert schemas["output_format"]["enum"] == ["png", "webp", "jpg", "tiff"]
    assert document["components"]["schemas"]["Output"] == {"type": "string", "format": "uri", "title": "Output"}


def test_both_schemas_are_the_recorded_ones(document: dict, batch: dict) -> None:
    """A change here changes what every caller sees. Record it: see CONTRIBUTING.md."""
    recorded = json.loads(SCHEMAS.read_text())
    for name, found in (("Predictor", document), ("BatchPredictor", batch)):
        assert found["components"]["schemas"] == recorded[name], name


def input_table(document: dict) -> list[dict]:
    """What scripts/upscale needs to know of every input beside the image."""
    schemas = document["components"]["schemas"]
    table = []
    for name, found in list(schemas["Input"]["properties"].items())[1:]:
        choices = schemas[name]["enum"] if name in schemas else None
        kind = found.get("type") or schemas[name]["type"]
        row = {"name": name, "type": kind, "default": found["default"], "choices": choices}
        row |= {key: found.get(key) for key in ("minimum", "maximum")} | {"description": found["description"]}
        table.append({key: value for key, value in row.items() if value is not None or key == "default"})
    return table


def test_the_table_of_scripts_upscale_is_recorded(document: dict) -> None:
    assert json.loads(TABLE.read_text()) == input_table(document), "record it: .venv/bin/python -m tests.test_inputs"


def test_the_batch_predictor_has_the_same_inputs(document: dict, batch: dict) -> None:
    one, several = (schemas["components"]["schemas"]["Input"]["properties"] for schemas in (document, batch))
    assert list(several) == ["images", *INPUTS[1:], "sample_times"]
    assert all(several[name] == one[name] for name in INPUTS[1:])
    assert (several["sample_times"]["minimum"], several["sample_times"]["maximum"]) == (1, 4)
    assert several["images"]["type"] == batch["components"]["schemas"]["Output"]["type"] == "array"


def test_command_line_inputs(document: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    monkeypatch.setenv("HOME", str(tmp_path))
    pairs = [
        "image=@~/a.png",
        "seed=3",
        "num_inference_steps=2.0",
        "scale_factor=2.5",
        "use_kds=true",
        "user_prompt=a = b",
    ]
    inputs = read_inputs(pairs, document)
    assert inputs == {
        "image": "data:image/png;base64,YWJj",
        "seed": 3,
        "num_inference_steps": 2,
        "scale_factor": 2.5,
        "use_kds": True,
        "user_prompt": "a = b",
    }


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("seed", "must be name=value, got 'seed'"),
        ("sed=3", "no input 'sed'; the inputs are image, user_prompt"),
        ("seed=three", "seed must be an integer, got 'three'"),
        ("seed=true", "seed must be an integer, got 'true'"),
        ("seed=2.5", "seed must be an integer, got '2.5'"),
        ("scale_factor=NaN", "scale_factor must be a number, got 'NaN'"),
        ("use_kds=1", r"use_kds must be a boolean \(true or false\), got '1'"),
        ("user_prompt=@a.txt", "user_prompt takes no file, got '@a.txt'; write the value itself"),
        (
            "image=@nowhere.png",
            r"a file that can be read, got nowhere.png \(No such file or directory\); check its path",
        ),
        ("image=@.", r"a file that can be read, got \. \(Is a directory\); check its path"),
        ("image=@/proc/self/mem", r"got /proc/self/mem \(Input/output error\); check its path and permissions"),
        (
            "image=README.md",
            "image must be @FILE, a URL or a data URI, got 'README.md'; image=@README.md sends the file",
        ),
        ("image=iVBORw0KGgo" + "A" * 5000, "a data URI, got 'iVBORw0KGgoA{49}'; image=@FILE sends the file"),
    ],
)
def test_command_line_faults_are_named(
    document: dict, pair: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SCHEMAS.parents[2])
    with pytest.raises(ValueError, match=sentence):
        read_inputs([pair], document)


def test_command_line_files_fit_into_a_request(document: dict, tmp_path: Path) -> None:
    path = tmp_path / "photo.tif"
    with path.open("wb") as file:
        file.truncate(80_100_000)
    with pytest.raises(
        ValueError, match=r"photo\.tif has 80\.1 MB, but a request holds at most 78 MB of files; make it"
    ):
        read_inputs([f"image=@{path}"], document)


@pytest.mark.parametrize(
    ("output", "asked", "chosen"),
    [
        ("out.webp", {}, {"output_format": "webp"}),
        ("a.b/out.JPEG", {}, {"output_format": "jpg"}),
        ("out.jpg", {"output_format": "jpg"}, {"output_format": "jpg"}),
        ("out", {}, {}),
        ("out", {"output_format": "webp"}, {"output_format": "webp"}),
        (None, {}, {}),
    ],
)
def test_command_line_output_chooses_the_format(document: dict, output: str | None, asked: dict, chosen: dict) -> None:
    assert choose_format(asked, output, document) == chosen


def test_command_line_output_follows_the_schema(document: dict) -> None:
    formats = {"output_format": {"enum": ["png", "tiff"]}}
    schemas = document["components"]["schemas"]
    assert choose_format({}, "out.tif", {"components": {"schemas": schemas | formats}}) == {"output_format": "tiff"}
    assert choose_format({}, "out.gif", {"components": {"schemas": {"Input": {}}}}) == {}
    for other, legal in (
        (schemas, r"\.png, \.webp, \.jpg, \.tiff, \.jpeg, \.tif"),
        (schemas | formats, r"\.png, \.tiff, \.tif"),
    ):
        with pytest.raises(ValueError, match=f"-o must end in {legal}, got out.gif"):
            choose_format({}, "out.gif", {"components": {"schemas": other}})


if __name__ == "__main__":
    argparse.ArgumentParser(
        description="Record tests/data/schemas.json, of both predictors, and seesr/batch/inputs.json."
    ).parse_args()
    found = {name: schema(predictor=f"predict.py:{name}") for name in ("Predictor", "BatchPredictor")}
    schemas = {name: document["components"]["schemas"] for name, document in found.items()}
    SCHEMAS.write_text(json.dumps(schemas, indent=1) + "\n")
    TABLE.write_text(json.dumps(input_table(found["Predictor"]), indent=1) + "\n")
