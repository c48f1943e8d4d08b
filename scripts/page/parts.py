"""The parts of the page, as Gradio draws them."""

from typing import Any

import gradio as gr  # type: ignore[import-not-found]  # in .venv-playground

from scripts.cog_server import ROOT
from scripts.page import panels, widgets
from scripts.page.studio import Studio

LANGUAGES = (("curl", "shell"), ("Python", "python"), ("JavaScript", "javascript"))


class Parts:
    """Every part by name, drawn in `blocks`; `inputs` are the widgets by the name of the input, `values` all but the
    main file's, in the order of `names`.
    """

    def __init__(self, studio: Studio, title: str) -> None:
        self.studio, self.inputs = studio, dict[str, Any]()
        self.names = [field.name for field in studio.fields if field is not studio.main]
        look: dict[str, Any] = {"title": f"{title} playground", "fill_width": True, "delete_cache": (3600, 86400)}
        with gr.Blocks(**look, analytics_enabled=False) as self.blocks:
            self._draw_head(title)
            with gr.Row(elem_id="main"):
                with gr.Column(scale=4, min_width=300, elem_id="form"):
                    with gr.Column(elem_id="given"):
                        self._draw_photograph()
                        self._draw_run()
                    with gr.Column(elem_id="inputs"):
                        self._draw_inputs()
                with gr.Column(scale=8, min_width=300, elem_id="shown"):
                    self.empty = widgets.html(panels.empty(False))
                    self._draw_results()
        self.values = [self.inputs[name] for name in self.names]
        self.view = [self.slider, self.download, self.details, self.stages, self.costs]
        self.view += [self.again, self.folder, *self.codes]

    def _draw_head(self, title: str) -> None:
        with gr.Row(elem_classes="page-head"):
            widgets.html(panels.HEAD.format(title=title))
            self.status = widgets.html(elem_classes="status-slot")

    def _draw_photograph(self) -> None:
        if (main := self.studio.main) is None:
            return
        self.photograph = widgets.photograph(main)
        count = "multiple" if main.several else "single"
        self.uploader = gr.UploadButton("Upload", elem_id="uploader", file_count=count, type="filepath")
        self.files = sorted((ROOT / "examples").glob("*.jpg"))
        self.examples = widgets.examples(self.files)

    def _draw_inputs(self) -> None:
        rest = [field for field in self.studio.fields if field is not self.studio.main]
        for field in rest:
            if field.everyday:
                self.inputs[field.name] = widgets.widget(field)
        with gr.Accordion("More", open=False, elem_id="more") as self.more:
            for field in rest:
                if not field.everyday:
                    self.inputs[field.name] = widgets.widget(field)

    def _draw_run(self) -> None:
        self.facts = widgets.html(elem_id="facts")
        with gr.Row():
            self.run = gr.Button("Run", variant="primary", elem_id="run", scale=3)
            self.cancel = gr.Button("Cancel", elem_id="cancel", interactive=False, scale=1, min_width=90)
        self.progress = widgets.html(visible=False, elem_id="progress")
        self.problem = widgets.html(visible=False, elem_id="problem")

    def _draw_results(self) -> None:
        with gr.Column(visible=False, elem_id="results") as self.results:
            with gr.Column(elem_id="compare"):
                self._draw_comparison()
            with gr.Column(elem_id="about"):
                self._draw_details()
        with gr.Accordion("Log", open=False, elem_id="log"):
            self.log = widgets.html(panels.log(""))

    def _draw_comparison(self) -> None:
        with gr.Row():
            self.left = gr.Dropdown([], label="Left", elem_id="left", min_width=150)
            self.right = gr.Dropdown([], label="Right", elem_id="right", min_width=150)
        look: dict[str, Any] = {"type": "filepath", "max_height": 620, "buttons": ["fullscreen"]}
        self.slider = gr.ImageSlider(interactive=False, show_label=False, elem_id="slider", **look)
        with gr.Row(elem_classes="under-slider"):
            widgets.html(panels.HINT)
            self.download = gr.DownloadButton("Download", elem_id="download", size="md", scale=0, min_width=160)
        look = {"columns": 6, "height": "auto", "allow_preview": False, "buttons": [], "fit_columns": False}
        self.strip = gr.Gallery(label="Results of this visit", interactive=False, elem_id="strip", **look)

    def _draw_details(self) -> None:
        with gr.Row():
            with gr.Column(min_width=280):
                self.details = widgets.html(elem_id="details")
                self.again = gr.Button("Use this seed again", size="sm", elem_id="again")
            with gr.Column(min_width=280):
                self.stages = widgets.html(elem_id="stages")
                self.costs = widgets.html(elem_id="costs")
        with gr.Accordion("As a call", open=False, elem_id="calls"):
            self.folder = widgets.html(elem_id="calls-folder")
            with gr.Tabs():
                self.codes = [self._draw_code(*language) for language in LANGUAGES]

    def _draw_code(self, name: str, language: str) -> Any:
        with gr.Tab(name):
            look = {"interactive": False, "show_label": False, "show_line_numbers": False, "wrap_lines": True}
            return gr.Code(language=language, elem_id=f"call-{name.lower()}", **look)
