#!/usr/bin/env python3
"""Fetch the upstream files of weights/manifest.json: in parallel, resumed after an interruption, checked by sha256.

The hub is HF_ENDPOINT's, a token for gated repositories is HF_TOKEN's; it goes to the hub only, not to where a
download is redirected.
"""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 1 << 17
ATTEMPTS = 6
"""Tries in a row without a single new byte before a file is given up."""
PAUSE = 0.2
"""Seconds before the first new try; each further one waits twice as long, 10 at most."""

_stop = threading.Event()  # set by Ctrl-C: running transfers end at their next chunk


@dataclass(frozen=True)
class Source:
    """One upstream file. `revision`, `bytes` and `sha256` are None until the host's metadata or the lock says them."""

    host: str
    repository: str
    revision: str | None
    path: str
    folder: str
    licence: str
    bytes: int | None
    sha256: str | None
    git_sha1: str | None = None

    @property
    def key(self) -> str:
        return f"{self.repository}/{self.path}"

    @property
    def local(self) -> Path:
        """Where the file goes below --out; GitHub's files without their folders."""
        return Path(self.folder) / (Path(self.path).name if self.host == "github" else self.path)

    @property
    def url(self) -> str:
        if self.host == "hub":
            endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
            return f"{endpoint}/{self.repository}/resolve/{self.revision or 'main'}/{self.path}"
        endpoint = os.environ.get("SEESR_GITHUB_ENDPOINT", "https://raw.githubusercontent.com")
        return f"{endpoint}/{self.repository}/{self.revision}/{self.path}"


class Lock:
    """weights/manifest.lock.json: what the first download found, and every later one is held to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        try:
            self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            raise RuntimeError(f"{path} is not valid JSON ({error}); restore it from git or remove it") from error

    def pin(self, source: Source) -> Source:
        """The source with what the lock knows of it; a lock that contradicts the manifest is an error."""
        entry = self.entries.get(source.key, {})
        for name in ("revision", "bytes", "sha256"):
            known, locked = getattr(source, name), entry.get(name)
            if known is not None and locked is not None and known != locked:
                raise RuntimeError(
                    f"{source.key}: {self.path.name} says {name} {locked}, the manifest {known}; "
                    f"remove {self.path} if the manifest is the newer one"
                )
        known = {name: entry.get(name) for name in ("revision", "bytes", "sha256")}
        return replace(source, **{name: getattr(source, name) or value for name, value in known.items()})

    def write(self, source: Source) -> None:
        with self._mutex:
            entry = {name: value for name, value in asdict(source).items() if name in ("revision", "bytes", "sha256")}
            self.entries[source.key] = entry
            temporary = self.path.with_suffix(".part")
            temporary.write_text(json.dumps(self.entries, indent=1, sort_keys=True) + "\n")
            os.replace(temporary, self.path)


def read_manifest(path: Path) -> list[Source]:
    shared = ("host", "repository", "revision", "folder", "licence")
    return [
        Source(**{name: group[name] for name in shared}, **file)
        for group in json.loads(path.read_text())["sources"]
        for file in group["files"]
    ]


def authorization(source: Source) -> dict[str, str]:
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token and source.host == "hub" else {}


def look_up(source: Source) -> Source:
    """Ask the hub for what the source does not know yet. The hash of a large file is in its metadata."""
    if source.host != "hub" or (source.revision and source.bytes and source.sha256):
        return source
    status, headers = head(source)
    etag = (headers.get("X-Linked-ETag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    size = headers.get("X-Linked-Size") or (headers.get("Content-Length") if status == 200 else None)
    revision = source.revision or headers.get("X-Repo-Commit")
    if not revision or len(etag) not in (40, 64):
        raise RuntimeError(f"{source.url} was answered without commit and hash; is HF_ENDPOINT a hub?")
    if source.sha256 and len(etag) == 64 and etag != source.sha256:
        raise RuntimeError(f"{source.key} has sha256 {etag} on the hub, {source.sha256} was wanted; the file changed")
    return replace(
        source,
        revision=revision,
        bytes=source.bytes or (int(size) if size else None),
        sha256=source.sha256 or (etag if len(etag) == 64 else None),
        git_sha1=etag if len(etag) == 40 else None,
    )


def head(source: Source) -> tuple[int, Mapping[str, str]]:
    """Status and headers of the hub's own answer: commit and hash stand there, before it redirects to the file."""
    headers = authorization(source) | {"Accept-Encoding": "identity"}
    url, reason = source.url, "too many redirects"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with requests.head(url, headers=headers, timeout=30) as answer:
                refuse(source, answer.status_code)
                moved = answer.headers.get("Location", "")
                if answer.is_redirect and moved.startswith("/"):  # a renamed repository, on the same host
                    url = urljoin(url, moved)
                    continue
                if answer.status_code < 400:
                    return answer.status_code, answer.headers
                reason = f"HTTP {answer.status_code}"
        except requests.RequestException as error:
            reason = type(error).__name__
        pause(attempt)
    raise RuntimeError(f"{source.url} can't be reached ({reason}); check the connection and run this again")


def pause(failures: int) -> None:
    if _stop.wait(min(PAUSE * 2**failures, 10)):
        raise RuntimeError("interrupted; what came so far is kept")


def refuse(source: Source, status: int) -> None:
    """Raise RuntimeError with what to do about an HTTP error; 5xx and 429 are left to be tried again."""
    if status in (401, 403):
        raise RuntimeError(
            f"{source.repository} refuses {source.path} ({status}): accept its licence ({source.licence}) on its page "
            "and set HF_TOKEN to a token that may read it"
        )
    if status == 404:
        raise RuntimeError(
            f"{source.repository} has no {source.path} at revision {source.revision or 'main'} (404): "
            "the repository changed; update weights/manifest.json"
        )
    if 400 <= status < 500 and status not in (416, 429):
        raise RuntimeError(f"{source.url} was refused with HTTP {status}")


def fetch(source: Source, path: Path, position: int) -> Source:
    """Bring one file to `path`, whole and checked, or raise RuntimeError; what came so far stays in a .part file."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with progress(source, position) as bar:
        receive(source, part, bar)
    found = digest(part)
    git = git_sha1(part) if source.git_sha1 else None
    if (source.sha256 and found != source.sha256) or git != source.git_sha1:
        part.unlink()
        raise RuntimeError(
            f"{source.key} arrived with sha256 {found}, wanted {source.sha256 or 'git ' + str(source.git_sha1)}; "
            "the bad file is removed, run this again"
        )
    size = part.stat().st_size
    os.replace(part, path)
    return replace(source, sha256=found, bytes=size)


def receive(source: Source, part: Path, bar: Any) -> None:
    """Append to `part` until it has all bytes, over as many connections as it takes."""
    failures = 0
    reason = "the connection ends early"
    while True:
        have = part.stat().st_size if part.is_file() else 0
        if source.bytes is not None and have == source.bytes:
            return
        if source.bytes is not None and have > source.bytes:
            part.unlink()
            have = 0
        try:
            if connect(source, part, have, bar):
                return
        except requests.RequestException as error:
            reason = type(error).__name__
        now = part.stat().st_size if part.is_file() else 0
        if source.bytes is not None and now > source.bytes:
            part.unlink()
            reason = f"it sends {now} bytes, {source.bytes} were wanted"
            now = 0
        failures = 0 if now > have else failures + 1
        if failures >= ATTEMPTS:
            raise RuntimeError(
                f"{source.url} can't be brought ({reason}); check the connection and run this again, "
                "what came so far is kept"
            )
        if now != source.bytes:
            pause(failures)


def connect(source: Source, part: Path, have: int, bar: Any) -> bool:
    """One connection; True when the server says that was all. Requests drops the token on a redirect to a new host."""
    headers = authorization(source) | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(source.url, headers=headers, stream=True, timeout=30) as answer:
        refuse(source, answer.status_code)
        if answer.status_code == 416:  # nothing is left to send, or the part is not of this file
            if source.bytes is None:
                return True
            part.unlink()
            return False
        answer.raise_for_status()
        bar.n = have if answer.status_code == 206 else 0
        with part.open("ab" if answer.status_code == 206 else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                if _stop.is_set():
                    raise RuntimeError("interrupted; what came so far is kept")
                file.write(chunk)
                bar.update(len(chunk))
        return source.bytes is None


@contextlib.contextmanager
def progress(source: Source, position: int) -> Iterator[Any]:
    with tqdm(
        total=source.bytes, desc=source.path, position=position, unit="B", unit_scale=True, disable=None, leave=False
    ) as bar:
        yield bar


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1(path: Path) -> str:
    """The hash that git, and the hub's metadata, give a small file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def download(manifest: Path, out: Path, jobs: int) -> list[str]:
    """Bring all files of `manifest` to `out`; return one sentence per file that could not be brought."""
    _stop.clear()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = Lock(manifest.with_suffix(".lock.json"))
        sources = [lock.pin(source) for source in read_manifest(manifest)]
    except (RuntimeError, OSError) as error:
        return [str(error)]

    def prepare(source: Source) -> Source | str | None:
        """What is still to bring, with all that the hub knows of it; None for what is there, a sentence for a fault."""
        path = out / source.local
        try:
            if path.is_file() and source.sha256 and digest(path) == source.sha256:
                return None
            return look_up(source)
        except RuntimeError as error:
            return str(error)

    def bring(number: int, source: Source) -> str | None:
        try:
            lock.write(fetch(source, out / source.local, number % jobs))
            tqdm.write(f"{source.key}  {(out / source.local).stat().st_size / 1e6:.1f} MB")
        except RuntimeError as error:
            return str(error)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                return f"{source.key} can't be written to {out / source.local} ({error.strerror}); use another --out"
            return f"{source.key} does not fit on the disk of {out}; free some space or use --out, and run this again"
        return None

    with ThreadPoolExecutor(jobs) as pool:
        try:
            found = list(pool.map(prepare, one_commit(sources)))
            missing = [source for source in found if isinstance(source, Source)]
            faults = [fault for fault in found if isinstance(fault, str)]
            if short := missing_space(missing, out):
                return [*faults, short]
            return faults + [fault for fault in pool.map(bring, range(len(missing)), missing) if fault]
        except KeyboardInterrupt:
            _stop.set()
            pool.shutdown(cancel_futures=True)
            return ["interrupted; what came so far is kept"]


def one_commit(sources: list[Source]) -> list[Source]:
    """The same revision for all files of a repository, so that they belong together."""
    known: dict[str, str | None] = {source.repository: source.revision for source in sources if source.revision}
    for source in sources:
        if source.repository not in known:
            with contextlib.suppress(RuntimeError):  # said for this file by `prepare`; another may still tell
                known[source.repository] = look_up(source).revision
    return [replace(source, revision=source.revision or known.get(source.repository)) for source in sources]


def missing_space(sources: list[Source], out: Path) -> str | None:
    parts = [out / source.local.with_name(source.local.name + ".part") for source in sources]
    have = sum(part.stat().st_size for part in parts if part.is_file())
    need, free = sum(source.bytes or 0 for source in sources) - have, shutil.disk_usage(out).free
    if need <= free:
        return None
    return f"{need / 1e9:.1f} GB are still to come, the disk of {out} has {free / 1e9:.1f} GB; free some or use --out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=ROOT / "weights/manifest.json")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "weights/upstream", help="17 GB; not needed after converting"
    )
    parser.add_argument("--jobs", type=int, default=4, help="files at a time")
    arguments = parser.parse_args()
    faults = download(arguments.manifest, arguments.out, max(1, arguments.jobs))
    if faults:
        sys.exit("\n".join(f"download: {fault}" for fault in faults))
    out = arguments.out
    print(
        "All files are there. Next:\n"
        f".venv/bin/python scripts/convert.py --sd-turbo {out}/sd-turbo --seesr {out}/seesr "
        f"--ram {out}/ram/ram_swin_large_14m.pth --dape {out}/seesr/DAPE.pth --tags {out}/ram/ram_tag_list.txt "
        f"--thresholds {out}/ram/ram_tag_list_threshold.txt --out weights/seesr-turbo"
    )


if __name__ == "__main__":
    main()
