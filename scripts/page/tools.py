"""What the page needs of seesr: sizes, forecasts and previews."""

from pathlib import Path
from typing import Any

from scripts.cog_server import ROOT
from scripts.page.forecast import Forecast, choose_bundle, on_replicate, read_settings
from seesr import images
from seesr.settings import Settings

SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM")
"""How files begin that every browser shows; WebP and AVIF name themselves further on."""

PREVIEW = 2048
"""Longer side of what is shown of an input that browsers cannot show, in pixels."""

THUMBNAIL = 320
"""Longer side of an image in the strip of results, in pixels."""


class Tools:
    """What a request may ask for. Every method takes and returns what JSON can hold, and raises ValueError."""

    def __init__(self) -> None:
        self.forecasts = Forecast(choose_bundle(ROOT))

    def look(self, path: str, folder: str) -> dict[str, Any]:
        """An input's size upright, in pixels, and the path of what a browser can show of it."""
        opened = images.open_image(path)
        found = {"width": opened.rgb.width, "height": opened.rgb.height, "shown": path}
        if not browser_shows(Path(path)):
            preview = Path(folder) / f"{Path(path).stem}-preview.png"
            images.save_image(opened, at_most(opened.rgb, PREVIEW), preview, Settings())
            found["shown"] = str(preview)
        return found

    def forecast(self, width: int, height: int, inputs: dict[str, Any]) -> dict[str, Any]:
        """The result's size in pixels, seconds of all `times` variations on the server (null: unknown), and a row for
        one of them per card of Replicate's.
        """
        size, settings = (height, width), read_settings(inputs)
        target = self.forecasts.target(size, settings)
        times = int(inputs.get("sample_times") or 1)  # BatchPredictor's variations of an image
        seconds = self.forecasts.seconds(size, settings)
        found = {"width": target[1], "height": target[0], "times": times, "seconds": seconds and times * seconds}
        return found | {"cards": on_replicate(size, settings)}

    def read_setup(self, logs: str) -> None:
        """Learn the server's speed from the log of its setup."""
        self.forecasts.read_setup(logs)

    def learn(self, width: int, height: int, inputs: dict[str, Any], seconds: dict[str, float]) -> None:
        """Learn the server's speed from the seconds by stage of a request."""
        self.forecasts.learn((height, width), read_settings(inputs), seconds)

    def compare(self, source: str, result: str, folder: str) -> dict[str, Any]:
        """The paths of what is shown: `before`, the input enlarged by bicubic to the result's size, and `after`.

        `after` is the result itself where browsers show it, else an 8-bit PNG. `thumbnail` is small.
        """
        opened, enlarged = images.open_image(result), images.open_image(source)
        size, place = (opened.rgb.height, opened.rgb.width), Path(folder)
        png, kind = Settings(), Settings(output_format="jpg" if enlarged.alpha is None else "png")
        before = place / f"before.{kind.output_format}"
        images.save_image(enlarged, images.resize(enlarged.rgb, size), before, kind)
        after, thumbnail = Path(result), place / "thumbnail.png"
        if opened.pixels is not None or not browser_shows(after):
            after = place / "after.png"
            images.save_image(opened, opened.rgb, after, png)
        images.save_image(opened, at_most(opened.rgb, THUMBNAIL), thumbnail, png)
        shown = {"before": str(before), "after": str(after), "thumbnail": str(thumbnail)}
        return shown | {"width": size[1], "height": size[0]}


def browser_shows(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(16)
    return head.startswith(SIGNATURES) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", b"ftypavis")


def at_most(image: Any, side: int) -> Any:
    """An RGB image, made smaller if its longer side is above `side` pixels."""
    share = min(1.0, side / max(image.size))
    return images.resize(image, (max(1, round(share * image.height)), max(1, round(share * image.width))))
