"""A small hub and a store of large files on loopback, for the tests of scripts/download.py."""

import hashlib
import http.server
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMIT = "c" * 40
LARGE = bytes(range(256)) * 12_000  # 3 MB
HUGE = bytes(range(256)) * 100_000  # 25.6 MB: the library writes 10 MB at a time
SMALL = b'{"a": 1}\n'
LIST = b"cat\ndog\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub:
    """Files by repository and path, and what goes wrong with them. Large files are redirected to a second server."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {
            "us/x": {"big.safetensors": LARGE, "config.json": SMALL},
            "us/tags": {"data/list.txt": LIST},
        }
        self.cuts: dict[str, int] = {}
        self.status: dict[str, tuple[int, str]] = {}
        self.stalled = threading.Event()
        self.commits: set[str] = set()
        self.requests: list[tuple[str, str, str, str | None, str | None]] = []
        self.store = self._serve(self._store)
        self.front = self._serve(self._front)
        self.url = f"http://localhost:{self.front.server_port}"

    def _serve(self, answer: Callable[[Any], None]) -> http.server.ThreadingHTTPServer:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                answer(self)

            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *_: object) -> None: ...  # type: ignore[override]

        server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        return server

    def _note(self, where: str, request: Any) -> str:
        headers = request.headers
        self.requests.append((where, request.command, request.path, headers["Authorization"], headers["Range"]))
        return request.path.partition("?")[0].lstrip("/")

    def _front(self, request: Any) -> None:
        path = self._note("front", request)
        if path.startswith("api/models/"):
            repository, _, revision = path.removeprefix("api/models/").partition("/revision/")
            if repository in self.status or repository not in self.files:
                return self._refuse(request, *self.status.get(repository, (401, "")))
            self.commits.add(revision or "main")
            siblings = [self.sibling(*item) for item in self.files[repository].items()]
            listed = {"id": repository, "sha": COMMIT, "siblings": siblings}
            return self._send(request, json.dumps(listed).encode())
        if "/resolve/" not in path:  # a plain file server
            repository, path = "/".join(path.split("/")[:2]), path.split("/", 2)[2]
        else:
            repository, _, path = path.partition("/resolve/")
            path = path.partition("/")[2]
        content = self.files.get(repository, {}).get(path)
        if path in self.status or content is None:
            return self._refuse(request, *self.status.get(path, (404, "EntryNotFound")))
        if not is_large(path):
            return self._send(request, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{git_sha1(content)}"'})
        request.send_response(302)
        # Another host name for the same machine: a token must not follow.
        request.send_header("Location", f"http://127.0.0.1:{self.store.server_port}/{repository}/{path}")
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("X-Linked-Size", str(len(content)))
        request.send_header("X-Linked-ETag", f'"{sha256(content)}"')
        request.send_header("X-Xet-Hash", "0" * 64)
        request.send_header("X-Xet-Refresh-Route", f"{self.url}/nowhere")
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _store(self, request: Any) -> None:
        path = self._note("store", request)
        content = self.files["/".join(path.split("/")[:2])][path.split("/", 2)[2]]
        self._send(request, content, name=path.split("/", 2)[2])

    def _send(self, request: Any, content: bytes, headers: dict[str, str] | None = None, name: str = "") -> None:
        start = int((request.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        request.send_response(206 if request.headers["Range"] else 200)
        for key, value in ({"Content-Length": str(len(content) - start)} | (headers or {})).items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        part = content[start:]
        if self.cuts.get(name, 0) > 0:
            self.cuts[name] -= 1
            part = part[: min(11_000_000, len(part) // 2)]
            request.close_connection = True
        request.wfile.write(part)
        if len(part) < len(content) - start and name == "stall.safetensors":
            self.stalled.wait(20)

    @staticmethod
    def sibling(path: str, content: bytes) -> dict[str, Any]:
        lfs = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
        sibling = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
        return sibling | ({"lfs": lfs} if is_large(path) else {})

    @staticmethod
    def _refuse(request: Any, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def write_manifest(self, folder: Path, files: dict[str, str | None], revision: str | None = None) -> Path:
        """A manifest of the repository us/x, which goes to the folder x, and of one file by its URL."""
        group = {"folder": "x", "repository": "us/x", "revision": revision, "licence": "CC0", "files": files}
        tags = {"repository": f"{self.url}/us/tags/data", "revision": None, "files": {"list.txt": sha256(LIST)}}
        path = folder / "manifest.json"
        path.write_text(json.dumps({"sources": [group, group | tags]}))
        return path

    def ranges(self) -> list[str | None]:
        """Of every download of a large file, the range asked for."""
        return [wanted for where, command, *_, wanted in self.requests if where == "store" and command == "GET"]


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".pth"))


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
