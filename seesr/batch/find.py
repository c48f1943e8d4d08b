"""Which images the paths of a command line name: files, folders with all below, patterns, addresses."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from seesr.batch import files, lock, report
from seesr.batch.files import place_of
from seesr.batch.job import Options
from seesr.batch.naming import Naming

_ENDINGS = """jpg jpeg jpe jfif png apng webp avif heic heif hif tif tiff bmp dib gif ico tga pcx qoi
    ppm pgm pbm pnm pam"""
ENDINGS = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""Of the files that are taken from a folder. One that is given by name may have any."""


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

    `find` fills `unreadable`, a sentence for each folder that could not be looked into; `left_out`, files that look
    like results though no report names them, or that were given by name; and `links`, files that are links.
    """

    def __init__(self, options: Options, naming: Naming) -> None:
        self.out = options.out and place_of(options.out)
        self.unreadable: list[str] = []
        self.left_out, self.links = set[str](), set[str]()
        self._naming, self._dry_run = naming, options.dry_run
        self._matches = [match for path in options.paths for match in _matches(path)]
        self._several = sum(match.is_folder for match in self._matches) > 1
        self._output = options.output and place_of(options.output)
        self.roots = list(dict.fromkeys(self._root(match) for match in self._matches))
        """Where reports stand, each once."""

    @property
    def is_one_file(self) -> bool:
        return len(self._matches) == 1 and not self._matches[0].is_folder

    def find(self, reports: Mapping[str, report.Report]) -> Iterator[Found]:
        """The images, each once. Results that the reports of the roots name, or those below them, are none."""
        seen, results = set[str](), {files.real_place(name) for one in reports.values() for name in one.outputs}
        by_name = [match.name for match in self._matches if not match.is_folder]
        made = self._made_of_each_other(by_name, results) if len(self._matches) > 1 else set()
        self.left_out |= made
        self.links.update(name for name in by_name if os.path.islink(name))
        for match in self._matches:
            one = Found(match.name, match.base, self._root(match))
            for found in self._below(match, reports, results) if match.is_folder else [one]:
                place = files.real_place(found.name)
                if place not in seen and place not in made:
                    seen.add(place)
                    yield found

    def _root(self, match: Match) -> str:
        if self.out or match.is_folder:
            return self.out or match.name
        return parent_of(self._output) if self._output else match.base

    def _made_of_each_other(self, names: Sequence[str], results: Collection[str]) -> set[str]:
        """Places of files given by name, such as those of a shell's pattern, that are results of earlier runs."""
        folders: dict[str, list[str]] = {}
        for place in map(files.real_place, names):
            folders.setdefault(parent_of(place), []).append(place.rpartition("/")[2])
        made = {place for place in map(files.real_place, names) if place in results}
        for folder, lasts in folders.items() if self.out is None else ():
            made |= {files.join(folder, last) for last in self._naming.results_among(lasts)}
        return made

    def _below(self, match: Match, reports: Mapping[str, report.Report], results: set[str]) -> Iterator[Found]:
        """The images of a folder and the folders in it: no hidden ones, nothing in `out`, no results."""
        base, root = parent_of(match.name) if self._several else match.name, self._root(match)
        for folder, names in self._addresses(match.name) if files.is_address(match.name) else self._folders(match.name):
            images = [name for name in names if _has_ending(name) and not name.startswith(".")]
            made = self._naming.results_among(images) if self._is_written(folder) else set()
            if not files.is_address(folder) and files.real_folder(folder) != files.real_folder(root):
                results.update(map(files.real_place, self._others(folder, names, reports[root])))
            for name in images:
                found = Found(files.join(folder, name), base, root, names[name])
                if (place := files.real_place(found.name)) in results:
                    continue
                if name in made:
                    self.left_out.add(place)
                else:
                    yield found

    def _is_written(self, folder: str) -> bool:
        """Whether results may stand in a folder of inputs."""
        return self.out is None or _is_in(files.real_folder(folder), files.real_folder(self.out))

    def _others(self, folder: str, names: Listed, ours: report.Report) -> Collection[str]:
        """The results that another report in a folder below names. StoppedError if its run goes on."""
        if lock.NAME in names and self._is_written(folder) and not self._dry_run:
            lock.check_free(folder)
        return ours.adopt(Path(folder, report.NAME)) if report.NAME in names else ()

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
            real = files.real_folder(folder)
            if real in seen:
                continue
            seen.add(real)
            try:
                with os.scandir(folder) as entries:
                    listed = [(entry, *_kind(entry)) for entry in sorted(entries, key=lambda entry: entry.name)]
            except OSError as error:
                self.unreadable.append(f"{shown(folder)} cannot be read ({error.strerror}) and is left out")
                continue
            self.links.update(entry.path for entry, is_folder, is_link in listed if is_link and not is_folder)
            yield folder, {entry.name: None for entry, is_folder, _ in listed if not is_folder}
            below = [one for one in reversed(listed) if one[1] and not one[0].name.startswith(".")]
            waiting += [entry.path for entry, _, is_link in below if not is_link]
            links += [entry.path for entry, _, is_link in below if is_link]


def shown(name: str) -> str:
    """A name as messages have it: on one line."""
    return name if name.isprintable() else repr(name)


def parent_of(name: str) -> str:
    """The folder that holds a file, or its address."""
    return name.rpartition("/")[0] if files.is_address(name) else os.path.dirname(name)


def _kind(entry: os.DirEntry) -> tuple[bool, bool]:
    """Whether an entry is a folder, and whether it is a link. One that cannot be followed is neither."""
    try:
        return entry.is_dir(), entry.is_symlink()
    except OSError:
        return False, False


def _matches(path: str) -> Iterator[Match]:
    """The files and folders that a path, an address or a pattern names."""
    place = place_of(path)
    if files.is_folder(place):
        yield Match(place, True, place)
    elif files.exists(place) or os.path.exists(place):  # a device, say
        yield Match(place, False, parent_of(place))
    elif files.MAGIC.search(path):
        yield from _images_among(path, files.MAGIC.split(place)[0].rpartition("/")[0], files.match(place))
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


def _has_ending(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in ENDINGS


def _is_in(folder: str, other: str) -> bool:
    return f"{folder}/".startswith(f"{other}/")


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))
