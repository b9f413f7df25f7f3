"""What a video or sound file really holds, measured by ffmpeg in the sandbox.

There is no ffprobe in the package we get ffmpeg from. One pass copies the packets of the first picture and sound stream
to nowhere, which reads the whole file without decoding: a header that lies about the duration is found out. Then the
first frame and the first second of sound are decoded.
"""

import re
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from deployments.media import ffmpeg
from deployments.media.formats import MAX_FPS, MAX_FRAME_PIXELS, MP3, WAV, Format
from deployments.sandbox.process import Limits, Program, finish
from serve_app.intake.errors import IntakeError

#: Ends of a program that used up its time: by our clock, or by the kernel's.
_OVERDRAWN = (None, -signal.SIGKILL, -signal.SIGXCPU)
#: The log is all that is written.
_LIMITS = Limits(cpu_s=ffmpeg.SCAN.cpu_s, memory=ffmpeg.SCAN.memory, output=256 * 1024)
_TIMEOUT_S = 60
#: A file may end this much before its header says, relatively and in seconds: edit lists, a track a bit longer.
_SHORT_RATIO = 0.05
_SHORT_S = 0.25

# ffmpeg indents streams by two spaces. Metadata, which the file's author controls, is indented by four or more.
_STREAM = re.compile(r"^  Stream #0:\d+\S*: (Video|Audio): (.*)$", re.MULTILINE)
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?),", re.MULTILINE)
_SIZE = re.compile(r", (\d{1,6})x(\d{1,6})(?=[ ,\[]|$)")
_FPS = re.compile(r", (\d+(?:\.\d+)?)(k?) fps")
_ROTATION = re.compile(r"^ +[Dd]isplay ?[Mm]atrix: rotation of (-?\d+(?:\.\d+)?) degrees", re.MULTILINE)
_TIME = re.compile(r"^out_time_us=(\d+)$", re.MULTILINE)
_FRAMES = re.compile(r"^frame=(\d+)$", re.MULTILINE)


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
    """Measure the file. Raises :class:`IntakeError`: ``invalid_media`` or ``too_many_pixels``."""
    status, progress, log = await _ffmpeg(path, media, "info", "-map", "0:V:0?", "-map", "0:a:0?", "-c", "copy")
    container, promised_s = read_report(progress, log)
    if status != 0:
        raise _invalid("can't be read to its end")
    _check_complete(path, media, container.duration_s, promised_s)
    if container.width is not None:
        _, progress, _ = await _ffmpeg(path, media, "error", "-map", "0:V:0", "-frames:v", "1")
        if not _last(_FRAMES, progress):
            raise _invalid("holds no picture that can be decoded")
    if container.has_audio:
        _, progress, _ = await _ffmpeg(path, media, "error", "-map", "0:a:0", "-t", "1")
        if not _last(_TIME, progress):
            if container.width is None:
                raise _invalid("holds no sound that can be decoded")
            # The picture is good, and a model may need no more than that.
            return replace(container, has_audio=False)
    return container


def read_report(progress: str, log: str) -> tuple[Container, float | None]:
    """What a copying pass said: the container, and the duration in seconds that its header promises."""
    # The output section repeats the streams.
    about_input = re.split(r"^(?:Stream mapping:|Output #0)", log, maxsplit=1, flags=re.MULTILINE)[0]
    pictures = [text for kind, text in _STREAM.findall(about_input) if kind == "Video" and "(attached pic)" not in text]
    has_audio = any(kind == "Audio" for kind, _ in _STREAM.findall(about_input))
    if not pictures and not has_audio:
        raise _invalid("holds neither picture nor sound that can be read")
    width = height = fps = None
    duration_s = (_last(_TIME, progress) or 0) / 1e6
    if pictures:
        width, height = _frame_size(pictures[0], about_input)
        frames = _last(_FRAMES, progress) or 0
        fps = _frame_rate(pictures[0], frames, duration_s)
    if duration_s <= 0:
        raise _invalid("holds nothing to play")
    found = _DURATION.search(about_input)
    promised = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None
    return Container(duration_s=duration_s, width=width, height=height, fps=fps, has_audio=has_audio), promised


def _frame_size(stream: str, log: str) -> tuple[int, int]:
    found = _SIZE.search(stream)
    if not found or not int(found[1]) or not int(found[2]):
        raise _invalid("does not say how large its picture is")
    width, height = int(found[1]), int(found[2])
    if width * height > MAX_FRAME_PIXELS:
        raise IntakeError("too_many_pixels", f"The video is {width}x{height}. Send one of at most 4096x2304.")
    turned = _ROTATION.search(log)
    return (height, width) if turned and round(float(turned[1]) / 90) % 2 else (width, height)


def _frame_rate(stream: str, frames: int, duration_s: float) -> float:
    counted = frames / duration_s if duration_s > 0 else 0.0
    # What is counted decides about refusal: frames cost memory whatever the header calls their rate. Not for clips of
    # a few frames, where the division is coarse.
    if counted > MAX_FPS and frames > MAX_FPS:
        raise _invalid(f"has more than {MAX_FPS} frames a second")
    found = _FPS.search(stream)
    nominal = float(found[1]) * (1000 if found[2] else 1) if found else 0.0
    return nominal if 0 < nominal <= MAX_FPS else round(counted, 3)


def _check_complete(path: Path, media: Format, duration_s: float, promised_s: float | None) -> None:
    """Refuse a file that ends before its header says. MP3 has no such header."""
    if media == WAV:
        with path.open("rb") as file:
            head = file.read(8)
        declared = int.from_bytes(head[4:8], "little")
        # A recorder that writes to a pipe can't know: it leaves 0 or the maximum.
        short = head[:4] == b"RIFF" and 0 < declared < 0xFFFF_FFFF and declared + 8 > path.stat().st_size + 1
    elif media == MP3 or promised_s is None:
        short = False
    else:
        short = promised_s - duration_s > max(_SHORT_S, _SHORT_RATIO * promised_s)
    if short:
        raise _invalid("ends too early")


async def _ffmpeg(path: Path, media: Format, level: str, *output: str) -> tuple[int | None, str, str]:
    """Run one pass over the file that writes nothing but its progress and its log of ``level``: status, both."""
    command = ffmpeg.reading(media, "-progress", "pipe:1", "-threads", "1", level=level)
    with path.open("rb") as source:
        finished = await finish(
            Program([*command, *output, "-threads", "1", "-f", "null", "-"]), _LIMITS, source, timeout_s=_TIMEOUT_S
        )
    ffmpeg.check(finished.stderr)
    if finished.status in _OVERDRAWN:
        raise _invalid("takes too long to read")
    return finished.status, finished.stdout.decode(errors="replace"), finished.stderr.decode(errors="replace")


def _last(pattern: re.Pattern[str], text: str) -> int | None:
    values = pattern.findall(text)
    return int(values[-1]) if values else None


def _invalid(what: str) -> IntakeError:
    return IntakeError("invalid_media", f"The file {what}. It may be damaged or cut short: export and upload it again.")
