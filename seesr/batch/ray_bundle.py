"""The bundle and the code on the nodes of a Ray cluster: sent where they are small, and compared by hash."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import ram
import seesr
from seesr.batch.job import StoppedError, bundle_id

Files = dict[str, bytes]
"""A bundle as it is sent: contents by the names of its files."""

LARGEST_SENT = 100e6
"""Bytes of a bundle that is sent to the nodes. A larger one must be there."""

PACKAGES = tuple(Path(module.__file__).parent for module in (seesr, ram) if module.__file__)
"""The code that every worker runs: Ray sends it from here."""


@cache
def code_id() -> str:
    """A hash of the sources of seesr and ram."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            digest.update(f"{path.relative_to(package.parent)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def pack(bundle: Path) -> Files | None:
    """The files of a bundle by name; None for a large one."""
    files = [path for path in sorted(bundle.rglob("*")) if path.is_file()]
    if sum(path.stat().st_size for path in files) > LARGEST_SENT:
        return None
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in files}


def find(bundle: Path, wanted: str, sent: Callable[[], Files] | None) -> Path:
    """On a worker: the folder of the bundle `wanted` (bundle_id), at the same path or else unpacked from what was sent.

    Raises StoppedError where there is none, another, or one with damaged files.
    """
    place, here = bundle, platform.node()
    if not (bundle / "bundle.json").is_file():
        if sent is None:
            text = f"the worker on {here} has no bundle at {bundle}, and this one is too large to be sent"
            raise StoppedError(f"{text}; copy it there on every node, or put it on storage that all nodes share")
        place = _unpack(sent(), bundle.name, wanted)
    found = bundle_id(place)
    if found != wanted:
        text = f"the worker on {here} has another bundle at {place}: {found} instead of {wanted}"
        raise StoppedError(f"{text}; copy the right one there, or put it on storage that all nodes share")
    for name, hash_ in json.loads((place / "bundle.json").read_bytes()).get("files", {}).items():
        if not (place / name).is_file() or _hash(place / name) != hash_:
            raise StoppedError(
                f"{place / name} on {here} is damaged: its hash is not that of bundle.json; copy it again"
            )
    return place


def check_code(wanted: str) -> None:
    """On a worker: raise StoppedError unless it runs the code with that code_id."""
    if (found := code_id()) != wanted:
        text = f"the worker on {platform.node()} runs other code, {found} instead of {wanted}, from {PACKAGES[0]}"
        raise StoppedError(f"{text}; remove seesr-turbo from that node, or install the same version")


def _unpack(sent: Files, name: str, wanted: str) -> Path:
    """Write the files to a folder of this user's, where other workers of the node find them."""
    top = Path(tempfile.gettempdir(), f"seesr-{os.getuid()}-{wanted}")
    place = top / name
    if not place.is_dir():
        part = Path(tempfile.mkdtemp(prefix=f"{top.name}-", dir=top.parent))
        for file, content in sent.items():
            (part / name / file).parent.mkdir(parents=True, exist_ok=True)
            (part / name / file).write_bytes(content)
        try:
            part.rename(top)
        except OSError:  # another worker was first
            shutil.rmtree(part)
    return place


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
