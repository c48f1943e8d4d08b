"""The folder that `cog push` runs in: exactly what the image needs.

`cog push --separate-weights` copies every folder with a large file, whether .dockerignore hides it or not. In the
project's own folder the build therefore fails on .venv and weights/upstream.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = "weights/seesr-turbo"
"""Where the image has its bundle: SEESR_WEIGHTS in cog.yaml."""

MARKER = ".seesr-stage"
"""The file by which a folder is known as a stage, which may be emptied."""

DAY = 24 * 3600  # seconds after which a temporary stage is a leftover
LARGE = 10 * 2**20
CODE = (".py", ".ipynb")
MEDIA = ".jpg .jpeg .png .webp .svg .gif .avif .heic .mp4 .mov .avi .wmv .mkv .webm .mp3 .wav .ogg .flac .aac .m4a"
NO_WEIGHTS = (*CODE, ".whl", ".log", *MEDIA.split())


def check_bundle(folder: Path, root: Path = ROOT) -> tuple[bool, str]:
    """Load a bundle strictly and check its hashes: (whether it is the full model, what it is).

    Raises RuntimeError that names what is missing, was changed or does not fit.
    """
    import torch  # imported here, since `scripts/deploy --help` must not take seconds

    from scripts.bundle_writer import hash_files
    from seesr import bundle

    if not (folder / "bundle.json").is_file():
        advice = "download and convert the weights (docs/deploy.md), or name another bundle by --bundle"
        raise RuntimeError(f"{folder} has no bundle.json, and no worker starts without a bundle; {advice}")
    with bundle.open_tensors(folder / bundle.FILES["unet"]) as file:
        stored = file.get_slice(next(iter(file.keys()))).get_dtype()
    name = bundle.load(folder, "cpu", torch.float16 if stored == "F16" else torch.float32).name
    info, size = bundle.read_json(folder / "bundle.json"), sum(path.stat().st_size for path in _walk(folder))
    found, recorded = hash_files(folder), info.get("files", {})
    if found != recorded:
        faults = sorted(name for name in found.keys() | recorded.keys() if found.get(name) != recorded.get(name))
        raise RuntimeError(f"{folder}: {', '.join(faults[:3])} must have the sha256 of bundle.json; convert it again")
    pinned = "".join(path.read_text() for path in sorted((root / "weights").glob("manifest*.json")))
    sources = dict(info.get("created_from", {}))
    known = sum(str(sha256) in pinned for sha256 in sources.values())
    about = f"{name}, {stored}, {size / 1e9:.2f} GB: names, shapes, configs and sha256 fit"
    if sources:
        about += f"; {known} of {len(sources)} source files have the manifest's sha256"
    is_full = info.get("kind") == "seesr-turbo"
    return is_full, about if is_full else f"{about}; not the full model, a test"


def check_apart(bundle: Path, stage: Path | None) -> None:
    """Raise ValueError if one of the two folders holds the other: a stage is emptied first."""
    if stage is None:
        return
    one, other = bundle.resolve(), stage.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(f"--stage and --bundle must be folders apart, got {stage} and {bundle}; name another --stage")


def image_filter(root: Path) -> Callable[[str], bool]:
    """Whether the .dockerignore of `root` leaves a path in, for the patterns that ours has: names, `*` and `**/`.

    A pattern matches a path or any folder above it. The last pattern that matches decides.
    """
    rules: list[tuple[bool, re.Pattern[str]]] = []
    for line in (root / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            rules.append((line.startswith("!"), re.compile(pattern)))

    def in_image(path: str) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        matching = [keep for keep, rule in rules if any(rule.fullmatch(name) for name in above)]
        return not matching or matching[-1]

    return in_image


def image_files(root: Path) -> tuple[list[str], list[str]]:
    """The files of `root` for the image, without the bundle, and sentences on how they differ from the last commit."""
    in_image = image_filter(root)

    def git(*command: str) -> list[str]:
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
        return [name for name in done.stdout.split("\0") if name and done.returncode == 0]

    top = git("rev-parse", "--show-toplevel") if shutil.which("git") else []
    if not top or Path(top[0].strip()).resolve() != root.resolve():  # a download, maybe inside another checkout
        names = [name for name in names_in(root) if in_image(name) and not name.startswith(f"{BUNDLE}/")]
        return names, ["no git checkout: every file that .dockerignore leaves in is taken"]
    changed = list(filter(in_image, git("diff", "--name-only", "-z", "HEAD")))
    unknown = list(filter(in_image, git("ls-files", "-z", "--others", "--exclude-standard")))
    notes = [f"not committed, taken as on disk: {', '.join(changed)}"] if changed else []
    notes += [f"unknown to git, LEFT OUT (git add takes them in): {', '.join(unknown)}"] if unknown else []
    return [name for name in git("ls-files", "-z") if in_image(name) and (root / name).is_file()], notes


@contextmanager
def open_stage(folder: Path | None, root: Path = ROOT) -> Iterator[Path]:
    """An empty stage: `folder`, which stays, or a temporary one beside the bundles, on their disk.

    A folder that is not empty is refused unless it is an earlier stage.
    """
    if folder is None:
        for left in (root / "weights").glob(".stage-*"):  # of a push that was killed
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".stage-", dir=root / "weights") as name:
            yield Path(name)
        return
    folder.mkdir(parents=True, exist_ok=True)
    found = list(folder.iterdir())
    if found and not (folder / MARKER).is_file():
        raise ValueError(f"--stage must be a new or empty folder, or an earlier stage, got {folder}; name another")
    (folder / MARKER).touch()
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    yield folder


def fill(stage: Path, bundle: Path, profile: str, root: Path = ROOT) -> list[str]:
    """Copy the image's files into `stage` and link the bundle; SEESR_GPU becomes `profile`. Returns what is notable."""
    files, notes = image_files(root)
    for name in [".dockerignore", *files]:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, stage / name)
    config, found = re.subn(r"(?m)^(\s*- SEESR_GPU=).*$", rf"\g<1>{profile}", (root / "cog.yaml").read_text())
    if found != 1:
        raise RuntimeError(f"cog.yaml must set SEESR_GPU once, it does so {found} times; restore it from git")
    (stage / "cog.yaml").write_text(config)
    in_image = image_filter(root)
    names = [name for name in names_in(bundle) if in_image(f"{BUNDLE}/{name}")]
    copied = sum(not _link(bundle / name, stage / BUNDLE / name) for name in names)
    return notes + (
        [f"{copied} files of {bundle} are copies: hard links from there are not possible"] if copied else []
    )


def _link(path: Path, place: Path) -> bool:
    """Hard-link a file, or copy it where that fails. Whether it was linked."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), place)
    except OSError:
        shutil.copyfile(path, place)
        return False
    return True


def names_in(root: Path) -> list[str]:
    """The files below `root`, relative to it, with slashes."""
    return sorted(path.relative_to(root).as_posix() for path in _walk(root))


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names)


def weight_folders(root: Path) -> list[str]:
    """The folders, and files of `root` itself, that `cog push --separate-weights` copies into layers of their own.

    Those of large files, unless a file of code has a path that starts like the folder's (Cog 0.22, pkg/weightslegacy).
    """
    names = [name for name in names_in(root) if ".git" not in name.split("/")[:-1]]
    weights = (n for n in names if not n.endswith(NO_WEIGHTS) and not n.startswith((".cog", ".git", "__pycache__")))
    large = [name for name in weights if (root / name).lstat().st_size >= LARGE]
    folders: list[str] = []
    for name in sorted(large, key=lambda name: (name.count("/"), name.split("/"))):
        folder = name.rpartition("/")[0]
        if folder and not any(f"{folder}/".startswith(f"{known}/") for known in folders):
            folders.append(folder)
    with_code = [folder for folder in folders if any(n.startswith(folder) for n in names if n.endswith(CODE))]
    return [folder for folder in folders if folder not in with_code] + [name for name in large if "/" not in name]


def hidden_weights(root: Path) -> list[str]:
    """Which of weight_folders .dockerignore hides altogether: the build fails on each."""
    seen = list(filter(image_filter(root), names_in(root)))
    return [copied for copied in weight_folders(root) if not any(f"{n}/".startswith(f"{copied}/") for n in seen)]
