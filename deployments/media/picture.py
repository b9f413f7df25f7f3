"""Reading one image: judged, or decoded to plain RGB, by Pillow in the sandbox."""

import json
from dataclasses import dataclass
from pathlib import Path

from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media.formats import MAX_IMAGE_PIXELS, Format
from deployments.sandbox.connection import SandboxError
from deployments.sandbox.process import Call, Ended, Limits, Stream, finish

#: Bytes of the answer in front of the pixels, see ``pillow.py``.
HEAD_BYTES = 256

#: Of these 50 megapixels take half at most.
_LIMITS = Limits(cpu_s=5, memory=1536 * 2**20, output=64 * 1024)
#: Turning it upright and laying it over black takes more copies.
_DECODE_LIMITS = Limits(cpu_s=10, memory=3 * 2**30, output=64 * 1024)
_TIMEOUT_S = 40
_DAMAGED = "The image can't be decoded. It may be damaged or cut short: export and upload it again."
_CUT = "The image ends too early: the file is only a part of it. Upload it again."


@dataclass(frozen=True)
class Picture:
    """What an image is."""

    #: Pixels as displayed, i.e. upright.
    width: int
    height: int
    #: Whether there is more than this one picture.
    animated: bool


async def judge(path: Path, format: Format, max_pixels: int = MAX_IMAGE_PIXELS) -> Picture:
    """Decode the image at ``path`` and throw the pixels away.

    Raises ``Fault``: ``invalid_media`` or ``too_many_pixels``.
    """
    with path.open("rb") as source:
        finished = await finish(_call("judge", format, max_pixels), _LIMITS, source, timeout_s=_TIMEOUT_S)
    _check(finished, finished.stderr)
    return _picture(finished.stdout, max_pixels)


def decode(path: Path, format: Format, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[Picture, bytearray]:
    """The image at ``path`` and its first picture: sRGB, uint8, row by row, ``width * height * 3`` bytes.

    Upright as the file says, transparency over black. Raises ``Fault`` as :func:`judge` does.
    """
    with path.open("rb") as source, Stream(_call("decode", format, max_pixels), _DECODE_LIMITS, source) as stream:
        try:
            head = bytearray(HEAD_BYTES)
            stream.fill(memoryview(head), _TIMEOUT_S)
            picture = _picture(head, max_pixels) if head[0] else None
            pixels = bytearray(picture.width * picture.height * 3 if picture else 0)
            whole = stream.fill(memoryview(pixels), _TIMEOUT_S) == len(pixels)
        except TimeoutError as error:
            raise Fault(FailureCode.INVALID_MEDIA, _DAMAGED) from error
        _check(stream.process.wait(_TIMEOUT_S), stream.log())
    if picture is None or not whole:
        raise Fault(FailureCode.INVALID_MEDIA, _DAMAGED)
    return picture, pixels


def _call(function: str, format: Format, max_pixels: int) -> Call:
    return Call(f"deployments.media.pillow:{function}", (format.pillow, max_pixels), packages=("PIL", "pillow_heif"))


def _check(ended: Ended, log: bytes) -> None:
    if ended.status == 1:
        # Whatever the file does to Pillow is answered; this is a defect of ours.
        raise SandboxError(f"reading an image failed: {log.decode(errors='replace')}")
    if ended.status != 0:
        raise Fault(FailureCode.INVALID_MEDIA, _DAMAGED)


def _picture(answer: bytes | bytearray, max_pixels: int) -> Picture:
    """What the sandbox answered, which a hostile file may have taken over."""
    try:
        found = json.loads(answer)
        unusable = found.get("unusable")
        picture = None if unusable else Picture(int(found["width"]), int(found["height"]), bool(found["animated"]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Fault(FailureCode.INVALID_MEDIA, _DAMAGED) from error
    if unusable == "pixels":
        raise Fault(
            FailureCode.TOO_MANY_PIXELS, f"The image has more than {max_pixels / 1e6:g} megapixels. Send a smaller one."
        )
    if unusable == "cut":
        raise Fault(FailureCode.INVALID_MEDIA, _CUT)
    if unusable == "parts":
        raise Fault(
            FailureCode.INVALID_MEDIA,
            "The image is made of far more parts than a camera or a program writes. Export and upload it again.",
        )
    if picture is None or min(picture.width, picture.height) < 1 or picture.width * picture.height > max_pixels:
        raise Fault(FailureCode.INVALID_MEDIA, _DAMAGED)
    return picture
