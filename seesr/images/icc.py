"""Read what ICC profiles state about curves and primaries, and build small profiles (ICC.1:2001-04, version 2.4)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # xy of white, red, green and blue

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_SAMPLES = 1024  # of a built curve
_DATE = (2000, 1, 1, 0, 0, 0)  # always the same, so that equal inputs give equal files
# How many numbers a parametric curve has, and which of Curve's fields they are.
_PARAMETERS = {0: "g", 1: "gab", 2: "gabc", 3: "gabcd", 4: "gabcdef"}


@dataclass(frozen=True, eq=False)
class Curve:
    """From a stored value to light, both in [0, 1]: `samples`, or (a x + b)^g + e from x = d on and c x + f below."""

    g: float = 1
    a: float = 1
    b: float = 0
    c: float = 0
    d: float = 0
    e: float = 0
    f: float = 0
    samples: np.ndarray | None = None

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        if self.samples is not None:
            return np.interp(stored, np.linspace(0, 1, len(self.samples)), self.samples)
        power = np.maximum(self.a * stored + self.b, 0) ** self.g + self.e
        return np.clip(np.where(stored >= self.d, power, self.c * stored + self.f), 0, 1)

    @property
    def is_power(self) -> bool:
        """Whether it is x^g and nothing else."""
        return self.samples is None and (self.a, self.b, self.d, self.e) == (1, 0, 0, 0)


SRGB_CURVE = Curve(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1


def effective_gamma(light: np.ndarray) -> float:
    """Light of evenly spaced stored values from 0 to 1 -> the exponent that fits its middle tones best."""
    stored = np.linspace(0, 1, len(light))
    middle = (stored > 0.4) & (stored < 0.8)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.median(np.log(light[middle] / light[-1]) / np.log(stored[middle])))


def rgb_to_xyz(primaries: Sequence[float]) -> np.ndarray:
    """xy of white, red, green and blue -> the matrix from linear RGB to XYZ of that white. ValueError if impossible."""
    white, *colors = [np.array([x, y, 1 - x - y]) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]
    matrix = np.stack(colors, 1)
    if white[1] > 0 and abs(np.linalg.det(matrix)) > 1e-4:
        amounts = np.linalg.solve(matrix, white / white[1])
        if amounts.min() > 0:
            return matrix * amounts
    raise ValueError(f"no colours are mixed of the chromaticities {tuple(primaries)}")


def adapt_to_d50(white: np.ndarray) -> np.ndarray:
    """Bradford's matrix from XYZ under `white` to XYZ under D50, the white of profiles."""
    return np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ D50 / (_BRADFORD @ white)) @ _BRADFORD


def rgb_to_d50(primaries: Sequence[float]) -> np.ndarray:
    """As rgb_to_xyz, to XYZ under D50."""
    matrix = rgb_to_xyz(primaries)
    return adapt_to_d50(matrix.sum(1)) @ matrix


def read_tags(profile: bytes) -> dict[bytes, bytes]:
    """The tags of a profile. ValueError if it is cut or no profile."""
    if len(profile) < 132 or profile[36:40] != b"acsp":
        raise ValueError("it is not an ICC profile")
    (count,) = struct.unpack_from(">I", profile, 128)
    if 132 + 12 * count > len(profile):
        raise ValueError("it is cut off")
    entries = [struct.unpack_from(">4sII", profile, 132 + 12 * index) for index in range(count)]
    return {name: profile[start : start + size] for name, start, size in entries}


def read_curve(tag: bytes) -> Curve:
    """A curv or para tag. ValueError for anything else."""
    try:
        if tag[:4] == b"curv":
            (count,) = struct.unpack_from(">I", tag, 8)
            values = np.array(struct.unpack_from(f">{count}H", tag, 12), float)
            return Curve() if count == 0 else Curve(values[0] / 256) if count == 1 else Curve(samples=values / 65535)
        if tag[:4] == b"para":
            (kind,) = struct.unpack_from(">H", tag, 8)
            names = _PARAMETERS[kind]
            numbers = dict(zip(names, np.array(struct.unpack_from(f">{len(names)}i", tag, 12)) / 65536, strict=True))
            if kind in (1, 2):  # they begin where the power is 0, and are constant below
                constant = numbers.pop("c", 0)
                numbers |= {"d": -numbers["b"] / numbers["a"], "e": constant, "f": constant}
            return Curve(**numbers)
    except (struct.error, KeyError, ZeroDivisionError) as error:
        raise ValueError("one of its curves is damaged") from error
    raise ValueError("it has no curves")


def read_matrix(tags: dict[bytes, bytes]) -> np.ndarray:
    """The matrix from linear RGB to XYZ under D50 of a matrix profile. ValueError for other profiles."""
    columns = [tags.get(name, b"")[8:20] for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    if any(len(column) < 12 for column in columns) or any(name[:3] in (b"A2B", b"D2B") for name in tags):
        raise ValueError("it is no matrix profile")
    return np.stack([np.array(struct.unpack(">3i", column)) / 65536 for column in columns], 1)


def build_profile(description: str, curve: Curve | bytes, primaries: Sequence[float] | None) -> bytes:
    """A display profile of one curve (or a curve's tag): RGB of `primaries`, as for rgb_to_xyz, or grey if None."""
    if isinstance(curve, Curve):
        curve = _curve_tag(curve)
    name = description.encode("ascii")
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, len(name) + 1) + name + bytes(1 + 8 + 3 + 67),
        b"cprt": b"text" + bytes(4) + b"Public domain\0",
        b"wtpt": _xyz_tag(D50),
    }
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        tags[b"chad"] = b"sf32" + bytes(4) + _s15_fixed_16(adapt_to_d50(rgb_to_xyz(primaries).sum(1)))
        for letter, column in zip((b"r", b"g", b"b"), rgb_to_d50(primaries).T, strict=True):
            tags |= {letter + b"XYZ": _xyz_tag(column), letter + b"TRC": curve}
    return _assemble(tags, b"GRAY" if primaries is None else b"RGB ")


def _assemble(tags: dict[bytes, bytes], space: bytes) -> bytes:
    """Header, table and data. Equal data are stored once."""
    places: dict[bytes, int] = {}
    data, start = b"", 132 + 12 * len(tags)
    for tag in tags.values():
        if tag not in places:
            places[tag] = start + len(data)
            data += tag + bytes(-len(tag) % 4)
    table = struct.pack(">I", len(tags))
    table += b"".join(struct.pack(">4sII", name, places[tag], len(tag)) for name, tag in tags.items())
    header = struct.pack(">I4xI4s4s4s6H", start + len(data), 0x02400000, b"mntr", space, b"XYZ ", *_DATE)
    header += b"acsp" + bytes(28) + _s15_fixed_16(D50)
    return header.ljust(128, b"\0") + table + data


def _curve_tag(curve: Curve) -> bytes:
    if curve.is_power:
        return b"curv" + struct.pack(">IIH", 0, 1, round(curve.g * 256))
    samples = np.round(curve(np.linspace(0, 1, _SAMPLES)) * 65535).astype(">u2")
    return b"curv" + struct.pack(">II", 0, _SAMPLES) + samples.tobytes()


def _xyz_tag(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _s15_fixed_16(values)


def _s15_fixed_16(values: np.ndarray) -> bytes:
    return np.round(np.asarray(values) * 65536).astype(">i4").tobytes()
