"""The parts of the page that Gradio draws: a widget per input, the place for photographs, and the theme."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr  # type: ignore[import-not-found]  # in .venv-playground

from scripts.page.form import Field

FOLDER = Path(__file__).resolve().parent
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Liberation Mono", "monospace"]
MOST_BUTTONS = 5
"""Choices that are shown side by side; more go into a list."""


def theme() -> Any:
    """Fonts of the system: nothing is fetched. Text has a contrast of 4.5 or more."""
    found = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO)
    button = {f"button_primary_background_fill{state}": "*primary_700" for state in ("", "_dark")}
    button |= {f"button_primary_background_fill_hover{state}": "*primary_800" for state in ("", "_dark")}
    return found.set(body_text_color_subdued="*neutral_500", **button)


def head() -> str:
    """The page's style and script. Gradio's own parameter for CSS would confine it to the parts inside."""
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return f"<style>{style}</style><script>{script}</script>"


def html(value: str = "", **options: Any) -> Any:
    """A piece of the page's own HTML, without Gradio's style for prose."""
    return gr.HTML(value, padding=False, apply_default_css=False, **options)


def widget(field: Field) -> Any:
    """One input of the model, with its title, description, range and default."""
    common: dict[str, Any] = {"label": field.title, "info": field.info, "elem_id": f"input-{field.name}"}
    if field.kind == "file":
        count = "multiple" if field.several else "single"
        return gr.File(label=field.title, file_count=count, type="filepath", elem_id=common["elem_id"])
    if field.several:
        lines = "\n".join(map(str, field.default or []))
        return gr.Textbox(lines, lines=2, placeholder="one a line", **common)
    if field.kind == "boolean":
        return gr.Checkbox(bool(field.default), **common)
    if field.kind == "choice":
        kind = gr.Radio if len(field.choices) <= MOST_BUTTONS else gr.Dropdown
        return kind(choices=list(field.choices), value=field.default, **common)
    if field.step is not None:
        slider = gr.Slider(field.minimum, field.maximum, field.default, step=field.step, **common)
        slider.preprocess = lambda payload: payload  # out of range: the server has the better sentence
        return slider
    if field.is_number and field.default is not None:
        precision = 0 if field.kind == "integer" else None
        return gr.Number(field.default, precision=precision, placeholder="default", **common)
    if field.is_number:  # gr.Number would turn an empty value into 0
        return gr.Textbox("", lines=1, max_lines=1, placeholder="empty", **common)
    return gr.Textbox(field.default or "", lines=1, max_lines=4, **common)


def photograph(field: Field) -> Any:
    """The place for the photograph: a file as it was given, never decoded here. Several are a list of files."""
    about = {"label": field.title, "elem_id": f"input-{field.name}"}
    if field.several:
        return gr.File(file_count="multiple", type="filepath", height=180, **about)
    sources = ["upload", "webcam", "clipboard"]
    look = {
        "sources": sources,
        "height": 220,
        "buttons": [],
        "placeholder": "Drop or paste a photograph\nor click to choose",
    }
    image = gr.Image(type="filepath", image_mode=None, **look, **about)
    image.preprocess = path_of
    return image


def path_of(payload: Any) -> str | None:
    """The file behind a value of gr.Image, whose own way would decode it and write it anew."""
    return payload.path if payload else None


def examples(files: Sequence[Path]) -> Any:
    """A row of photographs to try."""
    image = gr.Image(type="filepath", render=False)
    image.preprocess = path_of
    return gr.Dataset(
        components=[image], samples=[[str(path)] for path in files], label="Examples", type="index", elem_id="examples"
    )
