"""What a file is, by its first bytes. Names and headers are hearsay.

A short list of what is let in; everything else is refused, by name where it is a likely mistake. Playlists matter most:
to ffmpeg they are media, and they may point at local files or private addresses.
"""

from collections.abc import Sequence

from deployments.contract import MediaKind
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media.formats import JPEG, M4A, MKV, MOV, MP3, MP4, PNG, WAV, WEBM, WEBP, Format, wanted

#: How many leading bytes :func:`sniff` looks at.
HEAD_BYTES = 64


def _brands(words: str) -> frozenset[bytes]:
    return frozenset(words.encode().split())


_MP4_BRANDS = _brands(
    "isom iso2 iso3 iso4 iso5 iso6 iso7 iso8 iso9 mp41 mp42 avc1 hvc1 dash cmfc mmp4 MSNV M4VH M4VP XAVC 3gp4 3gp5 3gp6"
) | {b"M4V ", b"f4v "}
_M4A_BRANDS = frozenset((b"M4A ", b"M4B "))
#: Pictures and camera raws in the same box format; some also list ``isom`` among their compatible brands.
_STILL_BRANDS = _brands("heic heix heim heis hevc hevx mif1 msf1 avif avis") | {b"crx "}

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
    (b"gif8", "a GIF"),
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a ZIP archive, not the file inside"),
    (b"oggs", "Ogg"),
    (b"flac", "FLAC"),
    (b"{", "JSON, not the file itself"),
)


def sniff(head: bytes, kinds: Sequence[MediaKind]) -> Format:
    """The format of a file that begins with ``head`` (64 bytes are enough, fewer if the file is shorter).

    Raises :class:`~deployments.faults.Fault` ``unsupported_media`` for all else, saying which of ``kinds`` to send, or
    ``invalid_media`` if there is nothing.
    """
    head = head[:HEAD_BYTES]
    if not head:
        raise Fault(FailureCode.INVALID_MEDIA, "The file is empty. Upload it again.")
    found = _image(head) or _boxes(head) or _matroska(head) or _sound(head)
    if found is None:
        raise Fault(FailureCode.UNSUPPORTED_MEDIA, f"{_refusal(head)} Send {wanted(kinds)}.")
    return found


def _image(head: bytes) -> Format | None:
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    return WEBP if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def _boxes(head: bytes) -> Format | None:
    """The MP4 family: a ``ftyp`` box of size, major brand, version and compatible brands."""
    if head[4:8] != b"ftyp":
        return None
    major, box = head[8:12], min(int.from_bytes(head[:4], "big"), len(head))
    if major in _STILL_BRANDS:
        return None
    if major in _M4A_BRANDS:
        return M4A
    if major == b"qt  ":
        return MOV
    # Cameras invent major brands, but say which known one they are compatible with.
    brands = {major} | {head[at : at + 4] for at in range(16, box - 3, 4)}
    return MP4 if brands & _MP4_BRANDS else None


def _matroska(head: bytes) -> Format | None:
    """EBML: the element DocType (0x4282) says which."""
    if not head.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    if b"\x42\x82\x84webm" in head:
        return WEBM
    return MKV if b"\x42\x82\x88matroska" in head else None


def _sound(head: bytes) -> Format | None:
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return WAV
    if head.startswith(b"ID3") or _is_mp3_frame(head):
        return MP3
    return None


def _is_mp3_frame(head: bytes) -> bool:
    """An MPEG audio frame header: sync, a known version, Layer III, a legal bit rate and sample rate."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bit_rate, sample_rate = head[2] >> 4, head[2] >> 2 & 3
    return version != 1 and layer == 1 and bit_rate not in (0, 15) and sample_rate != 3


def _refusal(head: bytes) -> str:
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:
        return "This is HEIC or AVIF."
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for prefix, name in _REFUSED:
        if text.startswith(prefix):
            return f"This is {name}."
    return "This file type is not supported."
