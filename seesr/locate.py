"""Which bundle is loaded where none is named."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

FULL, EMBEDDED = "weights/seesr-turbo", "weights/tiny"


def is_bundle(folder: Path) -> bool:
    """Whether a bundle stands there."""
    return (folder / "bundle.json").is_file()


def default_bundle(root: Path) -> Path:
    """The full bundle below `root` where it exists, else the embedded one, which may be missing too."""
    return root / FULL if is_bundle(root / FULL) else root / EMBEDDED


def choose_bundle(root: Path) -> Path:
    """What SEESR_WEIGHTS names, from `root` on, else the default_bundle. Logs a warning if that is the embedded one.

    There may be no bundle at that place.
    """
    if asked := os.environ.get("SEESR_WEIGHTS"):
        return root / asked
    bundle = default_bundle(root)
    if bundle == root / EMBEDDED and is_bundle(bundle):
        log.warning("Using the small embedded bundle: %s is missing. README.md says how to get the full model.", FULL)
    return bundle
