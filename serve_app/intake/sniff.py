"""What a file is, by its first bytes. Names and headers are hearsay.

A short list of what is let in; everything else is refused, by name where it is a likely mistake. Playlists matter most:
to ffmpeg they are media, and they may point at local files or private addresses.
"""

from collections.abc import Sequence

from deployments.contract import MediaKind
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media.formats import (
    AAC,
    AVIF,
    FLAC,
    GIF,
    HEIC,
    JPEG,
    M4A,
    MKV,
    MOV,
    MP3,
    MP4,
    OGG,
    PNG,
    WAV,
    WEBM,
    WEBP,
    Format,
    wanted,
)

#: How many leading bytes :func:`sniff` looks at, and how many behind an ID3 tag.
HEAD_BYTES = 64
#: Bytes of an ID3 tag's header.
_ID3_HEAD = 10


def _brands(words: str) -> frozenset[bytes]:
    return frozenset(words.encode().split())


_MP4_BRANDS = _brands(
    "isom iso2 iso3 iso4 iso5 iso6 iso7 iso8 iso9 mp41 mp42 avc1 hvc1 dash cmfc mmp4 MSNV M4VH M4VP XAVC "
    "3gp4 3gp5 3gp6 3gp7 3gp8 3gp9 3gr6 3gs6 3ge6 3ge7 3g2a 3g2b 3g2c"
) | {b"M4V ", b"f4v "}
_M4A_BRANDS = frozenset((b"M4A ", b"M4B "))
#: Pictures in the same box format; some also list ``isom`` among their compatible brands. The general ones may hold
#: either of the two codecs.
_HEIC_BRANDS, _AVIF_BRANDS = _brands("heic heix heim heis hevc hevx"), _brands("avif avis")
_PICTURE_BRANDS = _brands("mif1 mif2 msf1 miaf")
_CAMERA_RAW = b"crx "

#: What people send by mistake, or to try us.
_REFUSED = (
    (b"<!doctype", "a web page, not the file itself"),
    (b"<html", "a web page, not the file itself"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML"),
    (b"<", "a web page or XML, not the file itself"),
    (b"#extm3u", "a playlist, not the media file itself"),
    (b"ffconcat", "a playlist, not the media file itself"),
    (b"[playlist]", "a playlist, not the media file itself"),
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a ZIP archive, not the file inside"),
    (b"{", "JSON, not the file itself"),
)


def tag_bytes(head: bytes) -> int:
    """Bytes of the ID3 tag that a file begins with, 0 if it has none. Programs put one in front of any sound."""
    if not head.startswith(b"ID3") or len(head) < _ID3_HEAD:
        return 0
    # Seven bits of each byte; flag 0x10 means that the header stands at the end once more.
    length = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return _ID3_HEAD + length + (_ID3_HEAD if head[5] & 0x10 else 0)


def sniff(head: bytes, kinds: Sequence[MediaKind], behind_tag: bytes = b"") -> Format:
    """The format of a file that begins with ``head`` (64 bytes are enough, fewer if the file is shorter).

    ``behind_tag`` is what comes after the ID3 tag that :func:`tag_bytes` sees.
    Raises :class:`~deployments.faults.Fault` ``unsupported_media`` for all else, saying which of ``kinds`` to send, or
    ``invalid_media`` if there is nothing.
    """
    head = head[:HEAD_BYTES]
    if not head:
        raise Fault(FailureCode.INVALID_MEDIA, "The file is empty. Upload it again.")
    found = _image(head) or _boxes(head) or _matroska(head) or _sound(head, behind_tag[:HEAD_BYTES])
    if found is None:
        raise Fault(FailureCode.UNSUPPORTED_MEDIA, f"{_refusal(head)} Send {wanted(kinds)}.")
    return found


def _image(head: bytes) -> Format | None:
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    return WEBP if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def _boxes(head: bytes) -> Format | None:
    """The MP4 family: a ``ftyp`` box of size, major brand, version and compatible brands."""
    if head[4:8] != b"ftyp":
        return None
    major, box = head[8:12], min(int.from_bytes(head[:4], "big"), len(head))
    # Cameras invent major brands, but say which known one they are compatible with.
    brands = {major} | {head[at : at + 4] for at in range(16, box - 3, 4)}
    if major in _HEIC_BRANDS:
        return HEIC
    if major in _AVIF_BRANDS:
        return AVIF
    if major in _PICTURE_BRANDS:
        return AVIF if brands & _AVIF_BRANDS else HEIC
    if major == _CAMERA_RAW:
        return None
    if major in _M4A_BRANDS:
        return M4A
    if major == b"qt  ":
        return MOV
    return MP4 if brands & _MP4_BRANDS else None


def _matroska(head: bytes) -> Format | None:
    """EBML: the element DocType (0x4282) says which."""
    if not head.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    if b"\x42\x82\x84webm" in head:
        return WEBM
    return MKV if b"\x42\x82\x88matroska" in head else None


def _sound(head: bytes, behind_tag: bytes) -> Format | None:
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return WAV
    if head.startswith(b"OggS\0"):
        return OGG
    # Behind a tag it is MP3 unless it is known to be something else: players skip what lies between as well.
    found = _bare_sound(behind_tag) if head.startswith(b"ID3") else _bare_sound(head)
    return MP3 if found is None and head.startswith(b"ID3") else found


def _bare_sound(head: bytes) -> Format | None:
    """What may have a tag in front."""
    if head.startswith(b"fLaC"):
        return FLAC
    if _is_mp3_frame(head):
        return MP3
    return AAC if _is_adts_frame(head) else None


def _is_mp3_frame(head: bytes) -> bool:
    """An MPEG audio frame header: sync, a known version, Layer III, a legal bit rate and sample rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bit_rate, sample_rate = head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer == 1 and bit_rate not in (0, 15) and sample_rate != 3


def _is_adts_frame(head: bytes) -> bool:
    """A header of AAC without a container: sync, layer 0, a known sample rate, a length that holds the header."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return False
    return head[2] >> 2 & 15 < 13 and int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF > 7


def _refusal(head: bytes) -> str:
    if head[4:12] == b"ftyp" + _CAMERA_RAW:
        return "This is a camera's raw picture."
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for prefix, name in _REFUSED:
        if text.startswith(prefix):
            return f"This is {name}."
    return "This file type is not supported."
