"""What kind of media a file is, by its first bytes: enough to choose how to upload it. The service looks closer."""

from collections.abc import Sequence

#: How many leading bytes are looked at.
HEAD_BYTES = 64

_IMAGE, _SOUND, _EITHER = ("image",), ("audio",), ("video", "audio")
_BEGINNINGS = (
    (b"\xff\xd8\xff", _IMAGE),
    (b"\x89PNG\r\n\x1a\n", _IMAGE),
    (b"GIF8", _IMAGE),
    # Matroska and WebM.
    (b"\x1aE\xdf\xa3", _EITHER),
    (b"OggS", _SOUND),
    (b"fLaC", _SOUND),
    (b"ID3", _SOUND),
)
#: By what stands behind the size of a RIFF file.
_RIFF = {b"WAVE": _SOUND, b"WEBP": _IMAGE}
#: Major brands of the box format that tell; phones write sound with those of videos, too.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"), _IMAGE),
    **dict.fromkeys((b"M4A ", b"M4B "), _SOUND),
}


def possible(head: bytes) -> Sequence[str]:
    """Of ``image``, ``video`` and ``audio``, what a file may be that begins so; nothing: it isn't known here."""
    for beginning, kinds in _BEGINNINGS:
        if head.startswith(beginning):
            return kinds
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], ())
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], _EITHER)
    # A frame of MP3 or AAC: eleven bits that are set.
    return _SOUND if head[:1] == b"\xff" and head[1:2] >= b"\xe0" else ()


def chosen(head: bytes, guess: str, kinds: Sequence[str]) -> str:
    """Which of ``kinds`` to take a file for that begins so; ``guess`` is what its name says, if it has one."""
    fitting = [each for each in kinds if each in possible(head)] or kinds
    return guess if guess in fitting else fitting[0]
