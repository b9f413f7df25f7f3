"""What a video or sound file really holds, measured by ffmpeg in the sandbox.

There is no ffprobe in the package we get ffmpeg from. One pass lists the packets of the first picture and sound stream,
which reads the whole file without decoding: a header that lies about the duration is found out. Then the first frame
and the first second of sound are decoded.
"""

import asyncio
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media import ffmpeg, formats, packets
from deployments.media.formats import MAX_FPS, MAX_FRAME_PIXELS, Format
from deployments.media.parts import boxes_are_cut
from deployments.sandbox.process import Finished, Program, finish
from serve_app.intake.tail import adts_is_cut, ogg_is_cut

#: Ends of a program that used up its time: by our clock, or by the kernel's.
_OVERDRAWN = (None, -signal.SIGKILL, -signal.SIGXCPU)
_TIMEOUT_S = 60
#: What is decoded is listed, too.
_DECODED = ("-f", "framecrc", "pipe:1")
#: As models want it: sound without a place in time, or of a rate that nobody can convert, is none.
_RESAMPLED = ("-af", f"{ffmpeg.FROM_ZERO},aresample=16000", "-ac", "1")
#: What ffmpeg says of their length is a guess by the bit rate, or has been measured already.
_NO_LENGTH = (formats.MP3, formats.WAV, formats.AAC, formats.OGG)
#: A file may end this much before its header says, relatively and in seconds: edit lists, a track a bit longer.
_SHORT_RATIO = 0.05
_SHORT_S = 0.25

# ffmpeg indents streams by two spaces. Metadata, which the file's author controls, is indented by four or more.
_PICTURE = re.compile(r"^  Stream #0:\d+\S*: Video: (?!.*\(attached pic\))(.*)$", re.MULTILINE)
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?),", re.MULTILINE)
_FPS = re.compile(r", (\d+(?:\.\d+)?)(k?) fps")
_SIZE = re.compile(rb"^#dimensions 0: (\d{1,6})x(\d{1,6})$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Container:
    """The first picture stream and the first sound stream of a file."""

    #: Seconds, measured.
    duration_s: float
    #: As displayed, rotation applied; None without a picture stream (a cover image is none).
    width: int | None
    height: int | None
    #: Frames per second, nominal.
    fps: float | None
    #: Sound that can be decoded.
    has_audio: bool


async def measure(path: Path, media: Format) -> Container:
    """Measure the file. Raises :class:`Fault`: ``invalid_media`` or ``too_many_pixels``."""
    if _is_cut(path, media):
        raise _invalid("ends too early")
    listed = await _ffmpeg(path, media, "info", "-map", "0:V:0?", "-map", "0:a:0?", *packets.LISTED)
    # Half a million lines at worst.
    streams = await asyncio.to_thread(packets.read, listed.stdout)
    log = listed.stderr.decode(errors="replace")
    picture, sound = streams.get("video"), streams.get("audio")
    if not picture and not sound:
        # Where an MP4's index stands at its end, half of it has none.
        cut = media.demuxer == formats.MP4.demuxer and _boxes_are_cut(path)
        raise _invalid("ends too early" if cut else "holds neither picture nor sound that can be read")
    if listed.status != 0:
        raise _invalid("can't be read to its end")
    # From the beginning, also for a picture that begins before it.
    duration_s = float(max(max(stream.end, stream.seconds) for stream in streams.values()))
    if duration_s <= 0:
        raise _invalid("holds nothing to play")
    # Sound that was cut off still plays.
    if picture and ffmpeg.cut_off(listed.stderr):
        raise _invalid("ends too early")
    promised_s = None if media in _NO_LENGTH else _promised(log)
    if promised_s is not None and promised_s - duration_s > max(_SHORT_S, _SHORT_RATIO * promised_s):
        raise _invalid("ends too early")
    width = height = fps = None
    if picture:
        picture.require_rate()
        width, height = await _first_frame(path, media)
        fps = _frame_rate(log, picture)
    has_audio = sound is not None and await _can_be_heard(path, media)
    if not picture and not has_audio:
        raise _invalid("holds no sound that can be decoded")
    # Where the picture is good and the sound is not, a model may need no more than that.
    return Container(duration_s=duration_s, width=width, height=height, fps=fps, has_audio=has_audio)


async def _first_frame(path: Path, media: Format) -> tuple[int, int]:
    """Width and height as decoded and displayed, whatever the header says."""
    decoded = await _ffmpeg(path, media, "error", "-map", "0:V:0", "-frames:v", "1", *_DECODED)
    size = _SIZE.search(decoded.stdout)
    if size is None or "video" not in packets.read(decoded.stdout):
        raise _invalid("holds no picture that can be decoded")
    width, height = int(size[1]), int(size[2])
    require_frame(width, height)
    return width, height


def require_frame(width: int, height: int) -> None:
    """Raise ``Fault('too_many_pixels')`` for a video of larger frames than are taken."""
    if width * height > MAX_FRAME_PIXELS:
        raise Fault(FailureCode.TOO_MANY_PIXELS, f"The video is {width}x{height}. Send one of at most 4096x2304.")


async def _can_be_heard(path: Path, media: Format) -> bool:
    decoded = await _ffmpeg(path, media, "error", "-map", "0:a:0", "-t", "1", *_RESAMPLED, *_DECODED)
    return "audio" in packets.read(decoded.stdout)


def _promised(log: str) -> float | None:
    """Seconds that the header says."""
    found = _DURATION.search(_about_input(log))
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def _frame_rate(log: str, picture: packets.Packets) -> float:
    """Frames per second: what the header says if it can be, else as counted."""
    stream = _PICTURE.search(_about_input(log))
    found = _FPS.search(stream[1]) if stream else None
    nominal = float(found[1]) * (1000 if found[2] else 1) if found else 0.0
    counted = float(picture.count / picture.seconds) if picture.seconds > 0 else 0.0
    return nominal if 0 < nominal <= MAX_FPS else round(counted, 3)


def _about_input(log: str) -> str:
    # The output section repeats the streams.
    return re.split(r"^(?:Stream mapping:|Output #0)", log, maxsplit=1, flags=re.MULTILINE)[0]


def _is_cut(path: Path, media: Format) -> bool:
    """Whether the file stops before its header, its last page or its last frame says. MP3 says nothing."""
    match media:
        case formats.WAV:
            return _wave_is_cut(path)
        case formats.OGG:
            return ogg_is_cut(path)
        case formats.AAC:
            return adts_is_cut(path)
        case _:
            return False


def _wave_is_cut(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(8)
    declared = int.from_bytes(head[4:8], "little")
    # A recorder that writes to a pipe can't know: it leaves 0 or the maximum.
    return head[:4] == b"RIFF" and 0 < declared < 0xFFFF_FFFF and declared + 8 > path.stat().st_size + 1


def _boxes_are_cut(path: Path) -> bool:
    with path.open("rb") as file:
        return boxes_are_cut(file)


async def _ffmpeg(path: Path, media: Format, level: str, *output: str) -> Finished:
    """Run one pass over the file, with a log of ``level``."""
    command = [*ffmpeg.reading(media, "-threads", "1", level=level), "-threads", "1", *output]
    with path.open("rb") as source:
        finished = await finish(Program(command), ffmpeg.SCAN, source, timeout_s=_TIMEOUT_S)
    ffmpeg.check(finished.stderr)
    if finished.status in _OVERDRAWN:
        raise _invalid("takes too long to read")
    return finished


def _invalid(what: str) -> Fault:
    return Fault(
        FailureCode.INVALID_MEDIA, f"The file {what}. It may be damaged or cut short: export and upload it again."
    )
