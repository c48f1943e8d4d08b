"""Local files and those at addresses such as s3://bucket/photo.jpg: list, read, write whole."""

import functools
import glob
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: C:// is a drive
_PASSWORD = re.compile(r"(?<=://)[^/@]*:[^/]*@")
MAGIC = re.compile(r"[*?[]")
PART_START, PART_END = ".seesr-", ".part"  # of the name of a file that is not whole
HEADER_BYTES = 2**16  # that one request for the beginning of a file asks for
_MODIFIED = ("LastModified", "last_modified", "mtime", "updated")  # as file systems of fsspec call it


class Stat(NamedTuple):
    """`modified` is in seconds since 1970, None where the storage does not tell."""

    bytes: int
    modified: float | None


def is_address(name: str) -> bool:
    """Whether fsspec is asked for a file, and not the operating system."""
    return bool(_ADDRESS.match(name))


def place_of(name: str) -> str:
    """A path in full; an address as it is. ValueError for an address that is a chain, or that holds a password."""
    name = name.removeprefix("file://")
    if "://" in name and not name.startswith("/"):
        if _PASSWORD.search(name):  # the report and messages would tell it
            came = f"got {_PASSWORD.sub('...@', name)}; set a variable such as FSSPEC_FTP_PASSWORD"
            raise ValueError(f"an address must be without a password, {came}")
        if "::" in name:
            raise ValueError(f"an address must name one storage, without ::, got {name}; unpack or copy it first")
    return name.rstrip("/") if is_address(name) else os.path.abspath(name)


@functools.cache
def real_folder(name: str) -> str:
    """The path of a folder without links; an address as it is. The storage is asked once."""
    return name if is_address(name) else os.path.realpath(name)


def real_place(name: str) -> str:
    """Equal for names of one file, whatever links lead to its folder. The file may be a link itself."""
    folder, last = os.path.split(name)
    return name if is_address(name) or real_folder(folder) == folder else os.path.join(real_folder(folder), last)


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path there. ValueError for one that is not known."""
    import fsspec  # imported here: local files do without

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{address} must be a path or an address that fsspec knows: {str(error).rstrip('.')}"
        ) from None


def read(name: str) -> bytes:
    """All of a file. Raises OSError."""
    with open_binary(name) as file:
        return file.read()


def open_binary(name: str, header: bool = False) -> BinaryIO:
    """A file to read, maybe only its beginning. Raises OSError."""
    if not is_address(name):
        return open(name, "rb")
    system, path = file_system(name)
    return cast(BinaryIO, system.open(path, "rb", **({"block_size": HEADER_BYTES} if header else {})))


def stat(name: str) -> Stat:
    """Raises OSError where there is no such file."""
    if is_address(name):
        system, path = file_system(name)
        return stat_of(system.info(path))
    found = os.stat(name)
    return Stat(found.st_size, found.st_mtime)


def stat_of(info: dict[str, Any]) -> Stat:
    """What a file system of fsspec tells about a file."""
    modified = next((info[key] for key in _MODIFIED if info.get(key) is not None), None)
    if isinstance(modified, str):
        try:
            modified = datetime.fromisoformat(modified)
        except ValueError:
            modified = None
    seconds = modified.timestamp() if isinstance(modified, datetime) else modified
    return Stat(int(info.get("size") or 0), seconds)


def find(address: str) -> Iterator[tuple[str, Stat]]:
    """All files below an address, by name."""
    system, path = file_system(address)
    for name, info in sorted(system.find(path, detail=True).items()):
        yield address + name[len(path) :], stat_of(info)


def match(pattern: str) -> list[tuple[str, bool]]:
    """What a pattern fits, by name, and whether each is a folder."""
    if not is_address(pattern):
        return [(name, os.path.isdir(name)) for name in sorted(glob.glob(pattern, recursive=True))]
    system, path = file_system(pattern)
    start, before = MAGIC.split(pattern)[0], MAGIC.split(path)[0]
    return [(start + name[len(before) :], system.isdir(name)) for name in sorted(system.glob(path))]


def is_folder(name: str) -> bool:
    """Whether there is a folder of that name."""
    if is_address(name):
        system, path = file_system(name)
        return system.isdir(path)
    return os.path.isdir(name)


def exists(name: str) -> bool:
    """Whether there is a file of that name."""
    if is_address(name):
        system, path = file_system(name)
        return system.isfile(path)
    return os.path.isfile(name)


def join(folder: str, name: str) -> str:
    """`name`, which has slashes, in a folder or below an address."""
    return f"{folder.rstrip('/')}/{name}" if is_address(folder) else os.path.join(folder, name)


@contextmanager
def write_whole(name: str) -> Iterator[BinaryIO]:
    """A binary file to write. It gets its name, and replaces what had it, only when the block ends well.

    Its folder must be there: one that is gone may be a share's. What a killed process leaves, `remove_leftovers` finds;
    an address shows nothing until the upload is complete, as object stores do. Raises OSError.
    """
    if is_address(name):
        yield from _upload(name)
        return
    part = os.path.join(os.path.dirname(name), f"{PART_START}{secrets.token_hex(8)}{PART_END}")
    try:
        with open(part, "xb") as file:  # unlike those of tempfile it gets the rights that the umask leaves
            yield file
            file.flush()
            os.fsync(file.fileno())  # a full disk behind a network may be told only here
        os.replace(part, name)
    finally:
        Path(part).unlink(missing_ok=True)


def _upload(address: str) -> Iterator[BinaryIO]:
    system, path = file_system(address)
    with tempfile.NamedTemporaryFile() as file:
        yield cast(BinaryIO, file)
        file.flush()
        system.makedirs(os.path.dirname(path), exist_ok=True)
        system.put_file(file.name, path)


def make_folder(folder: str, root: str | None = None) -> None:
    """Make a local folder for results, in `root` if that is still there. Raises OSError."""
    if not is_address(folder) and not os.path.isdir(folder):
        if root is not None:
            os.stat(root)
        os.makedirs(folder, exist_ok=True)


def remove_leftovers(folder: str) -> None:
    """Remove what killed runs left in a local folder. Only for who knows that no other run writes there."""
    if is_address(folder) or not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        parts = [e.path for e in entries if e.name.startswith(PART_START) and e.name.endswith(PART_END)]
    for part in parts:
        Path(part).unlink(missing_ok=True)
