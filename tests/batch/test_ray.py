"""The Ray engine on a real cluster of two nodes: the bytes of the local engine, and losses that lose nothing."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from seesr.batch import ray_bundle, ray_cluster
from seesr.batch.job import Job, Options, Row, StoppedError, bundle_id
from seesr.batch.local import LocalEngine
from seesr.batch.ray_cluster import ALONE, QUIET, connect
from seesr.batch.ray_engine import RayEngine
from seesr.batch.run import make_engine
from seesr.settings import Settings
from tests.batch.conftest import wait_until

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(seed=1, scale_factor=2, num_inference_steps=1)
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed; scripts/setup dev installs it"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten small photographs."""
    folder = tmp_path_factory.mktemp("images")
    with Image.open(ROOT / "examples/building.jpg") as photo:
        for i in range(10):
            photo.crop((8 * i, 4 * i, 8 * i + 72, 4 * i + 60)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Results are the same bytes for the same number of threads only."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def local(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What the local engine writes."""
    folder = tmp_path_factory.mktemp("local")
    rows = list(LocalEngine(options()).run(jobs(images, folder)))
    assert [row for row in rows if "error" in row] == []
    return results(folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a CPU each, on 127.0.0.1."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUIET | ALONE).items():
            patch.setenv(name, value)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        nodes.add_node(**NODE)
        yield nodes
        nodes.shutdown()


def options(**more: Any) -> Options:
    return Options(paths=[], settings=SETTINGS, bundle=ROOT / "weights/tiny", **more)


def jobs(images: Iterable[Path], folder: Path) -> list[Job]:
    """The first two by addresses, which fsspec opens in the workers."""
    found = []
    for i, path in enumerate(images):
        start = "file://" if i < 2 else ""
        found.append(Job(f"{start}{path}", f"{start}{folder / path.name}", str(folder), path.stat().st_size))
    return found


def results(folder: Path) -> list[bytes]:
    """The contents of all files there, by name."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def workers(node: Any) -> list[psutil.Process]:
    """The processes of a node in which a worker upscales."""
    if "raylet" not in node.all_processes:  # it is gone
        return []
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children(recursive=True) if "MapWorker" in command_of(child)]


def command_of(process: psutil.Process) -> str:
    """The command line of a process, "" of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_and_a_lost_node_change_no_byte(
    cluster: Any, images: list[Path], local: list[bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head, other = cluster.list_all_nodes()
    capfd.readouterr()
    used: set[bool] = set()
    rows: list[Row] = []
    for row in RayEngine(options(ray_address=cluster.address)).run(jobs(images, tmp_path)):
        assert Path(row.get("output", "").removeprefix("file://")).is_file(), "a row comes when its file is whole"
        used |= {node is head for node in (head, other) if workers(node)}
        rows.append(row)
        if len(rows) == 1:
            os.kill((workers(head) or workers(other))[0].pid, signal.SIGKILL)
        if len(rows) == 4:
            cluster.remove_node(other, allow_graceful=False)
    assert capfd.readouterr() == ("", ""), "Ray says nothing"
    cluster.add_node(**NODE)
    assert used == {True, False}, "both nodes worked"
    assert sorted(row.get("input", "") for row in rows) == sorted(job.input for job in jobs(images, tmp_path))
    assert [row for row in rows if "error" in row] == []
    assert results(tmp_path) == local, "each is there, and no part of a file"


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Ray's, that waits for workers
def test_what_stops_a_run_is_one_sentence(
    cluster: Any, images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    engine = RayEngine(options(ray_address=cluster.address))
    engine.model = "tiny@0123456789abcdef"
    with pytest.raises(StoppedError, match=r"has another bundle at .*tiny@.* instead of tiny@0123456789abcdef; copy"):
        list(engine.run(jobs(images, tmp_path)))

    engine = RayEngine(options(ray_address=cluster.address))
    engine.first_patience, engine.quiet = 5.0, 1.0
    torch.set_num_threads(2)
    try:
        with pytest.raises(StoppedError, match="each takes 2 CPUs, the cluster has 2 CPUs and 0 GPUs on 2 nodes: add"):
            list(engine.run(jobs(images, tmp_path)))
    finally:
        torch.set_num_threads(1)
    (warning,) = caplog.messages
    assert re.match(r"Waiting for a worker: no worker made progress for \d s; each takes 2 CPUs, the cluster", warning)
    assert results(tmp_path) == []


@needs_ray
@pytest.mark.slow
def test_a_command_that_was_killed_goes_on(images: list[Path], local: list[bytes], tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(images[0].parent, photos)
    inputs = ["--seed=1", "--scale-factor=2", "--num-inference-steps=1", "--json", "--name={stem}"]
    command = [sys.executable, "-m", "seesr.batch", str(photos), "--out", str(out), "--engine", "ray", *inputs]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert first.stdout is not None
    rows = [json.loads(first.stdout.readline()) for _ in range(2)]
    started = psutil.Process(first.pid).children(recursive=True)
    started = [process for process in started if "Agent" not in process.name()]  # these ask for Ray a minute longer
    first.kill()
    first.communicate()
    gone, alive = psutil.wait_procs(started, timeout=60)
    assert gone
    assert alive == [], "Ray ends with the command that started it"

    second = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "ray" not in second.stderr.lower(), second.stderr
    *more, summary = [json.loads(line) for line in second.stdout.splitlines()]
    assert 2 <= summary["skipped"] < len(images)
    assert summary["skipped"] + len(more) == len(images)
    assert {row["input"] for row in rows} & {row["input"] for row in more} == set()
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    report = found.pop("report.jsonl").decode().splitlines()
    assert len(report) == len(images)
    assert [found[name] for name in sorted(found)] == local


@needs_ray
@pytest.mark.slow
def test_an_image_that_kills_its_worker_is_given_up(cluster: Any, images: list[Path], tmp_path: Path) -> None:
    from seesr.batch.ray_feed import Feed
    from seesr.batch.ray_worker import ATTEMPTS, Setup, Worker

    with connect(cluster.address, ray_bundle.PACKAGES):
        import ray

        feed: Any = ray.remote(Feed).options(num_cpus=0).remote()
        bundle = ROOT / "weights/tiny"
        sent = {"job": vars(jobs(images, tmp_path)[2]), "mark": ""}
        ray.get(feed.put.remote([json.dumps(sent)] * 2, []))
        for _ in range(ATTEMPTS):
            ray.get(feed.begin.remote(1))
        waiting: Any = ray.remote(Feed).options(num_cpus=0).remote()
        worker = Worker(Setup(SETTINGS, bundle, bundle_id(bundle), None, 0, 1, 1.0), waiting)
        wait_until(lambda: ray.get(waiting.silence.remote())[1])  # the first sign comes before the first job
        worker = Worker(Setup(SETTINGS, bundle, bundle_id(bundle), None, 0, 1, 1.0), feed)
        answers = [json.loads(worker({"index": [i], "job": [json.dumps(sent)]})["answer"][0]) for i in range(2)]
        assert answers[0]["row"]["output"] == str(tmp_path / "2.png")
        assert "its worker died 3 times" in answers[1]["row"]["error"]

        no_gpu = Worker(Setup(SETTINGS, bundle, bundle_id(bundle), None, 1, 1, 1.0), feed)
        answer = json.loads(no_gpu({"index": [0], "job": [json.dumps(sent)]})["answer"][0])
        assert "a GPU that torch cannot use; install" in answer["stop"]


def test_a_bundle_that_workers_lack_is_unpacked_and_checked(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sent, wanted = ray_bundle.pack(tiny_bundle), bundle_id(tiny_bundle)
    assert sent is not None
    missing = Path("/nowhere/tiny")
    place = ray_bundle.find(missing, wanted, lambda: sent)
    assert place != missing
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == sent.keys()
    assert ray_bundle.find(missing, wanted, dict) == place, "it is unpacked once"
    (place / "vae/config.json").write_text("{}")
    with pytest.raises(StoppedError, match=r"vae/config.json on .* is damaged: its hash is not that of bundle.json"):
        ray_bundle.find(missing, wanted, dict)
    with pytest.raises(StoppedError, match="too large to be sent; copy it there on every node"):
        ray_bundle.find(missing, wanted, None)
    with pytest.raises(StoppedError, match=r"runs other code, .* instead of 0123456789abcdef"):
        ray_bundle.check_code("0123456789abcdef")


def test_without_ray_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StoppedError, match="--engine ray needs Ray; install it by `scripts/setup ray`"):
        make_engine(options(engine="ray"))


@needs_ray
def test_inputs_are_those_that_the_command_saw(tmp_path: Path) -> None:
    """The photographs of another machine may have the same names."""
    from seesr.batch.ray_worker import check_storage

    path = tmp_path / "a.jpg"
    path.write_bytes(b"image")
    job = Job(str(path), "memory://out/a.png", "memory://out", 5, path.stat().st_mtime)
    check_storage(job, "")
    for other in (replace(job, bytes=6), replace(job, modified=1.0), replace(job, input=f"{path}x")):
        with pytest.raises(StoppedError, match=r"does not see the same .* as the command; put inputs on storage that"):
            check_storage(other, "")
    path.unlink()
    check_storage(replace(job, bytes=0, modified=None), "")  # the command could not read it either


def test_a_card_is_waited_for_on_a_cluster_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "nodes", lambda: [{"CPU": 8.0}])
    assert ray_cluster.choose_share("t4", 2, shared=False) == (2, 0)
    assert ray_cluster.choose_share("t4", 2, shared=True) == (1, 1)
    assert ray_cluster.choose_share(None, 2, shared=True) == (2, 0)
    monkeypatch.setattr(ray_cluster, "nodes", lambda: [{"CPU": 8.0, "GPU": 1.0}])
    assert ray_cluster.choose_share(None, 2, shared=False) == (1, 1)
