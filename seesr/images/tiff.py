"""Which page of a TIFF is read, and whether it is camera raw."""

import logging
import math

import numpy as np

from seesr.images.directory import NUMBERS, RATIONALS, Directory, read_directory

log = logging.getLogger(__name__)

(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER) = (256, 257, 258, 259, 262, 266)
(STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR, PREDICTOR) = (273, 277, 278, 279, 284, 317)
(COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SUB_DIRECTORIES) = (320, 322, 323, 324, 325, 330)
(INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, SAMPLE_MIN, SAMPLE_MAX, PROFILE) = (332, 338, 339, 340, 341, 34675)
NEW_SUBFILE_TYPE, SUBFILE_TYPE, WHITE_POINT, PRIMARIES, DNG_VERSION = 254, 255, 318, 319, 50706
ORIENTATION, EXIF = 274, 34665

MAX_PAGES = 200  # directories that are looked at

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_CFA, _LINEAR_RAW = 32803, 34892  # photometric interpretations of camera raw
_RAW_COMPRESSIONS = (32767, 32769, 32770, 34713, 65000, 65535)  # Sony, Epson, Samsung, Nikon, Kodak, Pentax
_RAW_STARTS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0")  # Olympus, Panasonic


def is_tiff(data: bytes) -> bool:
    """Whether a file begins as a TIFF, a BigTIFF or a camera raw file like them."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", *_RAW_STARTS)


def is_raw(data: bytes) -> bool:
    """Whether a file like a TIFF is camera raw (DNG, NEF, CR2, ARW, PEF, SRW, IIQ, ORF, RW2)."""
    if data[:4] in _RAW_STARTS or data[8:10] == b"CR" or data[8:12] in (b"IIII", b"MMMM"):  # Canon, Phase One
        return True
    return any(
        DNG_VERSION in page.entries
        or integer(page, PHOTOMETRIC) in (_CFA, _LINEAR_RAW)
        or integer(page, COMPRESSION, 1) in _RAW_COMPRESSIONS
        for page, _ in _directories(data)
    )


def choose_page(data: bytes | memoryview) -> tuple[Directory, int]:
    """The first page, or the largest full one where the first is a thumbnail or a mask; and where its metadata are.

    A page that has neither orientation nor EXIF shares those of the first, as TIFF/EP has it.
    """
    pages = [(page, at) for page, at in _directories(data) if _area(page)]
    if not pages:
        raise ValueError("a TIFF without a page")
    chosen = pages[0] if _is_full(pages[0][0]) else max(pages, key=lambda page: (_is_full(page[0]), _area(page[0])))
    if len(pages) > 1:
        log.info("The TIFF has %d pages: upscaling number %d.", len(pages), pages.index(chosen) + 1)
    return chosen[0], (chosen if chosen[0].entries.keys() & {ORIENTATION, EXIF} else pages[0])[1]


def numbers(page: Directory, tag: int) -> list[float]:
    """All numbers of a tag, however many; rationals as two each."""
    kind, _, value = page.entries.get(tag, (0, 0, memoryview(b"")))
    return np.frombuffer(value, page.order + NUMBERS[kind]).tolist() if kind in NUMBERS else []


def integers(page: Directory, tag: int) -> list[int]:
    """All numbers of a tag, which are whole and not negative."""
    found = numbers(page, tag) if page.entries.get(tag, (0,))[0] not in RATIONALS else page.numbers(tag)
    return [int(number) if math.isfinite(number) and number > 0 else 0 for number in found]


def integer(page: Directory, tag: int, default: int = 0) -> int:
    """The first number of a tag."""
    return (integers(page, tag) or [default])[0]


def _area(page: Directory) -> int:
    return integer(page, WIDTH) * integer(page, HEIGHT)


def _is_full(page: Directory) -> bool:
    return not integer(page, NEW_SUBFILE_TYPE) & (_REDUCED | _MASK) and integer(page, SUBFILE_TYPE, 1) != 2


def _directories(data: bytes | memoryview) -> list[tuple[Directory, int]]:
    """The directories and the bytes where they are: the chain, then those below it. A chain that breaks ends there."""
    big, order = data[2:4] in (b"+\0", b"\0+"), "little" if data[:1] == b"I" else "big"
    chain, below, found = [int.from_bytes(data[8:16] if big else data[4:8], order)], [], {}
    while (chain or below) and len(found) < MAX_PAGES:
        at = chain.pop() if chain else below.pop(0)
        page = Directory() if at in found else read_directory(data, at)
        if page.entries:
            found[at] = page
            chain.append(page.next)
            below += integers(page, SUB_DIRECTORIES)
    return [(page, at) for at, page in found.items()]
