"""The command line: every Cog input as an option, and one sentence for every fault."""

from pathlib import Path

import pytest

from seesr.batch.options import INPUTS, parse
from seesr.settings import Settings


def test_without_options_the_settings_are_the_default_ones() -> None:
    options = parse(["a", "b"])
    assert options.paths == ["a", "b"]
    assert options.settings == Settings()
    assert options.given == {}
    assert options.engine == "local"


def test_every_input_is_an_option() -> None:
    values = {"string": "x", "integer": "2", "number": "0.7", "boolean": None}
    words = ["a"]
    for row in INPUTS:
        value = row["choices"][-1] if "choices" in row else values[row["type"]]
        value = {"scale_factor": "1.5", "target_long_side": "100"}.get(row["name"], value)
        words += [f"--{row['name'].replace('_', '-')}", *([] if value is None else [value])]
    options = parse(words)
    assert list(options.given) == [row["name"] for row in INPUTS]
    assert options.settings == Settings(**options.given)
    assert options.given["use_kds"] is True
    assert options.given["scale_factor"] == 1.5
    assert options.given["color_fix"] == "none"


def test_paths_and_options_mix() -> None:
    options = parse(["a", "--engine", "ray", "--concurrency", "1", "4", "b", "--out", "o", "c", "--no-use-kds"])
    assert (options.paths, options.concurrency, options.out) == (["a", "b", "c"], (1, 4), "o")
    assert options.given == {"use_kds": False}
    assert parse(["a", "--engine", "replicate", "--concurrency", "8", "--budget", "5"]).concurrency == (8, 8)
    assert parse(["a", "--", "--b", "c"]).paths == ["a", "./--b", "c"]
    assert parse(["--engine", "ray", "--", "-x.jpg"]).paths == ["./-x.jpg"]


@pytest.mark.parametrize(("output", "chosen"), [("o.jpeg", "jpg"), ("o.TIF", "tiff"), ("o", "png"), ("a.b/o", "png")])
def test_the_ending_of_o_chooses_the_format(output: str, chosen: str) -> None:
    assert parse(["a", "-o", output]).settings.output_format == chosen


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: PATH"),
        (["a", "--scale-factor", "12"], "argument --scale-factor: must be a number between 1 and 8, got '12'"),
        (["a", "--scale-factor", "nan"], "must be a number between 1 and 8, got 'nan'"),
        (["a", "--seed", "x"], "must be a whole number between 0 and 9007199254740991, got 'x'"),
        (["a", "--target-long-side", "10"], "target_long_side must be 0 (scale_factor acts) or between 64 and 8192"),
        (["a", "--color-fix", "foo"], "invalid choice: 'foo' (choose from 'wavelet'"),
        (["a", "--scale", "3"], "unrecognized arguments: --scale 3"),
        (["a", "-o", "x.gif"], "-o must end in .png, .webp, .jpg, .tiff, .jpeg, .tif, got x.gif"),
        (["a", "-o", "x.jpg", "--output-format", "png"], "-o x.jpg asks for jpg, but --output-format is png: change"),
        (["a", "-o", "x.png", "--out", "y"], "-o names the result of one image, and --out does so for several"),
        (["a", "-o", "x.png", "--name", "y"], "-o names the result of one image, and --name does so for several"),
        (["a", "-o", "/tmp"], "-o must name a file, got the folder /tmp; give --out /tmp for all results there"),
        (["a", "-o", "new/"], "-o must name a file, got the folder new/"),
        (["a", "--budget", "3"], "--budget needs --engine replicate, got --engine local"),
        (["a", "--concurrency", "3"], "--concurrency needs --engine ray or replicate, got --engine local"),
        (["a", "--engine", "ray", "--concurrency", "4", "1"], "must be one or two numbers from 1 up, MIN and MAX"),
        (["a", "--engine", "replicate", "--bundle", "x"], "--bundle needs --engine local or ray, got --engine repl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_fault_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        parse(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("upscale: ")
    assert sentence in line
