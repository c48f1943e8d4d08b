"""What happens when the parts of the page are used."""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr  # type: ignore[import-not-found]  # in .venv-playground

from scripts.page import panels
from scripts.page.parts import LANGUAGES, Parts
from scripts.page.studio import Studio
from scripts.page.visit import Run, Visit

INPUT = 0
"""In a choice of what to compare: the input, enlarged by bicubic. Results have numbers from 1."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Events without Gradio's own spinners, and without an API of the page's own."""

HIDE = "() => ({__type__: 'update', visible: false})"
"""In the browser, at once: an answer of the server might come after that of a later run, and hide its problem."""

POLL = 0.25
"""Seconds between two looks at a request under way."""

Updates = dict[Any, Any]


class Page(Parts):
    """The page of a studio, ready to be launched as `blocks`."""

    def __init__(self, studio: Studio, title: str) -> None:
        super().__init__(studio, title)
        with self.blocks:
            self._connect_form()
            self._connect_results()

    def _connect_form(self) -> None:
        if self.studio.main is not None:
            given = [self.photograph, self.facts, self.problem]
            changed = self.photograph.change if self.studio.main.several else self.photograph.upload
            changed(self._take, [self.photograph, *self.values], given, **QUIET)
            if not self.studio.main.several:  # Gradio's `input` comes with the removed image
                self.photograph.clear(self._remove, self.values, given, **QUIET)
            self.uploader.upload(self._take_more, [self.uploader, *self.values], given, **QUIET)
            self.examples.click(self._take_example, [self.examples, *self.values], given, **QUIET)
        for value in self.values:
            value.change(None, None, self.problem, js=HIDE, queue=False, **QUIET)
            value.change(self._foresee, self.values, [self.facts], trigger_mode="always_last", **QUIET)
        timer = gr.Timer(2)
        gr.on([timer.tick, self.blocks.load], self._watch, None, [self.status, self.empty], queue=False, **QUIET)
        self.blocks.unload(self._leave)

    def _connect_results(self) -> None:
        running = [self.progress, self.problem, self.empty, self.log, self.run, self.cancel, self.facts]
        kept = [self.results, self.left, self.right, self.strip]
        given = [self.photograph] if self.studio.main else []
        self.run.click(
            self._run, [*given, *self.values], [*running, *kept, *self.view], concurrency_limit=None, **QUIET
        )
        self.cancel.click(self._cancel, None, None, concurrency_limit=None, **QUIET)
        for choice in (self.left, self.right):
            choice.input(self._show, [self.left, self.right], self.view, **QUIET)
        self.strip.select(self._select, [self.left], [self.right, *self.view], **QUIET)
        if "seed" in self.inputs:
            self.again.click(self._use_again, [self.right], [self.inputs["seed"], self.more], **QUIET)

    def _visit(self, request: Any) -> Visit:
        return self.studio.visit(request.session_hash)

    def _leave(self, request: gr.Request) -> None:
        self.studio.leave(request.session_hash)

    def _named(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))

    def _watch(self) -> Updates:
        health = self.studio.health()
        return {
            self.status: panels.status(health, self.studio.about),
            self.empty: panels.empty(self.studio.embedded),
        }

    def _take(self, request: gr.Request, given: Any, *values: Any) -> Updates:
        """The photograph itself was changed; several come as a list."""
        paths = given if isinstance(given, list) else [given] if given else []
        return self._use(self._visit(request), paths, values)

    def _remove(self, request: gr.Request, *values: Any) -> Updates:
        return self._use(self._visit(request), [], values)

    def _take_more(self, request: gr.Request, given: Any, *values: Any) -> Updates:
        """Dropped or pasted anywhere on the page: several are added to those that are there."""
        visit, paths = self._visit(request), given if isinstance(given, list) else [given]
        if self.studio.main and self.studio.main.several:
            paths = [*(str(source.path) for source in visit.sources), *paths]
        return self._use(visit, paths, values) | self._photograph(visit)

    def _take_example(self, request: gr.Request, index: int, *values: Any) -> Updates:
        return self._take_more(request, [str(self.files[index])], *values)

    def _use(self, visit: Visit, paths: Sequence[str], values: Sequence[Any]) -> Updates:
        if [str(source.path) for source in visit.sources] == [*paths]:
            return {self.facts: gr.skip()}
        wrong = self.studio.take(visit, paths)
        self.studio.foresee(visit, self._named(values))
        found = {self.facts: panels.facts(visit.sources, visit.forecasts)} | self._tell(wrong, "error")
        previewed = any(source.shown != str(source.path) for source in visit.sources)
        return found | (self._photograph(visit) if previewed else {})

    def _photograph(self, visit: Visit) -> Updates:
        """What was given, as a browser can show it."""
        if self.studio.main and self.studio.main.several:
            return {self.photograph: [str(source.path) for source in visit.sources]}
        return {self.photograph: next((source.shown or None for source in visit.sources), None)}

    def _tell(self, text: str, kind: str = "note") -> Updates:
        return {self.problem: gr.HTML(panels.notice(text, kind), visible=bool(text))}

    def _foresee(self, request: gr.Request, *values: Any) -> Updates:
        visit = self._visit(request)
        self.studio.foresee(visit, self._named(values))
        return {self.facts: panels.facts(visit.sources, visit.forecasts)}

    def _run(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        visit, rest = self._visit(request), values
        try:
            if self.studio.main is not None:
                given, *rest = values
                if not visit.sources:  # a visit that was forgotten while the page was away
                    self._use(visit, given if isinstance(given, list) else [given] if given else [], rest)
            run = self.studio.start(visit, self._named(rest))
        except (ValueError, RuntimeError) as error:
            yield self._tell(str(error), "error")
            return
        busy = {self.run: gr.Button(interactive=False), self.cancel: gr.Button(interactive=True)}
        yield busy | self._tell("") | self._progress(run)
        while not run.job.ended.wait(POLL):
            yield self._progress(run)
        visit.run = None
        try:
            found = self._end(visit, run, self._named(rest))
        except (ValueError, RuntimeError, OSError) as error:
            found = self._tell(f"the result cannot be shown: {error}", "error")
        idle = {self.run: gr.Button(interactive=True), self.cancel: gr.Button(interactive=False)}
        yield idle | {self.progress: gr.HTML(visible=False), self.log: panels.log(run.job.logs)} | found

    def _progress(self, run: Run) -> Updates:
        return {self.progress: gr.HTML(panels.progress(run), visible=True), self.log: panels.log(run.job.logs)}

    def _end(self, visit: Visit, run: Run, values: dict[str, Any]) -> Updates:
        if run.job.status == "canceled":
            return self._tell("Cancelled.")
        if run.job.status != "succeeded":
            said_once = [{} if "error" in found else found for found in visit.forecasts]
            return self._tell(run.job.error, "error") | {self.facts: panels.facts(visit.sources, said_once)}
        results = self.studio.finish(visit, run)
        self.studio.foresee(visit, values)
        if not results:
            return self._tell(run.job.text)
        choices = [(visit.label(result), result.number) for result in reversed(visit.results)]
        newest = results[0].number
        left = gr.Dropdown([("Input, bicubic", INPUT), *choices], value=INPUT)
        strip = [(result.shown["thumbnail"], visit.label(result)) for result in reversed(visit.results) if result.shown]
        found = {self.results: gr.Column(visible=True), self.empty: gr.HTML(visible=False), self.left: left}
        found |= {self.right: gr.Dropdown(choices, value=newest), self.strip: strip}
        return found | {self.facts: panels.facts(visit.sources, visit.forecasts)} | self._view(visit, INPUT, newest)

    def _cancel(self, request: gr.Request) -> None:
        run = self._visit(request).run
        if run is not None:
            self.studio.client.cancel(run.job)

    def _show(self, request: gr.Request, left: int, right: int) -> Updates:
        return self._view(self._visit(request), left, right)

    def _select(self, request: gr.Request, left: int, chosen: gr.SelectData) -> Updates:
        visit = self._visit(request)
        shown = [result for result in reversed(visit.results) if result.shown]
        right = shown[chosen.index].number
        return {self.right: right} | self._view(visit, left, right)

    def _view(self, visit: Visit, left: int | None, right: int | None) -> Updates:
        """Everything that is shown of the result on the right."""
        result, other = visit.result(right), visit.result(left)
        if result is None:
            return {self.slider: gr.skip()}
        before = other.shown.get("after") if other else result.shown.get("before")
        pair = (before, result.shown["after"]) if result.shown else None
        found: Updates = {self.slider: gr.ImageSlider(pair, visible=pair is not None)}
        found |= {
            self.download: gr.DownloadButton(f"Download {result.path.suffix[1:].upper()}", value=str(result.path))
        }
        found |= {self.details: panels.details(result), self.again: gr.Button(visible="seed" in result.metrics)}
        found |= {self.stages: panels.stages(result.metrics.get("seconds") or {})}
        found |= {self.costs: panels.costs(result.cards)}
        found |= {self.folder: panels.folder(result.source)}
        calls = self.studio.calls(result)
        return found | {code: calls[name] for code, (name, _) in zip(self.codes, LANGUAGES, strict=True)}

    def _use_again(self, request: gr.Request, right: int) -> Updates:
        result = self._visit(request).result(right)
        seed = result.metrics.get("seed") if result else None
        return {self.inputs["seed"]: str(seed), self.more: gr.Accordion(open=True)}
