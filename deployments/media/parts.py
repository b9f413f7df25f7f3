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
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA


def too_many(file: BinaryIO, pillow_format: str) -> bool:
    """Whether ``file``, an image of this format, has more parts than a program would write. Reads it from the start."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        match pillow_format:
            case "JPEG":
                return _too_many_segments(data)
            case "PNG":
                return _too_many_chunks(data, start=8, big_endian=True)
            case _:
                return _too_many_chunks(data, start=12, big_endian=False)


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
