"""The lock that keeps a second run away from a folder."""

import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seesr.batch.job import StoppedError

log = logging.getLogger(__name__)

NAME = ".report.lock"
_held: set[str] = set()  # by this process: real paths


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, a file that says who does and goes at the end.

    Raises StoppedError where another holds it, OSError where no file can be written.
    """
    file, real = _take(path), os.path.realpath(path)
    _held.add(real)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        _held.discard(real)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(file)


def _take(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            wanted = "wait for its end, or work in another folder"
            raise StoppedError(f"{path.parent} is in work by {holder}; {wanted}") from None
        except OSError as error:  # a storage without locks
            log.warning("%s cannot be locked (%s): see that no other run works there.", path, error.strerror)
        with suppress(FileNotFoundError):  # its holder may have freed it in between
            if os.path.samestat(os.stat(path), os.fstat(file)):
                return file
        os.close(file)


def check_free(folder: str) -> None:
    """Raise StoppedError if another process works on a folder."""
    path = Path(os.path.realpath(folder), NAME)
    if os.path.exists(path) and str(path) not in _held:
        with suppress(OSError), locked(path):
            pass
