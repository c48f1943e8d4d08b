"""XMP packets: corrected as text, so that everything else stays byte for byte, and split for JPEG. No XML is parsed."""

import hashlib
import logging
import re
import struct

log = logging.getLogger(__name__)

HEAD, EXTENSION_HEAD = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_PART_BYTES = 65000  # of an extension in one JPEG segment
_HAS_EXTENSION = re.compile(
    rb"""\s?xmpNote:HasExtendedXMP\s?=\s?["'](\w{32})["']|<xmpNote:HasExtendedXMP>(\w{32})</xmpNote:HasExtendedXMP>"""
)
_EXTENDED = (  # the packet of a JPEG whose XMP is in an extension
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="%s"/></rdf:RDF></x:xmpmeta>'
    b'<?xpacket end="w"?>'
)
ORIENTATION = b"tiff:Orientation"
WIDTHS, HEIGHTS = (b"tiff:ImageWidth", b"exif:PixelXDimension"), (b"tiff:ImageLength", b"exif:PixelYDimension")
_NUMBER = re.compile(  # the name, what stands between, and the value of an attribute or an element
    rb"(?<![/\w])(" + b"|".join((ORIENTATION, *WIDTHS, *HEIGHTS)) + rb")"
    rb"""(\s?=\s?["']|(?:\s[^<>]{0,200})?(?<!/)>)\s{0,9}(\d{1,9})\s{0,9}(?=["'<])"""
)


def in_utf8(packet: bytes) -> bytes:
    """A packet in UTF-8, the encoding in which PNG, WebP and JPEG hold it."""
    encodings = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
    if packet[:2] in encodings:
        packet = packet.decode(encodings[packet[:2]], "replace").encode()
    return packet.rstrip(b"\0")


def with_numbers(packet: bytes, numbers: dict[bytes, int]) -> bytes:
    """The packet with these numbers wherever it states the properties, as attributes or as elements."""

    def corrected(match: re.Match[bytes]) -> bytes:
        return match[1] + match[2] + b"%d" % numbers[match[1]] if match[1] in numbers else match[0]

    return _NUMBER.sub(corrected, packet)


def orientation_of(packet: bytes) -> int | None:
    """The orientation, 1 to 8, that a packet states; None if it states none."""
    stated = (int(match[3]) for match in _NUMBER.finditer(packet) if match[1] == ORIENTATION)
    return next((number for number in stated if 1 <= number <= 8), None)


def joined(packet: bytes, extensions: dict[bytes, list[tuple[int, int, bytes]]]) -> bytes:
    """One packet of a JPEG's packet and its extension: name -> [(offset, length of the whole, part)].

    An extension that is not complete is left out, and a warning is logged.
    """
    match = _HAS_EXTENSION.search(packet)
    if not match:
        return packet
    parts = sorted(extensions.get(match[1] or match[2], []))
    body = b"".join(part for _, _, part in parts)
    start, end = body.find(b">", body.find(b"<rdf:RDF")) + 1, body.rfind(b"</rdf:RDF>")
    packet = packet[: match.start()] + packet[match.end() :]
    place = packet.rfind(b"</rdf:RDF>")
    if b"<rdf:RDF" not in body or len(body) != parts[0][1] or not 0 < start <= end or place < 0:
        log.warning("The extended XMP of the image is not complete and is left out.")
        return packet
    return packet[:place] + body[start:end] + packet[place:]


def jpeg_parts(packet: bytes, limit: int) -> list[bytes]:
    """What the segments of a JPEG hold, each at most `limit` bytes: the packet, or a short one and an extension."""
    if len(HEAD + packet) <= limit:
        return [HEAD + packet]
    body = re.sub(rb"<\?xpacket[^>]{0,200}\?>", b"", packet).strip()
    name = hashlib.md5(body, usedforsecurity=False).hexdigest().upper().encode()
    parts = [HEAD + _EXTENDED % name]
    for start in range(0, len(body), _PART_BYTES):
        place = struct.pack(">II", len(body), start)
        parts.append(EXTENSION_HEAD + name + place + body[start : start + _PART_BYTES])
    return parts
