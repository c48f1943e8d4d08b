"""The part of the hub's HTTP API that scripts/download.py uses, on a free loopback port.

Large files are redirected to another path with their sha256 in the headers, as the hub does, and can be resumed.
"""

import http.server
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHUNK = 2**20
COMMIT = "5" * 40
"""The commit of repositories whose revision a manifest does not pin."""


@dataclass(frozen=True)
class Repository:
    """Files below `folder` at one commit: path -> sha256."""

    folder: Path
    commit: str
    files: Mapping[str, str]


@dataclass
class Hub:
    """Serves the repositories by name, and `folders` as plain files by their path, for a `with` block.

    The first download of the file `cut` is broken off halfway. `ranges` gets what each download of it asked for.
    """

    repositories: Mapping[str, Repository]
    folders: Mapping[str, Path]
    cut: Path | None = None
    ranges: list[str | None] = field(default_factory=list)

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None: ...  # type: ignore[override]

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Answer one request. A client that goes away is no error."""
        try:
            self._answer(request, request.path.partition("?")[0].lstrip("/"))
        except ConnectionError:
            request.close_connection = True

    def _answer(self, request: Any, path: str) -> None:
        if found := re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._list(request, *found.groups())
        elif found := re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(request, *found.groups())
        elif (found := re.fullmatch(r"large/([^/]+/[^/]+)/(.+)", path)) and found[2] in self.repositories[
            found[1]
        ].files:
            self._send_file(request, self.repositories[found[1]].folder / found[2])
        else:
            folder, _, name = path.rpartition("/")
            self._send_file(request, self.folders.get(folder, Path("/nowhere")) / name)

    def _find(self, name: str, revision: str | None) -> Repository | None:
        found = self.repositories.get(name)
        return found if found and revision in (None, "main", found.commit) else None

    def _list(self, request: Any, name: str, revision: str | None) -> None:
        if (found := self._find(name, revision)) is None:
            return _send(request, 404, {"X-Error-Code": "RevisionNotFound" if revision else "RepoNotFound"})
        siblings = []
        for path, sha256 in found.files.items():
            size = (found.folder / path).stat().st_size
            lfs = {"sha256": sha256, "size": size, "pointerSize": 130}
            siblings.append({"rfilename": path, "size": size} | ({"lfs": lfs} if is_large(path) else {}))
        body = json.dumps({"id": name, "sha": found.commit, "siblings": siblings}).encode()
        _send(request, 200, {"Content-Type": "application/json"}, body)

    def _resolve(self, request: Any, name: str, revision: str, path: str) -> None:
        found = self._find(name, revision)
        if found is None or path not in found.files:
            return _send(request, 404, {"X-Error-Code": "EntryNotFound" if found else "RevisionNotFound"})
        headers = {"X-Repo-Commit": found.commit, "ETag": f'"{found.files[path]}"'}
        if not is_large(path):
            return self._send_file(request, found.folder / path, headers)
        headers |= {"Location": f"{self.url}/large/{name}/{path}", "X-Linked-ETag": headers["ETag"]}
        _send(request, 302, headers | {"X-Linked-Size": str((found.folder / path).stat().st_size)})

    def _send_file(self, request: Any, path: Path, headers: Mapping[str, str] | None = None) -> None:
        if not path.is_file():
            return _send(request, 404, {"X-Error-Code": "EntryNotFound"})
        size, wanted = path.stat().st_size, request.headers["Range"]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        end = size
        if path == self.cut and request.command == "GET":
            self.ranges.append(wanted)
            end = size if len(self.ranges) > 1 else size // 2
        request.send_response(206 if wanted else 200)
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for name, value in {"Content-Length": str(size - start), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        request.close_connection |= end < size
        if request.command == "GET":
            with path.open("rb") as file:
                file.seek(start)
                while start < end and (chunk := file.read(min(CHUNK, end - start))):
                    request.wfile.write(chunk)
                    start += len(chunk)


def from_manifest(manifest: Mapping[str, Any], hashes: Mapping[str, str], folder: Path) -> Hub:
    """A hub of the sources of weights/manifest.json. Their files are in `folder`; `hashes` is by folder and path."""
    repositories, folders = {}, {}
    for source in manifest["sources"]:
        place, name = folder / source["folder"], source["repository"]
        if name.startswith("http"):
            folders[urlsplit(name).path.lstrip("/")] = place
        else:
            files = {path: hashes[f"{source['folder']}/{path}"] for path in source["files"]}
            repositories[name] = Repository(place, source["revision"] or COMMIT, files)
    return Hub(repositories, folders)


def repin(manifest: Mapping[str, Any], hashes: Mapping[str, str], url: str) -> dict[str, Any]:
    """The manifest with these hashes where it has one, and with URLs below `url`."""
    sources = []
    for source in manifest["sources"]:
        files = {path: sha and hashes[f"{source['folder']}/{path}"] for path, sha in source["files"].items()}
        name = source["repository"]
        place = url + urlsplit(name).path if name.startswith("http") else name
        sources.append({**source, "repository": place, "files": files})
    return {**manifest, "sources": sources}


def is_large(path: str) -> bool:
    """Whether the hub would keep the file in its store of large files."""
    return path.endswith((".safetensors", ".pth"))


def _send(request: Any, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body if request.command == "GET" else b"")
