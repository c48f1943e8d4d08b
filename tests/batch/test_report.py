"""report.jsonl: whole lines whatever happens, one run at a time, and the disk that is full."""

import json
import multiprocessing
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seesr.batch.job import Job, Options, Row, StoppedError
from seesr.batch.report import Lock, Report, check_free, outputs_in, path_of
from tests.batch.photographs import names_below, rows


def row(folder: Path, name: str, **more: Any) -> Row:
    return Row(input=str(folder / name), bytes=1, sha256="00", output=str(folder / f"{name}.png"), **more)


def test_rows_name_files_below_the_folder_relative_to_it(tmp_path: Path) -> None:
    outside = Row(input="/elsewhere/a.jpg", bytes=1, sha256="00", output=str(tmp_path / "a.png"))
    with Report(tmp_path / "report.jsonl") as report:
        report.append(row(tmp_path, "deep/line\nbreak \udcff.jpg"))
        written = report.append(outside)
        assert (tmp_path / ".report.lock").read_text().startswith(f"process {os.getpid()} on ")
    assert [found["input"] for found in rows(tmp_path)] == ["deep/line\nbreak \udcff.jpg", "/elsewhere/a.jpg"]
    assert rows(tmp_path)[1] == written == {**outside, "output": "a.png"}
    assert outputs_in(tmp_path / "report.jsonl") == {
        str(tmp_path / "a.png"),
        str(tmp_path / "deep/line\nbreak \udcff.jpg.png"),
    }
    assert names_below(tmp_path) == ["report.jsonl"]


def test_an_empty_report_does_not_stay(tmp_path: Path) -> None:
    with Report(tmp_path / "new/report.jsonl"):
        pass
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("cut", [1, 20, "all but the newline", 100_000])
def test_a_line_that_a_crash_cut_off_is_dropped_and_one_that_is_whole_kept(tmp_path: Path, cut: int | str) -> None:
    path = tmp_path / "report.jsonl"
    with Report(path) as report:
        report.append(row(tmp_path, "a.jpg"))
    whole = path.read_bytes()
    last = json.dumps(row(tmp_path, "b" * 100_000)).encode()
    assert len(last) > 100_000
    path.write_bytes(whole + (last if isinstance(cut, str) else last[:cut]))
    with Report(path) as report:
        report.append(row(tmp_path, "c.jpg"))
    wanted = ["a.jpg", str(tmp_path / f"b{'b' * 99_999}"), "c.jpg"]
    assert [found["input"] for found in rows(tmp_path)] == (wanted if isinstance(cut, str) else [wanted[0], wanted[2]])


def test_a_file_without_any_whole_line_and_lines_of_others_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    path.write_bytes(b'{"input": "a')
    with Report(path) as report:
        assert path.read_bytes() == b""
        report.append(row(tmp_path, "a.jpg"))
    path.write_bytes(b'\n[1]\nno json\n{"bytes": 3}\n{"input": 7, "output": 8}\n\xff\xfe\n' + path.read_bytes())
    with Report(path) as report:
        assert report.outputs == {str(tmp_path / "a.jpg.png")}
    assert path.read_bytes().count(b"\n") == 7


def hold(path: Path, ready: Any, end: Any) -> None:
    with Report(path):
        ready.set()
        end.wait(30)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    """Another process that holds the lock of tmp_path/in: its number."""
    fork = multiprocessing.get_context("fork")
    ready, end = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=[tmp_path / "in/report.jsonl", ready, end])
    process.start()
    assert ready.wait(30)
    assert process.pid is not None
    yield process.pid
    end.set()
    process.join()


def test_a_second_run_is_refused_and_told_who_works_there(tmp_path: Path, held: int) -> None:
    sentence = rf"/in is in work by process {held} on \S+; wait for its end, or work in another folder"
    with pytest.raises(StoppedError, match=sentence), Report(tmp_path / "in/report.jsonl"):
        pass
    with pytest.raises(StoppedError, match=sentence):
        check_free(tmp_path / "in")
    check_free(tmp_path)
    assert names_below(tmp_path) == ["in/.report.lock", "in/report.jsonl"]


def test_a_lock_that_a_killed_run_left_holds_nobody_back(tmp_path: Path) -> None:
    (tmp_path / ".report.lock").write_text("process 1 on elsewhere\n")
    check_free(tmp_path)
    with Report(tmp_path / "report.jsonl") as report:
        report.append(row(tmp_path, "a.jpg"))
    assert names_below(tmp_path) == ["report.jsonl"]


def test_of_many_at_once_one_gets_the_lock_at_a_time(tmp_path: Path) -> None:
    holders, most, taken = [0], [0], [0]

    def fight() -> None:
        for _ in range(200):
            lock = Lock(tmp_path / ".report.lock")
            try:
                lock.take()
            except StoppedError:
                continue
            holders[0] += 1
            taken[0] += 1
            most[0] = max(most[0], holders[0])
            holders[0] -= 1
            lock.free()

    threads = [threading.Thread(target=fight) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert taken[0] > 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_on_a_full_disk_no_line_is_half_there(small_disk: Path) -> None:
    path = small_disk / "report.jsonl"

    def fill(report: Report) -> None:
        for number in range(100):
            report.append(row(small_disk, f"{number}{'x' * 1000}.jpg"))

    with Report(path) as report:
        with pytest.raises(StoppedError, match=r"report\.jsonl cannot be written \(No space left .*\); make room"):
            fill(report)
        before = len(rows(small_disk))
        assert 10 < before < 60
    with Report(path) as report:
        report.append(row(small_disk, "y"))
    assert len(rows(small_disk)) == before + 1


def test_a_storage_that_went_away_stops_the_run(small_disk: Path) -> None:
    """The lock and the file are still open, but the folder is an empty one of another disk."""
    with Report(small_disk / "report.jsonl") as report:
        report.append(row(small_disk, "a"))
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
        with pytest.raises(
            StoppedError, match=r"cannot be written \(No such file or directory\).* bring its storage back"
        ):
            report.append(row(small_disk, "b"))
    assert list(small_disk.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file", "File exists"), (Path("/proc/x"), "No such file or directory")):
        sentence = rf"needs a folder that can be written, got {folder} \({reason}\); name one by --out"
        with pytest.raises(StoppedError, match=sentence), Report(folder / "report.jsonl"):
            pass


def test_where_reports_stand() -> None:
    options = Options(paths=["a"])
    assert path_of("/in", options) == Path("/in/report.jsonl")
    assert path_of("s3://bucket/in", options) == Path("report.jsonl")
    assert path_of("/in", Options(paths=["a"], report=Path("x.jsonl"))) == Path("x.jsonl")


def test_a_job_is_compared_with_its_newest_row(tmp_path: Path) -> None:
    (tmp_path / "a.jpg.png").touch()
    (tmp_path / "a.jpg").touch()
    job = Job(str(tmp_path / "a.jpg"), str(tmp_path / "a.jpg.png"), str(tmp_path), 1, 5.0)
    with Report(tmp_path / "report.jsonl") as report:
        report.append(row(tmp_path, "a.jpg", modified=5.0, settings={"seed": 1}, model="one"))
    report.load()
    assert report.is_done(job, None)
    with Report(tmp_path / "report.jsonl") as report:
        report.append(row(tmp_path, "a.jpg", modified=6.0, settings={"seed": 1}, model="one"))
    report.load()
    assert not report.is_done(job, None)
