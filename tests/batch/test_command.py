"""scripts/upscale with the embedded bundle: whole runs, killed, interrupted and refused ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from seesr.batch import work
from seesr.batch.__main__ import main
from tests.batch.conftest import another_run
from tests.batch.photographs import ROOT, names_below, rows, write_photographs

FAST = ["--num-inference-steps", "1", "--scale-factor", "2", "--seed", "3", "--bundle", str(ROOT / "weights/tiny")]


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "seesr.batch", *map(str, words), *FAST]


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_below(folder) if "_upscaled" in name}


def test_a_folder_is_done_reported_and_then_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_photographs(tmp_path, ["a.jpg", "deep/b.png"], 8)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert main([str(tmp_path), *FAST]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("2 of 3 images done in ")
    assert "skipped" not in out
    first, second = err.splitlines()
    assert first.startswith("upscale: bad.jpg: image must be an image file (PNG, ")
    assert second == "upscale: 1 of 3 images failed"
    wanted = ["a.jpg", "a_upscaled.png", "bad.jpg", "deep/b.png", "deep/b_upscaled.png", "report.jsonl"]
    assert names_below(tmp_path) == wanted
    with Image.open(paths[1]) as image, Image.open(tmp_path / "deep/b_upscaled.png") as result:
        assert result.size == (2 * image.width, 2 * image.height)
    by_name = {row["input"]: row for row in rows(tmp_path)}
    assert by_name.keys() == {"a.jpg", "bad.jpg", "deep/b.png"}
    row = by_name["deep/b.png"]
    assert (row["output"], row["seed"], row["retries"], row["height"]) == ("deep/b_upscaled.png", 3, 0, result.height)
    assert row["bytes"] == paths[1].stat().st_size
    assert row["model"].startswith("tiny@")
    assert row["settings"]["seed"] == 3
    assert row["seconds"] > 0

    (tmp_path / "bad.jpg").unlink()
    before = (tmp_path / "report.jsonl").read_bytes()
    assert main([str(tmp_path), *FAST]) == 0
    out, err = capsys.readouterr()
    assert out == "0 of 2 images done in 0 s, 2 skipped that were done before (--force does them again)\n"
    assert err == ""
    assert (tmp_path / "report.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "PATH must be a file, a folder, a pattern or an address, got 'nowhere' (No such file"),
        ([".", "-o", "o.png"], "-o is for the result of one image, got .; give --out for several"),
        (["a.jpg", "a.png", "-o", "o.png"], "-o is for the result of one image, got a.jpg a.png; give --out"),
        (["."], "a.jpg and "),
        ([".", "--name", "{size}"], "--name may hold {stem}, {scale} and {ext}"),
        (["nothing://x"], "nothing://x must be a path or an address that fsspec knows"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_before_work(
    tmp_path: Path, words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(tmp_path, ["a.jpg", "a.png"])
    monkeypatch.chdir(tmp_path)
    assert main([*words, *FAST]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("upscale: ")
    assert sentence in line
    assert names_below(tmp_path) == ["a.jpg", "a.png"]


def test_a_missing_bundle_ends_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photographs(tmp_path, ["a.jpg"])
    assert main([str(tmp_path), "--bundle", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"upscale: the model needs a bundle, got {tmp_path}, where none is; name")
    assert names_below(tmp_path) == ["a.jpg"]


def test_the_embedded_bundle_is_named_where_none_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SEESR_WEIGHTS", raising=False)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/tiny").symlink_to(ROOT / "weights/tiny")
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(work, "ROOT", tmp_path)
    told = "upscale: Using the small embedded bundle: weights/seesr-turbo is missing. README.md says how to get the "
    for words in ([], ["--dry-run"]):
        assert main([str(tmp_path / "in"), *words]) == 0
        assert capsys.readouterr().err.startswith(f"{told}full model.\n")
    assert main([str(tmp_path / "in"), "--bundle", str(tmp_path / "weights/tiny")]) == 0
    assert "Using the small" not in capsys.readouterr().err
    (tmp_path / "weights/seesr-turbo").symlink_to(ROOT / "weights/tiny")
    assert main([str(tmp_path / "in")]) == 0
    assert "Using the small" not in capsys.readouterr().err


def test_a_bundle_is_known_by_its_files_and_not_by_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photographs(tmp_path / "in", ["a.png"], 8)
    shutil.copytree(ROOT / "weights/tiny", tmp_path / "other")
    with (tmp_path / "other/bundle.json").open("a") as file:
        file.write("\n")
    words = [str(tmp_path / "in"), *FAST[:-1]]
    assert main([*words, str(ROOT / "weights/tiny")]) == 0
    shutil.copytree(ROOT / "weights/tiny", tmp_path / "renamed")
    capsys.readouterr()
    assert main([*words, str(tmp_path / "renamed")]) == 0
    out, err = capsys.readouterr()
    assert (out.partition(" images")[0], err) == ("0 of 1", "")
    assert main([*words, str(tmp_path / "other")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("1 of 1 images done")
    assert err.startswith("upscale: 1 of the results are of another model or version, and are made again by other@")


def test_an_empty_folder_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), *FAST]) == 0
    out, err = capsys.readouterr()
    assert out == "0 of 0 images done in 0 s\n"
    assert err == f"upscale: found no images in {tmp_path}\n"
    assert names_below(tmp_path) == []


def test_a_folder_named_twice_does_not_block_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("in/a.jpg", "in/sub/b.jpg", "in/sub/a_upscaled.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "in/sub/report.jsonl").touch()
    for paths in (["in", "in/sub"], ["in", "link"], ["link", "in/sub", "in"]):
        assert main([*(str(tmp_path / path) for path in paths), "--json", *FAST]) == 1
        out, err = capsys.readouterr()
        assert json.loads(out.splitlines()[-1])["failed"] == 3, err
        assert "in work" not in err


def test_a_result_beside_its_photograph_that_no_run_made_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat.jpg", "cat_upscaled.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    assert main([str(tmp_path / "cat.jpg"), str(tmp_path / "cat_upscaled.jpg"), "--json", *FAST]) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("upscale: 1 results of earlier runs are left out")
    assert json.loads(out.splitlines()[-1])["left_out"] == 1


@pytest.mark.slow
def test_one_file_from_anywhere(tmp_path: Path) -> None:
    write_photographs(tmp_path, ["photo.jpg"])
    upscale = [ROOT / "scripts/upscale", "photo.jpg", "-o", "new/out.webp", "--json", *FAST]
    done = subprocess.run(upscale, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    row, summary = map(json.loads, done.stdout.splitlines())
    assert (row["input"], row["output"]) == (str(tmp_path / "photo.jpg"), "out.webp")
    assert (summary["done"], summary["failed"], summary["slowest"]["input"]) == (1, 0, row["input"])
    with Image.open(tmp_path / "new/out.webp") as result:
        assert result.format == "WEBP"
    assert names_below(tmp_path) == ["new/out.webp", "new/report.jsonl", "photo.jpg"]


def test_fail_fast_stops_at_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    assert main([str(tmp_path), "--fail-fast", "--json", *FAST]) == 1
    *lines, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(lines) == summary["failed"] == 1
    assert main([str(tmp_path), "--json", *FAST]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == 9


@pytest.mark.slow
def test_addresses_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in write_photographs(tmp_path / "in", ["a.jpg", "deep/b.png"], 8):
        memory.pipe_file(f"/in/{path.relative_to(tmp_path / 'in')}", path.read_bytes())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["memory://in", "--out", "memory://out", *FAST]) == 0
    assert sorted(memory.find("/out")) == ["/out/a.png", "/out/deep/b.png", "/out/report.jsonl"]
    assert sorted(row["output"] for row in rows(tmp_path / "here")) == ["memory://out/a.png", "memory://out/deep/b.png"]
    memory.pipe_file("/in/a.jpg", memory.cat_file("/in/deep/b.png"))
    (tmp_path / "here/report.jsonl").unlink()
    assert main(["memory://in", "--out", "memory://out", *FAST]) == 0
    assert len(rows(tmp_path / "here")) == 3, "two by the copy with the results"
    assert memory.cat_file("/out/report.jsonl") == (tmp_path / "here/report.jsonl").read_bytes()
    assert main(["memory://in/**", "--out", str(tmp_path / "out"), *FAST]) == 0
    assert names_below(tmp_path / "out") == ["a.png", "deep/b.png", "report.jsonl"]
    assert (tmp_path / "out/deep/b.png").read_bytes() == memory.cat_file("/out/deep/b.png")
    memory.store.clear()


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number}.{ending}" for number, ending in enumerate(["jpg", "png", "tif"] * 4)]
    for folder in ("undisturbed", "killed"):
        write_photographs(tmp_path / folder, names, 48)
    assert main([str(tmp_path / "undisturbed"), *FAST]) == 0
    wanted = results(tmp_path / "undisturbed")
    folder, seen = tmp_path / "killed", 0
    for wait in (0.0, 0.07):
        process = subprocess.Popen(command(folder))
        wait_for_lines(folder, seen + 1, process)
        time.sleep(wait)
        process.kill()
        process.wait()
        seen = len(lines(folder))
        assert 0 < seen < len(names)
        assert {json.loads(line)["output"] for line in lines(folder)} <= results(folder).keys()
        assert results(folder).items() <= wanted.items(), "every file is whole"
        assert len(results(folder)) <= seen + 1
    capsys.readouterr()
    assert main([str(folder), *FAST]) == 0
    assert f"{len(names) - seen} of {len(names)} images done" in capsys.readouterr().out
    assert sorted(row["input"] for row in rows(folder)) == sorted(names), "nothing is done twice"
    assert results(folder) == wanted
    assert names_below(folder) == names_below(tmp_path / "undisturbed")


def lines(folder: Path) -> list[bytes]:
    """The whole lines of a report that may be being written."""
    path = folder / "report.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen | None = None) -> None:
    """Until a report has so many lines."""
    end = time.monotonic() + 600
    while len(lines(folder)) < count:
        assert time.monotonic() < end
        assert process is None or process.poll() is None, "the run ended early"
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_cleanly(tmp_path: Path, number: int) -> None:
    write_photographs(tmp_path, [f"{number}.png" for number in range(30)], 32)
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_lines(tmp_path, 1, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 130
    assert err == "upscale: interrupted; run it again to go on\n"
    found = [row["output"] for row in rows(tmp_path)]
    assert 0 < len(found) < 30
    assert out.startswith(f"{len(found)} of 30 images done in ")
    assert sorted(found) == sorted(results(tmp_path))
    assert not [name for name in names_below(tmp_path) if name.startswith(".")]


@pytest.mark.slow
def test_two_runs_at_once_do_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photographs(tmp_path, [f"below/{number}.png" for number in range(12)], 32)
    first = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL)
    wait_for_lines(tmp_path, 1, first)
    for folder in (tmp_path, tmp_path / "below", tmp_path / "below/0.png"):
        assert main([str(folder), *FAST]) == 1
        assert capsys.readouterr().err.startswith(f"upscale: {tmp_path} is in work by process {first.pid} on ")
    assert first.wait() == 0
    assert len(rows(tmp_path)) == 12
    assert names_below(tmp_path / "below") == sorted([f"{n}{end}.png" for n in range(12) for end in ("", "_upscaled")])


def test_a_run_below_holds_back_one_above(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photographs(tmp_path, ["below/a.png"])
    with another_run(tmp_path / "below/report.jsonl") as number:
        assert main([str(tmp_path), *FAST]) == 1
    assert f"/below is in work by process {number} on " in capsys.readouterr().err


def test_a_report_above_its_folder_does_not_block_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    assert main(["in", "--report", "report.jsonl", *FAST]) == 1
    assert "1 of 1 images failed" in capsys.readouterr().err
    assert names_below(tmp_path) == ["in/a.jpg", "report.jsonl"]


@pytest.mark.parametrize("place", ["out", "out/sub", "."])
def test_another_report_lets_no_second_run_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/a.jpg").write_bytes(b"no image")
    part = tmp_path / place / ".seesr-x.part"
    with another_run(tmp_path / "first.jsonl", [str(tmp_path / place)]) as number:
        part.touch()
        words = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--report", str(tmp_path / "second.jsonl")]
        assert main([*words, *FAST]) == 1
        assert f"is in work by process {number} on " in capsys.readouterr().err
        assert part.exists()


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_the_next_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photographs(tmp_path / "in", [f"{number}.png" for number in range(12)], 80)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        words = [str(tmp_path / "in"), "--out", str(disk), *FAST]
        assert main(words) == 1
        assert "cannot be written (No space left on device); make room" in capsys.readouterr().err.splitlines()[-1]
        before = rows(disk)
        assert 0 < len(before) < 12
        assert names_below(disk) == sorted([*(row["output"] for row in before), "report.jsonl"])
        for row in before:
            with Image.open(disk / row["output"]) as image:
                image.load()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert main(words) == 0
        assert f"{len(before)} skipped" in capsys.readouterr().out
        assert len(rows(disk)) == 12
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.slow
def test_a_share_that_goes_away_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    share = tmp_path / "share"
    write_photographs(share / "in", [f"{number}.png" for number in range(12)], 80)

    def take_away() -> None:
        wait_for_lines(share / "in", 1)
        os.rename(share, tmp_path / "away")

    thread = threading.Thread(target=take_away)
    thread.start()
    assert main([str(share / "in"), *FAST]) == 1
    thread.join()
    assert "run again" in capsys.readouterr().err.splitlines()[-1]
    assert not share.exists(), "nothing is written where the share was"
    os.rename(tmp_path / "away", share)
    assert main([str(share / "in"), *FAST]) == 0
    assert len({row["input"] for row in rows(share / "in")}) == len(results(share / "in")) == 12
    assert not [row for row in rows(share / "in") if "error" in row]
