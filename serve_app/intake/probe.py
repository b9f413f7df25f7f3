"""What a file really is: recognised by its first bytes, then read by a decoder in the sandbox."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from deployments.contract import MediaKind
from serve_app.intake.container import measure
from serve_app.intake.errors import IntakeError
from serve_app.intake.sandbox import Limits, run_limited
from serve_app.intake.sniff import HEAD_BYTES, JPEG, M4A, MKV, MOV, MP4, PNG, WEBM, WEBP, MediaType, sniff

MAX_IMAGE_PIXELS = 50_000_000

_PICTURE = Path(__file__).with_name("picture.py")
_PILLOW_FORMATS = {JPEG: "JPEG", PNG: "PNG", WEBP: "WEBP"}
#: 50 MP of WebP take 770 MB to decode, the other formats a third of that.
_IMAGE_LIMITS = Limits(cpu_s=20, wall_s=40, memory=1536 * 2**20, output=64 * 1024)
#: The same containers without a picture stream.
_SOUND_ONLY = {
    MP4: M4A,
    MOV: M4A,
    WEBM: MediaType("audio", "audio/webm", "webm"),
    MKV: MediaType("audio", "audio/x-matroska", "mka"),
}


@dataclass(frozen=True, kw_only=True)
class MediaProbe:
    """A file that can be decoded."""

    kind: MediaKind
    content_type: str
    #: Without dot.
    extension: str
    #: Bytes.
    size: int
    #: Pixels as displayed; None for sound.
    width: int | None = None
    height: int | None = None
    #: Seconds, measured; None for images.
    duration_s: float | None = None
    #: Frames per second, nominal; None unless it is a video.
    fps: float | None = None
    has_audio: bool = False


async def probe(path: Path, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> MediaProbe:
    """Judge the file at ``path`` (absolute) without decoding it in this process.

    Raises :class:`IntakeError`: ``unsupported_media``, ``invalid_media`` or ``too_many_pixels``.
    """
    size, head = _glance(path)
    media = sniff(head)
    if media.kind == "image":
        width, height = await _judge_image(path, media, max_image_pixels)
        return MediaProbe(
            kind="image",
            content_type=media.content_type,
            extension=media.extension,
            size=size,
            width=width,
            height=height,
        )
    found = await measure(path, media)
    if found.width is None:
        media = _SOUND_ONLY.get(media, media)
    elif media.kind == "audio":
        # A film under a sound file's brand, as some converters write it.
        media = MP4
    return MediaProbe(
        kind=media.kind,
        content_type=media.content_type,
        extension=media.extension,
        size=size,
        width=found.width,
        height=found.height,
        duration_s=found.duration_s,
        fps=found.fps,
        has_audio=found.has_audio,
    )


def _glance(path: Path) -> tuple[int, bytes]:
    with path.open("rb") as file:
        return path.stat().st_size, file.read(HEAD_BYTES)


async def _judge_image(path: Path, media: MediaType, max_pixels: int) -> tuple[int, int]:
    """Width and height as displayed."""
    # -B: the limit on what it may write would leave Pillow's bytecode cut short, for everybody who imports it after.
    finished = await run_limited(
        [sys.executable, "-I", "-B", str(_PICTURE), str(path), _PILLOW_FORMATS[media], str(max_pixels)], _IMAGE_LIMITS
    )
    verdict = json.loads(finished.stdout) if finished.status == 0 else {"error": "invalid"}
    match verdict.get("error"):
        case None:
            return int(verdict["width"]), int(verdict["height"])
        case "pixels":
            raise IntakeError(
                "too_many_pixels", f"The image has more than {max_pixels / 1e6:g} megapixels. Send a smaller one."
            )
        case _:
            raise IntakeError(
                "invalid_media",
                "The image can't be decoded. It may be damaged or cut short: export and upload it again.",
            )
