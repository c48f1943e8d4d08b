"""weights/manifest.json, which names the upstream files, and its lock, which holds what their first download found."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = re.compile(r"(?!.*(--|\.\.|\.git$))\w[\w.-]*/\w([\w.-]*\w)?")
"""OWNER/REPO as the hub allows it."""


@dataclass
class Source:
    """One upstream file. None becomes known from the lock or from the hub's metadata."""

    folder: str
    host: str  # hub, github, or local: then `repository` is a folder
    repository: str
    revision: str | None
    licence: str
    path: str
    bytes: int | None
    sha256: str | None
    git_sha1: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}/{self.path}"

    @property
    def place(self) -> str:
        """Where the file goes, relative to --out. GitHub's files lose their folders."""
        return f"{self.folder}/{Path(self.path).name if self.host == 'github' else self.path}"

    @property
    def github_url(self) -> str:
        endpoint = os.environ.get("SEESR_GITHUB_ENDPOINT", "https://raw.githubusercontent.com")
        return f"{endpoint}/{self.repository}/{self.revision}/{self.path}"

    def describe(self) -> str:
        size = f"{self.bytes:,} bytes" if self.bytes else "size unknown"
        return f"{self} at {self.revision or 'main'}: {size}, {'pinned' if self.sha256 else 'not pinned'}"

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` has the known hash; without one, whether it is the local file itself."""
        if not path.is_file():
            return False
        if self.sha256:
            return digest(path) == self.sha256
        if self.git_sha1:
            return git_sha1(path) == self.git_sha1
        return self.host == "local" and path.samefile(str(self))

    def check(self, path: Path) -> None:
        """Take size and sha256 from the file at `path`. Removes it and raises RuntimeError if its hash is wrong."""
        wanted = self.sha256 or self.git_sha1
        if (wanted or self.host != "local") and not self.is_at(path):
            found = digest(path)
            path.unlink()
            raise RuntimeError(
                f"{self} arrived with sha256 {found}, wanted {wanted or 'one that the hub knows'}; "
                f"{path} is removed, run this again"
            )
        self.bytes, self.sha256 = path.stat().st_size, self.sha256 or digest(path)

    def replace_repository(self, repo: str) -> None:
        """Take the file from another hub repository or from a local folder; the revision no longer applies."""
        folder, name = Path(repo).expanduser().absolute(), self.place.removeprefix(f"{self.folder}/")
        # GitHub's two small files are downloaded where a local folder lacks them.
        if folder.is_dir() and (self.host == "hub" or (folder / name).is_file()):
            self.host, self.repository, self.revision, self.path = "local", str(folder), None, name
        elif self.host == "hub":
            self.repository, self.revision = repo, None


def digest(path: Path) -> str:
    """The file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1(path: Path) -> str:
    """The hash that git, and so the hub's metadata, gives a small file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def link(file: Path, place: Path) -> None:
    """A hard link to `file` at `place`; a copy where they are on different file systems."""
    part = place.with_name(place.name + ".part")
    part.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), part)
    except OSError:
        shutil.copyfile(file, part)
    os.replace(part, place)


class Lock:
    """weights/manifest.lock.json: what the first download found. Later ones must match it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            raise RuntimeError(f"{path} is not valid JSON ({error}); restore it from git or remove it") from error

    def pin(self, source: Source) -> None:
        """Add what is known: size and hash from any copy of the file, the revision from any file of the repository."""
        known = self.entries.get(source.place, {})
        if source.sha256 and known.get("sha256", source.sha256) != source.sha256:
            raise RuntimeError(f"{source}: {self.path} and the manifest differ in its sha256; remove {self.path}")
        source.bytes, source.sha256 = source.bytes or known.get("bytes"), source.sha256 or known.get("sha256")
        revisions = (known["revision"] for known in self.entries.values() if known["repository"] == source.repository)
        source.revision = source.revision or next(revisions, None)

    def add(self, source: Source) -> None:
        names = ("repository", "revision", "bytes", "sha256")
        self.entries[source.place] = {name: getattr(source, name) for name in names}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.entries, indent=1, sort_keys=True) + "\n")
        os.replace(part, self.path)


def read_manifest(path: Path, repos: Iterable[str] = ()) -> tuple[list[Source], Lock]:
    """The manifest's files, pinned by its lock. `repos`, each NAME=REPO, replaces the repository of a folder."""
    groups = json.loads(path.read_text())["sources"]
    sources = [Source(**group, **file) for group in groups for file in group.pop("files")]
    for option in repos:
        name, _, repo = option.partition("=")
        named = [source for source in sources if source.folder == name]
        if not named or not (REPOSITORY.fullmatch(repo) or (repo and Path(repo).expanduser().is_dir())):
            names = ", ".join(dict.fromkeys(source.folder for source in sources))
            raise RuntimeError(f"--repo takes NAME=OWNER/REPO or NAME=FOLDER, NAME one of {names}; got {option}")
        for source in named:
            source.replace_repository(repo)
    lock = Lock(path.with_suffix(".lock.json"))
    for source in sources:
        lock.pin(source)
    return sources, lock
