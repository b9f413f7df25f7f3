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
    #: Its frames may be see-through.
    layered: bool = False


JPEG = Format("image", "image/jpeg", "jpg", "JPEG", pillow="JPEG")
PNG = Format("image", "image/png", "png", "PNG", pillow="PNG")
WEBP = Format("image", "image/webp", "webp", "WebP", pillow="WEBP")
HEIC = Format("image", "image/heic", "heic", "HEIC", pillow="HEIF")
AVIF = Format("image", "image/avif", "avif", "AVIF", pillow="AVIF")
GIF = Format("image", "image/gif", "gif", "GIF", pillow="GIF")
MP4 = Format("video", "video/mp4", "mp4", "MP4", demuxer="mov")
MOV = Format("video", "video/quicktime", "mov", "MOV", demuxer="mov")
WEBM = Format("video", "video/webm", "webm", "WebM", demuxer="matroska")
MKV = Format("video", "video/x-matroska", "mkv", "MKV", demuxer="matroska")
# Nobody has registered types for these two: between the head and a replica they say which reader is meant.
MOVING_GIF = Format("video", "video/x-gif", "gif", "animated GIF", demuxer="gif", layered=True)
MOVING_WEBP = Format("video", "video/x-webp", "webp", "animated WebP", demuxer="webp_anim", layered=True)
OGV = Format("video", "video/ogg", "ogv", "", demuxer="ogg")
WAV = Format("audio", "audio/wav", "wav", "WAV", demuxer="wav")
MP3 = Format("audio", "audio/mpeg", "mp3", "MP3", demuxer="mp3")
M4A = Format("audio", "audio/mp4", "m4a", "M4A", demuxer="mov")
AAC = Format("audio", "audio/aac", "aac", "AAC", demuxer="aac")
OGG = Format("audio", "audio/ogg", "ogg", "Ogg", demuxer="ogg")
FLAC = Format("audio", "audio/flac", "flac", "FLAC", demuxer="flac")
WEBM_SOUND = Format("audio", "audio/webm", "webm", "", demuxer="matroska")
MKV_SOUND = Format("audio", "audio/x-matroska", "mka", "", demuxer="matroska")

FORMATS = (
    *(JPEG, PNG, WEBP, HEIC, AVIF, GIF),
    *(MP4, MOV, WEBM, MKV, MOVING_GIF, MOVING_WEBP, OGV),
    *(WAV, MP3, M4A, AAC, OGG, FLAC, WEBM_SOUND, MKV_SOUND),
)
_BY_CONTENT_TYPE = {format.content_type: format for format in FORMATS}
_SOUND_ONLY = {MP4: M4A, MOV: M4A, WEBM: WEBM_SOUND, MKV: MKV_SOUND, OGV: OGG}
#: A film under a sound file's brand, as some converters write it.
_WITH_PICTURE = {M4A: MP4, OGG: OGV}
_MOVING = {GIF: MOVING_GIF, WEBP: MOVING_WEBP}
NOUNS: dict[MediaKind, str] = {"image": "an image", "video": "a video", "audio": "sound"}


def by_content_type(content_type: str) -> Format | None:
    """The format that intake meant by a content type."""
    return _BY_CONTENT_TYPE.get(content_type)


def sound_only(format: Format) -> Format:
    """The same container where it holds no picture."""
    return _SOUND_ONLY.get(format, format)


def with_picture(format: Format) -> Format:
    """The same container where it holds a picture."""
    return _WITH_PICTURE.get(format, format)


def moving(format: Format) -> Format | None:
    """How an image format is read as a video where it holds an animation; None if it can't be."""
    return _MOVING.get(format)


def wanted(kinds: Iterable[MediaKind]) -> str:
    """What to send, in words: ``sound (WAV, MP3, M4A, AAC, Ogg or FLAC) or an image (JPEG, PNG, ... or GIF)``."""
    return " or ".join(f"{NOUNS[kind]} ({names(kind)})" for kind in kinds)


def names(kind: MediaKind) -> str:
    """The formats of a kind, in words."""
    *first, last = (format.name for format in FORMATS if format.kind == kind and format.name)
    return f"{', '.join(first)} or {last}"
