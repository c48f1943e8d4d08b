"""EXIF, XMP, IPTC and print resolution: read from a file, corrected for the result, laid out for each format."""

import logging
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from seesr.images import exif as blocks
from seesr.images import xmp as packets
from seesr.images.directory import Directory, read_directory
from seesr.sizes import Size

log = logging.getLogger(__name__)

MAX_TEXT = 8 * 2**20  # bytes of a text of a PNG when unpacked
SEGMENT_BYTES = 65533  # that a JPEG segment holds behind its length
_XMP, _IPTC, _PHOTOSHOP = 700, 33723, 34377  # tags of a TIFF
_PHOTOSHOP_HEAD, _PHOTOSHOP_IPTC = b"Photoshop 3.0\0", 0x0404

T = Image.Transpose
_TRANSPOSES = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE}
_TRANSPOSES |= {6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90}
_Pixels = TypeVar("_Pixels", Image.Image, np.ndarray)


@dataclass(frozen=True)
class Metadata:
    """What a result keeps beside its pixels. `exif` is a TIFF block with orientation 1 and without a thumbnail."""

    exif: bytes | None = None
    xmp: bytes | None = None  # one packet, in UTF-8
    iptc: bytes | None = None  # IPTC-IIM records
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[bytes, bytes], ...] = ()  # the text chunks of a PNG, for a PNG


def read_metadata(
    image: Image.Image | None, data: bytes | memoryview, directory: int | None = None
) -> tuple[Metadata, int]:
    """The metadata of an opened file, whose bytes are `data`, and its orientation by EXIF, else by XMP (1 to 8).

    A TIFF needs no `image`; `directory` is the offset of the one that is read, by default the first. Metadata that are
    not readable are left out, and a warning is logged. The EXIF and the XMP that are returned state orientation 1.
    """
    is_tiff = image is None or image.format == "TIFF"
    found = _of_tiff(data, directory) if image is None or is_tiff else _stated(image, data)
    exif, xmp = found.exif and blocks.find_block(found.exif), packets.in_utf8(found.xmp or b"")
    if found.exif and not exif:
        log.warning("The EXIF data of the image is not readable and is left out.")
    orientation = (blocks.orientation_of(exif) if exif else None) or packets.orientation_of(xmp) or 1
    dpi = _possible(found.dpi) or _possible(blocks.dpi_of(exif) if exif else None)
    if dpi and orientation >= 5:
        dpi = dpi[1], dpi[0]
        exif = exif and blocks.with_dpi(exif, dpi)
    if exif:
        exif = blocks.upright(exif) if not is_tiff or blocks.describes(exif) else None
    xmp = packets.with_numbers(xmp, {packets.ORIENTATION: 1})
    return Metadata(exif or None, xmp or None, found.iptc or None, dpi, found.text), orientation


def for_result(metadata: Metadata, size: Size) -> Metadata:
    """The metadata with the `size`, (height, width), of the result wherever they state a size."""
    sizes = dict.fromkeys(packets.HEIGHTS, size[0]) | dict.fromkeys(packets.WIDTHS, size[1])
    exif, xmp = metadata.exif, metadata.xmp
    return replace(metadata, exif=exif and blocks.with_size(exif, size), xmp=xmp and packets.with_numbers(xmp, sizes))


def apply_orientation(image: _Pixels, orientation: int) -> _Pixels:
    """An image, or pixels (H, W) or (H, W, C), upright. Orientations other than 2 to 8 change nothing."""
    if orientation not in _TRANSPOSES:
        return image
    if isinstance(image, Image.Image):
        return image.transpose(_TRANSPOSES[orientation])
    turned = image.swapaxes(0, 1) if orientation >= 5 else image
    down, across = (-1 if orientation in flipped else 1 for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(turned[::down, ::across])


def jpeg_segments(metadata: Metadata) -> list[bytes]:
    """EXIF, XMP and IPTC as whole segments, to stand before the image. What is too long is left out, and logged."""
    segments, exif = [], metadata.exif
    if exif and len(exif) > SEGMENT_BYTES - 6:
        exif = blocks.rebuilt(exif, read_directory(exif), SEGMENT_BYTES - 6, "a JPEG can hold")
    if exif:
        segments.append(_segment(0xE1, b"Exif\0\0" + exif))
    if metadata.xmp:
        segments += [_segment(0xE1, part) for part in packets.jpeg_parts(metadata.xmp, SEGMENT_BYTES)]
    if metadata.iptc and len(metadata.iptc) > SEGMENT_BYTES - 32:
        log.warning("The IPTC data is longer than a JPEG can hold and is left out.")
    elif metadata.iptc:
        segments.append(_segment(0xED, _PHOTOSHOP_HEAD + _resource(metadata.iptc)))
    return segments


def png_chunks(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    """Everything as (type, data) of chunks, to stand between IHDR and IDAT. IPTC is laid out as ImageMagick does."""
    chunks: list[tuple[bytes, bytes]] = []
    if metadata.dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(dots / 0.0254) for dots in metadata.dpi), 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    if metadata.iptc:
        resource = _resource(metadata.iptc)
        lines = re.sub("(.{1,72})", r"\1\n", resource.hex())
        chunks.append(
            (
                b"zTXt",
                b"Raw profile type iptc\0\0" + zlib.compress(b"\niptc\n%8d\n%s" % (len(resource), lines.encode())),
            )
        )
    return [*chunks, *metadata.text]


def webp_options(metadata: Metadata) -> dict[str, bytes]:
    """EXIF and XMP for Image.save. EXIF alone can state the resolution. IPTC is left out, and that is logged."""
    if metadata.iptc:
        log.warning("WebP has no place for IPTC data, which is left out. Ask for png, jpg or tiff to keep it.")
    exif = metadata.exif
    if exif and metadata.dpi:
        exif = blocks.with_dpi(exif, metadata.dpi)
    if metadata.dpi and not (exif and blocks.dpi_of(exif)[0]):
        exif = blocks.block_of(tiff_directory(replace(metadata, xmp=None, iptc=None)))
    return {name: value for name, value in (("exif", exif), ("xmp", metadata.xmp)) if value}


def tiff_directory(metadata: Metadata) -> dict[int, Any]:
    """What write_tiff writes beside the image: tag -> (type, little-endian value), EXIF and GPS as directories."""
    tags = blocks.tags_of(metadata.exif) if metadata.exif else {}
    if metadata.dpi:
        for tag, dots in zip(blocks.RESOLUTION, metadata.dpi, strict=False):
            tags[tag] = 5, struct.pack("<II", *blocks.ratio(dots))
        tags[blocks.RESOLUTION_UNIT] = 3, struct.pack("<H", 2)
    if metadata.xmp:
        tags[_XMP] = 1, metadata.xmp
    if metadata.iptc:
        tags[_IPTC] = 4, metadata.iptc + bytes(-len(metadata.iptc) % 4)  # 32-bit numbers, as Photoshop wants it
    return tags


def _stated(image: Image.Image, data: bytes | memoryview) -> Metadata:
    """What a file other than a TIFF holds, unchecked."""
    if image.format == "PNG":
        return _of_png(memoryview(data))
    if image.format in ("JPEG", "MPO"):
        return _of_jpeg(image)
    exif, dpi = image.info.get("exif"), image.info.get("dpi") if image.format in ("BMP", "DIB") else None
    if image.format == "AVIF":  # Pillow serializes it again where it differs from irot and imir, and loses text
        exif = image._decoder.get_info()[4] or exif  # pyright: ignore
    return Metadata(exif, image.info.get("xmp"), dpi=dpi)


def _of_tiff(data: bytes | memoryview, at: int | None) -> Metadata:
    """Of the directory at `at`. What describes a file may stand in the first directory alone."""
    first = read_directory(data)
    own = read_directory(data, at)
    shared = {tag: entry for tag, entry in first.entries.items() if tag not in (blocks.ORIENTATION, *blocks.RESOLUTION)}
    both = Directory(first.order, shared | own.entries)
    xmp, iptc, photoshop = (bytes(both.entries.get(tag, (0, 0, b""))[2]) for tag in (_XMP, _IPTC, _PHOTOSHOP))
    if iptc[3:4] == b"\x1c" != iptc[:1] and len(iptc) % 4 == 0:  # stored as 32-bit numbers of the other byte order
        iptc = np.frombuffer(iptc, np.uint32).byteswap().tobytes()
    exif = blocks.rebuilt(data, both, blocks.MAX_BYTES, "is kept of a TIFF")
    return Metadata(exif, xmp, iptc or _iptc_of(photoshop))


def _of_jpeg(image: Image.Image) -> Metadata:
    exif, photoshop, xmp = [], [], b""
    extensions: dict[bytes, list[tuple[int, int, bytes]]] = {}
    for _, segment in image.applist:  # pyright: ignore
        head, end, body = segment.partition(b"\0")
        if head == b"Exif" and not (exif and body[1:5] in (b"II*\0", b"MM\0*")):  # a long one takes several segments
            exif.append(body[1:])
        elif head + end == packets.HEAD:
            xmp = xmp or body
        elif head + end == packets.EXTENSION_HEAD and len(body) > 40:
            length, start = struct.unpack(">II", body[32:40])
            extensions.setdefault(body[:32], []).append((start, length, body[40:]))
        elif head + end == _PHOTOSHOP_HEAD:
            photoshop.append(body)
    unit = {1: 1, 2: 2.54}.get(image.info.get("jfif_unit", 0), 0)
    across, down = image.info.get("jfif_density", (0, 0))
    xmp = packets.joined(packets.in_utf8(xmp), extensions)
    return Metadata(b"".join(exif), xmp, _iptc_of(b"".join(photoshop)), (across * unit, down * unit))


def _of_png(data: memoryview) -> Metadata:
    found: dict[str, Any] = {}
    text = []
    for kind, body in _chunks(data):
        name, value = _text(kind, body)
        if kind == b"eXIf":
            found["exif"] = body
        elif kind == b"pHYs" and len(body) == 9 and body[8] == 1:
            found["dpi"] = tuple(dots * 0.0254 for dots in struct.unpack(">II", body[:8]))
        elif name == b"XML:com.adobe.xmp":
            found["xmp"] = value
        elif name.startswith(b"Raw profile type "):
            raw, label = _raw_profile(value), name.removeprefix(b"Raw profile type ")
            if label == b"xmp" or raw.startswith(packets.HEAD):
                found.setdefault("xmp", raw.removeprefix(packets.HEAD))
            elif label in (b"exif", b"APP1"):
                found.setdefault("exif", raw)
            elif label in (b"iptc", b"8bim"):
                found.setdefault("iptc", raw if raw[:1] == b"\x1c" else _iptc_of(raw))
        elif kind != b"pHYs" and 0 < len(name) < 80 and len(body) <= MAX_TEXT:
            text.append((kind, body))
    return Metadata(**found, text=tuple(text))


def _chunks(data: memoryview) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG that hold metadata. Those with a wrong checksum are passed over, as libpng does."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"eXIf", b"pHYs", b"tEXt", b"zTXt", b"iTXt") and at + 12 + length <= len(data):
            (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
            if zlib.crc32(data[at + 4 : at + 8 + length]) == checksum:
                yield kind, bytes(data[at + 8 : at + 8 + length])
        at += 12 + length


def _text(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """The keyword and the unpacked value of a tEXt, zTXt or iTXt chunk; empty where it is not one or too long."""
    if not kind.endswith(b"Xt"):
        return b"", b""
    name, _, value = body.partition(b"\0")
    packed = kind == b"zTXt" or (kind == b"iTXt" and value[:1] == b"\1")
    value = {b"tEXt": value, b"zTXt": value[1:], b"iTXt": value[2:].split(b"\0", 2)[-1]}[kind]
    if not packed:
        return name, value
    unpacker = zlib.decompressobj()
    try:
        value = unpacker.decompress(value, MAX_TEXT)
    except zlib.error:
        return name, b""
    return name, value if unpacker.eof else b""


def _raw_profile(value: bytes) -> bytes:
    """The bytes of a "Raw profile" text of ImageMagick: lines with a name, a length, and hexadecimal digits."""
    try:
        return bytes.fromhex(value.lstrip().split(b"\n", 2)[2].decode("ascii"))
    except (ValueError, IndexError):
        return b""


def _possible(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    """Whole where a PNG, in dots per metre, can't tell it from whole; None for what a JPEG, in 16 bits, can't state."""
    if not dpi or not all(1 <= dots <= 65535 for dots in dpi):
        return None
    across, down = (round(dots) if abs(dots - round(dots)) <= 0.0254 / 2 else dots for dots in dpi)
    return across, down


def _iptc_of(resources: bytes) -> bytes:
    """The IPTC records among Photoshop's image resources; b"" if there are none."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        kind, name = struct.unpack_from(">HB", resources, at + 4)
        at += 6 + (1 + name + 1) // 2 * 2
        length = int.from_bytes(resources[at : at + 4])
        if kind == _PHOTOSHOP_IPTC:
            return resources[at + 4 : at + 4 + length]
        at += 4 + (length + 1) // 2 * 2
    return b""


def _resource(iptc: bytes) -> bytes:
    """IPTC records as an image resource of Photoshop."""
    return b"8BIM" + struct.pack(">HHI", _PHOTOSHOP_IPTC, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
