"""The plan of a run: what is to be done, under which names, and in which order."""

import os
import stat as modes
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from seesr import images, sizes
from seesr.batch import files
from seesr.batch.find import Found, Inputs, parent_of, place_of, shown
from seesr.batch.job import Job, Options
from seesr.batch.naming import Naming
from seesr.batch.report import Report, hash_of, settings_of
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
        self._options, self._inputs, self._naming, self._reports = options, inputs, naming, reports
        self._done_by = None if model is None else hash_of(settings_of(options.settings), model)
        self.found = list(inputs.find(set().union(*(report.outputs for report in reports.values()))))
        self.waiting: dict[str, Job] = {}
        """Jobs that were given out, by input. Who gets their rows takes them out."""
        self.skipped = 0
        self._planned, self._megapixels = 0, 0.0
        self._prepared: set[str] = set()
        for root in inputs.roots:
            self._prepare(root)
        self._stopped = False
        self._check()

    def stop(self) -> None:
        """No further job is given out."""
        self._stopped = True

    @property
    def unreadable(self) -> list[str]:
        """A sentence on each folder that could not be looked into."""
        return self._inputs.unreadable

    @property
    def total_megapixels(self) -> float:
        """Of all results: of the jobs given out, and of the rest as if it were like them."""
        seen = self._planned + self.skipped
        return self._megapixels * len(self.found) / seen if seen else 0.0

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
        if self._inputs.out:
            below = found.name[len(found.base) :].strip("/").rpartition("/")[0]
            folder = files.join(self._inputs.out, below) if below else self._inputs.out
        return files.join(folder or "/", self._naming.output(name))

    def _job(self, found: Found) -> Job | None:
        """The job of an image; None if it is done."""
        try:
            stat = found.stat or files.stat(found.name)
        except (OSError, ValueError):
            stat = files.Stat(0, None)
        job = Job(found.name, self.output_of(found), found.root, stat.bytes, stat.modified)
        if not self._options.force and self._reports[found.root].is_done(job, self._done_by):
            return None
        return Job(job.input, job.output, job.root, job.bytes, job.modified, _read_size(found.name))

    def _prepare(self, folder: str, root: str | None = None) -> None:
        if folder in self._prepared or self._options.dry_run:
            return
        try:
            files.make_folder(folder, root)
            files.remove_leftovers(folder)
        except OSError as error:
            raise unwritable(folder, error) from None
        self._prepared.add(folder)

    def _check(self) -> None:
        """ValueError for the first output that is an input, a folder or another's output."""
        inputs = {hash(found.name) for found in self.found}  # hashes, since names of a million files are long
        outputs: set[int] = set()
        for found in self.found:
            output = self.output_of(found)
            key = hash(output)
            if key in inputs and (other := next((one.name for one in self.found if one.name == output), None)):
                whose = "itself" if other == found.name else f"the input {shown(other)}"
                raise ValueError(f"the result of {shown(found.name)} would overwrite {whose}; {ADVICE}")
            if key in outputs:
                other = next(one.name for one in self.found if self.output_of(one) == output)
                both = f"{shown(other)} and {shown(found.name)} would both become {shown(output)}"
                raise ValueError(f"{both}; {ADVICE}")
            outputs.add(key)


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
