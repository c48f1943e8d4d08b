"""Which images the paths of a command line name: files, folders with all below, patterns, addresses."""

import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from seesr.batch import files, report
from seesr.batch.job import Options
from seesr.batch.naming import Naming

_ENDINGS = """jpg jpeg jpe jfif png apng webp avif heic heif hif tif tiff bmp dib gif ico tga pcx qoi
    ppm pgm pbm pnm pam"""
ENDINGS = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Of the files that are taken from a folder. One that is given by name may have any."""

_MAGIC = re.compile(r"[*?[]")


class Found(NamedTuple):
    """An image to do. `base` is the folder that its place under --out is counted from, `root` the report's folder."""

    name: str
    base: str
    root: str
    stat: files.Stat | None = None
    """Where listing told it without a further question."""


Listed = dict[str, files.Stat | None]
"""The files of a folder by name; what listing told about them."""


class Match(NamedTuple):
    """A file or a folder that was asked for. `base` as in Found: of a pattern's, the folder before its first star."""

    name: str
    is_folder: bool
    base: str


class Inputs:
    """What the paths of the options name. Raises ValueError for a path that names nothing.

    `unreadable` holds a sentence for each folder that could not be looked into, once it was met.
    """

    def __init__(self, options: Options, naming: Naming) -> None:
        self.out = options.out and place_of(options.out)
        self.unreadable: list[str] = []
        self._naming, self._dry_run = naming, options.dry_run
        self._matches = [match for path in options.paths for match in _matches(path)]
        self._several = sum(match.is_folder for match in self._matches) > 1
        self._output = options.output and place_of(options.output)

    @property
    def roots(self) -> list[str]:
        """Where reports stand, each once."""
        return list(dict.fromkeys(self._root(match) for match in self._matches))

    @property
    def is_one_file(self) -> bool:
        return len(self._matches) == 1 and not self._matches[0].is_folder

    def find(self, results: Collection[str]) -> Iterator[Found]:
        """The images, each once; `results` are known results of earlier runs, which are none."""
        seen: set[str] = set()
        by_name = [match for match in self._matches if not match.is_folder]
        made = self._made_of_each_other(by_name, results) if len(self._matches) > 1 else set()
        for match in self._matches:
            for found in self._below(match, results) if match.is_folder else [self._one(match)]:
                if found.name not in seen and found.name not in made:
                    seen.add(found.name)
                    yield found

    def _root(self, match: Match) -> str:
        if self.out or match.is_folder:
            return self.out or match.name
        return parent_of(self._output) if self._output else match.base

    def _one(self, match: Match) -> Found:
        return Found(match.name, match.base, self._root(match))

    def _made_of_each_other(self, matches: Sequence[Match], results: Collection[str]) -> set[str]:
        """Of files given by name, such as those of a shell's pattern: those that are results of earlier runs."""
        folders: dict[str, list[str]] = {}
        for match in matches:
            folders.setdefault(parent_of(match.name), []).append(match.name.rpartition("/")[2])
        made = {match.name for match in matches if match.name in results}
        for folder, names in folders.items() if self.out is None else ():
            made |= {files.join(folder, name) for name in self._naming.results_among(names)}
        return made

    def _below(self, match: Match, results: Collection[str]) -> Iterator[Found]:
        """The images of a folder and the folders in it: no hidden ones, nothing in `out`, no results."""
        base, root = parent_of(match.name) if self._several else match.name, self._root(match)
        for folder, names in self._addresses(match.name) if files.is_address(match.name) else self._folders(match.name):
            images = [name for name in names if _has_ending(name) and not name.startswith(".")]
            made = self._naming.results_among(images) if self._is_written(folder) else set()
            others = self._others(folder, root) if report.NAME in names else ()
            for name in images:
                place = files.join(folder, name)
                if name not in made and place not in results and place not in others:
                    yield Found(place, base, root, names[name])

    def _is_written(self, folder: str) -> bool:
        """Whether results may stand in a folder of inputs."""
        return self.out is None or _is_in(folder, self.out)

    def _others(self, folder: str, root: str) -> Collection[str]:
        """The results that the report of another run on a folder below names. StoppedError if that run goes on."""
        if folder == root or files.is_address(folder):
            return ()
        if not self._dry_run and self._is_written(folder):
            report.check_free(Path(folder))
        return report.outputs_in(Path(folder, report.NAME))

    def _addresses(self, top: str) -> Iterator[tuple[str, Listed]]:
        """Folders below an address, and the files in them."""
        folders: dict[str, Listed] = {}
        for name, stat in files.find(top):
            folder, _, last = name.rpartition("/")
            if not _is_hidden(folder[len(top) :]) and not (self.out and self.out != top and _is_in(folder, self.out)):
                folders.setdefault(folder, {})[last] = stat
        yield from folders.items()

    def _folders(self, top: str) -> Iterator[tuple[str, Listed]]:
        """Folders below `top` and the files in them. A folder with several names is met once, `out` never."""
        waiting, links, seen = [top], list[str](), set[str]()
        if self.out and not files.is_address(self.out):
            seen = {os.path.realpath(self.out)} - {os.path.realpath(top)}
        while waiting or links:
            folder = waiting.pop() if waiting else links.pop()
            real = os.path.realpath(folder)
            if real in seen:
                continue
            seen.add(real)
            try:
                with os.scandir(folder) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self.unreadable.append(f"{shown(folder)} cannot be read ({error.strerror}) and is left out")
                continue
            yield folder, {entry.name: None for entry in listed if not entry.is_dir()}
            below = [entry for entry in reversed(listed) if entry.is_dir() and not entry.name.startswith(".")]
            waiting += [entry.path for entry in below if not entry.is_symlink()]
            links += [entry.path for entry in below if entry.is_symlink()]


def shown(name: str) -> str:
    """A name as messages have it: on one line."""
    return name if name.isprintable() else repr(name)


def parent_of(name: str) -> str:
    """The folder that holds a file, or its address."""
    return name.rpartition("/")[0] if files.is_address(name) else os.path.dirname(name)


def place_of(name: str) -> str:
    """A path in full; an address as it is."""
    if name.startswith("file://"):
        name = name.removeprefix("file://")
    return name.rstrip("/") if files.is_address(name) else os.path.abspath(name)


def _matches(path: str) -> Iterator[Match]:
    """The files and folders that a path or a pattern names."""
    place = place_of(path)
    if files.is_address(place):
        yield from _matching_addresses(place)
        return
    if os.path.isdir(place):
        yield Match(place, True, place)
    elif os.path.exists(place):
        yield Match(place, False, os.path.dirname(place))
    elif _MAGIC.search(path):
        base = _MAGIC.split(place)[0].rpartition("/")[0]
        found = [(name, os.path.isdir(name)) for name in sorted(glob.glob(place, recursive=True))]
        yield from _images_among(path, base, found)
    else:
        raise ValueError(f"PATH must be a file, a folder, a pattern or an address, got {path!r} ({_fault(place)})")


def _images_among(pattern: str, base: str, found: Iterable[tuple[str, bool]]) -> Iterator[Match]:
    """The images and the folders that a pattern fits; of one with **, which fits what is in folders too, the images."""
    folders = "**" not in pattern
    matches = [Match(name, is_folder, base) for name, is_folder in found if folders or not is_folder]
    matches = [match for match in matches if match.is_folder or _has_ending(match.name)]
    if not matches:
        raise ValueError(f"PATH must name images, got the pattern {pattern!r}, which none fits")
    yield from matches


def _fault(place: str) -> str:
    """Why there is nothing at a path."""
    try:
        os.stat(place)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "it came just now"


def _matching_addresses(place: str) -> Iterator[Match]:
    if _MAGIC.search(place):
        yield from _images_among(place, _MAGIC.split(place)[0].rpartition("/")[0], files.match(place))
    elif files.is_folder(place):
        yield Match(place, True, place)
    elif files.exists(place):
        yield Match(place, False, parent_of(place))
    else:
        raise ValueError(f"PATH must be a file, a folder, a pattern or an address, got {place!r} (nothing is there)")


def _has_ending(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ENDINGS


def _is_in(folder: str, other: str) -> bool:
    return f"{folder}/".startswith(f"{other}/")


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))
