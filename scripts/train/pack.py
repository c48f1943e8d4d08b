"""Write the photographs of training in a small size, for a machine that cannot fetch them (about 60 MB).

    .venv/bin/python -m scripts.train.pack --out work-photos-small

The other stages read them by `--photographs work-photos-small`.
"""

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from scripts.eval import photographs
from scripts.train.data import read_listing
from seesr import images


def pack(entries: Iterable[Mapping[str, str]], folder: Path, out: Path, side: int, quality: int = 92) -> int:
    """Write the files of `entries` that `out` lacks, reduced to at most `side` pixels -> the bytes of all of them.

    Raises RuntimeError if one cannot be encoded.
    """
    total = 0
    for entry in entries:
        path = out / entry["file"]
        if not path.is_file():
            rgb = images.open_image(folder / entry["file"]).rgb
            share = min(1.0, side / max(rgb.size))
            pixels = np.asarray(images.resize(rgb, (int(rgb.height * share), int(rgb.width * share))))
            done, encoded = cv2.imencode(path.suffix, pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            if not done:
                raise RuntimeError(f"{path} could not be encoded")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_bytes(encoded.tobytes())
            os.replace(path.with_suffix(".part"), path)
        total += path.stat().st_size
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, default=photographs.FROM_DEBIAN, help="their folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; files that are there stay")
    parser.add_argument("--side", type=int, default=1024, help="longest side, pixels")
    arguments = parser.parse_args()
    held_out = [entry | {"file": f"{entry['package']}/{entry['path']}"} for entry in photographs.listed("validate")]
    entries = [*read_listing(), *held_out]
    photographs.fetch_debian(entries, arguments.photographs)
    size = pack(entries, arguments.photographs, arguments.out, arguments.side)
    print(f"Wrote {len(entries)} photographs, {size / 1e6:.0f} MB, to {arguments.out}")


if __name__ == "__main__":
    main()
