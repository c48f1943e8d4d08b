"""The downloader against a small hub on loopback that cuts connections, refuses, redirects and lies."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from download import Source, download, main, read_manifest

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "c" * 40
LARGE = bytes(range(256)) * 12_000  # 3 MB: several chunks
SMALL = b'{"a": 1}\n'


class Hub:
    """Files by path, and what goes wrong with them. Large files are redirected to a second server, as LFS files are."""

    def __init__(self) -> None:
        self.files = {"big.safetensors": LARGE, "config.json": SMALL}
        self.cuts: dict[str, int] = {}
        self.status: dict[str, int] = {}
        self.head_status = 200
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.store = self._serve(redirect=False)
        self.front = self._serve(redirect=True)
        self.url = f"http://localhost:{self.front.server_port}"

    def _serve(self, redirect: bool) -> http.server.ThreadingHTTPServer:
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                name = self.path.rsplit("/", 1)[1]
                where = "front" if redirect else "store"
                hub.requests.append((where, self.command, self.headers["Authorization"], self.headers["Range"]))
                content = hub.files.get(name)
                status = hub.status.get(name, 404 if content is None else 200 if body else hub.head_status)
                if status >= 400 or content is None:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if redirect and name.startswith("big"):
                    self.send_response(302)
                    # Another host name for the same machine: a token must not follow.
                    self.send_header("Location", f"http://127.0.0.1:{hub.store.server_port}/store/{name}")
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("X-Linked-Size", str(len(content)))
                    self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                self.send_response(206 if self.headers["Range"] else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.send_header("X-Repo-Commit", COMMIT)
                git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                self.send_header("ETag", f'"{git}"')
                self.end_headers()
                if not body:
                    return
                part = content[start:]
                if hub.cuts.get(name, 0) > 0:
                    hub.cuts[name] -= 1
                    part = part[: len(content) // 4]
                    self.close_connection = True
                self.wfile.write(part)

            def log_message(self, *_: object) -> None: ...  # type: ignore[override]

        server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def bytes_sent_for(self, where: str) -> int:
        return sum(1 for place, command, _, _ in self.requests if place == where and command == "GET")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("SEESR_GITHUB_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("download.PAUSE", 0.001)
    yield hub
    hub.front.shutdown()
    hub.store.shutdown()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path)


def write_manifest(folder: Path, sha256: str | None = None, names: tuple[str, ...] = ()) -> Path:
    files = [{"path": name, "bytes": None, "sha256": sha256} for name in names or ("big.safetensors", "config.json")]
    group = {"folder": "x", "host": "hub", "repository": "us/x", "revision": None, "licence": "CC0", "files": files}
    path = folder / "manifest.json"
    path.write_text(json.dumps({"sources": [group]}))
    return path


def test_files_arrive_whole_and_are_locked(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert download(manifest, out, 2) == []
    assert (out / "x/big.safetensors").read_bytes() == LARGE
    assert (out / "x/config.json").read_bytes() == SMALL
    lock = json.loads((tmp_path / "manifest.lock.json").read_text())
    wanted = {"revision": COMMIT, "bytes": len(LARGE), "sha256": hashlib.sha256(LARGE).hexdigest()}
    assert lock["us/x/big.safetensors"] == wanted
    assert lock["us/x/config.json"]["sha256"] == hashlib.sha256(SMALL).hexdigest()


def test_a_second_run_asks_for_nothing(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    download(manifest, tmp_path / "out", 2)
    hub.requests.clear()
    assert download(manifest, tmp_path / "out", 2) == []
    assert hub.requests == []


def test_cut_connections_are_resumed(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    hub.cuts["big.safetensors"] = 3
    assert download(manifest, tmp_path / "out", 1) == []
    assert (tmp_path / "out/x/big.safetensors").read_bytes() == LARGE
    ranges = [wanted for place, command, _, wanted in hub.requests if place == "store" and command == "GET"]
    assert len(ranges) == 4
    assert ranges[0] is None
    assert all(wanted for wanted in ranges[1:])


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    part = tmp_path / "out/x/big.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(LARGE[:2_000_000])
    assert download(manifest, tmp_path / "out", 1) == []
    assert (tmp_path / "out/x/big.safetensors").read_bytes() == LARGE
    assert not part.exists()
    assert ("store", "GET", None, "bytes=2000000-") in hub.requests


@pytest.mark.parametrize("begun", [b"not the beginning of this file", b"x" * 4_000_000])
def test_a_part_of_something_else_is_not_kept(hub: Hub, manifest: Path, tmp_path: Path, begun: bytes) -> None:
    part = tmp_path / "out/x/big.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(begun)
    faults = download(manifest, tmp_path / "out", 1)
    if len(begun) < len(LARGE):
        assert len(faults) == 1
        assert "the bad file is removed, run this again" in faults[0]
        assert not part.exists()
        assert download(manifest, tmp_path / "out", 1) == []
    assert (tmp_path / "out/x/big.safetensors").read_bytes() == LARGE


def test_a_wrong_hash_is_refused_before_downloading(hub: Hub, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, sha256="0" * 64, names=("big.safetensors",))
    (fault,) = download(manifest, tmp_path / "out", 1)
    assert "the file changed" in fault
    assert hub.bytes_sent_for("store") == 0


def test_a_wrong_hash_of_a_small_file_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, sha256="0" * 64, names=("config.json",))
    (fault,) = download(manifest, tmp_path / "out", 1)
    assert "arrived with sha256" in fault
    assert list((tmp_path / "out/x").iterdir()) == []


def test_a_changed_file_is_held_to_the_lock(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    download(manifest, tmp_path / "out", 1)
    (tmp_path / "out/x/config.json").unlink()
    hub.files["config.json"] = b'{"a": 2}\n'
    (fault,) = download(manifest, tmp_path / "out", 1)
    assert "us/x/config.json arrived with sha256" in fault


def test_a_damaged_local_file_is_fetched_again(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    download(manifest, tmp_path / "out", 1)
    (tmp_path / "out/x/config.json").write_bytes(b"oops")
    assert download(manifest, tmp_path / "out", 1) == []
    assert (tmp_path / "out/x/config.json").read_bytes() == SMALL


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "accept its licence"), (403, "set HF_TOKEN"), (404, "the repository changed"), (410, "HTTP 410")],
)
def test_refusals_say_what_to_do(hub: Hub, manifest: Path, tmp_path: Path, status: int, sentence: str) -> None:
    hub.status["big.safetensors"] = status
    (fault,) = download(manifest, tmp_path / "out", 2)
    assert sentence in fault
    assert (tmp_path / "out/x/config.json").read_bytes() == SMALL  # the others arrive all the same


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download(manifest, tmp_path / "out", 1)
    assert {token for place, _, token, _ in hub.requests if place == "front"} == {"Bearer hf_secret"}
    assert {token for place, _, token, _ in hub.requests if place == "store"} == {None}
    assert "hf_secret" not in "".join(capsys.readouterr())
    assert "hf_secret" not in (tmp_path / "manifest.lock.json").read_text()


def test_no_hub_is_one_sentence(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("download.PAUSE", 0.001)
    faults = download(manifest, tmp_path / "out", 1)
    assert len(faults) == 2
    assert all("can't be reached (ConnectionError); check the connection" in fault for fault in faults)


@pytest.mark.parametrize("size", [len(LARGE) - 5, len(LARGE) + 5])
def test_a_wrong_size_ends_after_some_tries(hub: Hub, tmp_path: Path, size: int) -> None:
    manifest = write_manifest(tmp_path, names=("big.safetensors",))
    content = json.loads(manifest.read_text())
    content["sources"][0]["files"][0]["bytes"] = size
    manifest.write_text(json.dumps(content))
    (fault,) = download(manifest, tmp_path / "out", 1)
    assert "big.safetensors can't be brought" in fault
    assert hub.bytes_sent_for("store") < 30
    assert not (tmp_path / "out/x/big.safetensors").exists()


def test_without_the_hub_s_metadata_nothing_is_trusted(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    hub.head_status = 503
    faults = download(manifest, tmp_path / "out", 1)
    assert len(faults) == 2
    assert all("can't be reached (HTTP 503)" in fault for fault in faults)
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert not (tmp_path / "manifest.lock.json").exists()


def test_an_out_that_is_no_folder_and_a_broken_lock_are_sentences(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in download(manifest, tmp_path / "file", 1)[0]
    (tmp_path / "manifest.lock.json").write_text("{")
    (fault,) = download(manifest, tmp_path / "out", 1)
    assert "manifest.lock.json is not valid JSON" in fault


def test_a_full_disk_is_one_sentence(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    """A real limit on file size stands in for the disk: the write itself fails."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000)); import download; download.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--manifest", str(manifest), "--out", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "us/x/big.safetensors does not fit on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/x/big.safetensors").exists()


def test_the_last_line_is_the_next_command(
    hub: Hub, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["download", "--manifest", str(manifest), "--out", str(tmp_path / "out")])
    main()
    assert capsys.readouterr().out.splitlines()[-1].startswith(".venv/bin/python scripts/convert.py --sd-turbo ")


def test_the_real_manifest_is_complete() -> None:
    sources = read_manifest(ROOT / "weights/manifest.json")
    paths = {str(source.local) for source in sources}
    assert len(paths) == len(sources) == 19
    assert {
        "sd-turbo/unet/diffusion_pytorch_model.safetensors",
        "sd-turbo/tokenizer/vocab.json",
        "seesr/seesr/controlnet/diffusion_pytorch_model.safetensors",
        "seesr/DAPE.pth",
        "ram/ram_swin_large_14m.pth",
        "ram/ram_tag_list.txt",
        "ram/ram_tag_list_threshold.txt",
    } <= paths
    for source in sources:
        assert source.licence
        assert source.sha256 is None or len(source.sha256) == 64
        assert source.revision is None or len(source.revision) == 40
        assert isinstance(source, Source)
