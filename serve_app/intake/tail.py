"""Whether sound whose header says no length stops in the middle of a page or a frame, by its last bytes."""

import os
from pathlib import Path

#: Bytes from the end that are looked at: two of the largest Ogg pages.
_TAIL = 2 * (27 + 255 + 255 * 255)
#: Bytes of an Ogg page's header before its table, and of an ADTS frame's.
_PAGE_HEAD, _FRAME_HEAD = 27, 7
#: ADTS frames in a row that are no accident.
_IN_A_ROW = 3


def ogg_is_cut(path: Path) -> bool:
    """Whether the last page has fewer bytes than it says."""
    tail = _tail(path)
    at = tail.rfind(b"OggS")
    if at < 0:
        return False
    table = at + _PAGE_HEAD
    if table > len(tail):
        return True
    body = table + tail[table - 1]
    end = body + sum(tail[table:body])
    return end > len(tail) or tail[end:] in (b"O", b"Og", b"Ogg")


def adts_is_cut(path: Path) -> bool:
    """Whether the last frame has fewer bytes than it says. What is no frame, as a tag at the end, is none."""
    tail = _tail(path)
    at = tail.find(b"\xff")
    while at >= 0:
        frames, end = 0, at
        while length := _frame_bytes(tail[end : end + _FRAME_HEAD]):
            frames, end = frames + 1, end + length
        if frames >= _IN_A_ROW:
            return end > len(tail) or (0 < len(tail) - end < _FRAME_HEAD and tail[end : end + 1] == b"\xff")
        at = tail.find(b"\xff", at + 1)
    return False


def _frame_bytes(head: bytes) -> int:
    """Of the ADTS frame with this header; 0 if it is none."""
    if len(head) < _FRAME_HEAD or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    return int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        return file.read()
