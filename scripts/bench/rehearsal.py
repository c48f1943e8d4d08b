"""Go the whole way of an owner of the weights, with upstream's files in their real names and shapes but random values.

    .venv/bin/python -m scripts.bench.rehearsal DIR            real sizes: 22 GB of disk, 12 GB of memory, 20 minutes
    .venv/bin/python -m scripts.bench.rehearsal DIR --tiny     the reference's tiny checkpoints, for tests
    .venv/bin/python -m scripts.bench.rehearsal DIR --clean    remove what is left in DIR

Writes the files; downloads and verifies them from a hub on loopback, which breaks one connection off; converts them by
the command that the download prints; stages the bundle as scripts/deploy push does; starts the Cog server in that
stage and asks for one prediction. Prints seconds, peak memory and disk of each. A second run keeps the files that are
whole. DIR/logs has what each stage printed.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts import stage
from scripts.bench import hub
from scripts.bench.process import Finished, Row, disk_usage, gigabytes, peak_memory, run_python, table
from scripts.cog_server import CogServer
from scripts.predict import read_answer

ROOT = stage.ROOT
MARKER = ".seesr-rehearsal"
"""The file by which a folder is known as a rehearsal's. It holds "real" or "tiny"."""

NEEDED = {"real": 22e9, "tiny": 0.2e9}
"""Bytes that DIR holds at most: the files, and a copy of the largest repository or later the bundle."""

FOLDERS = ("hub", "upstream", "bundle", "stage", "logs")
FILES = ("hashes.json", "manifest.json", "manifest.lock.json", "result.png")
SIDE = {"real": 128, "tiny": 40}
SCALE = 4


@dataclass
class Rehearsal:
    """The stages in their order; each adds to `rows`. RuntimeError says which one failed and why."""

    folder: Path
    kind: str  # "real" or "tiny"
    rows: list[Row] = field(default_factory=list)

    def run(self) -> None:
        """All stages."""
        self.write()
        self.convert(self.download())
        self.stage()
        self.predict()

    def write(self) -> None:
        """The files in hub/ and their sha256 in hashes.json."""
        command = ["-m", "scripts.bench.upstream_files", str(self.folder), *(["--tiny"] if self.kind == "tiny" else [])]
        done = self._run("write", command)
        kept = sum(line.startswith("kept ") for line in done.lines)
        size = sum(path.stat().st_size for path in (self.folder / "hub").rglob("*") if path.is_file())
        about = f"{len(done.lines)} files, {gigabytes(size)}; {kept} of them from an earlier run"
        self._row("write", done.seconds, done.memory, about)

    def download(self) -> str:
        """hub/ -> upstream/ by HTTP. Returns the command that the downloader prints for converting the files.

        Once a repository is verified, its files in hub/ become hard links to the downloaded ones.
        """
        manifest = json.loads((ROOT / "weights/manifest.json").read_text())
        hashes = json.loads((self.folder / "hashes.json").read_text())
        server, peak = hub.from_manifest(manifest, hashes, self.folder / "hub"), 0
        server.cut = self.folder / "hub/ram/ram_swin_large_14m.pth"
        with server:
            sources = hub.repin(manifest, hashes, server.url)["sources"]
            path = self.folder / "manifest.json"
            path.write_text(json.dumps({"sources": sources}, indent=1))

            def link(line: str) -> None:
                nonlocal peak
                peak = max(peak, disk_usage(self.folder))
                for source in sources:
                    if line.endswith(f" files of {source['repository']}"):
                        for name in source["files"]:
                            self._link(f"{source['folder']}/{name}")

            command = ["scripts/download.py", "--manifest", str(path), "--out", str(self.folder / "upstream")]
            environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": "none", "HF_HUB_OFFLINE": "0"}
            done = self._run("download", command, environment | {"NO_PROXY": "127.0.0.1"}, link)
        about = f"{sum(len(source['files']) for source in sources)} files verified"
        if len(server.ranges) > 1:
            start = int((server.ranges[1] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            about += f"; a connection broken off, resumed at {gigabytes(start)}"
        self._row("download", done.seconds, done.memory, about, peak)
        return done.lines[-1]

    def convert(self, printed: str) -> None:
        """upstream/ -> bundle/"""
        for path in (self.folder / "stage", self.folder / "bundle", *self.folder.glob(".bundle-*")):
            shutil.rmtree(path, ignore_errors=True)  # the last are of a converter that was killed
        words = shlex.split(printed)
        if words[1:2] != ["scripts/convert.py"] or words[-2] != "--out":
            raise RuntimeError(f"the download must end with scripts/convert.py and its --out, got {printed!r}")
        size = ["--process-size", str(SCALE * SIDE["tiny"])] if self.kind == "tiny" else []
        done = self._run("convert", [*words[1:-1], str(self.folder / "bundle"), *size])
        self._row("convert", done.seconds, done.memory, f"a bundle of {gigabytes(disk_usage(self.folder / 'bundle'))}")

    def stage(self) -> None:
        """bundle/ -> stage/, the folder that `cog push` would run in."""
        folder = self.folder / "stage"
        command = ["scripts/deploy.py", "push", "owner/rehearsal", "--hardware", "gpu-t4", "--dry-run"]
        done = self._run("stage", [*command, "--bundle", str(self.folder / "bundle"), "--stage", str(folder)])
        for line in done.lines:
            if "LEFT OUT" in line:
                print(line, flush=True)
        about = next(line.split(maxsplit=1)[1].partition(":")[0] for line in done.lines if line.startswith("bundle "))
        self._row("stage", done.seconds, done.memory, f"{len(stage.names_in(folder))} files; {about}")

    def predict(self) -> None:
        """A cold start of the server in stage/, with the environment of its cog.yaml, and one prediction."""
        from scripts.bench.soak import data_uri  # imported here: torch's memory would count for all processes above
        from seesr.images import open_image

        folder, log = self.folder / "stage", self.folder / "logs/server.log"
        environment = dict(re.findall(r"(?m)^ +- (\w+)=(.*)$", (folder / "cog.yaml").read_text()))
        side, wanted = SIDE[self.kind], SCALE * SIDE[self.kind]
        inputs = {"image": data_uri(side, side, 0), "num_inference_steps": 1, "scale_factor": SCALE, "seed": 1}
        print("start ...", flush=True)
        start = time.perf_counter()
        with log.open("w") as file, CogServer(folder, env=environment, log=file, timeout=3600) as server:
            ready = time.perf_counter()
            if server.health["status"] != "READY":
                raise RuntimeError(f"the Cog server did not start: {server.setup_error()} (all that it printed: {log})")
            setup = wait_for(server.lines, "Setup: ").partition(". ")[0].removesuffix(".")
            self._row("start", ready - start, peak_memory(server.pid), setup)
            print("predict ...", flush=True)
            answer = server.predict(**inputs)
            seconds, memory = time.perf_counter() - ready, peak_memory(server.pid)
        kind, content = read_answer(*answer)
        path, metrics = self.folder / "result.png", answer[1]["metrics"]
        path.write_bytes(content)
        width, height = open_image(path).rgb.size
        if (width, height, metrics["model"]) != (wanted, wanted, "SeeSR-Turbo"):
            found = f"{width} x {height} by {metrics['model']}"
            raise RuntimeError(f"the result must be {wanted} x {wanted} by SeeSR-Turbo, got {found}")
        about = f"{side} x {side} -> {width} x {height}, {kind}, 1 step, {metrics['device']}"
        self._row("predict", seconds, memory, about)

    def _link(self, name: str) -> None:
        """Make a file of hub/ a hard link to the verified one of upstream/; where links are not possible it stays."""
        path, link = self.folder / "hub" / name, self.folder / "link"
        link.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.link(self.folder / "upstream" / name, link)
            os.replace(link, path)
            link.unlink(missing_ok=True)  # os.replace leaves it where both are the same file

    def _run(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> Finished:
        print(f"{name} ...", flush=True)
        return run_python(command, ROOT, self.folder / f"logs/{name}.log", environment, on_line)

    def _row(self, name: str, seconds: float, memory: int, result: str, disk: int = 0) -> None:
        self.rows.append(Row(name, seconds, memory, max(disk, disk_usage(self.folder)), result))


def wait_for(lines: list[str], start: str, seconds: float = 10) -> str:
    """What follows `start` in the first of the lines that has it; they still grow. An empty text if none comes."""
    end = time.monotonic() + seconds
    while not (found := [line.partition(start)[2] for line in list(lines) if start in line]) and time.monotonic() < end:
        time.sleep(0.05)
    return found[0] if found else ""


def prepare(folder: Path, kind: str) -> None:
    """Make the folder. ValueError if it holds anything else than a rehearsal of this kind, or its disk is too full."""
    marker = folder / MARKER
    if folder.exists() and not marker.is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"DIR must be new, empty or of an earlier rehearsal, got {folder}; name another")
    if marker.is_file() and (found := marker.read_text()) != kind:
        raise ValueError(f"{folder} holds a rehearsal of the {found} files; name another DIR, or run --clean first")
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = NEEDED[kind] - disk_usage(folder), shutil.disk_usage(folder).free
    if free < needed:
        sizes = f"{gigabytes(needed)} of free disk, but {gigabytes(free)} are free"
        raise ValueError(f"the rehearsal in {folder} needs {sizes}; name a DIR on another disk, or free some")
    marker.write_text(kind)
    (folder / "logs").mkdir(exist_ok=True)


def clean(folder: Path) -> None:
    """Remove what a rehearsal made, and the folder if nothing else is in it."""
    if not (folder / MARKER).is_file():
        raise ValueError(f"--clean takes the DIR of an earlier rehearsal, got {folder}; nothing was removed")
    for path in (*(folder / name for name in FOLDERS), *folder.glob(".bundle-*")):
        shutil.rmtree(path, ignore_errors=True)
    for name in (*FILES, MARKER):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where all files go: new, empty or an earlier one")
    parser.add_argument("--tiny", action="store_true", help="the reference's tiny checkpoints instead of real sizes")
    parser.add_argument("--clean", action="store_true", help="only remove what an earlier rehearsal left in DIR")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    rehearsal = Rehearsal(folder, "tiny" if arguments.tiny else "real")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if arguments.clean:
            clean(folder)
            return
        prepare(folder, rehearsal.kind)
        try:
            rehearsal.run()
        finally:
            print(f"\n{table(rehearsal.rows)}\n" if rehearsal.rows else "")
            names = ", ".join(name for name in FOLDERS + FILES if (folder / name).exists())
            print(f"{folder} holds {gigabytes(disk_usage(folder))} (hard links counted once): {names}")
            print(f"Remove it: .venv/bin/python -m scripts.bench.rehearsal {shlex.quote(str(folder))} --clean")
    except KeyboardInterrupt:
        sys.exit("rehearsal: interrupted; run it again, and it keeps the files that are whole")
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"rehearsal: {error}")


if __name__ == "__main__":
    main()
