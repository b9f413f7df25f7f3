"""The formats that are taken, each with the one reader it is ever given to: the same on the head and on a GPU.

Intake recognises a file by its first bytes and writes down the content type; whoever opens the file again forces the
reader of that content type. Nobody guesses twice, so nobody can be told two different things by one file.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from deployments.contract import MediaKind

#: Pixels of a still image.
MAX_IMAGE_PIXELS = 50_000_000
#: Pixels of a video's frame: 4K and a little, either way up.
MAX_FRAME_PIXELS = 4096 * 2304
#: Frames a second of a video: slow motion of phones.
MAX_FPS = 240


@dataclass(frozen=True)
class Format:
    """A container or image format."""

    #: What it usually holds; a container without a picture is :attr:`sound_only`.
    kind: MediaKind
    content_type: str
    #: Without dot.
    extension: str
    #: As people call it; empty if nobody would send one on purpose.
    name: str
    #: The demuxer that ffmpeg is made to use; empty for images.
    demuxer: str = ""
    #: The format that Pillow is made to use; empty for the others.
    pillow: str = ""


JPEG = Format("image", "image/jpeg", "jpg", "JPEG", pillow="JPEG")
PNG = Format("image", "image/png", "png", "PNG", pillow="PNG")
WEBP = Format("image", "image/webp", "webp", "WebP", pillow="WEBP")
MP4 = Format("video", "video/mp4", "mp4", "MP4", demuxer="mov")
MOV = Format("video", "video/quicktime", "mov", "MOV", demuxer="mov")
WEBM = Format("video", "video/webm", "webm", "WebM", demuxer="matroska")
MKV = Format("video", "video/x-matroska", "mkv", "MKV", demuxer="matroska")
WAV = Format("audio", "audio/wav", "wav", "WAV", demuxer="wav")
MP3 = Format("audio", "audio/mpeg", "mp3", "MP3", demuxer="mp3")
M4A = Format("audio", "audio/mp4", "m4a", "M4A", demuxer="mov")
WEBM_SOUND = Format("audio", "audio/webm", "webm", "", demuxer="matroska")
MKV_SOUND = Format("audio", "audio/x-matroska", "mka", "", demuxer="matroska")

FORMATS = (JPEG, PNG, WEBP, MP4, MOV, WEBM, MKV, WAV, MP3, M4A, WEBM_SOUND, MKV_SOUND)
_BY_CONTENT_TYPE = {format.content_type: format for format in FORMATS}
_SOUND_ONLY = {MP4: M4A, MOV: M4A, WEBM: WEBM_SOUND, MKV: MKV_SOUND}
NOUNS: dict[MediaKind, str] = {"image": "an image", "video": "a video", "audio": "sound"}


def by_content_type(content_type: str) -> Format | None:
    """The format that intake meant by a content type."""
    return _BY_CONTENT_TYPE.get(content_type)


def sound_only(format: Format) -> Format:
    """The same container where it holds no picture."""
    return _SOUND_ONLY.get(format, format)


def wanted(kinds: Iterable[MediaKind]) -> str:
    """What to send, in words: ``a video (MP4, MOV, WebM or MKV) or an image (JPEG, PNG or WebP)``."""
    return " or ".join(f"{NOUNS[kind]} ({_names(kind)})" for kind in kinds)


def _names(kind: MediaKind) -> str:
    *first, last = (format.name for format in FORMATS if format.kind == kind and format.name)
    return f"{', '.join(first)} or {last}"
