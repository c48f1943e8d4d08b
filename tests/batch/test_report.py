"""report.jsonl: whole lines whatever happens, one run at a time, and the disk that is full."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from seesr.batch import files
from seesr.batch import report as reporting
from seesr.batch.job import Job, Options, Row, StoppedError
from seesr.batch.lock import check_free, locked
from seesr.batch.report import Report, hash_of, model_key, path_of, reports_of
from tests.batch.conftest import another_run
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
    assert Report(tmp_path.parent / "report.jsonl").adopt(tmp_path / "report.jsonl") == {
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
    before = path.read_bytes() + b'\n[1]\nno json\n{"bytes": 3}\n{"input": 7, "output": 8}\n\xff\xfe\nunfinished'
    path.write_bytes(before)
    with Report(path) as report:
        assert report.outputs == {str(tmp_path / "a.jpg.png")}
    assert path.read_bytes() == before + b"\n", "nothing of another's is cut off"


@pytest.mark.parametrize("content", [b"one line of notes", b'{"id": 1}\n{"id": 2}', b"\n{}", b'[{"input": 3}]'])
def test_a_file_of_another_kind_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    sentence = r"notes\.txt is no report of this command; move it away or "
    with pytest.raises(StoppedError, match=sentence), Report(path):
        pass
    with pytest.raises(StoppedError, match=sentence):
        Report(path).load()
    assert path.read_bytes() == content
    assert names_below(tmp_path) == ["notes.txt"]


@pytest.fixture
def address() -> Iterator[str]:
    """A folder of its own in the memory of this process."""
    import fsspec

    name = f"memory://{uuid4()}"
    yield name
    fsspec.filesystem("memory").store.clear()


def test_a_report_of_results_at_an_address_is_copied_there_and_fetched(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, path = f"{address}/report.jsonl", tmp_path / "report.jsonl"
    with Report(path, [address]) as report:
        report.append(row(tmp_path, "a.jpg"))
        assert not files.exists(copy)
    assert files.read(copy) == path.read_bytes()
    elsewhere = tmp_path / "elsewhere/report.jsonl"
    monkeypatch.setattr(reporting, "SECONDS_BETWEEN_COPIES", 0.0)
    with Report(elsewhere, [address]) as report:
        assert elsewhere.read_bytes() == path.read_bytes()
        report.append(row(tmp_path, "b.jpg"))
        assert files.read(copy) == elsewhere.read_bytes(), "while the run goes on, too"
    with path.open("ab") as file:
        file.write(json.dumps(row(tmp_path, "c.jpg")).encode() + b"\n")
    looking = Report(path, [address])
    looking.load()
    assert [os.path.basename(name) for name in sorted(looking.outputs)] == ["a.jpg.png", "b.jpg.png", "c.jpg.png"]
    with Report(path, [address]):
        pass
    assert [found["input"][-5:] for found in rows(tmp_path)] == ["a.jpg", "c.jpg", "b.jpg"]
    assert files.read(copy) == path.read_bytes()


def test_copies_take_a_hundredth_of_the_time(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "SECONDS_BETWEEN_COPIES", 0.0)
    monkeypatch.setattr(reporting, "COPY_SHARE", 1e-9)
    with Report(tmp_path / "report.jsonl", [address]) as report:
        report.append(row(tmp_path, "a.jpg"))
        first = files.read(f"{address}/report.jsonl")
        report.append(row(tmp_path, "b.jpg"))
        assert files.read(f"{address}/report.jsonl") == first
    assert files.read(f"{address}/report.jsonl").count(b"\n") == 2


def test_a_copy_never_replaces_a_file_of_another_kind(tmp_path: Path, address: str) -> None:
    with files.write_whole(f"{address}/report.jsonl") as file:
        file.write(b"mine\n")
    with pytest.raises(StoppedError, match=r"memory://\S+/report\.jsonl is no report"):
        Report(tmp_path / "report.jsonl", [address]).__enter__()
    assert files.read(f"{address}/report.jsonl") == b"mine\n"


def test_a_copy_that_fails_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Refusing(MemoryFileSystem):
        protocol = "refusing"

        def put_file(self, *_: object, **__: object) -> None:
            raise RuntimeError("403")

    fsspec.register_implementation("refusing", Refusing, clobber=True)
    with Report(tmp_path / "report.jsonl", ["refusing://bucket"]) as report:
        report.append(row(tmp_path, "a.jpg"))
    assert len(rows(tmp_path)) == 1
    assert "cannot be copied to refusing://bucket/report.jsonl (403)" in caplog.text


def test_a_second_run_is_refused_and_told_who_works_there(tmp_path: Path) -> None:
    folder = str(tmp_path / "in")
    with another_run(tmp_path / "in/report.jsonl") as number:
        sentence = rf"/in is in work by process {number} on \S+; wait for its end, or work in another folder"
        for path, roots in (("in/report.jsonl", []), ("r.jsonl", [str(tmp_path), folder])):
            with pytest.raises(StoppedError, match=sentence), Report(tmp_path / path, roots):
                pass
        with pytest.raises(StoppedError, match=sentence):
            check_free(folder)
        check_free(str(tmp_path))
        assert names_below(tmp_path) == ["in/.report.lock", "in/report.jsonl"]
    with Report(tmp_path / "in/report.jsonl"):
        check_free(folder)  # for this process


def test_a_lock_that_a_killed_run_left_holds_nobody_back(tmp_path: Path) -> None:
    (tmp_path / ".report.lock").write_text("process 1 on elsewhere\n")
    check_free(str(tmp_path))
    with Report(tmp_path / "report.jsonl") as report:
        report.append(row(tmp_path, "a.jpg"))
    assert names_below(tmp_path) == ["report.jsonl"]


def test_a_storage_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".report.lock").touch()
    check_free(str(tmp_path))
    with Report(tmp_path / "report.jsonl"):
        pass
    assert "cannot be locked (Operation not supported)" in caplog.text


def test_roots_that_are_one_folder_have_one_report(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    roots = [str(tmp_path / name) for name in ("in", "link", "in/sub")]
    found = reports_of(roots, Options(paths=["a"]))
    assert list(found) == roots
    assert found[roots[0]] is found[roots[1]] is not found[roots[2]]
    one = reports_of(roots, Options(paths=["a"], report=tmp_path / "all.jsonl"))
    with one[roots[0]]:
        assert names_below(tmp_path) == [".all.lock", "all.jsonl", "in/.report.lock", "in/sub/.report.lock"]
    assert len(set(one.values())) == 1
    assert names_below(tmp_path) == []


def test_of_many_at_once_one_gets_the_lock_at_a_time(tmp_path: Path) -> None:
    holders, most, taken = [0], [0], [0]

    def fight() -> None:
        for _ in range(200):
            with suppress(StoppedError), locked(tmp_path / ".report.lock"):
                holders[0] += 1
                taken[0] += 1
                most[0] = max(most[0], holders[0])
                holders[0] -= 1

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
    (tmp_path / "report.jsonl").mkdir()
    with (
        pytest.raises(StoppedError, match=r"report\.jsonl cannot be read \(Is a directory\)"),
        Report(tmp_path / "report.jsonl"),
    ):
        pass
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
    assert report.is_done(job, hash_of({"seed": 1}), None)
    assert report.is_done(job, hash_of({"seed": 1}), model_key("one"))
    assert not report.is_done(job, hash_of({"seed": 1}), model_key("two"))
    assert not report.is_done(job, hash_of({"seed": 2}), None)
    with Report(tmp_path / "report.jsonl") as report:
        report.append(row(tmp_path, "a.jpg", modified=6.0, settings={"seed": 1}, model="one"))
    report.load()
    assert not report.is_done(job, hash_of({"seed": 1}), None)
