#!/usr/bin/env python3
"""Download the upstream files of weights/manifest.json (about 15 GB) and check the sha256 of each.

A second run resumes the first. HF_TOKEN is sent to the hub for gated repositories; HF_ENDPOINT names another hub.
--repo seesr=alexnasa/SEESR takes the folder seesr from another repository, --repo seesr=PATH from a local folder.
"""

import argparse
import errno
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# huggingface_hub reads these on import. Its Xet transfers start over after an interruption, plain ones resume.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_SYMLINKS_WARNING": "1", "HF_HUB_OFFLINE": "0"}

import requests
from huggingface_hub import HfApi
from huggingface_hub.utils import logging
from tqdm import tqdm

from scripts.manifest import Lock, Source, link, read_manifest

ROOT = Path(__file__).resolve().parent.parent
HUB = HfApi()


def look_up(sources: list[Source]) -> None:
    """Complete the files of one hub repository from its metadata, at one commit."""
    info = HUB.model_info(sources[0].repository, revision=sources[0].revision, files_metadata=True, timeout=30)
    files = {file.rfilename: file for file in info.siblings or []}
    for source in sources:
        if file := files.get(source.path):  # without it, the download is refused with 404
            source.revision, source.bytes, source.git_sha1 = info.sha, file.size, None if file.lfs else file.blob_id
            source.sha256 = source.sha256 or (file.lfs.sha256 if file.lfs else None)


def bring(source: Source, out: Path) -> None:
    """Put one file in its place, whole and checked."""
    path = out / source.place
    if not source.is_at(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch(source, path, out / source.folder)
    source.check(path)
    tqdm.write(f"{path}: {source.bytes:,} bytes")


def fetch(source: Source, path: Path, folder: Path, attempts: int = 10) -> None:
    """Bring one file to `path`, below `folder`. A cut connection is resumed, `attempts` times in all."""
    if source.host == "local":
        return link(Path(str(source)), path)
    path.unlink(missing_ok=True)  # the hub's library takes a file that is there for the right one
    if source.host == "github":
        answer = requests.get(source.github_url, timeout=30)
        answer.raise_for_status()
        path.write_bytes(answer.content)
    else:
        try:
            HUB.hf_hub_download(source.repository, source.path, revision=source.revision, local_dir=folder)
        except requests.exceptions.ChunkedEncodingError:  # the library itself resumes after other failures
            if attempts == 1:
                raise
            fetch(source, path, folder, attempts - 1)


def attempt(source: Source, action: Callable[..., None], *arguments: object) -> str | None:
    """Run `action`. If it fails, one sentence says what to do about `source`."""
    try:
        return action(*arguments)
    except RuntimeError as error:
        return str(error)
    except OSError as error:
        status = getattr(getattr(error.__cause__ or error, "response", None), "status_code", None)
        other = f"name another repository or a local folder by --repo {source.folder}=..."
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return f"{source} does not fit on the disk; free some space or use --out, and run this again"
        if status in (401, 403):
            return f"{source} is refused ({status}); accept its licence ({source.licence}) and set HF_TOKEN, or {other}"
        if status == 404:
            return f"{source} does not exist at revision {source.revision or 'main'} (404); {other}"
        reason = error.strerror or (f"HTTP {status}" if status else type(error.__cause__ or error).__name__)
        return f"{source} can't be fetched ({reason}); check network and folders, then run this again, or {other}"


def download(sources: list[Source], lock: Lock, out: Path, jobs: int) -> list[str]:
    """Bring `sources` below `out`, `jobs` at a time. Returns one sentence for each failure."""
    faults = []
    for repository in dict.fromkeys(source.repository for source in sources if source.host == "hub"):
        group = [source for source in sources if source.repository == repository]
        if sentence := attempt(group[0], look_up, group):
            faults.append(sentence)
            sources = [source for source in sources if source not in group]
    need = sum(source.bytes or 0 for source in sources if source.host != "local")
    need -= sum(part.stat().st_size for part in out.rglob("*.incomplete"))
    if need > (free := shutil.disk_usage(out).free):
        return [*faults, f"{need / 1e9:.1f} GB are missing, {out} has {free / 1e9:.1f} GB; free some or use --out"]
    results = ThreadPoolExecutor(jobs).map(lambda source: attempt(source, bring, source, out), sources)
    for source, sentence in zip(sources, results, strict=True):
        if sentence:
            faults.append(sentence)
        elif source.host != "local":
            lock.add(source)
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=ROOT / "weights/manifest.json")
    parser.add_argument("--out", type=Path, default=ROOT / "weights/upstream", help="not needed after converting")
    parser.add_argument("--jobs", type=int, default=4, help="files at a time")
    parser.add_argument("--repo", action="append", default=[], metavar="NAME=REPO", help="see above")
    parser.add_argument("--dry-run", action="store_true", help="list the missing files, without network")
    arguments = parser.parse_args()
    out: Path = arguments.out
    warnings.filterwarnings("ignore", module="huggingface_hub")
    logging.set_verbosity_error()
    try:
        sources, lock = read_manifest(arguments.manifest, arguments.repo)
        missing = [source for source in sources if not source.is_at(out / source.place)]
        if arguments.dry_run:
            print(*map(Source.describe, missing), sep="\n")
            return
        out.mkdir(parents=True, exist_ok=True)
        faults = download(missing, lock, out, max(1, arguments.jobs))
    except (RuntimeError, OSError) as error:
        faults = [str(error)]
    except KeyboardInterrupt:
        print("download: interrupted; run this again to go on", file=sys.stderr, flush=True)
        os._exit(1)  # the library's transfers can't be stopped; no unfinished file is in its place
    if faults:
        sys.exit("\n".join(f"download: {sentence}" for sentence in faults))
    for unfinished in out.glob("*/.cache"):
        shutil.rmtree(unfinished)
    base = shlex.quote(os.path.relpath(out, ROOT))
    print(
        f"Next:\n.venv/bin/python scripts/convert.py --sd-turbo {base}/sd-turbo --seesr {base}/seesr"
        f" --ram {base}/ram/ram_swin_large_14m.pth --dape {base}/seesr/DAPE.pth --tags {base}/ram/ram_tag_list.txt"
        f" --thresholds {base}/ram/ram_tag_list_threshold.txt --out weights/seesr-turbo"
    )


if __name__ == "__main__":
    main()
