"""Memory constants: the embedded bundle holds what is measured, and --write puts them there."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from scripts.bench import memory
from scripts.bundle_writer import hash_files, measure_bundle
from seesr import bundle
from seesr.bundle import read_json


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["memory", *map(str, arguments)])
    memory.main()


@pytest.mark.slow
def test_the_embedded_bundle_holds_what_is_measured(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = read_json(tiny_bundle / "bundle.json")
    assert {group: info[group] for group in ("memory", "flops")} == measure_bundle(tiny_bundle)
    assert info["files"] == hash_files(tiny_bundle)
    run(monkeypatch, tiny_bundle)
    assert "| memory fp16 decode untiled | 3072.0 | 3072.0 |" in capsys.readouterr().out


@pytest.mark.slow
def test_write_adds_the_constants_and_changes_nothing_else(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    info = read_json(copy / "bundle.json")
    memory_constants, flops = info.pop("memory"), info.pop("flops")
    (copy / "bundle.json").write_text(json.dumps(info))
    with pytest.raises(RuntimeError, match=r"scripts\.bench\.memory .*bundle --write"):
        bundle.load(copy)
    with pytest.raises(SystemExit, match="--write"):
        run(monkeypatch, copy)
    assert read_json(copy / "bundle.json") == info
    run(monkeypatch, copy, "--write")
    assert (copy / "bundle.json").read_bytes() == (tiny_bundle / "bundle.json").read_bytes()
    assert (bundle.load(copy).memory, bundle.load(copy).flops) == (memory_constants, flops)
    assert {path.name for path in copy.iterdir()} == {path.name for path in tiny_bundle.iterdir()}


def test_nothing_is_written_where_writing_fails(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle.json"
    shutil.copy(tiny_bundle / "bundle.json", path)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(memory.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        memory.write(tmp_path, {})
    assert path.read_bytes() == (tiny_bundle / "bundle.json").read_bytes()
    assert list(tmp_path.iterdir()) == [path]
