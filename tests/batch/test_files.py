"""Files that appear whole or not at all, on the disk and at addresses."""

import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from seesr.batch import files


@pytest.fixture
def address() -> Iterator[str]:
    """A folder of its own in the memory of this process."""
    import fsspec

    name = f"memory://{uuid4()}"
    yield name
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["disk", "address"])
def place(request: pytest.FixtureRequest, tmp_path: Path, address: str) -> str:
    return str(tmp_path) if request.param == "disk" else address


def write(name: str, content: bytes) -> None:
    with files.write_whole(name) as file:
        file.write(content)


def test_a_file_is_written_read_and_found(place: str) -> None:
    name = files.join(place, "deep/er/a b.png")
    assert not files.exists(name)
    files.make_folder(files.join(place, "deep/er"), place)
    write(name, b"one")
    write(name, b"three")
    assert files.exists(name)
    assert not files.exists(files.join(place, "deep"))
    assert files.read(name) == b"three"
    found = files.stat(name)
    assert found.bytes == 5
    with files.open_binary(name, header=True) as file:
        assert file.read(2) == b"th"
    with pytest.raises(FileNotFoundError):
        files.read(name + "x")
    with pytest.raises(FileNotFoundError):
        files.stat(name + "x")


def test_the_files_below_an_address(address: str) -> None:
    write(f"{address}/b.png", b"12")
    write(f"{address}/a/c.png", b"1")
    assert [(name, stat.bytes) for name, stat in files.find(address)] == [
        (f"{address}/a/c.png", 1),
        (f"{address}/b.png", 2),
    ]


def test_addresses_that_say_more_than_the_path() -> None:
    """As abfs://photos@account.dfs.core.windows.net/in, where the path is photos/in."""
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Account(MemoryFileSystem):
        protocol = "account"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return re.sub(r"^account://(\w+)@[^/]*", r"/\1", path).rstrip("/")

    fsspec.register_implementation("account", Account, clobber=True)
    top = "account://photos@host.net/in"
    write(f"{top}/a.jpg", b"12")
    write(f"{top}/deep/b.jpg", b"1")
    names = [f"{top}/a.jpg", f"{top}/deep/b.jpg"]
    assert [name for name, _ in files.find(top)] == names
    assert files.match(f"{top}/*.jpg") == [(names[0], False)]
    assert files.match(f"{top}/de*") == [(f"{top}/deep", True)]
    assert [files.read(name) for name, _ in files.match(f"{top}/**/*.jpg")] == [b"12", b"1"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_results_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write(str(tmp_path / "a.png"), b"one")
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "a.png").st_mode & 0o777 == 0o666 & ~mask


def test_nothing_is_left_where_writing_fails(place: str) -> None:
    name = files.join(place, "a.png")
    write(name, b"before")

    def fail() -> None:
        with files.write_whole(name) as file:
            file.write(b"half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 (ours)
        fail()
    assert files.read(name) == b"before"
    if not files.is_address(place):
        assert os.listdir(place) == ["a.png"]
        assert os.stat(name).st_mode & 0o777 == 0o644


def kill_while_writing(name: str) -> None:
    with files.write_whole(name) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_leaves_is_known_and_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=kill_while_writing, args=[str(tmp_path / "a.png")])
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"half"
    (tmp_path / ".hidden.part").touch()
    files.remove_leftovers(str(tmp_path))
    files.remove_leftovers(str(tmp_path / "nowhere"))
    assert os.listdir(tmp_path) == [".hidden.part"]


def test_no_folder_is_made_where_a_share_was(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.make_folder(str(tmp_path / "share/deep"), str(tmp_path / "share"))
    with pytest.raises(FileNotFoundError):
        write(str(tmp_path / "share/a.png"), b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("info", "modified"),
    [
        ({"size": 3, "mtime": 5.5}, 5.5),
        ({"size": 3, "LastModified": datetime(1970, 1, 2, tzinfo=UTC)}, 86400),
        ({"size": 3, "updated": "1970-01-02T00:00:00+00:00"}, 86400),
        ({"size": 3, "updated": "yesterday"}, None),
        ({"size": 3}, None),
    ],
)
def test_what_file_systems_tell_about_time(info: dict, modified: float | None) -> None:
    assert files.stat_of(info) == (3, modified)


@pytest.mark.parametrize(("name", "is_one"), [("s3://b/a.jpg", True), ("C://a.jpg", False), ("/a://b.jpg", False)])
def test_addresses(name: str, is_one: bool) -> None:
    assert files.is_address(name) == is_one


def test_an_address_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing://a must be a path or an address that fsspec knows: Protocol not"):
        files.read("nothing://a")
