"""What a file really is: recognised by its first bytes, then read by a decoder in the sandbox."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.contract import MediaKind
from deployments.engine import InputSpec
from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media import picture
from deployments.media.formats import (
    MAX_IMAGE_PIXELS,
    NOUNS,
    Format,
    by_content_type,
    moving,
    sound_only,
    wanted,
    with_picture,
)
from serve_app.intake.container import measure, require_frame
from serve_app.intake.sniff import HEAD_BYTES, sniff, tag_bytes

#: Seconds by which a clip may exceed its limit: encoders pad the last packet.
_GRACE_S = 0.1
_ANYTHING: Sequence[MediaKind] = ("image", "video", "audio")


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


async def probe(
    path: Path, kinds: Sequence[MediaKind] = _ANYTHING, *, max_image_pixels: int = MAX_IMAGE_PIXELS
) -> MediaProbe:
    """Judge the file at ``path`` without decoding it in this process. ``kinds`` are what it should be.

    Raises :class:`Fault`: ``unsupported_media``, ``invalid_media`` or ``too_many_pixels``.
    """
    size, head, behind_tag = _glance(path)
    media = sniff(head, kinds, behind_tag)
    if media.kind != "image":
        return await _measured(path, media, size)
    image = await picture.judge(path, media, max_image_pixels)
    if image.animated and "image" in kinds and "video" in kinds:
        # Where it could be a video, one picture of many is not what is meant.
        animation = moving(media)
        if animation is None:
            what = f"This is an animated {media.name}, of which only a still one is taken."
            raise Fault(FailureCode.UNSUPPORTED_MEDIA, f"{what} Send {wanted(kinds)}.")
        require_frame(image.width, image.height)
        return await _measured(path, animation, size)
    return MediaProbe(
        kind="image",
        content_type=media.content_type,
        extension=media.extension,
        size=size,
        width=image.width,
        height=image.height,
    )


async def _measured(path: Path, media: Format, size: int) -> MediaProbe:
    found = await measure(path, media)
    media = sound_only(media) if found.width is None else with_picture(media)
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


def _glance(path: Path) -> tuple[int, bytes, bytes]:
    """The file's size, its first bytes, and those behind the tag that it may begin with."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(tag_bytes(head))
        return path.stat().st_size, head, file.read(HEAD_BYTES)


def require(spec: InputSpec, probed: MediaProbe) -> None:
    """Hold a file against what the model takes.

    Raises :class:`Fault`: ``unsupported_media``, ``invalid_media`` or ``media_too_long``.
    """
    if probed.kind not in spec.kinds:
        if probed.kind == "audio" and "video" in spec.kinds:
            raise Fault(FailureCode.INVALID_MEDIA, f"The file holds sound but no picture. Send {wanted(spec.kinds)}.")
        found = by_content_type(probed.content_type)
        name = found.name if found and found.name else probed.content_type
        raise Fault(FailureCode.UNSUPPORTED_MEDIA, f"This is {NOUNS[probed.kind]} ({name}). Send {wanted(spec.kinds)}.")
    # A video may be sent for its sound where the model says so; then it must have some.
    if "audio" in spec.kinds and not probed.has_audio:
        raise Fault(
            FailureCode.INVALID_MEDIA, f"The file holds no sound. Send {wanted(spec.kinds)} with an audio track."
        )
    spec.require_length(probed.duration_s or 0.0, _GRACE_S)
