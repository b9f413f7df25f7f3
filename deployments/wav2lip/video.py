"""The source picture: what it is, and its frames one after the other at a constant rate, upright and of even size.

Everything is read by the ffmpeg binary in a process of its own: a hostile file can at worst end that process.
"""

import contextlib
import fcntl
import re
import select
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import FileIO
from math import floor, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deployments.faults import Fault
from deployments.wav2lip import ffmpeg

#: A picture, uint8 BGR of shape (height, width, 3): the order of channels that Wav2Lip was trained with.
Frame = NDArray[np.uint8]

#: What the model was trained at; a still image is filmed at this rate.
STILL_FPS = Fraction(25)
#: Faster sources are thinned out: past this, mouths gain nothing and the work doubles.
FASTEST = Fraction(60)
#: Rates that containers round; measured ones within 1/500 of these are taken for them.
COMMON_FPS = tuple(Fraction(n) for n in (12, 15, 24, 25, 30, 48, 50, 60)) + tuple(
    Fraction(n * 1000, 1001) for n in (12, 15, 24, 30, 48, 60)
)
#: Pixels of the output at most; larger sources are scaled down. UHD for videos, Full HD for stills.
LARGEST_VIDEO, LARGEST_STILL = 3840 * 2160, 1920 * 1080
#: Frames smaller than this hold no face worth the name, and encoders refuse them.
SMALLEST_SIDE = 16
#: ffmpeg's mark for a time stamp that is missing.
NO_TIME = -(2**63)
#: Seconds that the reading of the packets (no decoding) may take.
SCAN_S = 300
#: Seconds after which a decoder that gives nothing is taken to hang.
STALLED_S = 60


@dataclass(frozen=True, kw_only=True)
class Source:
    """A probed video or still image, and how it will be read."""

    path: Path
    #: Pixels of a frame as decoded: upright, square pixels, even.
    width: int
    height: int
    #: Divide coordinates of the upright source picture by these.
    scale_x: float
    scale_y: float
    fps: Fraction
    #: Frames at that rate. 1 for a still image.
    frames: int
    #: ffmpeg's filters that bring a frame to this size and rate.
    filters: str

    @property
    def still(self) -> bool:
        """Whether there is only one picture."""
        return self.frames == 1

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.width * self.height * 3


def probe(path: Path, resize_factor: int = 1) -> Source:
    """Find out what ``path`` is. Raises ``Fault('invalid_media')`` for anything but a whole video or image."""
    width, height, declared, aspect = _first_frame(path)
    times = _packets(path)
    still = times.count == 1
    fps = STILL_FPS if still else _rate(declared, times)
    # A pixel that is not square is widened or heightened, never shrunk.
    square_w, square_h = (width * aspect, Fraction(height)) if aspect > 1 else (Fraction(width), height / aspect)
    shrink = resize_factor * max(1.0, sqrt(square_w * square_h / (LARGEST_STILL if still else LARGEST_VIDEO)))
    out_w, out_h = (floor(side / shrink) // 2 * 2 for side in (square_w, square_h))
    if min(out_w, out_h) < SMALLEST_SIDE:
        raise Fault("invalid_media", f"a picture of {width} x {height} pixels is too small for a face")
    filters = [] if still else [f"fps={fps}:eof_action=round"]
    if (out_w, out_h) == (width // 2 * 2, height // 2 * 2):
        # 4:2:0 needs even sizes; a line at the right or lower edge is cut off rather than the whole picture blurred.
        filters.append(f"crop={out_w}:{out_h}:0:0:exact=1")
        scale_x = scale_y = 1.0
    else:
        scale_x, scale_y = width / out_w, height / out_h
    # Also fixes the size where it changes in mid-stream. No accurate_rnd: without full_chroma_int it tints greys green,
    # and with it decoding costs three times as much.
    filters += [f"scale={out_w}:{out_h}:flags=bicubic", "setsar=1"]
    return Source(
        path=path,
        width=out_w,
        height=out_h,
        scale_x=scale_x,
        scale_y=scale_y,
        fps=fps,
        frames=1 if still else max(2, floor(times.seconds * fps + Fraction(1, 2))),
        filters=",".join(filters),
    )


def read(source: Source, limit: int) -> Iterator[Frame]:
    """Exactly ``min(limit, source.frames)`` frames; close the generator to end ffmpeg early.

    What is missing at the end (a frame or two, by the codec's delay) repeats the last one. Raises
    ``Fault('invalid_media')`` when much is missing: more than a second and a twentieth of the whole.
    """
    wanted = min(limit, source.frames)
    shape = (source.height, source.width, 3)
    command = [*ffmpeg.reading(source.path), "-map", "0:V:0", "-an", "-sn", "-vf", source.filters]
    command += ["-frames:v", str(wanted), "-pix_fmt", "bgr24", "-f", "rawvideo", "pipe:1"]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
        assert isinstance(process.stdout, FileIO)
        # A megabyte instead of 64 kB: a frame in a few reads. Not granted everywhere, and only a matter of speed.
        with contextlib.suppress(OSError):
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 1024**2)
        try:
            done = 0
            frame: Frame | None = None
            while done < wanted:
                following = np.empty(shape, np.uint8)
                if not _fill(process.stdout, memoryview(following.reshape(-1).data)):
                    break
                frame = following
                done += 1
                yield frame
            missing = wanted - done
            if frame is None or (missing > source.fps and missing * 20 > wanted):
                process.kill()
                stderr.seek(0)
                raise ffmpeg.invalid(f"only {done} of {wanted} frames of the video can be decoded", stderr.read())
            for _ in range(missing):
                yield frame.copy()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def _fill(pipe: FileIO, room: memoryview) -> bool:
    """Fill ``room``, or say that the pipe ended before. A decoder that hangs is a fault: nobody else would notice."""
    while len(room):
        if not select.select([pipe], [], [], STALLED_S)[0]:
            raise Fault("invalid_media", f"the video's decoder did nothing for {STALLED_S} s")
        count = pipe.readinto(room)
        if not count:
            return False
        room = room[count:]
    return True


def _first_frame(path: Path) -> tuple[int, int, Fraction, Fraction]:
    """Width, height, rate and pixel aspect of the first frame as ffmpeg decodes it, i.e. after rotation."""
    command = [*ffmpeg.reading(path), "-map", "0:V:0", "-frames:v", "1", "-pix_fmt", "yuv420p"]
    done = ffmpeg.run([*command, "-strict", "-1", "-f", "yuv4mpegpipe", "pipe:1"], timeout_s=120)
    header = done.stdout[:200].split(b"\n")[0].decode(errors="replace")
    found = re.match(r"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+) \S+ A(\d+):(\d+)", header)
    if not found:
        raise ffmpeg.invalid("the video cannot be decoded", done.stderr)
    width, height, *rest = (int(number) for number in found.groups())
    rate, aspect = Fraction(rest[0], max(1, rest[1])), Fraction(rest[2] or 1, rest[3] or 1)
    return width, height, rate, aspect if Fraction(1, 4) <= aspect <= 4 else Fraction(1)


@dataclass(frozen=True)
class _Times:
    """When the packets of a stream are shown."""

    count: int
    seconds: Fraction
    #: Rounding of one time stamp.
    tick: Fraction


def _packets(path: Path) -> _Times:
    """Read all packets without decoding: the only way to know the true length, and that the file is whole."""
    command = [*ffmpeg.reading(path), "-map", "0:V:0", "-c", "copy", "-f", "framecrc", "pipe:1"]
    # -xerror: a file that was cut off ends with an error instead of a warning.
    command.insert(1, "-xerror")
    tick, count, first, last, end = Fraction(1, 1000), 0, 0, 0, 0
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=SCAN_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise Fault("invalid_media", f"reading the video took longer than {SCAN_S} s") from error
        out.seek(0)
        for line in out:
            if line.startswith(b"#tb 0:"):
                numerator, denominator = line.split(b":")[1].split(b"/")
                tick = Fraction(int(numerator), int(denominator))
            elif not line.startswith(b"#"):
                # stream, decoding time, presentation time, duration, size, checksum
                decoded, shown, duration = (int(field) for field in line.split(b",")[1:4])
                if shown == NO_TIME:
                    shown = decoded
                if shown == NO_TIME:
                    raise Fault("invalid_media", "the video's frames have no time stamps; convert it to MP4")
                first = shown if count == 0 else min(first, shown)
                last = shown if count == 0 else max(last, shown)
                end = max(end, shown + duration) if count else shown + duration
                count += 1
    if done.returncode != 0 or b"ended prematurely" in done.stderr or b"partial file" in done.stderr:
        raise ffmpeg.invalid("the video is damaged or cut off", done.stderr)
    if count == 0:
        raise ffmpeg.invalid("the video has no frames", done.stderr)
    if end <= last and count > 1:
        # No duration in the container: the last frame is shown as long as the others on average.
        end = last + (last - first) // (count - 1)
    return _Times(count, (end - first) * tick, tick)


def _rate(declared: Fraction, times: _Times) -> Fraction:
    """Constant rate to read a video at: its own, for a variable one the mean, snapped to a common one, 60 at most."""
    mean = times.count / times.seconds if times.seconds > 0 else declared
    # What a container declares is exact where it agrees with the packets, and a guess where it does not.
    rate = declared if declared > 0 and abs(mean / declared - 1) < Fraction(1, 50) else mean
    if rate.denominator > 1001 or rate.numerator > 120_000 or rate != declared:
        nearest = min(COMMON_FPS, key=lambda common: abs(rate / common - 1))
        rate = nearest if abs(rate / nearest - 1) < Fraction(1, 500) else rate.limit_denominator(1001)
    return min(max(rate, Fraction(1)), FASTEST)
