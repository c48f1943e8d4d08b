"""What the page does, without how it looks: take images, foresee, run, and keep results."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.page.form import main_field, read_fields, read_values
from scripts.page.job import Client, Health, Job, Output
from scripts.page.log import LOADED
from scripts.page.panels import bytes_text, size_text
from scripts.page.toolbox_process import ENDED, ToolboxProcess
from scripts.page.visit import Result, Run, Source, Visit, file_name, metrics_of

EMBEDDED = "Using the small embedded bundle"
HEALTH_SECONDS = 1.0
"""How old an answer about the server's health may be, for several visits at once."""


class Studio:
    """One model and its visits. `fields` are the inputs that the server declares."""

    def __init__(self, client: Client, toolbox: ToolboxProcess, document: Mapping[str, Any]) -> None:
        self.client, self.toolbox, self.fields = client, toolbox, read_fields(document)
        self.main = main_field(self.fields)
        self.can_foresee = any(field.name == "scale_factor" for field in self.fields)
        self.about, self.embedded, self._met = "", False, ""
        self._visits: dict[str, Visit] = {}
        self._health, self._asked = Health(False, "Looking for the server"), 0.0
        self._lock, self._asking = threading.Lock(), threading.Lock()

    def visit(self, id: str | None) -> Visit:
        with self._lock:
            if (id or "") not in self._visits:
                self._visits[id or ""] = Visit()
            return self._visits[id or ""]

    def leave(self, id: str | None) -> None:
        """A page was closed: what it runs is cancelled, what it kept is deleted."""
        visit = self._visits.pop(id or "", None)
        if visit is None:
            return
        if visit.run is not None:
            self.client.cancel(visit.run.job)
        visit.close()

    def close(self) -> None:
        for id in list(self._visits):
            self.leave(id)

    def health(self) -> Health:
        """The server's, asked at most once a second by however many visits."""
        if time.monotonic() - self._asked > HEALTH_SECONDS and self._asking.acquire(blocking=False):
            try:
                now = self.client.health()
                if now.ready and now.logs != self._met:
                    self._meet(now.logs)
                if not now.ready and self.toolbox.reason:
                    now = now._replace(sentence=f"{now.sentence}. It stopped: {self.toolbox.reason}")
                if self.toolbox.ended:
                    now = Health(False, ENDED)
                self._health, self._asked = now, time.monotonic()
            finally:
                self._asking.release()
        return self._health

    def _meet(self, logs: str) -> None:
        """Learn the server's model and speed from the log of its setup, whose last lines may come late."""
        self._met = logs
        if found := LOADED.search(logs):
            self.about = f"{found[1]} on {found[2]}"
        self.embedded = EMBEDDED in logs
        self.toolbox.tell("read_setup", logs=logs)

    def take(self, visit: Visit, paths: Sequence[str]) -> str:
        """Use these images from now on. Returns a sentence about one that cannot be read, else nothing."""
        sources, wrong = [], ""
        for path in paths:
            try:
                sources.append(Source(Path(path), **self.toolbox.ask("look", path=path, folder=str(visit.folder))))
            except (ValueError, RuntimeError) as error:
                sources.append(Source(Path(path)))
                wrong = wrong or f"{Path(path).name}: {error}"
        visit.sources, visit.forecasts = sources, []
        return wrong

    def foresee(self, visit: Visit, values: Mapping[str, Any]) -> None:
        """Forecast every image: its result's size, seconds and costs, or the sentence of what is wrong."""
        visit.forecasts = []
        if not self.can_foresee:
            return
        for source in visit.sources:
            if source.width:
                visit.forecasts.append(self._forecast(source, values))

    def _forecast(self, source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
        try:
            inputs = read_values(self.fields, values)
            return self.toolbox.ask("forecast", width=source.width, height=source.height, inputs=inputs)
        except (ValueError, RuntimeError) as error:
            return {"error": str(error)}

    def start(self, visit: Visit, values: Mapping[str, Any]) -> Run:
        """Send a request. ValueError if an input is missing."""
        inputs = read_values(self.fields, values)
        files: dict[str, Path | list[Path]] = {}
        for field in self.fields:
            if field.kind != "file":
                continue
            given = values.get(field.name) or []
            paths = [Path(path) for path in (given if isinstance(given, list) else [given])]
            if field == self.main:
                paths = [source.path for source in visit.sources]
            if not paths and field.required:
                raise ValueError("There is no photograph yet: drop, paste or choose one, or take an example")
            if paths:
                files[field.name] = paths if field.several else paths[0]
        run = visit.run = Run(Job(inputs, files), visit.sources, visit.forecasts)
        self.client.start(run.job)
        return run

    def finish(self, visit: Visit, run: Run) -> list[Result]:
        """Keep what a successful request returned, and learn from its seconds."""
        job, first = run.job, run.sources[0] if run.sources else None
        outputs, job.outputs = job.outputs, []  # they are on the disk from here on
        results = [self._keep(visit, run, number, output) for number, output in enumerate(outputs)]
        stages = metrics_of(job.metrics, 0).get("seconds")
        if self.can_foresee and first and first.width and stages:
            size = {"width": first.width, "height": first.height}
            self.toolbox.ask("learn", **size, inputs=job.inputs, seconds=stages)
        return results

    def calls(self, result: Result) -> dict[str, str]:
        """The request of this result alone as code, with its file and seed, at the server's present address."""
        inputs, files = dict(result.job.inputs), dict(result.job.files)
        if "seed" in result.metrics:  # of several variations this is one
            inputs.pop("sample_times", None)
            inputs["seed"] = result.metrics["seed"]
        if self.main and self.main.several and result.source:
            files[self.main.name] = [result.source.path]
        return self.client.calls(Job(inputs, files), result.path.suffix[1:])

    def _keep(self, visit: Visit, run: Run, number: int, output: Output) -> Result:
        """One output: its file, what the page shows of it, and what is known about it."""
        metrics, folder = metrics_of(run.job.metrics, number), visit.new_folder()
        position = number // int(run.job.inputs.get("sample_times", 1))  # variations of an image come together
        source = run.sources[position] if position < len(run.sources) else None
        path = folder / file_name(source, metrics, visit.count, output)
        path.write_bytes(output.content)
        about = f"{path.suffix[1:].upper()}, {bytes_text(len(output.content))}"
        shown: dict[str, Any] = {}
        try:
            given = str(source.path) if source else str(path)
            shown = self.toolbox.ask("compare", source=given, result=str(path), folder=str(folder))
            about = f"{size_text(shown['width'], shown['height'])}, {about}"
        except ValueError:  # no image: it can be downloaded
            pass
        cards = run.forecasts[position].get("cards", []) if position < len(run.forecasts) else []
        result = Result(visit.count, about, path, source, run.job, metrics, shown, cards)
        visit.add(result)
        return result
