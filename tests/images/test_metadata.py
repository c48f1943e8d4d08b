"""Metadata: EXIF, XMP, IPTC and resolution of every input, corrected for the result, as every output holds them.

The blocks are built here byte by byte. Pillow's readers, an XML parser and exiftool (where it is installed) read the
results: none of them shares code with what is tested.
"""

import dataclasses
import hashlib
import io
import json
import random
import re
import shutil
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image, IptcImagePlugin, TiffImagePlugin

from seesr import images
from seesr.images import exif as blocks
from seesr.images import metadata, xmp
from seesr.images.metadata import Metadata, apply_orientation, for_result, read_metadata
from seesr.images.png import write_png
from seesr.images.write_tiff import write_tiff
from seesr.settings import Settings
from tests.corpus import DATA, RED, saved

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow on the damaged EXIF of the inputs

KINDS = ("jpg", "png", "webp", "tif")
JPEG = b"\xff\xd8\xff\xdb thumbnail \xff\xd9"
IPTC = b"\x1c\x01Z\x00\x03\x1b%G" + b"\x1c\x02\x19\x00\x04k\xc3\xa4s" + b"\x1c\x02Z\x00\x07Z\xc3\xbcrich"
PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" tiff:Orientation="6" exif:PixelXDimension = \'96\'>'
    "<dc:title>Größe 山</dc:title><tiff:ImageLength>\n64</tiff:ImageLength></rdf:Description></rdf:RDF></x:xmpmeta>"
    '<?xpacket end="w"?>'
).encode()
Entry = tuple[int, int, int, bytes]
"""Of a directory: tag, type, count, value."""


def text(tag: int, value: bytes) -> Entry:
    return tag, 2, len(value) + 1, value + b"\0"


def directory(order: str, at: int, entries: list[Entry], following: int = 0) -> bytes:
    """A directory at byte `at`, its values behind it."""
    head, values = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            place = at + 2 + 12 * len(entries) + 4 + len(values)
            values, value = values + value, struct.pack(order + "I", place)
        head += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    return head + struct.pack(order + "I", following) + values


def block(order: str, entries: list[Entry], inner: list[Entry] | None = None) -> bytes:
    """An EXIF block with a first directory, and an EXIF directory behind it."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    if inner is None:
        return head + directory(order, 8, entries)
    pointer = 34665, 4, 1, struct.pack(order + "I", 0)
    place = 8 + len(directory(order, 8, [*entries, pointer]))
    first = directory(order, 8, [*entries, (34665, 4, 1, struct.pack(order + "I", place))])
    return head + first + directory(order, place, inner)


def jpeg(*segments: tuple[int, bytes], **options: Any) -> bytes:
    file, extra = io.BytesIO(), b"".join(struct.pack(">BBH", 255, m, len(body) + 2) + body for m, body in segments)
    Image.new("RGB", (96, 64), RED).save(file, "JPEG", extra=extra, **options)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    file = io.BytesIO()
    write_png(np.full((64, 96, 3), 99, np.uint8), file, chunks)
    return file.getvalue()


def tiff(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (96, 64), RED).save(file, "TIFF", **options)
    return file.getvalue()


def read(data: bytes) -> tuple[Metadata, int]:
    is_tiff = data[:2] in (b"II", b"MM")
    return read_metadata(None if is_tiff else Image.open(io.BytesIO(data)), data)


def of_exif(raw: bytes) -> tuple[Metadata, int]:
    return read(jpeg((0xE1, b"Exif\0\0" + raw)))


def written(found: Metadata, path: Path, size: tuple[int, int] = (128, 192)) -> Path:
    """A file with this metadata, as save_image writes it."""
    pixels = np.zeros((*size, 3), np.uint8)
    with path.open("wb") as file:
        if path.suffix == ".png":
            write_png(pixels, file, metadata.png_chunks(found))
        elif path.suffix == ".tif":
            write_tiff(pixels, file, metadata.tiff_directory(found))
        elif path.suffix == ".webp":
            Image.fromarray(pixels).save(file, "WEBP", **metadata.webp_options(found))
        else:
            options = {"dpi": found.dpi} if found.dpi else {}
            Image.fromarray(pixels).save(file, "JPEG", extra=b"".join(metadata.jpeg_segments(found)), **options)
    return path


def pillow(found: Metadata) -> dict[int, Any]:
    """The first and the EXIF directory as Pillow reads them."""
    exif = Image.Exif()
    exif.load(found.exif or b"")
    return {**exif, **exif.get_ifd(34665)}


# Orientation and EXIF -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    """A rotated or flipped file reads as the upright image, and the result of it does too."""
    upright = Image.new("RGB", (6, 4), (0, 0, 0))
    upright.paste(RED, (0, 0, 3, 2))
    transposes = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(transposes[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    opened = images.open_image(saved(stored, tmp_path / "a.png", exif=exif))
    assert opened.rgb.tobytes() == upright.tobytes()
    images.save_image(opened, opened.rgb, tmp_path / "out.png", Settings())
    again = Image.open(tmp_path / "out.png")
    assert again.getexif()[0x0112] == 1
    assert again.getexif()[0x010F] == "maker"
    assert images.open_image(tmp_path / "out.png").rgb.tobytes() == upright.tobytes()


@pytest.mark.parametrize("orientation", range(10))
def test_arrays_are_turned_as_images_are(orientation: int) -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    turned = apply_orientation(pixels, orientation)
    assert np.array_equal(turned, np.asarray(apply_orientation(Image.fromarray(pixels), orientation)))
    assert np.array_equal(turned[..., 1], apply_orientation(pixels[..., 1], orientation))
    assert turned.flags.c_contiguous


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "form"),
    [(1, "B"), (3, "H"), (4, "I"), (6, "b"), (7, "B"), (8, "h"), (9, "i"), (11, "f"), (12, "d"), (13, "I")],
)
def test_an_orientation_of_any_type_is_read(order: str, kind: int, form: str) -> None:
    found, orientation = of_exif(block(order, [(274, kind, 1, struct.pack(order + form, 6)), text(315, b"Zoe")]))
    assert orientation == 6
    assert (pillow(found)[274], pillow(found)[315]) == (1, "Zoe")


@pytest.mark.parametrize(
    "entry", [(274, 2, 2, b"6\0"), (274, 5, 1, struct.pack("<II", 12, 2)), (274, 3, 2, b"\6\0\1\0")]
)
def test_an_orientation_as_text_fraction_or_list_is_read(entry: Entry) -> None:
    found, orientation = of_exif(block("<", [entry]))
    assert orientation == 6
    assert pillow(found)[274] == 1


def test_of_two_orientations_the_first_counts_and_both_are_corrected() -> None:
    found, orientation = of_exif(block("<", [(274, 3, 1, b"\6\0"), (274, 3, 1, b"\3\0")]))
    assert orientation == 6
    assert found.exif == block("<", [(274, 3, 1, b"\1\0"), (274, 3, 1, b"\1\0")])


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_is_none_changes_nothing(value: int) -> None:
    found, orientation = of_exif(block("<", [(274, 3, 1, struct.pack("<H", value)), text(315, b"Zoe")]))
    assert orientation == 1
    assert pillow(found)[274] == 1


@pytest.mark.parametrize(
    "broken",
    [
        (282, 2, 6, b"300/1\0"),
        (282, 5, 1, b"\xff\xff\xff\xff"),  # an offset beyond the block
        (282, 5, 2**32 - 1, b"\x08\0\0\0"),
        (282, 5, 1, struct.pack("<II", 300, 0)),
        (282, 0, 1, b"\x01\0\0\0"),
        (282, 999, 1, b"\x01\0\0\0"),
        (34665, 4, 1, b"\x08\0\0\0"),  # the EXIF directory is the first one
        (34853, 4, 1, b"\xf0\xff\xff\xff"),
        (37500, 7, 2**31, b"\x08\0\0\0"),
    ],
)
def test_a_broken_tag_costs_no_other(broken: Entry) -> None:
    tags = [text(270, b"caption"), (274, 3, 1, b"\6\0"), broken, text(315, b"Zoe")]
    found, orientation = of_exif(block("<", tags))
    assert orientation == 6
    tags = pillow(found)
    assert (tags[270], tags[274], tags[315]) == ("caption", 1, "Zoe")


def test_a_directory_cut_short_gives_the_tags_that_are_there() -> None:
    raw = bytearray(block("<", [(274, 3, 1, b"\6\0"), (296, 3, 1, b"\2\0")]))
    raw[8:10] = b"\xff\xff"
    found, orientation = of_exif(bytes(raw[:-4]))
    assert orientation == 6
    assert found.exif == block("<", [(274, 3, 1, b"\1\0"), (296, 3, 1, b"\2\0")])


@pytest.mark.parametrize("raw", [b"", b"II", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\0", b"rubbish" * 9])
def test_exif_without_a_directory_is_left_out_and_logged(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert of_exif(raw) == (Metadata(), 1)
    assert ("not readable" in caplog.text) == bool(raw)


@pytest.mark.parametrize(
    "name", ["Zoë Müller 山田".encode(), "Zoë Müller".encode("latin-1"), "山田".encode("shift-jis")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_text_of_any_encoding_survives(tmp_path: Path, name: bytes, kind: str) -> None:
    comment = b"UNICODE\0" + "Grüße 山".encode("utf-16-be")
    found, _ = of_exif(block(">", [text(315, name), text(33432, b"\xa9 " + name)], [(37510, 7, len(comment), comment)]))
    again, _ = read(written(found, tmp_path / f"a.{kind}").read_bytes())
    for part in (found, again):
        assert name + b"\0" in (part.exif or b"")
        assert b"\xa9 " + name + b"\0" in (part.exif or b"")
    order = "utf-16-le" if kind == "tif" else "utf-16-be"  # a TIFF is written with the low byte first
    assert b"UNICODE\0" + "Grüße 山".encode(order) in (again.exif or b"")


def test_nothing_moves_in_a_block() -> None:
    """A maker note may count its offsets from the start of the block: only the patched bytes differ."""
    note = bytes(range(200))
    inner = [(37500, 7, 200, note), (40962, 3, 1, b"\0\x60"), (40963, 3, 1, b"\0\x40")]
    raw = block(">", [(256, 4, 1, b"\0\0\0\x60"), (274, 3, 1, b"\0\6"), text(315, b"Zoe")], inner)
    found = for_result(of_exif(raw)[0], (128, 192))
    assert found.exif is not None
    assert len(found.exif) == len(raw)
    assert found.exif.index(note) == raw.index(note)
    assert sum(one != other for one, other in zip(raw, found.exif, strict=True)) <= 12
    tags = pillow(found)
    assert [tags[tag] for tag in (256, 274, 40962, 40963)] == [192, 1, 192, 128]


def test_the_size_in_the_exif_is_that_of_the_result() -> None:
    inner = [(40962, 4, 1, struct.pack("<I", 96)), (40963, 3, 1, struct.pack("<H", 64))]
    found, _ = of_exif(block("<", [(257, 3, 1, b"\x40\0")], inner))
    tags = pillow(for_result(found, (100_000, 70_000)))
    assert [tags[tag] for tag in (257, 40962, 40963)] == [100_000, 70_000, 100_000]
    assert 256 not in tags


@pytest.mark.parametrize("behind", [b"", b"\0\0\0", b"a value behind the thumbnail"])
def test_the_thumbnail_goes(behind: bytes) -> None:
    first = [(274, 3, 1, b"\6\0"), text(315, b"Zoe Miller")]
    start = 8 + len(directory("<", 8, first))
    thumbnail = [(513, 4, 1, struct.pack("<I", start + 42)), (514, 4, 1, struct.pack("<I", len(JPEG)))]
    second = directory("<", start, [(259, 3, 1, b"\6\0"), *thumbnail])
    raw = b"II*\0\x08\0\0\0" + directory("<", 8, first, start) + second + JPEG + behind
    assert raw[start + 42 :].startswith(JPEG)
    found, _ = of_exif(raw)
    assert b"thumbnail " not in (found.exif or b"").removesuffix(behind)
    assert len(found.exif or b"") == (len(raw) if behind.strip(b"\0") else start + 42)
    exif = Image.Exif()
    exif.load(found.exif or b"")
    assert exif.get_ifd(ExifTags.IFD.IFD1) == {}
    assert exif[315] == "Zoe Miller"


def test_exif_too_long_for_jpeg_loses_the_maker_note_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = [(37500, 7, 70_000, bytes(70_000)), (33434, 5, 1, struct.pack(">II", 1, 250))]
    found, _ = read(png((b"eXIf", block(">", [text(315, b"Zo\xeb"), (274, 3, 1, b"\0\6")], inner))))
    again, _ = read(written(found, tmp_path / "a.jpg").read_bytes())
    assert "The EXIF data is longer than a JPEG can hold: MakerNote left out." in caplog.text
    tags = pillow(again)
    assert (tags[274], tags[33434], 37500 in tags) == (1, TiffImagePlugin.IFDRational(1, 250), False)
    assert b"Zo\xeb\0" in (again.exif or b"")
    assert 37500 in pillow(read(written(found, tmp_path / "a.png").read_bytes())[0])


def test_exif_too_long_for_jpeg_without_a_maker_note_loses_the_longest_tag(caplog: pytest.LogCaptureFixture) -> None:
    raw = block("<", [text(270, b"x" * 70_000), text(272, b"y" * 30_000), text(315, b"Zoe")])
    (segment,) = metadata.jpeg_segments(Metadata(exif=raw))
    assert b"Zoe\0" in segment
    assert b"y" * 30_000 in segment
    assert b"xx" not in segment
    assert "ImageDescription left out" in caplog.text
    assert not metadata.jpeg_segments(Metadata(exif=block("<", [text(270, b"x" * 70_000)])))


def test_exif_in_several_segments_of_a_jpeg_is_one() -> None:
    raw = block("<", [text(270, b"x" * 90_000), (274, 3, 1, b"\6\0")])
    found, orientation = read(jpeg((0xE1, b"Exif\0\0" + raw[:60_000]), (0xE1, b"Exif\0\0" + raw[60_000:])))
    assert orientation == 6
    assert len(found.exif or b"") == len(raw)
    twice = b"Exif\0\0" + block("<", [(274, 3, 1, b"\6\0")])
    assert len(read(jpeg((0xE1, twice), (0xE1, twice)))[0].exif or b"") == len(twice) - 6


def test_avif_keeps_text_that_pillow_would_lose(tmp_path: Path) -> None:
    """Pillow moves the orientation into irot on writing, and on reading serializes the EXIF again to put it back."""
    path = tmp_path / "a.avif"
    Image.new("RGB", (96, 64), RED).save(path, exif=block("<", [(274, 3, 1, b"\6\0"), text(315, b"Zo__")]))
    data = path.read_bytes().replace(b"Zo__", "Zoë".encode())
    found, _ = read(data)
    assert "Zoë\0".encode() in (found.exif or b"")
    assert "Zoë\0".encode() not in Image.open(io.BytesIO(data)).info["exif"]


def test_heic_gives_exif_with_orientation_1() -> None:
    data = (DATA / "orientation-6.heic").read_bytes()
    found, orientation = read(data)
    assert orientation == 1
    assert pillow(found)[274] == 1


# TIFF ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_of_a_tiff_only_what_describes_is_kept(order: str) -> None:
    ratios = [struct.pack(order + "II", dots, 1) for dots in (300, 150)]
    structure = [(tag, 4, 1, struct.pack(order + "I", 96)) for tag in (256, 257, 273, 277, 278, 279, 330)]
    tags = [*structure, text(270, b"A caption"), (282, 5, 1, ratios[0]), (283, 5, 1, ratios[1]), text(315, b"Zo\xeb")]
    inner = [text(36867, b"2024:01:02 03:04:05"), (33434, 5, 1, struct.pack(order + "II", 1, 250))]
    data = block(order, [*tags, (34675, 7, 7, b"profile"), (37724, 7, 120_000, b"layers" * 20_000)], inner)
    found, orientation = read(data)
    assert orientation == 1
    assert found.dpi == (300, 150)
    tags = pillow(found)
    assert set(tags) == {270, 282, 283, 315, 33434, 34665, 36867}
    assert (tags[270], tags[33434], tags[36867]) == ("A caption", 1 / 250, "2024:01:02 03:04:05")
    assert b"Zo\xeb\0" in (found.exif or b"")
    assert len(found.exif or b"") < 300


def test_a_big_tiff_and_one_that_pillow_wrote() -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270] = "A caption"
    for big in (False, True):
        found, _ = read(tiff(tiffinfo=info, dpi=(300, 150), big_tiff=big))
        assert (set(pillow(found)), pillow(found)[270], found.dpi) == ({270, 282, 283, 296}, "A caption", (300, 150))
    assert read(tiff())[0] == Metadata()


def test_a_directory_of_a_tiff_has_its_own_orientation_and_the_texts_of_the_first() -> None:
    first = directory(">", 8, [(274, 3, 1, b"\0\6"), text(315, b"Zoe Miller")])
    second = 8 + len(first)
    data = b"MM\0*\0\0\0\x08" + first + directory(">", second, [(274, 3, 1, b"\0\3"), text(270, b"second page")])
    assert read_metadata(None, data)[1] == 6
    found, orientation = read_metadata(None, data, second)
    assert orientation == 3
    assert (pillow(found)[270], pillow(found)[315]) == ("second page", "Zoe Miller")
    third = data + directory(">", len(data), [text(270, b"third page")])
    assert read_metadata(None, third, len(data))[1] == 1


def test_values_that_all_name_the_same_bytes_do_not_fill_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    """1,000 entries of 16 MB each: a block of at most 8 MB, in less than a second."""
    entries = b"".join(struct.pack("<HHII", 50_000 + tag, 7, 16_000_000, 0) for tag in range(1000))
    inner = 8 + len(directory("<", 8, [text(315, b"Zoe Miller"), (34665, 4, 1, b"\0\0\0\0")]))
    first = directory("<", 8, [text(315, b"Zoe Miller"), (34665, 4, 1, struct.pack("<I", inner))])
    data = b"II*\0\x08\0\0\0" + first + struct.pack("<H", 1000) + entries + bytes(16_000_000)
    start = time.process_time()
    found, _ = read_metadata(None, data)
    assert time.process_time() - start < 1
    assert len(found.exif or b"") <= blocks.MAX_BYTES
    assert pillow(found)[315] == "Zoe Miller"
    assert "is kept of a TIFF" in caplog.text


# XMP ----------------------------------------------------------------------------------------------------------------


def test_xmp_states_the_orientation_and_size_of_the_result_and_is_else_unchanged() -> None:
    found, orientation = read(jpeg((0xE1, xmp.HEAD + PACKET)))
    assert orientation == 6  # no EXIF states one
    assert found == read(jpeg((0xE1, xmp.HEAD + PACKET + b"\0\0")))[0]
    changed = for_result(found, (128, 192)).xmp or b""
    wanted = PACKET.replace(b'Orientation="6"', b'Orientation="1"').replace(b"'96'", b"'192'")
    assert changed == wanted.replace(b">\n64<", b">128<")
    assert ElementTree.fromstring(changed).find(".//{http://ns.adobe.com/tiff/1.0/}ImageLength").text == "128"  # type: ignore[union-attr]


def test_exif_decides_about_the_orientation_where_it_states_one() -> None:
    exif = block("<", [(274, 3, 1, b"\x08\0")])
    assert read(jpeg((0xE1, b"Exif\0\0" + exif), (0xE1, xmp.HEAD + PACKET)))[1] == 8


@pytest.mark.parametrize(
    "packet",
    [
        b"<tiff:Orientation/>6<", b"<tiff:Orientation />6<",
        b"</tiff:Orientation>\n6<", b"<tiff:Orientation>six</tiff:Orientation>",
        b"<mytiff:Orientation>6</mytiff:Orientation>", b"<tiff:OrientationOf>6<", b'tiff:Orientation="',
        b"tiff:Orientation",
        b"<tiff:Orientation>" + b"6" * 5000 + b"</tiff:Orientation>", b"<tiff:Orientation>0</tiff:Orientation>",
    ],
)  # fmt: skip
def test_what_is_no_orientation_is_not_taken_for_one(packet: bytes) -> None:
    found, orientation = read(jpeg((0xE1, xmp.HEAD + packet)))
    assert orientation == 1
    assert (found.xmp or b"").replace(b">1<", b">0<") == packet


@pytest.mark.parametrize(
    "part", [b"tiff:Orientation ", b"<tiff:Orientation ", b"tiff:Orientation=' ", b"xmpNote:HasExtendedXMP "]
)
def test_a_long_hostile_packet_costs_little_time(part: bytes) -> None:
    found = Metadata(xmp=part * (1_000_000 // len(part)))
    start = time.process_time()
    assert for_result(found, (1, 1)).xmp == found.xmp
    assert xmp.joined(found.xmp or b"", {}) == found.xmp
    assert time.process_time() - start < 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_xmp_in_utf_16_becomes_utf_8(encoding: str) -> None:
    packet = PACKET.decode().removeprefix(PACKET.decode()[: PACKET.decode().index("<x:")]).encode(encoding)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[700], info.tagtype[700] = packet, 1
    found, _ = read(tiff(tiffinfo=info))
    assert "Größe 山" in (found.xmp or b"").decode()


def test_a_long_packet_goes_into_an_extension_of_a_jpeg_and_comes_back(tmp_path: Path) -> None:
    long = PACKET.replace(b"Gr", b"y" * 150_000 + b"Gr")
    found, _ = read(png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + long)))
    path = written(found, tmp_path / "a.jpg")
    segments = [body for _, body in Image.open(path).applist]  # type: ignore[attr-defined]
    extension = b"".join(body[75:] for body in segments if body.startswith(xmp.EXTENSION_HEAD))
    name = hashlib.md5(extension).hexdigest().upper().encode()
    assert b'xmpNote:HasExtendedXMP="%s"' % name in segments[1]
    assert all(body[35:67] == name for body in segments if body.startswith(xmp.EXTENSION_HEAD))
    again = read(path.read_bytes())[0].xmp or b""
    titles = ElementTree.fromstring(again).findall(".//{http://purl.org/dc/elements/1.1/}title")
    assert [title.text for title in titles] == ["y" * 150_000 + "Größe 山"]
    assert b"HasExtendedXMP" not in again


@pytest.mark.parametrize("cut", [slice(0, 1), slice(1, 9), slice(0, 0)])
def test_an_extension_with_missing_parts_is_left_out_and_logged(cut: slice, caplog: pytest.LogCaptureFixture) -> None:
    main, *parts = xmp.jpeg_parts(PACKET.replace(b"Gr", b"y" * 100_000 + b"Gr"), metadata.SEGMENT_BYTES)
    found, _ = read(jpeg((0xE1, main), *((0xE1, part) for part in parts[cut])))
    assert "The extended XMP of the image is not complete" in caplog.text
    assert b"yyy" not in (found.xmp or b"")
    ElementTree.fromstring(found.xmp or b"")


# Every format -------------------------------------------------------------------------------------------------------


def everything() -> bytes:
    exif = block(">", [text(270, "Größe".encode()), (274, 3, 1, b"\0\6")], [(40962, 3, 1, b"\0\x60")])
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC
    return jpeg((0xE1, b"Exif\0\0" + exif), (0xE1, xmp.HEAD + PACKET), (0xED, iptc), dpi=(300, 300))


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_every_format_hands_on_what_it_got(tmp_path: Path, first: str, second: str) -> None:
    found, orientation = read(everything())
    assert orientation == 6
    found = for_result(found, (128, 192))
    one = read(written(found, tmp_path / f"one.{first}").read_bytes())[0]
    two = read(written(one, tmp_path / f"two.{second}").read_bytes())[0]
    tags = pillow(two)
    assert (tags[274], tags[40962]) == (1, 192)
    assert "Größe\0".encode() in (two.exif or b"")
    assert two.xmp == found.xmp
    assert two.dpi == (300, 300)
    assert (two.iptc or b"").rstrip(b"\0") == (b"" if "webp" in (first, second) else IPTC)


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_pillow_reads_the_iptc(tmp_path: Path, kind: str) -> None:
    found, _ = read(everything())
    records = IptcImagePlugin.getiptcinfo(Image.open(written(found, tmp_path / f"a.{kind}")))
    assert records
    assert (records[2, 25], records[2, 90]) == ("käs".encode(), "Zürich".encode())


def test_webp_logs_that_it_loses_iptc(caplog: pytest.LogCaptureFixture) -> None:
    assert metadata.webp_options(Metadata(iptc=IPTC)) == {}
    assert "WebP has no place for IPTC data" in caplog.text


def test_iptc_too_long_for_jpeg_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert metadata.jpeg_segments(Metadata(iptc=b"\x1c" * 65_530)) == []
    assert "IPTC data is longer than a JPEG can hold" in caplog.text


def test_iptc_of_a_tiff_in_the_other_byte_order_and_in_photoshop_s_resources() -> None:
    whole = IPTC + bytes(-len(IPTC) % 4)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[33723], info.tagtype[33723] = np.frombuffer(whole, ">u4").astype("<u4").tobytes(), 7
    assert read(tiff(tiffinfo=info))[0].iptc == whole
    resources = b"8BIM\x03\xed\x03abc\0\0\0\x03xyz\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[34377], info.tagtype[34377] = resources, 7
    assert read(tiff(tiffinfo=info))[0].iptc == IPTC


def raw_profile(name: str, data: bytes) -> bytes:
    """A text of ImageMagick."""
    digits = re.sub("(.{1,72})", r"\1\n", data.hex())
    return f"Raw profile type {name}\0\n{name} profile\n{len(data):8}\n{digits}".encode()


def test_profiles_that_imagemagick_writes_into_a_png_are_read() -> None:
    exif = b"Exif\0\0" + block("<", [(274, 3, 1, b"\6\0"), text(315, b"Zoe")])
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC
    for name in ("exif", "APP1"):
        found, orientation = read(png((b"tEXt", raw_profile(name, exif)), (b"tEXt", raw_profile("iptc", resource))))
        assert (orientation, pillow(found)[315], found.iptc) == (6, "Zoe", IPTC)
    head, _, value = raw_profile("xmp", PACKET).partition(b"\0")
    found, orientation = read(png((b"zTXt", head + b"\0\0" + zlib.compress(value))))
    assert orientation == 6
    assert found.xmp == PACKET.replace(b'Orientation="6"', b'Orientation="1"')
    assert read(png((b"tEXt", raw_profile("APP1", xmp.HEAD + PACKET))))[0].xmp == found.xmp
    assert read(png((b"tEXt", raw_profile("exif", exif)), (b"eXIf", exif[6:-4] + b"Ann\0")))[0].text == ()
    assert read(png((b"tEXt", b"Raw profile type exif\0\nexif\n 3\nno digits"))) == (Metadata(), 1)


def test_packed_text_of_a_png_is_unpacked_within_limits() -> None:
    bomb, head = zlib.compress(b"x" * 2**26), b"XML:com.adobe.xmp\0\1\0\0\0"
    packed = head + zlib.compress(PACKET)
    assert read_metadata(Image.open(io.BytesIO(png())), png((b"iTXt", head + bomb))) == (Metadata(), 1)
    data = png(
        (b"zTXt", b"Raw profile type exif\0\0" + bomb), (b"iTXt", packed), (b"zTXt", b"Raw profile type iptc\0\0x")
    )
    found, orientation = read_metadata(Image.open(io.BytesIO(png())), data)
    assert orientation == 6
    assert (found.exif, found.iptc) == (None, None)


def test_a_chunk_with_a_wrong_checksum_is_passed_over() -> None:
    data = png((b"pHYs", struct.pack(">IIB", 11811, 11811, 1)), (b"eXIf", block("<", [text(315, b"Zoe")])))
    assert read(data)[0].dpi == (300, 300)
    wrong = data.replace(struct.pack(">I", zlib.crc32(b"pHYs" + struct.pack(">IIB", 11811, 11811, 1))), b"oops")
    found, _ = read_metadata(Image.open(io.BytesIO(data)), wrong)
    assert found.dpi is None
    assert pillow(found)[315] == "Zoe"


def test_the_texts_of_a_png_come_back_in_a_png(tmp_path: Path) -> None:
    texts = (b"tEXt", b"parameters\0a cat, Steps: 20"), (b"iTXt", "Author\0\0\0\0\0Zoë".encode())
    found, _ = read(png(*texts))
    assert found.text == texts
    path = written(found, tmp_path / "a.png")
    assert Image.open(path).text == {"parameters": "a cat, Steps: 20", "Author": "Zoë"}  # type: ignore[attr-defined]


# Resolution ---------------------------------------------------------------------------------------------------------


def stated(path: Path) -> tuple[int, ...]:
    """Dots per inch as Pillow reads them; of a WebP from its EXIF."""
    with Image.open(path) as image:
        exif = image.getexif()
        found = image.info.get("dpi") or (exif.get(282, 0), exif.get(283, 0))
    return tuple(round(float(dots)) for dots in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["jpg", "png", "tif", "bmp", "webp"])
def test_the_resolution_is_kept(tmp_path: Path, source: str, kind: str) -> None:
    path = tmp_path / f"in.{source}"
    exif = block(">", [(282, 5, 1, struct.pack(">II", 300, 1)), (283, 5, 1, struct.pack(">II", 300, 1))])
    saved(Image.new("RGB", (96, 64), RED), path, **({"exif": exif} if source == "webp" else {"dpi": (300, 300)}))
    found, _ = read(path.read_bytes())
    assert found.dpi == (300, 300)
    assert stated(written(found, tmp_path / f"out.{kind}")) == (300, 300)


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        (
            [(282, 5, 1, struct.pack("<II", 118, 1)), (283, 5, 1, struct.pack("<II", 118, 1)), (296, 3, 1, b"\3\0")],
            299.72,
        ),
        ([(282, 5, 1, struct.pack("<II", 240, 1)), (296, 3, 1, b"\2\0")], 240),
        ([(282, 5, 1, struct.pack("<II", 1, 1)), (283, 5, 1, struct.pack("<II", 1, 1)), (296, 3, 1, b"\1\0")], None),
        ([(282, 5, 1, struct.pack("<II", 72, 0)), (296, 3, 1, b"\2\0")], None),
        ([(282, 2, 4, b"300\0"), (283, 3, 1, b"\x2c\1")], 300),
        ([(282, 11, 1, struct.pack("<f", float("nan")))], None),
        ([(282, 12, 1, struct.pack("<d", float("inf")))], None),
        ([(282, 4, 1, b"\xff\xff\xff\xff")], None),
        ([text(315, b"Zoe")], None),
    ],
)
def test_the_resolution_in_an_exif_block(entries: list[Entry], wanted: float | None) -> None:
    """Per centimetre, without a vertical one, without a unit, of other types, and impossible ones."""
    dpi = of_exif(block("<", entries))[0].dpi
    assert dpi == (None if wanted is None else (pytest.approx(wanted), pytest.approx(wanted)))


def test_the_resolutions_of_a_turned_image_change_places() -> None:
    exif = block("<", [(274, 3, 1, b"\6\0")])
    found, _ = read(png((b"pHYs", struct.pack(">IIB", 11811, 5906, 1)), (b"eXIf", exif)))
    assert found.dpi == (150, 300)


def test_webp_is_written_where_a_second_resolution_lies_outside_the_block() -> None:
    ratio = 5, 1, struct.pack("<II", 72, 1)
    exif = bytearray(block("<", [(282, *ratio), (283, *ratio), (296, 3, 1, b"\2\0"), (282, *ratio)]))
    exif[10 + 3 * 12 + 8 : 10 + 3 * 12 + 12] = b"\xff\xff\xff\x7f"
    assert blocks.dpi_of(metadata.webp_options(Metadata(bytes(exif), dpi=(300, 150)))["exif"]) == (300, 150)


@pytest.mark.parametrize("chunk", [struct.pack(">IIB", 300, 300, 0), struct.pack(">IIB", 0, 0, 1), b"\xff" * 8 + b"\1"])
def test_what_is_no_resolution_is_not_taken_for_one(chunk: bytes) -> None:
    assert read(png((b"pHYs", chunk)))[0].dpi is None


def test_webp_states_the_resolution_of_the_file_where_its_exif_states_another(tmp_path: Path) -> None:
    entries = [(282, 5, 1, struct.pack(">II", 72, 1)), (283, 5, 1, struct.pack(">II", 72, 1)), (296, 3, 1, b"\0\3")]
    found, _ = read(png((b"pHYs", struct.pack(">IIB", 11811, 11811, 1)), (b"eXIf", block(">", entries))))
    assert stated(written(found, tmp_path / "a.webp")) == (300, 300)
    assert read((tmp_path / "a.webp").read_bytes())[0].dpi == (300, 300)


# Hostile blocks -----------------------------------------------------------------------------------------------------


def test_of_a_directory_1000_entries_are_read() -> None:
    data = b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 274, 3, 1, 6) * 65535
    assert len(blocks.read_directory(data).places) == 1000


def test_mutated_blocks_never_raise_and_cost_little() -> None:
    """2,000 blocks with changed, cut, swapped and repeated bytes, read, corrected and laid out for every format."""
    draw = random.Random(17)
    inner = [(37500, 7, 60, bytes(60)), (40962, 3, 1, b"\0\x60"), (40965, 4, 1, b"\0\0\0\x08")]
    entries = [text(270, b"caption"), (274, 3, 1, b"\0\6"), (282, 5, 1, struct.pack(">II", 300, 1)), text(315, b"Zoe")]
    little = block("<", [(274, 3, 1, b"\6\0"), text(315, b"Zoe Miller"), (34853, 4, 1, b"\x08\0\0\0")])
    longest = total = 0.0
    for number in range(2000):
        raw = bytearray(block(">", entries, inner) if number % 2 else little)
        for _ in range(draw.randint(1, 8)):
            place = draw.randrange(len(raw))
            match draw.randrange(4):
                case 0:
                    raw[place] = draw.choice((0, 1, 4, 8, 127, 128, 255, draw.randrange(256)))
                case 1:
                    raw[place : place + 4] = struct.pack(">I", draw.choice((0, 8, len(raw), 2**31, 2**32 - 1)))
                case 2:
                    del raw[max(12, place) :]
                case _:
                    raw[place:place] = raw[place : place + draw.randrange(40)]
        start = time.process_time()
        exif = blocks.find_block(bytes(raw))
        if exif:
            found = Metadata(blocks.upright(exif), dpi=(300, 300))
            assert blocks.orientation_of(exif) in (None, 1, 2, 3, 4, 5, 6, 7, 8)
            blocks.dpi_of(exif)
            found = for_result(found, (128, 192))
            metadata.webp_options(found)
            metadata.tiff_directory(found)
            metadata.jpeg_segments(found)
            blocks.rebuilt(exif, blocks.read_directory(exif), 100, "a test")
        read_metadata(None, bytes(raw))
        took = time.process_time() - start
        longest, total = max(longest, took), total + took
    assert total < 10  # 5 ms each; it is about 0.3 ms
    assert longest < 0.2  # a few ms, and the garbage collector


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_mutated_files_never_raise(kind: str, tmp_path: Path) -> None:
    """The metadata of a good header with 300 damaged files behind it."""
    data = written(read(everything())[0], tmp_path / f"a.{kind}").read_bytes()
    draw, image = random.Random(17), None if kind == "tif" else Image.open(io.BytesIO(data))
    segments = list(getattr(image, "applist", []))
    for _ in range(300):
        raw = bytearray(data)
        for _ in range(draw.randint(1, 9)):
            raw[draw.randrange(8, len(raw))] = draw.randrange(256)
        if image and segments:
            bodies = [bytes(b ^ (draw.random() < 0.01) * 255 for b in body[:2000]) for _, body in segments]
            image.applist = [("APP", body) for body in bodies]  # pyright: ignore
        found, orientation = read_metadata(image, bytes(raw[: draw.choice((len(raw), draw.randrange(len(raw))))]))
        assert 1 <= orientation <= 8
        for_result(found, (9, 9))


# exiftool -----------------------------------------------------------------------------------------------------------

FIELDS = {
    "EXIF:Artist": "山田 Zoë", "EXIF:Copyright": "© 2024 Zoë Müller", "EXIF:ImageDescription": "Größe",
    "EXIF:UserComment": "Grüße 山", "EXIF:XPTitle": "Tïtle 山", "EXIF:ExifImageWidth": 96, "EXIF:ExifImageHeight": 64,
    "EXIF:Orientation": 6, "EXIF:GPSLatitude": 48.5, "EXIF:GPSLatitudeRef": "N", "EXIF:ExposureTime": 0.004,
    "XMP:Title": "T 山", "XMP:Rating": 5, "XMP:Orientation": 6, "XMP:ImageWidth": 96, "XMP:ExifImageHeight": 64,
    "IPTC:CodedCharacterSet": "UTF8", "IPTC:Keywords": "kä", "IPTC:City": "Zürich",
}  # fmt: skip
CORRECTED = {
    "EXIF:ExifImageWidth": 192, "EXIF:ExifImageHeight": 128, "EXIF:Orientation": 1,
    "XMP:Orientation": 1, "XMP:ImageWidth": 192, "XMP:ExifImageHeight": 128,
}  # fmt: skip


def exiftool(*arguments: str | Path) -> str:
    return subprocess.run(["exiftool", *map(str, arguments)], capture_output=True, check=True, text=True).stdout


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed (Debian: libimage-exiftool-perl)")
@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif", "avif"])
def test_exiftool_finds_everything_that_it_wrote(tmp_path: Path, source: str) -> None:
    """It writes the fields into a file of `source`, and finds them in a result of every format, corrected."""
    path = tmp_path / f"in.{source}"
    Image.new("RGB", (96, 64), RED).save(path)
    fields = {name: value for name, value in FIELDS.items() if not (name[0] == "I" and source in ("webp", "avif"))}
    (tmp_path / "fields.json").write_text(json.dumps([{"SourceFile": str(path), **fields}]))
    exiftool("-q", "-n", "-overwrite_original", "-charset", "iptc=utf8", f"-json={tmp_path / 'fields.json'}", path)
    found, orientation = read(path.read_bytes())
    assert orientation == (6 if source != "avif" else orientation)
    found = for_result(found, (128, 192))
    results = [written(found, tmp_path / f"out.{kind}") for kind in KINDS]
    names = [f"-{name}" for name in FIELDS]
    for result in json.loads(exiftool("-j", "-n", "-G", "-Error", "-Warning", *names, *results)):
        name = result.pop("SourceFile")
        dropped = "IPTC" if name.endswith("webp") else "none"
        wanted = {
            field: CORRECTED.get(field, value) for field, value in fields.items() if not field.startswith(dropped)
        }
        if wanted.get("IPTC:CodedCharacterSet"):
            wanted["IPTC:CodedCharacterSet"] = result["IPTC:CodedCharacterSet"]
        assert result == wanted, name


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed (Debian: libimage-exiftool-perl)")
def test_exiftool_reads_the_extended_xmp_and_writes_one_that_is_read(tmp_path: Path) -> None:
    path, long = tmp_path / "in.jpg", tmp_path / "long.txt"
    path.write_bytes(jpeg())
    long.write_text("x" * 150_000)
    exiftool("-q", "-overwrite_original", f"-XMP:Description<={long}", "-XMP:Title=T", path)
    found, _ = read(path.read_bytes())
    for kind in KINDS:
        (result,) = json.loads(
            exiftool(
                "-j", "-Error", "-Warning", "-XMP:Title", "-XMP:Description", written(found, tmp_path / f"out.{kind}")
            )
        )
        result.pop("SourceFile")
        assert result == {"Title": "T", "Description": "x" * 150_000}, kind


def test_metadata_without_anything_gives_nothing() -> None:
    empty = Metadata()
    assert for_result(empty, (9, 9)) == empty
    assert (metadata.jpeg_segments(empty), metadata.png_chunks(empty)) == ([], [])
    assert (metadata.webp_options(empty), metadata.tiff_directory(empty)) == ({}, {})
    assert dataclasses.replace(empty, dpi=(72, 72)) != empty
