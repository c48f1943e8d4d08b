"""How results are called: a template, and which names must not be given."""

import os
import string
from collections.abc import Sequence

from seesr.batch.job import Options

BESIDE, APART = "{stem}_upscaled", "{stem}"
"""The templates beside the inputs, and in a folder of their own."""

FIELDS = ("stem", "scale", "ext")
RESULT_ENDINGS = (".png", ".webp", ".jpg", ".tiff")


class Naming:
    """The template of the options, checked. Raises ValueError with one sentence."""

    def __init__(self, options: Options) -> None:
        self.template = options.name or (APART if options.out else BESIDE)
        self.ending = f".{options.settings.output_format}"
        self._scale = options.settings.scale_factor
        if "scale" in _fields(self.template) and options.settings.target_long_side:
            raise ValueError("--name with {scale} needs --scale-factor, got --target-long-side; leave {scale} out")
        sample = self.stem("a.x")
        if not sample.strip(". ") or "/" in sample or os.sep in sample or "\0" in sample:
            raise ValueError(f"--name must give names of files, without folders, got {self.template!r}; see --out")
        if sample.lower().endswith(RESULT_ENDINGS):
            raise ValueError(
                f"--name must be without the ending, which --output-format sets, got {self.template!r}; leave it out"
            )

    def stem(self, name: str) -> str:
        """The name of a file -> that of its result, without the ending."""
        stem, ext = os.path.splitext(name)
        return self.template.format(stem=stem, scale=self._scale, ext=ext[1:])

    def output(self, name: str) -> str:
        """The name of a file -> that of its result."""
        return self.stem(name) + self.ending

    def results_among(self, names: Sequence[str]) -> set[str]:
        """Those of the files of a folder that the template makes of others there: results of earlier runs.

        None where the template changes no name: nothing then tells a result from a photograph.
        """
        stems = {made for name in names if (made := self.stem(name)) != os.path.splitext(name)[0]}
        return {name for name in names if _is_made(name, stems)}


def _is_made(name: str, stems: set[str]) -> bool:
    stem, ending = os.path.splitext(name)
    return stem in stems and ending in RESULT_ENDINGS


def _fields(template: str) -> set[str]:
    """The fields of a template. ValueError for one that cannot be filled."""
    wanted = "--name may hold {stem}, {scale} and {ext}, with a format such as {scale:g}"
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if wrong := sorted(found - set(FIELDS)):
            raise ValueError(f"{wanted}, got {{{wrong[0]}}}; write {{{{ and }}}} for braces")
        template.format(stem="a", scale=4.0, ext="jpg")
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        if str(error).startswith(wanted):
            raise
        raise ValueError(f"{wanted}, got {template!r} ({error})") from None
    return found
