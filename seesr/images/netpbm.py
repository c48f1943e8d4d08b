"""Read PBM, PGM, PPM and PAM of 1 to 16 bits. Pillow takes minutes for those of 16 bits and those in text."""

import re

import numpy as np

from seesr.images.raster import Raster, check_size, scaled, unsupported

STARTS = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7")

_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})")
_BETWEEN = re.compile(rb"#[^\r\n]*")


def is_netpbm(data: bytes) -> bool:
    """Whether a file begins as one of these."""
    return data[:2] in STARTS and data[2:3] in (b" ", b"\t", b"\n", b"\r", b"#")


def read(data: bytes) -> Raster:
    """The pixels of a file. ValueError if it is damaged."""
    if data[:2] == b"P7":
        return _read_pam(data)
    kind, at, head = data[1] - ord("0"), 2, []
    for _ in range(2 if kind in (1, 4) else 3):
        found = _NUMBER.match(data, at)
        if not found:
            raise ValueError("a netpbm file without its sizes")
        head.append(int(found[1]))
        at = found.end()
    (width, height), largest = head[:2], head[2] if len(head) > 2 else 1
    channels = 3 if kind in (3, 6) else 1
    _check(width, height, largest)
    count = width * height * channels
    if kind <= 3:
        values = _from_text(data[at:], count, largest, digits=kind == 1)
    elif kind == 4:
        rows = np.frombuffer(data, np.uint8, height * -(-width // 8), at + 1).reshape(height, -1)
        values = np.unpackbits(rows, axis=1)[:, :width]
    else:
        values = np.frombuffer(data, np.uint8 if largest < 256 else ">u2", count, at + 1)
    pixels = _scaled(values.reshape(height, width, channels), largest)
    return Raster(255 - pixels if kind in (1, 4) else pixels, "RGB" if channels == 3 else "L")


def _read_pam(data: bytes) -> Raster:
    end = re.search(rb"^ENDHDR\r?\n", data[:2000], re.MULTILINE)
    if not end:
        raise ValueError("a PAM without an end of its head")
    head = data[: end.start()]
    fields = dict(re.findall(rb"^(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d{1,9})\s*$", head, re.MULTILINE))
    width, height, depth, largest = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    _check(width, height, largest)
    if not 1 <= depth <= 4:
        raise unsupported(f"a PAM of {depth} channels")
    values = np.frombuffer(data, np.uint8 if largest < 256 else ">u2", width * height * depth, end.end())
    pixels = _scaled(values.reshape(height, width, depth), largest)
    alpha = pixels[..., -1].copy() if depth in (2, 4) else None
    return Raster(np.ascontiguousarray(pixels[..., : depth - 1 + depth % 2]), "L" if depth < 3 else "RGB", alpha)


def _check(width: int, height: int, largest: int) -> None:
    check_size(width, height)
    if not width or not height or not 0 < largest < 65536:
        raise ValueError("a netpbm file of impossible sizes")


def _scaled(values: np.ndarray, largest: int) -> np.ndarray:
    return scaled(np.minimum(values, largest).astype(values.dtype.newbyteorder("="), copy=False), largest)


def _from_text(text: bytes, count: int, largest: int, digits: bool) -> np.ndarray:
    """`count` numbers up to `largest` in decimal digits; `digits`: each is one, and there may be no space between."""
    text = _BETWEEN.sub(b"", text) if b"#" in text else text
    if digits:
        values = np.frombuffer(text, np.uint8)
        values = values[(values == ord("0")) | (values == ord("1"))][:count] - ord("0")
    else:
        values = np.fromstring(text, np.int32, sep=" ")[:count]  # whitespace of any kind
    if values.size < count:
        raise ValueError("a netpbm file that ends early")
    if values.min() < 0 or values.max() > largest:
        raise ValueError("a netpbm file with values beyond its white")
    return values.astype(np.uint16)
