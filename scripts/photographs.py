"""Fetch the free photographs that the embedded bundle learns from: Debian packages, by name, outside git.

Each package's own copyright file is unpacked beside its pictures; docs/embedded-bundle.md names what was used.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

PACKAGES = {
    "trixie": ["budgie-backgrounds"],
    "bookworm": ["lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "libjxl-testdata", "endless-sky-high-dpi"],
}
"""Debian release -> packages. Held-out test photographs come from elsewhere (scripts/evaluate.py)."""


def fetch(release: str, packages: list[str], folder: Path) -> None:
    """Download and unpack packages of a Debian release with the machine's own mirror and keys.

    Raises RuntimeError with apt's own words where the machine has no Debian sources or a package is missing.
    """
    missing = [package for package in packages if not (folder / package).is_dir()]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as name:
        private = Path(name)
        options = apt_options(release, private)
        run(["apt-get", *options, "update", "-qq"], private)
        run(["apt-get", *options, "download", "-qq", *missing], private)
        for package in missing:
            (archive,) = private.glob(f"{package}_*.deb")
            unpacked = private / package
            run(["dpkg-deb", "-x", str(archive), str(unpacked)], private)
            shutil.move(unpacked, folder / package)
            print(f"{package} ({release}): {archive.stat().st_size / 1e6:.0f} MB", flush=True)


def apt_options(release: str, private: Path) -> list[str]:
    """A private apt state in `private` whose sources are the machine's own, with the release's name put in."""
    own = Path("/etc/apt/sources.list.d/debian.sources")
    if not own.is_file():
        raise RuntimeError(f"the photographs come from Debian packages and need {own}, which this machine lacks")
    first = own.read_text().split("\n\n")[0].splitlines()
    sources = "\n".join(f"Suites: {release}" if line.startswith("Suites:") else line for line in first)
    (private / "lists/partial").mkdir(parents=True)
    (private / "debian.sources").write_text(sources + "\n")
    return [
        f"-oDir::Etc::SourceList={private}/debian.sources",
        f"-oDir::Etc::SourceParts={private}/none",
        f"-oDir::State::Lists={private}/lists",
        f"-oDir::Cache={private}/cache",
        "-oAPT::Sandbox::User=root",
        "-oAcquire::Languages=none",
    ]


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("work-photos"), help="folder for the unpacked packages")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for release, packages in PACKAGES.items():
        fetch(release, packages, folder)


if __name__ == "__main__":
    main()
