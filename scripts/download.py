"""Download the upstream files of weights/manifest.json (about 15 GB) and check the sha256 of each.

A second run resumes the first. HF_TOKEN opens gated repositories; --repo seesr=alexnasa/SEESR replaces one that is
gone. The first download locks the sha256 of what is not pinned in weights/manifest.lock.json.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

# huggingface_hub reads these on import. Its Xet transfers start over after an interruption.
os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_VERBOSITY": "error"}
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", str(int(not sys.stderr.isatty())))

import requests
from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError

ROOT, HUB = Path(__file__).resolve().parent.parent, HfApi()


@dataclass
class Source:
    """Files that go to one folder. `repository` is a name on the hub, a URL, or the path of a local folder."""

    folder: str
    repository: str
    revision: str | None  # of a hub repository
    licence: str
    files: dict[str, str | None]  # path -> sha256

    def missing(self, folder: Path, only: list[str] | None = None) -> list[str]:
        """The files, of all or of `only` some, that `folder` does not hold with a known sha256."""
        return [p for p in (self.files if only is None else only) if digest(folder / p) != (self.files[p] or "unknown")]

    def bring(self, folder: Path, jobs: int, attempts: int = 10) -> str | None:
        """Fetch what `folder` lacks and check it. Returns one sentence on what to do if that fails."""
        paths = self.missing(folder)
        try:
            self.fetch(paths, folder, jobs)
        except (OSError, HFValidationError) as error:
            cut = isinstance(error, requests.exceptions.ChunkedEncodingError)  # the library resumes after others only
            return self.bring(folder, jobs, attempts - 1) if cut and attempts > 1 else self.explain(error)
        self.files |= {path: self.files[path] or digest(folder / path) for path in paths}
        for path in self.missing(folder, paths):
            found, wanted = digest(folder / path) or "none", self.files[path] or "any"
            (folder / path).unlink(missing_ok=True)
            return f"{self.repository}/{path} arrived with sha256 {found}, wanted {wanted}; removed, run this again"
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's notes on unfinished files
        print(f"{folder}: {len(self.files)} files of {self.repository}")

    def fetch(self, paths: list[str], folder: Path, jobs: int) -> None:
        """Put files into `folder`: those of a hub repository at one commit, local ones as symbolic links."""
        is_url, local = self.repository.startswith("http"), Path(self.repository).expanduser().resolve()
        if paths and not is_url and not local.is_dir():
            info = HUB.model_info(self.repository, revision=self.revision, files_metadata=True, timeout=30)
            large = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs}
            self.revision, self.files = info.sha, {path: sha or large.get(path) for path, sha in self.files.items()}
            options = {"local_dir": folder, "allow_patterns": paths, "max_workers": jobs}
            HUB.snapshot_download(self.repository, revision=info.sha, **options)
            return
        for path in paths:
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if is_url:
                answer = requests.get(f"{self.repository}/{path}", timeout=30)
                answer.raise_for_status()
                place.write_bytes(answer.content)
            elif place.resolve() != (local / path).resolve(strict=True):
                place.unlink(missing_ok=True)
                place.symlink_to(local / path)

    def explain(self, error: Exception) -> str:
        """One sentence on what to do after an error of `fetch`."""
        response = getattr(error.__cause__ or error, "response", None)
        reason = getattr(error, "strerror", None) or type(error.__cause__ or error).__name__
        reason = reason if response is None else f"HTTP {response.status_code}"
        gated = f"accept its licence ({self.licence}) and set HF_TOKEN"
        gone = f"there is no such folder, and no such repository with revision {self.revision or 'main'}"
        known = {"HTTP 401": gated, "HTTP 403": gated, "HTTP 404": gone, "HFValidationError": gone}
        advice = known.get(reason, "check network and disk space and run this again")
        return f"{self.repository} can't be fetched ({reason}): {advice}, or name another by --repo {self.folder}=..."


def digest(path: Path) -> str | None:
    """The sha256 of a file; None if there is no file."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: Path, repos: list[str], lock: dict[str, str]) -> list[Source]:
    """The sources, with the repositories that `repos` (NAME=REPO) names, and what the first download locked."""
    sources = [Source(**group) for group in json.loads(path.read_text())["sources"]]
    for name, _, repo in (option.partition("=") for option in repos):
        named = [source for source in sources if source.folder == name]
        if not named or not repo:
            sys.exit(f"download: --repo takes NAME=OWNER/REPO or NAME=FOLDER, NAME as in {path}; got {name}={repo}")
        for source in named:
            if not source.repository.startswith("http") or Path(repo, min(source.files)).expanduser().is_file():
                source.repository, source.revision = repo, None  # the hub does not have RAM's tag lists
    for source in sources:
        source.revision = source.revision or lock.get(source.repository)
        source.files = {file: sha or lock.get(f"{source.folder}/{file}") for file, sha in source.files.items()}
    return sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=ROOT / "weights/manifest.json")
    parser.add_argument("--out", type=Path, default=ROOT / "weights/upstream", help="not needed after converting")
    parser.add_argument("--jobs", type=int, default=4, help="files at a time")
    parser.add_argument("--repo", action="append", default=[], metavar="NAME=REPO", help="OWNER/REPO or a folder")
    parser.add_argument("--dry-run", action="store_true", help="list the missing files, without network")
    arguments = parser.parse_args()
    out, lock_path, failures = arguments.out, arguments.manifest.with_suffix(".lock.json"), []
    try:
        lock = json.loads(lock_path.read_text()) if lock_path.exists() else {}
    except ValueError:
        sys.exit(f"download: {lock_path} is no valid JSON; remove it, or restore it from git")
    for source in read_manifest(arguments.manifest, arguments.repo, lock):
        if arguments.dry_run:
            print("".join(f"{source.repository}/{path}\n" for path in source.missing(out / source.folder)), end="")
        elif failure := source.bring(out / source.folder, arguments.jobs):
            failures.append(f"download: {failure}")
        elif source.revision:
            lock |= {f"{source.folder}/{path}": sha for path, sha in source.files.items()}
            lock |= {source.repository: source.revision}
            lock_path.write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n")
    if failures or arguments.dry_run:
        sys.exit("\n".join(failures) or 0)
    base = shlex.quote(os.path.relpath(out, ROOT))
    print(
        f"Next:\n.venv/bin/python scripts/convert.py --sd-turbo {base}/sd-turbo --seesr {base}/seesr"
        f" --ram {base}/ram/ram_swin_large_14m.pth --dape {base}/seesr/DAPE.pth --tags {base}/ram/ram_tag_list.txt"
        f" --thresholds {base}/ram/ram_tag_list_threshold.txt --tiny-vae {base}/taesd --out weights/seesr-turbo"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once: transfers in threads can't be stopped
    main()
