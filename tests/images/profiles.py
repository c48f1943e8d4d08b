"""Profiles for the tests of colours, and CIELAB under a profile."""

import io
import itertools
import struct
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageCms

# xy of white, red, green and blue, as published.
P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
REC2020 = (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046)
ADOBE = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
PROPHOTO = (0.3457, 0.3585, 0.734699, 0.265301, 0.159597, 0.840403, 0.036598, 0.000105)

INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC


def lab_under(profile: bytes, colors: np.ndarray) -> np.ndarray:
    """(N, C) uint8 -> (N, 3) CIELAB, in steps of 0.4 (L) and 1 (a, b)."""
    mode = "L" if colors.shape[1] == 1 else "RGB"
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    turn = ImageCms.buildTransform(source, ImageCms.createProfile("LAB"), mode, "LAB", INTENT)
    image = Image.frombytes(mode, (len(colors), 1), np.ascontiguousarray(colors, np.uint8).tobytes())
    values = np.asarray(ImageCms.applyTransform(image, turn))[0]
    return np.column_stack([values[:, 0] / 2.55, values[:, 1:].view(np.int8)])


def lut_profile(
    space: bytes, kind: bytes, nodes: Callable[..., Sequence[float]], way_back: bytes = b"", gamma: float = 1
) -> bytes:
    """A small v2 profile of tables (lut8): CIELAB at the corners of the cube of channels, stored values to `gamma`."""
    channels = {b"RGB ": 3, b"CMYK": 4}[space]
    curve = bytes(np.round((np.arange(256) / 255) ** gamma * 255).astype(np.uint8))
    corners = np.array([nodes(*corner) for corner in itertools.product((0, 1), repeat=channels)], float)
    encoded = np.round(corners * (2.55, 1, 1) + (0, 128, 128)).clip(0, 255).astype(np.uint8).tobytes()
    table = lut8(channels, 3, encoded, curve)
    name = b"desc" + struct.pack(">II", 0, 5) + b"Test\0" + bytes(78)
    tags = {b"desc": name, b"cprt": b"text" + bytes(5), b"wtpt": b"XYZ " + struct.pack(">4i", 0, 63190, 65536, 54061)}
    tags |= {b"A2B0": table, b"A2B1": table} | ({b"B2A0": way_back, b"B2A1": way_back} if way_back else {})
    start, entries, data = 132 + 12 * len(tags), b"", b""
    for tag, value in tags.items():
        entries += tag + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s6H", start + len(data), 0x02200000, kind, space, b"Lab ", 2000, 1, 1, 0, 0, 0)
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + data


def lut8(inputs: int, outputs: int, nodes: bytes, curve: bytes = bytes(range(256))) -> bytes:
    identity = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    return (
        b"mft1"
        + struct.pack(">4x4B", inputs, outputs, 2, 0)
        + identity
        + curve * inputs
        + nodes
        + bytes(range(256)) * outputs
    )
