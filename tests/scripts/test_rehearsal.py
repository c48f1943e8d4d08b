"""The rehearsal of the whole way, with the reference's tiny checkpoints, and the parts that it is made of."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.bench import rehearsal, upstream_files
from scripts.bench.hub import Hub, Repository, repin
from scripts.bench.process import disk_usage, peak_memory, run_python
from scripts.bench.random_files import Pickle, Weights, empty
from seesr.images import open_image

ROOT = Path(__file__).resolve().parents[2]
MODULE = "scripts.bench.rehearsal"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    # Without git the stage takes files that are not committed yet.
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"GIT_DIR": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_whole_way_with_tiny_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a folder"
    done = command(MODULE, folder, "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == ["write", "download", "convert", "stage", "start", "predict"]
    results = [row[-1].removesuffix(" |") for row in rows]
    assert results[0] == "22 files, 0.02 GB; 0 of them from an earlier run"
    assert results[1].startswith("22 files verified; a connection broken off, resumed at ")
    assert re.fullmatch(r"\d+ files; SeeSR-Turbo, F16, 0.01 GB", results[3])
    assert re.fullmatch(r".* s for imports, .* s for weights, .* s to warm up", results[4])
    assert results[5].startswith("40 x 40 -> 160 x 160, image/png, 1 step, c")
    assert all(float(row[1]) > 0.1 and float(row[2].split()[0]) > 0.01 for row in rows)
    assert open_image(folder / "result.png").rgb.size == (160, 160)

    hashes = json.loads((folder / "hashes.json").read_text())
    lock = json.loads((folder / "manifest.lock.json").read_text())
    assert lock["seesr/seesr/unet/config.json"] == hashes["seesr/seesr/unet/config.json"]
    created_from = json.loads((folder / "bundle/bundle.json").read_text())["created_from"]
    assert set(created_from.values()) < set(hashes.values())
    assert all((folder / "hub" / name).samefile(folder / "upstream" / name) for name in hashes)
    assert (folder / "bundle/unet/config.json").samefile(folder / "stage/weights/seesr-turbo/unet/config.json")

    damaged = folder / "hub/seesr/DAPE.pth"
    damaged.unlink()
    damaged.write_bytes(b"damaged")
    (folder / "upstream/seesr/DAPE.pth").unlink()
    with pytest.raises(
        RuntimeError, match=r"download.py ended with 1: download: CSWRY/SeeSR/DAPE.pth arrived with sha256"
    ):
        rehearsal.Rehearsal(folder, "tiny").download()
    capsys.readouterr()
    upstream_files.write(folder, tiny=True)
    written = capsys.readouterr().out.splitlines()
    assert [line for line in written if not line.startswith("kept ")] == ["wrote seesr/DAPE.pth"]
    assert json.loads((folder / "hashes.json").read_text()) == hashes
    rehearsal.Rehearsal(folder, "tiny").download()
    assert damaged.samefile(folder / "upstream/seesr/DAPE.pth")

    (folder / "mine.txt").touch()
    assert command(MODULE, folder, "--clean").returncode == 0
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_the_real_files_are_those_of_the_manifest_and_as_large() -> None:
    files = upstream_files.files(tiny=False)
    manifest = json.loads((ROOT / "weights/manifest.json").read_text())
    folders = {source["folder"]: source["files"] for source in manifest["sources"] if source["folder"] != "ram"}
    assert {f"{folder}/{path}" for folder, paths in folders.items() for path in paths} < files.keys()
    assert files.keys() == upstream_files.files(tiny=True).keys()
    assert len(files) == 22
    assert files["taesd/diffusion_pytorch_model.safetensors"].size == 9_793_292
    assert files["ram/ram_swin_large_14m.pth"].size / 2**30 == pytest.approx(5.239, abs=0.001)
    assert files["seesr/DAPE.pth"].size == pytest.approx(7.19e6, rel=0.015)  # torch adds a line for each tensor
    assert files["sd-turbo/unet/diffusion_pytorch_model.fp16.safetensors"].size == pytest.approx(1.73e9, rel=0.002)
    largest = max(sum(files[f"{folder}/{path}"].size for path in paths) for folder, paths in folders.items())
    assert sum(file.size for file in files.values()) + largest < rehearsal.NEEDED["real"]


def test_random_files_are_what_the_libraries_read(tmp_path: Path) -> None:
    shapes = {"norm.weight": (100,), "conv.weight": (8, 4, 3, 3), "embeddings.position_ids": (1, 7)}
    weights = Weights(shapes, torch.float16)
    weights.write(tmp_path / "weights", torch.Generator().manual_seed(1))
    assert weights.size == (tmp_path / "weights").stat().st_size
    found = load_file(tmp_path / "weights")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes
    assert found["norm.weight"].float().mean() == pytest.approx(1, abs=0.01)
    assert 0.1 < found["conv.weight"].abs().max() <= 1 / 6
    assert found["embeddings.position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6]]

    state = upstream_files.training_state(
        {
            "label_embed": (5, 3),
            "tag_encoder.norm.weight": (3,),
            "tagging_head.norm.weight": (3,),
            "attn.relative_position_index": (2, 2),
            "fc.weight": (1, 3),
        }
    )
    for name in ("one", "other"):
        Pickle(state).write(tmp_path / name, torch.Generator().manual_seed(1))
    loaded = torch.load(tmp_path / "one", weights_only=True)
    model, moments = loaded["model"], loaded["optimizer"]["state"]
    assert model["tagging_head.norm.weight"].data_ptr() == model["tag_encoder.norm.weight"].data_ptr()
    assert model["tag_encoder.norm.weight"].mean() == pytest.approx(1, abs=0.02)
    assert model["attn.relative_position_index"].tolist() == [[0, 1], [2, 3]]
    assert [tuple(moment["exp_avg_sq"].shape) for moment in moments.values()] == [(3,), (1, 3)]
    assert moments[1]["exp_avg"].std() > 0.01
    assert Pickle({"a": {"b": empty("b", (2, 3))}}).size == 24


def test_the_hub_breaks_one_download_off_and_resumes_it(tmp_path: Path) -> None:
    (tmp_path / "big.pth").write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "small.json").write_bytes(b"{}")
    files = {"big.pth": "a" * 64, "small.json": "b" * 64}
    repositories = {"us/x": Repository(tmp_path, "c" * 40, files)}
    with Hub(repositories, {"them/data": tmp_path}, cut=tmp_path / "big.pth") as hub:
        listed = json.loads(urllib.request.urlopen(f"{hub.url}/api/models/us/x?blobs=true").read())
        assert listed["sha"] == "c" * 40
        assert [file.get("lfs", {}).get("sha256") for file in listed["siblings"]] == ["a" * 64, None]
        for path in ("us/x/resolve/main/small.json", "them/data/small.json"):
            assert urllib.request.urlopen(f"{hub.url}/{path}").read() == b"{}"
        url = f"{hub.url}/us/x/resolve/{'c' * 40}/big.pth"  # redirects
        with pytest.raises(http.client.IncompleteRead) as error:
            urllib.request.urlopen(url).read()
        rest = urllib.request.Request(url, headers={"Range": f"bytes={len(error.value.partial)}-"})
        assert error.value.partial + urllib.request.urlopen(rest).read() == (tmp_path / "big.pth").read_bytes()
        assert hub.ranges == [None, "bytes=1280000-"]
        for path in (
            "api/models/us/y",
            "api/models/us/x/revision/v1",
            "us/x/resolve/main/no",
            "large/us/x/no",
            "them/no",
        ):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{hub.url}/{path}")


def test_only_pinned_hashes_are_replaced() -> None:
    pinned = {"folder": "x", "repository": "us/x", "revision": None, "files": {"a": "1", "b": None}}
    listed = {"folder": "y", "repository": "https://example.org/some/data", "revision": None, "files": {"c": "2"}}
    found = repin({"sources": [pinned, listed]}, {"x/a": "3", "x/b": "4", "y/c": "5"}, "http://here")["sources"]
    assert [source["files"] for source in found] == [{"a": "3", "b": None}, {"c": "5"}]
    assert [source["repository"] for source in found] == ["us/x", "http://here/some/data"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    with pytest.raises(ValueError, match="DIR must be new, empty or of an earlier rehearsal, got"):
        rehearsal.prepare(tmp_path, "tiny")
    with pytest.raises(ValueError, match=r"--clean takes the DIR of an earlier rehearsal, got .*; nothing was removed"):
        rehearsal.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    (tmp_path / "hub").rmdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"DIR must be new, empty or of an earlier rehearsal, got .*file; name"):
        rehearsal.prepare(tmp_path / "file", "tiny")
    (tmp_path / "file").unlink()
    rehearsal.prepare(tmp_path, "tiny")
    rehearsal.prepare(tmp_path, "tiny")
    with pytest.raises(ValueError, match="holds a rehearsal of the tiny files; name another DIR, or run --clean first"):
        rehearsal.prepare(tmp_path, "real")
    rehearsal.clean(tmp_path)
    assert not tmp_path.exists()


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rehearsal.NEEDED, "tiny", 1e18)
    with pytest.raises(ValueError, match=r"needs 1000000000.00 GB of free disk, but \d+\.\d\d GB are free; name a DIR"):
        rehearsal.prepare(tmp_path, "tiny")
    assert not any(tmp_path.iterdir())


def test_a_program_that_fails_is_named_with_its_last_line(tmp_path: Path) -> None:
    code = "import sys; print('first'); sys.exit('wrong')"
    with pytest.raises(RuntimeError, match=r"^-c ended with 1: wrong \(all that it printed: .*log\)$"):
        run_python(["-c", code], ROOT, tmp_path / "log")
    assert (tmp_path / "log").read_text() == "first\nwrong\n"
    with pytest.raises(RuntimeError, match=r"must end with scripts/convert.py and its --out, got 'oh no'"):
        rehearsal.Rehearsal(tmp_path, "tiny").convert("oh no")


def test_a_line_is_waited_for() -> None:
    lines: list[str] = ["one"]
    threading.Timer(0.2, lines.append, ["at: Setup: 1.0 s. More"]).start()
    assert rehearsal.wait_for(lines, "Setup: ") == "1.0 s. More"
    assert rehearsal.wait_for(lines, "none", seconds=0.1) == ""


def test_memory_is_measured_at_its_peak_and_hard_links_once(tmp_path: Path) -> None:
    code = "x = bytearray(200_000_000); del x; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 200e6 < peak_memory(process.pid) < 300e6
        process.kill()
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4000)
    os.link(tmp_path / "file", tmp_path / "link")
    assert disk_usage(tmp_path) == pytest.approx(1_024_000, rel=0.02)
