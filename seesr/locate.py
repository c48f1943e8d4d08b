"""Which bundle is loaded where none is named."""

from pathlib import Path

FULL, EMBEDDED = "weights/seesr-turbo", "weights/tiny"


def is_bundle(folder: Path) -> bool:
    """Whether a bundle stands there."""
    return (folder / "bundle.json").is_file()


def default_bundle(root: Path) -> Path:
    """The full bundle below `root` where it exists, else the embedded one, which may be missing too."""
    return root / FULL if is_bundle(root / FULL) else root / EMBEDDED
