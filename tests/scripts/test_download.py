"""The downloader against a small hub on loopback that cuts connections, refuses, redirects and lies."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from scripts import convert, download
from tests.golden import UPSTREAM
from tests.scripts.hub import COMMIT, HUGE, LARGE, LIST, SMALL, Hub, sha256

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setattr(download, "HUB", HfApi(hub.url))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 1000))  # between the library's retries
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # diffusers may have imported it first
    yield hub
    hub.stalled.set()
    for server in (hub.front, hub.store):
        server.shutdown()
        server.server_close()


@pytest.fixture
def manifest(hub: Hub, tmp_path: Path) -> Path:
    return hub.write_manifest(tmp_path, {"big.safetensors": None, "config.json": None})


@pytest.fixture
def run(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs the command in this process; its sentences on failure, or nothing."""

    def run(*options: str) -> list[str]:
        arguments = ["download", "--manifest", str(tmp_path / "manifest.json"), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", [*arguments, *options])
        try:
            download.main()
        except SystemExit as error:
            return str(error.code or "").splitlines()
        return []

    return run


Run = Callable[..., list[str]]


def command(manifest: Path, *options: str) -> list[str]:
    names = ["--manifest", str(manifest), "--out", str(manifest.parent / "out")]
    return [sys.executable, str(ROOT / "scripts/download.py"), *names, *options]


def test_files_arrive_whole_and_are_locked(run: Run, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run() == []
    assert (out / "x/big.safetensors").read_bytes() == LARGE
    assert (out / "x/config.json").read_bytes() == SMALL
    assert (out / "x/list.txt").read_bytes() == LIST
    assert sorted(path.name for path in out.rglob("*")) == ["big.safetensors", "config.json", "list.txt", "x"]
    lock = json.loads((tmp_path / "manifest.lock.json").read_text())
    assert lock == {"us/x": COMMIT, "x/big.safetensors": sha256(LARGE), "x/config.json": sha256(SMALL)}


def test_a_second_run_sends_no_request(run: Run, hub: Hub, manifest: Path) -> None:
    run()
    hub.requests.clear()
    assert run() == []
    assert hub.requests == []


def test_the_pinned_revision_is_asked_for(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.write_manifest(tmp_path, {"config.json": sha256(SMALL)}, revision=COMMIT)
    assert run() == []
    assert hub.commits == {COMMIT}


def test_cut_connections_are_resumed(run: Run, hub: Hub, manifest: Path, tmp_path: Path) -> None:
    hub.files["us/x"]["big.safetensors"] = HUGE
    hub.cuts["big.safetensors"] = 2
    assert run() == []
    assert (tmp_path / "out/x/big.safetensors").read_bytes() == HUGE
    assert hub.ranges() == [None, "bytes=10485760-", "bytes=10485760-"]


def test_a_connection_that_is_always_cut_is_one_sentence(run: Run, hub: Hub, manifest: Path, tmp_path: Path) -> None:
    hub.cuts["big.safetensors"] = 1000
    (sentence,) = run()
    assert "us/x can't be fetched (ChunkedEncodingError): check network" in sentence
    assert not (tmp_path / "out/x/big.safetensors").exists()
    assert (tmp_path / "out/x/config.json").exists()  # the others arrive all the same
    hub.cuts.clear()
    assert run() == []


def test_ctrl_c_ends_it_at_once_and_the_next_run_resumes(hub: Hub, tmp_path: Path) -> None:
    hub.files["us/x"]["stall.safetensors"] = HUGE
    hub.cuts["stall.safetensors"] = 1
    manifest = hub.write_manifest(tmp_path, {"stall.safetensors": None})
    first = subprocess.Popen(command(manifest), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not any(part.stat().st_size for part in tmp_path.rglob("*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(20)  # 20 ms
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=20)
    hub.stalled.set()
    assert (first.returncode, errors) == (-signal.SIGINT, "")
    assert not (tmp_path / "out/x/stall.safetensors").exists()
    second = subprocess.run(command(manifest), capture_output=True, text=True, check=False)
    assert (second.returncode, second.stderr) == (0, "")
    assert (tmp_path / "out/x/stall.safetensors").read_bytes() == HUGE
    first_range, second_range = hub.ranges()
    assert first_range is None
    assert re.fullmatch(r"bytes=[1-9]\d+-", second_range or "")


def test_no_warning_of_the_library_is_printed(hub: Hub, manifest: Path) -> None:
    hub.cuts["big.safetensors"] = 2
    done = subprocess.run(command(manifest), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", ["big.safetensors", "config.json"])
def test_a_file_with_a_wrong_hash_is_named_and_removed(run: Run, hub: Hub, tmp_path: Path, path: str) -> None:
    hub.write_manifest(tmp_path, {path: "0" * 64})
    (sentence,) = run()
    assert f"us/x/{path} arrived with sha256" in sentence
    assert f"wanted {'0' * 64}" in sentence
    assert not (tmp_path / "out/x" / path).exists()


def test_a_large_file_is_held_to_the_hub_s_metadata(run: Run, hub: Hub, manifest: Path, tmp_path: Path) -> None:
    listed = hub.sibling("big.safetensors", b"what the metadata is of")
    hub.sibling = lambda path, content: listed if path == listed["rfilename"] else Hub.sibling(path, content)
    (sentence,) = run()
    assert "us/x/big.safetensors arrived with sha256" in sentence
    assert not (tmp_path / "out/x/big.safetensors").exists()


def test_a_file_that_the_repository_lacks_is_named(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.write_manifest(tmp_path, {"config.json": None, "other.json": None})
    (sentence,) = run()
    assert "us/x/other.json arrived with sha256 none, wanted any" in sentence
    assert (tmp_path / "out/x/config.json").exists()


def test_a_changed_file_is_held_to_the_lock(run: Run, hub: Hub, manifest: Path, tmp_path: Path) -> None:
    run()
    (tmp_path / "out/x/config.json").unlink()
    hub.files["us/x"]["config.json"] = b'{"a": 2}\n'
    (sentence,) = run()
    assert "us/x/config.json arrived with sha256" in sentence
    assert sha256(SMALL) in sentence


def test_a_damaged_local_file_is_fetched_again(run: Run, manifest: Path, tmp_path: Path) -> None:
    run()
    for name, content in {"config.json": SMALL, "big.safetensors": LARGE, "list.txt": LIST}.items():
        (tmp_path / "out/x" / name).write_bytes(b"oops")
        assert run() == []
        assert (tmp_path / "out/x" / name).read_bytes() == content


def test_a_wrong_tag_list_of_github_is_removed(run: Run, hub: Hub, manifest: Path, tmp_path: Path) -> None:
    hub.files["us/tags"]["data/list.txt"] = b"cow\n"
    (sentence,) = run()
    assert "us/tags/data/list.txt arrived with sha256" in sentence
    assert not (tmp_path / "out/x/list.txt").exists()


@pytest.mark.parametrize(
    ("refused", "status", "code", "parts"),
    [
        (
            "us/x",
            401,
            "",
            ["(HTTP 401): accept its licence (CC0) and set HF_TOKEN, or name another by --repo x="],
        ),
        (
            "us/x",
            404,
            "RepoNotFound",
            [
                "(HTTP 404): there is no such folder, and no such repository with revision main, or name another",
                "--repo x=",
            ],
        ),
        ("us/x", 503, "", ["(HTTP 503): check network"]),
        ("big.safetensors", 403, "GatedRepo", ["(HTTP 403): accept its licence (CC0) and set HF_TOKEN"]),
        ("big.safetensors", 403, "", ["(HTTP 403): accept its licence"]),
        ("big.safetensors", 401, "", ["(HTTP 401): accept its licence"]),
        (
            "big.safetensors",
            404,
            "EntryNotFound",
            [f"(HTTP 404): there is no such folder, and no such repository with revision {COMMIT}"],
        ),
        ("big.safetensors", 410, "", ["(HTTP 410)"]),
        ("big.safetensors", 503, "", ["(HTTP 503): check network and disk"]),
        ("data/list.txt", 404, "", ["us/tags/data can't be fetched (HTTP 404)"]),
    ],
)
def test_a_refusal_is_one_sentence_that_says_what_to_do(
    run: Run, hub: Hub, manifest: Path, tmp_path: Path, refused: str, status: int, code: str, parts: list[str]
) -> None:
    hub.status[refused] = (status, code)
    (sentence,) = run()
    assert sentence.startswith("download: ")
    assert all(part in sentence for part in parts), sentence
    assert (tmp_path / "out/x/list.txt").exists() == (refused != "data/list.txt")  # the others arrive all the same


def test_an_unreachable_hub_is_one_sentence(run: Run, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "HUB", HfApi("http://127.0.0.1:9"))
    (sentence,) = run()
    assert "can't be fetched (ConnectionError): check network" in sentence


def test_the_token_goes_to_the_hub_and_nowhere_else(
    run: Run, hub: Hub, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.cuts["big.safetensors"] = 1
    run()
    of_hub = {token for where, _, path, token, _ in hub.requests if where == "front" and "tags" not in path}
    elsewhere = {token for where, _, path, token, _ in hub.requests if where == "store" or "tags" in path}
    assert (of_hub, elsewhere) == ({"Bearer hf_secret"}, {None})
    assert "hf_secret" not in "".join(capsys.readouterr())
    assert "hf_secret" not in (tmp_path / "manifest.lock.json").read_text()


def test_another_repository_is_held_to_the_same_hash_but_not_to_the_revision(
    run: Run, hub: Hub, tmp_path: Path
) -> None:
    hub.write_manifest(tmp_path, {"big.safetensors": sha256(LARGE), "config.json": None}, revision="a" * 40)
    hub.files["them/y"] = dict(hub.files.pop("us/x"))
    assert run("--repo", "x=them/y") == []
    assert hub.commits == {"main", COMMIT}
    (tmp_path / "out/x/big.safetensors").unlink()
    (tmp_path / "out/x/config.json").unlink()
    hub.files["them/z"] = {"big.safetensors": LARGE[1:], "config.json": SMALL}
    assert "them/z/big.safetensors arrived with sha256" in run("--repo", "x=them/z")[0]  # pinned by the manifest
    (tmp_path / "out/x/config.json").unlink()
    hub.files["them/z"] = {"big.safetensors": LARGE, "config.json": b"{}"}
    assert "them/z/config.json arrived with sha256" in run("--repo", "x=them/z")[0]  # pinned by the lock


def test_a_local_folder_is_linked_and_checked(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.write_manifest(tmp_path, {"big.safetensors": sha256(LARGE), "config.json": None})
    local = tmp_path / "local"
    local.mkdir()
    (local / "big.safetensors").write_bytes(LARGE)
    (local / "config.json").write_bytes(SMALL)
    for _ in range(2):
        assert run("--repo", f"x={local}") == []
        assert (tmp_path / "out/x/big.safetensors").samefile(local / "big.safetensors")
        assert (tmp_path / "out/x/config.json").read_bytes() == SMALL
    assert [path for _, _, path, _, _ in hub.requests] == ["/us/tags/data/list.txt"]
    assert not (tmp_path / "manifest.lock.json").exists()

    (local / "list.txt").write_bytes(LIST)
    (tmp_path / "out/x/list.txt").unlink()
    hub.requests.clear()
    assert run("--repo", f"x={local}") == []
    assert hub.requests == []


def test_a_wrong_or_missing_local_file_is_named_and_stays(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.write_manifest(tmp_path, {"big.safetensors": sha256(LARGE), "config.json": None})
    local = tmp_path / "local"
    local.mkdir()
    (local / "big.safetensors").write_bytes(b"not this")
    (missing,) = run("--repo", f"x={local}")
    assert f"{local} can't be fetched (No such file or directory)" in missing
    (local / "config.json").write_bytes(SMALL)
    (wrong,) = run("--repo", f"x={local}")
    assert f"{local}/big.safetensors arrived with sha256" in wrong
    assert (local / "big.safetensors").read_bytes() == b"not this"
    assert not (tmp_path / "out/x/big.safetensors").exists()


def test_the_place_itself_may_be_the_local_folder(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.write_manifest(tmp_path, {"config.json": None})
    (tmp_path / "out/x").mkdir(parents=True)
    (tmp_path / "out/x/config.json").write_bytes(SMALL)
    assert run("--repo", f"x={tmp_path / 'out/x'}") == []
    assert (tmp_path / "out/x/config.json").read_bytes() == SMALL


@pytest.mark.parametrize("option", ["y=us/x", "x", "x="])
def test_a_wrong_repo_option_is_one_sentence(run: Run, manifest: Path, option: str) -> None:
    (sentence,) = run("--repo", option)
    assert sentence.startswith("download: --repo takes NAME=OWNER/REPO or NAME=FOLDER, NAME as in ")


@pytest.mark.parametrize("repo", ["/no/such/folder", "a--b/c"])
def test_a_name_that_the_hub_does_not_allow_is_one_sentence(run: Run, manifest: Path, repo: str) -> None:
    (sentence,) = run("--repo", f"x={repo}")
    assert sentence.startswith(f"download: {repo} can't be fetched (HFValidationError): there is no such folder")


def test_an_out_that_is_no_folder_is_a_sentence(run: Run, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert "(Not a directory)" in run()[0]


def test_a_full_disk_is_one_sentence(hub: Hub, manifest: Path, tmp_path: Path) -> None:
    """A real limit on file size stands in for the disk: the write itself fails."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000));"
        "from scripts import download; download.main()"
    )
    arguments = [sys.executable, "-c", code, *command(manifest)[2:]]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert "us/x can't be fetched (File too large): check network and disk space" in sentence
    assert not (tmp_path / "out/x/big.safetensors").exists()


def test_a_dry_run_lists_the_missing_files_without_network(
    run: Run, hub: Hub, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--dry-run") == []
    assert capsys.readouterr().out.splitlines() == [
        "us/x/big.safetensors",
        "us/x/config.json",
        f"{hub.url}/us/tags/data/list.txt",
    ]
    assert hub.requests == []
    assert not (tmp_path / "out").exists()
    run()
    capsys.readouterr()
    assert run("--dry-run") == []
    assert capsys.readouterr().out.split() == []


def test_the_last_line_is_the_command_that_converts_the_files(
    run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real manifest, with the reference's tiny checkpoints on the hub under their real names."""
    manifest = json.loads((ROOT / "weights/manifest.json").read_text())
    for group in manifest["sources"]:
        prefix = ""
        if group["repository"].startswith("http"):
            group["repository"], prefix = f"{hub.url}/us/tags/data", "data/"
        files = hub.files.setdefault("us/tags" if prefix else group["repository"], {})
        for path in group["files"]:
            files[prefix + path] = content = tiny_file(group["folder"], path, tmp_path)
            group["files"][path] = sha256(content)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    out = tmp_path / "with space"
    assert run("--out", str(out)) == []
    line = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert line[:2] == [".venv/bin/python", "scripts/convert.py"]

    given: list[Path] = []
    monkeypatch.setattr(convert, "convert", lambda *paths, tiny_vae, **_: given.extend([tiny_vae, *paths]))
    monkeypatch.setattr(sys, "argv", line[1:])
    monkeypatch.chdir(ROOT)
    convert.main()
    *inputs, bundle = given
    assert bundle == Path("weights/seesr-turbo")
    assert len(inputs) == 7
    assert inputs[0].name == "taesd"
    assert all(path.resolve().is_relative_to(out) and path.exists() for path in inputs)


def tiny_file(folder: str, path: str, scratch: Path) -> bytes:
    if folder == "taesd" or path == "LICENSE.md":
        return path.encode()
    if folder == "ram":
        return (UPSTREAM / "ram" / Path(path).name).read_bytes()
    if folder == "seesr":
        return (UPSTREAM / ("ram" if path == "DAPE.pth" else ".") / path).read_bytes()
    if ".fp16." in path:
        half = {
            key: tensor.half() for key, tensor in load_file(UPSTREAM / "sd_turbo" / path.replace(".fp16", "")).items()
        }
        save_file(half, scratch / "half")
        return (scratch / "half").read_bytes()
    return (UPSTREAM / "sd_turbo" / path).read_bytes()


def test_the_real_manifest_is_complete() -> None:
    sources = download.read_manifest(ROOT / "weights/manifest.json", [], {})
    places = {f"{source.folder}/{path}": sha256 for source in sources for path, sha256 in source.files.items()}
    assert len(places) == 22
    assert {
        "sd-turbo/unet/diffusion_pytorch_model.fp16.safetensors",
        "sd-turbo/tokenizer/vocab.json",
        "seesr/seesr/controlnet/diffusion_pytorch_model.safetensors",
        "seesr/DAPE.pth",
        "taesd/diffusion_pytorch_model.safetensors",
        "ram/ram_swin_large_14m.pth",
        "ram/ram_tag_list.txt",
        "ram/ram_tag_list_threshold.txt",
    } <= places.keys()
    assert [place for place, sha256 in places.items() if sha256 is None] == [
        "taesd/config.json",
        "seesr/seesr/unet/config.json",
        "seesr/seesr/unet/diffusion_pytorch_model.safetensors",
        "seesr/seesr/controlnet/config.json",
        "seesr/seesr/controlnet/diffusion_pytorch_model.safetensors",
    ]
    assert all(len(sha256) == 64 for sha256 in places.values() if sha256)
    assert all(source.licence for source in sources)
    assert all(len(source.revision) == 40 for source in sources if source.revision)


def test_a_damaged_lock_is_named(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes((ROOT / "weights/manifest.json").read_bytes())
    (tmp_path / "manifest.lock.json").write_text("{")
    command = [sys.executable, str(ROOT / "scripts/download.py"), "--manifest", str(manifest), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == f"download: {tmp_path}/manifest.lock.json is no valid JSON; remove it, or restore it from git"
    )
