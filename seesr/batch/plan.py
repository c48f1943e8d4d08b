"""The plan of a run: what is to be done, under which names, and in which order."""

import os
import stat as modes
import unicodedata
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from seesr import images, sizes
from seesr.batch import files, lock
from seesr.batch.files import place_of
from seesr.batch.find import Found, Inputs, parent_of, shown
from seesr.batch.job import Job, Options
from seesr.batch.naming import Naming
from seesr.batch.report import Report, hash_of, model_key, settings_of
from seesr.batch.work import unwritable

CHUNK = 1000  # images whose headers are read, and which are sorted, at a time
READERS = 16  # headers at a time: most of it is waiting for the storage


class Plan:
    """Names all inputs and refuses what would go wrong, then gives jobs as they are asked for.

    Raises ValueError for an output that is an input or another's output. `model` None: that of a result does not count.
    """

    def __init__(
        self, options: Options, inputs: Inputs, naming: Naming, reports: Mapping[str, Report], model: str | None
    ) -> None:
        self._options, self.inputs, self._naming, self._reports = options, inputs, naming, reports
        self._settings, self._model = hash_of(settings_of(options.settings)), model and model_key(model)
        self.found = list(inputs.find(reports))
        self.waiting: dict[str, Job] = {}
        """Jobs that were given out, by input. Who gets their rows takes them out."""
        self.skipped = 0
        self._planned, self._megapixels = 0, 0.0
        self._prepared: set[str] = set()
        for root in inputs.roots:
            self._prepare(root)
        self._stopped = False
        self._folds_case = any(os.path.exists(os.path.join(root, lock.NAME.upper())) for root in inputs.roots)
        self._check()

    def stop(self) -> None:
        """No further job is given out."""
        self._stopped = True

    @property
    def notes(self) -> list[str]:
        """What to tell of the inputs, in sentences: what could not be read, what is left out, that there are none."""
        notes = list(self.inputs.unreadable)
        if left := len(self.inputs.left_out):
            notes.append(f"{left} results of earlier runs are left out; give one alone to upscale it again")
        return notes if self.found else [*notes, f"found no images in {' '.join(self._options.paths)}"]

    @property
    def total_megapixels(self) -> float:
        """Of all results: of the jobs given out, and of the rest as if it were like them."""
        seen = self._planned + self.skipped
        return self._megapixels * len(self.found) / seen if seen else 0.0

    @property
    def by_another_model(self) -> int:
        """How many results another model made, which are made again."""
        if self._options.force or self._model is None:
            return 0
        done_by = self._settings, self._model
        return sum(self._reports[one.root].is_by_another(one.name, self.output_of(one), *done_by) for one in self.found)

    def jobs(self) -> Iterator[Job]:
        """What is to be done. Of each thousand images the largest come first, so that equal sizes follow each other."""
        left = iter(self.found)
        with ThreadPoolExecutor(READERS) as readers:
            while chunk := list(islice(left, CHUNK)):
                jobs = [job for job in readers.map(self._job, chunk) if job is not None]
                self.skipped += len(chunk) - len(jobs)
                self._planned += len(jobs)
                self._megapixels += sum(result_megapixels(job, self._options) for job in jobs)
                for job in sorted(jobs, key=_order):
                    if self._stopped:
                        return
                    self._prepare(parent_of(job.output), job.root)
                    self.waiting[job.input] = job
                    yield job

    def output_of(self, found: Found) -> str:
        """Where the result of an image goes."""
        if self._options.output:
            return place_of(self._options.output)
        folder, _, name = found.name.rpartition("/")
        if self.inputs.out:
            below = found.name[len(found.base) :].strip("/").rpartition("/")[0]
            folder = files.join(self.inputs.out, below) if below else self.inputs.out
        return files.join(folder or "/", self._naming.output(name))

    def _job(self, found: Found) -> Job | None:
        """The job of an image; None if it is done."""
        try:
            stat = found.stat or files.stat(found.name)
        except (OSError, ValueError):
            stat = files.Stat(0, None)
        job = Job(found.name, self.output_of(found), found.root, stat.bytes, stat.modified)
        if not self._options.force and self._reports[found.root].is_done(job, self._settings, self._model):
            return None
        return Job(job.input, job.output, job.root, job.bytes, job.modified, _read_size(found.name))

    def _prepare(self, folder: str, root: str | None = None) -> None:
        if folder in self._prepared or self._options.dry_run:
            return
        try:
            files.make_folder(folder, root)
            if not files.is_address(folder):
                lock.check_free(folder)
            files.remove_leftovers(folder)
        except OSError as error:
            raise unwritable(folder, error) from None
        self._prepared.add(folder)

    def _check(self) -> None:
        """ValueError for the first output that is an input or another's output."""
        inputs = {hash(place) for found in self.found for place in self._places(found)}  # of a million: not the names
        outputs: set[int] = set()
        for found in self.found:
            output = self.output_of(found)
            place = self._place(output)
            key = hash(place)
            if key in inputs and (other := next((one.name for one in self.found if place in self._places(one)), None)):
                whose = "itself" if other == found.name else f"the input {shown(other)}"
                raise ValueError(f"the result of {shown(found.name)} would overwrite {whose}; {ADVICE}")
            if key in outputs:
                other = next(one.name for one in self.found if self._place(self.output_of(one)) == place)
                both = f"{shown(other)} and {shown(found.name)} would both become {shown(output)}"
                raise ValueError(f"{both}; {ADVICE}")
            outputs.add(key)

    def _places(self, found: Found) -> Iterator[str]:
        """What must not be overwritten: an input and, if that is a link, what it leads to."""
        yield self._place(found.name)
        if found.name in self.inputs.links:
            yield self._place(os.path.realpath(found.name))

    def _place(self, name: str) -> str:
        """Equal for names of one file, whatever links lead there, and in whatever case where that does not count."""
        place = files.real_place(name)
        return unicodedata.normalize("NFC", place).casefold() if self._folds_case else place


ADVICE = 'name results otherwise, such as --name "{stem}_{ext}_x{scale:g}", or give another --out'


def _read_size(name: str) -> sizes.Size | None:
    try:
        if not files.is_address(name) and not modes.S_ISREG(os.stat(name).st_mode):
            return None
        with files.open_binary(name, header=True) as file:
            return images.read_size(file)
    except (OSError, ValueError):
        return None


def result_size(job: Job, options: Options) -> sizes.Size | None:
    """(height, width) of a job's result; None where the input's size is not known or not allowed."""
    if job.size is None:
        return None
    try:
        scale = options.settings.scale(job.size)
        return sizes.working_size(job.size, scale, process_size=1)[0]
    except ValueError:
        return None


def result_megapixels(job: Job, options: Options) -> float:
    """Of a job's result, 0 where that is not known."""
    height, width = result_size(job, options) or (0, 0)
    return height * width / 1e6


def _order(job: Job) -> tuple[int, int, int, str]:
    height, width = job.size or (0, 0)
    return -height * width, height, -job.bytes, job.input
