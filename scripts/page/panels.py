"""The page's own pieces of HTML: status, facts, progress, details, costs. Text of others is escaped."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from scripts.page.job import Health
from scripts.page.log import in_order, read_progress, stage_title
from scripts.page.visit import Result, Run, Source

HEAD = """<header class="head"><h1>{title}</h1><p>Drop a photograph, run, compare.</p></header>"""
EMBEDDED = "This is the small embedded bundle. README.md says how to get the full model."
HINT = """<p class="hint">Drag the line or use the arrow keys. Scroll, or + and −, to zoom; drag to move;
0 for the whole image.</p>"""


def status(health: Health, about: str) -> str:
    kind = "ready" if health.ready else "away"
    more = f"<span>· {escape(about)}</span>" if about and health.ready else ""
    return f'<div class="status {kind}" role="status"><i></i>{escape(health.sentence)}{more}</div>'


def notice(text: str, kind: str = "note") -> str:
    """A sentence in a box; nothing for an empty one. `kind` is note or error."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}">{escape(text)}</div>' if text else ""


def empty(embedded: bool) -> str:
    """What stands in the place of results."""
    note = f"<small>{EMBEDDED}</small>" if embedded else ""
    text = "Choose a photograph or take one of the examples, and press Run."
    return f'<div class="empty"><b>Before and after appear here</b><span>{text}</span>{note}</div>'


def facts(sources: Sequence[Source], forecasts: Sequence[Mapping[str, Any]]) -> str:
    """What a run would do: sizes, seconds, or in a sentence why it would fail."""
    if not sources:
        return ""
    rows = []
    for number, source in enumerate(sources):
        found = forecasts[number] if number < len(forecasts) else {}
        size = size_text(source.width, source.height) if source.width else "cannot be read"
        arrow = f" → <b>{size_text(found['width'], found['height'])}</b>" if "width" in found else ""
        rows.append(f"<li><span>{escape(source.path.name)}</span> {size}{arrow}</li>")
    wrong = next((str(found["error"]) for found in forecasts if "error" in found), "")
    seconds = [found.get("seconds") for found in forecasts]
    known = [value for value in seconds if value is not None]
    time = f"<p>About <b>{seconds_text(sum(known))}</b> here</p>" if known and len(known) == len(seconds) else ""
    time = time or _on_replicate(forecasts)
    return f'<div class="facts"><ul>{"".join(rows)}</ul>{time}</div>{notice(wrong, "error")}'


def _on_replicate(forecasts: Sequence[Mapping[str, Any]]) -> str:
    """From the least to the most that all images take on a card of Replicate's; nothing if none can do them all."""
    times, sums = [found.get("times", 1) for found in forecasts], []
    for rows in zip(*(found.get("cards", []) for found in forecasts), strict=False):  # those of one card
        if all("seconds" in row for row in rows):
            weighted = list(zip(times, rows, strict=True))
            sums.append([sum(count * row[name] for count, row in weighted) for name in ("seconds", "dollars")])
    if not sums:
        return ""
    seconds, dollars = zip(*sums, strict=True)
    time = f"<b>{seconds_text(min(seconds))}</b> to <b>{seconds_text(max(seconds))}</b>"
    return f"<p>About {time} on Replicate, ${min(dollars):.4f} to ${max(dollars):.4f} by the card</p>"


def folder(source: Source | None) -> str:
    """Where a call has to run. A name is Gradio's: without some letters, and made up for what has none."""
    if source is None:
        return ""
    name = f"<b>{escape(source.path.name)}</b>"
    advice = "Save a photograph from the webcam or the clipboard under this name first."
    return f'<p class="hint">Run it in the folder of {name}. {advice}</p>'


def progress(run: Run) -> str:
    """A bar with the stage's name. Without a line of progress in the log it follows the predicted seconds."""
    job, elapsed, predicted = run.job, run.elapsed, run.predicted
    found = read_progress(job.logs)
    text = job.note or (stage_title(found.stage) if found else "Running")
    share = found.share if found else min(0.95, elapsed / predicted) if predicted and job.status == "running" else 0.0
    percent = int(100 * share)
    about = f" of about {seconds_text(predicted)}" if predicted else ""
    time = f"{elapsed:.0f} s{about}" if job.status == "running" else f"{elapsed:.0f} s"
    return (
        f'<div class="progress"><div><b>{escape(text)}</b><span>{percent} % · {time}</span></div>'
        f'<div class="track" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="{escape(text)}"><div style="width:{percent}%"></div></div></div>'
    )


def log(text: str) -> str:
    return f'<pre class="log" tabindex="0">{escape(text) or "The log of the last run appears here."}</pre>'


def details(result: Result) -> str:
    """What the model reported of a result."""
    metrics = result.metrics
    tags = "".join(f"<span>{escape(str(tag))}</span>" for tag in metrics.get("tags") or [])
    retries = metrics.get("recoveries")
    rows = {
        "Result": escape(result.about),
        "Seed": f"<code>{escape(str(metrics['seed']))}</code>" if "seed" in metrics else "",
        "Tags": f'<div class="tags">{tags or "none"}</div>' if "tags" in metrics else "",
        "Model": escape(" on ".join(str(metrics[name]) for name in ("model", "device") if name in metrics)),
        "Plan": escape(str(metrics.get("plan", ""))),
        "Retries": ("none" if not retries else escape(_counted(retries))) if retries is not None else "",
    }
    lines = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items() if value)
    return f'<dl class="details">{lines}</dl>'


def _counted(recoveries: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count} ×)" for name, count in recoveries.items())


def stages(seconds: Mapping[str, float]) -> str:
    """Seconds per stage as bars."""
    if not seconds:
        return ""
    largest = max(seconds.values()) or 1.0
    bars = "".join(
        f'<li><span>{escape(stage_title(name))}</span><div><i style="width:{100 * value / largest:.1f}%"></i></div>'
        f"<b>{value:.2f}</b></li>"
        for name, value in in_order(seconds).items()
    )
    title = f"Seconds per stage, {sum(seconds.values()):.1f} in all"
    return f'<section class="stages"><h3>{title}</h3><ul>{bars}</ul></section>'


def costs(rows: Iterable[Mapping[str, Any]]) -> str:
    """Predicted seconds and dollars per card."""
    lines = [
        f"<tr><td>{escape(str(row['card']))}</td>"
        + (
            f"<td>{seconds_text(row['seconds'])}</td><td>${row['dollars']:.4f}</td></tr>"
            if "seconds" in row
            else f'<td colspan="2">{escape(str(row["error"]))}</td></tr>'
        )
        for row in rows
    ]
    if not lines:
        return ""
    return (
        '<section class="costs"><h3>On Replicate, by estimate</h3><table><thead><tr><th>card</th><th>time</th>'
        f"<th>cost</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
        "<p>For this size with the full model and a warm machine. Not measured.</p></section>"
    )


def size_text(width: int, height: int) -> str:
    return f"{width} × {height}"


def seconds_text(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 3 min."""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"


def bytes_text(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{max(1, round(number / 1e3))} kB"
