"""How many parts a picture file has, by walking over it without decoding. Standard library only.

A decoder's work follows from the pixels, which are bounded elsewhere, and from the parts: a JPEG of 187 kB with 3000
scans keeps a decoder busy for 20 seconds, and a PNG can hold a million empty chunks.
"""

import mmap
import re
from typing import BinaryIO

#: Progressive JPEGs have about ten scans.
MAX_SCANS = 100
#: Segments or chunks, those that hold the pixels aside.
MAX_PARTS = 5_000
#: Chunks of a PNG's pixels; programs write 4 kB or more a chunk.
MAX_DATA_PARTS = 200_000

#: The next marker; FF 00 and the restart markers D0 to D7 belong to the data of a scan.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
#: What begins a part of a GIF, and the extension that each of its frames has.
_GIF_PICTURE, _GIF_EXTENSION, _GIF_CONTROL = 0x2C, 0x21, b"\xf9"
#: Outermost boxes of HEIC and AVIF, and of MP4 and MOV.
_BOXES = frozenset((b"ftyp", b"meta", b"mdat", b"moov", b"moof", b"free", b"skip", b"wide", b"uuid"))
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA


def complaint(file: BinaryIO, pillow_format: str) -> str | None:
    """What is wrong with ``file``, an image of this format: ``parts``, if it has more than a program would write,
    ``cut``, if it ends before they do. Of JPEG and PNG, which have no length, a decoder has to say the latter.

    Reads it from the start.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        match pillow_format:
            case "JPEG":
                return "parts" if _too_many_segments(data) else None
            case "PNG":
                return "parts" if _too_many_chunks(data, start=8, big_endian=True) else None
            case "WEBP":
                if int.from_bytes(data[4:8], "little") + 8 > len(data) + 1:
                    return "cut"
                return "parts" if _too_many_chunks(data, start=12, big_endian=False) else None
            case "GIF":
                return _gif_complaint(data)
            case _:
                return _box_complaint(data)


def boxes_are_cut(file: BinaryIO) -> bool:
    """Whether an MP4, or another file of such boxes, ends before one of the outermost does."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _box_complaint(data) == "cut"


def _too_many_segments(data: mmap.mmap) -> bool:
    scans = segments = at = 0
    while found := _JPEG_MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            break
        if marker in (_START_OF_IMAGE, 0x01):
            continue
        segments += 1
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS or segments > MAX_PARTS:
            return True
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return False


def _too_many_chunks(data: mmap.mmap, start: int, *, big_endian: bool) -> bool:
    """PNG: length, type, body, checksum. RIFF (WebP): type, length, body of an even length."""
    pixels = parts = 0
    at = start
    while at + 8 <= len(data):
        first, second = data[at : at + 4], data[at + 4 : at + 8]
        kind = second if big_endian else first
        if kind in (b"IDAT", b"fdAT"):
            pixels += 1
        else:
            parts += 1
        if kind == b"IEND":
            break
        if parts > MAX_PARTS or pixels > MAX_DATA_PARTS:
            return True
        length = int.from_bytes(first, "big") + 4 if big_endian else (int.from_bytes(second, "little") + 1) // 2 * 2
        at += 8 + length
    return False


def _gif_complaint(data: mmap.mmap) -> str | None:
    """A header, a colour table, then pictures and extensions, each of which ends with an empty block."""
    frames = others = 0
    at = 13 + _table_bytes(data[10:11])
    while at < len(data):
        kind, label = data[at], data[at + 1 : at + 2]
        if kind == _GIF_PICTURE:
            frames += 1
            # Place and size, flags, a colour table, the size of the first code.
            at += 11 + _table_bytes(data[at + 9 : at + 10])
        elif kind == _GIF_EXTENSION:
            others += label != _GIF_CONTROL
            at += 2
        else:
            # The end, or what only a decoder can judge.
            return None
        while at < len(data) and (length := data[at]):
            at += 1 + length
        at += 1
        if others > MAX_PARTS or frames > MAX_DATA_PARTS:
            return "parts"
    return "cut" if at > len(data) else None


def _table_bytes(flags: bytes) -> int:
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _box_complaint(data: mmap.mmap) -> str | None:
    """Boxes: length, type, body; a length of 1 stands in 64 bits, 0 is all there is."""
    at = 0
    for _ in range(MAX_PARTS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        # Behind the boxes cameras write what they like.
        if length < 8 or kind not in _BOXES:
            return None
        at += length
        if at > len(data):
            return "cut"
    return "parts"
