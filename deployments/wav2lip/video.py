"""The source picture: what it is, and its frames one after the other at a constant rate, upright and of even size.

Videos are read by ffmpeg and still images by Pillow, both in the sandbox: a hostile file can at worst end that process.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor, sqrt
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.engine import InputSpec
from deployments.failure_code import FailureCode
from deployments.faults import Fault, about_input
from deployments.media import ffmpeg, packets, picture
from deployments.media.formats import MAX_FRAME_PIXELS, Format
from deployments.media.packets import Packets
from deployments.sandbox.process import Finished, Program, Stream, start

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
#: Bytes that the head of a YUV4MPEG stream has at least, frame included, and within which all we ask for lies.
HEAD_BYTES = 100
#: Seconds that reading all packets and decoding the first frame may take.
SCAN_S = 120
#: Seconds after which a decoder that gives nothing is taken to hang.
STALLED_S = 60


@dataclass(frozen=True, kw_only=True)
class Source:
    """A probed video or still image, and how it will be read."""

    path: Path
    format: Format
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
    filters: str = ""
    #: The one frame of a still image.
    picture: Frame | None = None

    @property
    def still(self) -> bool:
        """Whether there is only one picture."""
        return self.frames == 1

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.width * self.height * 3


def probe(path: Path, format: Format, spec: InputSpec, resize_factor: int = 1) -> Source:
    """Find out what ``path`` is. Raises ``Fault``.

    ``invalid_media`` for anything but a whole video or image of that format, ``media_too_long`` or ``too_many_pixels``
    for one beyond the limits.
    """
    if format.kind == "image":
        return _still(path, format, resize_factor)
    head, listed = _scan(path, format)
    width, height, declared, aspect = _first_frame(head, listed)
    if width * height > MAX_FRAME_PIXELS:
        raise Fault(FailureCode.TOO_MANY_PIXELS, f"The video is {width}x{height}. Send one of at most 4096x2304.")
    times = _packets(listed)
    spec.require_length(float(times.seconds))
    times.require_rate()
    # One frame is filmed like a still image.
    still = times.count == 1
    fps = STILL_FPS if still else _rate(declared, times)
    if format.layered:
        # Of an animation each frame may last as long as it likes, and few of them are enough: at their mean rate they
        # would jump, and the mouth with them.
        fps = max(fps, STILL_FPS)
    # A pixel that is not square is widened or heightened, never shrunk.
    square = (width * aspect, Fraction(height)) if aspect > 1 else (Fraction(width), height / aspect)
    out_w, out_h = _output_size(*square, LARGEST_STILL if still else LARGEST_VIDEO, resize_factor)
    # What lies under transparent pixels was never meant to be seen: they are black, as in pictures.
    filters = ["format=gbrap,premultiply=inplace=1"] if format.layered else []
    filters += [] if still else [f"fps={fps}:eof_action=round"]
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
        format=format,
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
    if source.picture is not None:
        yield from [source.picture.copy()][:wanted]
        return
    shape = (source.height, source.width, 3)
    command = [*ffmpeg.reading(source.format), "-map", "0:V:0", "-an", "-sn", "-vf", source.filters]
    command += ["-frames:v", str(wanted), "-pix_fmt", "bgr24", "-f", "rawvideo", "pipe:1"]
    with (
        about_input("video"),
        source.path.open("rb") as file,
        Stream(Program(command), ffmpeg.DECODE, file) as stream,
    ):
        done = 0
        frame: Frame | None = None
        while done < wanted:
            following = np.empty(shape, np.uint8)
            if _fill(stream, memoryview(following.reshape(-1).data)) < source.frame_bytes:
                break
            frame = following
            done += 1
            yield frame
        missing = wanted - done
        if frame is None or (missing > source.fps and missing * 20 > wanted):
            raise ffmpeg.invalid(f"Only {done} of {wanted} frames of the video can be decoded", stream.log())
        for _ in range(missing):
            yield frame.copy()


def _still(path: Path, format: Format, resize_factor: int) -> Source:
    found, pixels = picture.decode(path, format)
    width, height = _output_size(Fraction(found.width), Fraction(found.height), LARGEST_STILL, resize_factor)
    image = Image.frombuffer("RGB", (found.width, found.height), pixels, "raw", "RGB", 0, 1)
    if even := (width, height) == (found.width // 2 * 2, found.height // 2 * 2):
        image = image.crop((0, 0, width, height))
    else:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return Source(
        path=path,
        format=format,
        width=width,
        height=height,
        scale_x=1.0 if even else found.width / width,
        scale_y=1.0 if even else found.height / height,
        fps=STILL_FPS,
        frames=1,
        picture=np.ascontiguousarray(np.asarray(image)[:, :, ::-1]),
    )


def _output_size(width: Fraction, height: Fraction, largest: int, resize_factor: int) -> tuple[int, int]:
    """Even numbers of pixels, ``largest`` at most. Raises ``Fault('invalid_media')`` if no face can be seen on them."""
    shrink = resize_factor * max(1.0, sqrt(width * height / largest))
    made = floor(width / shrink) // 2 * 2, floor(height / shrink) // 2 * 2
    if min(made) < SMALLEST_SIDE:
        hint = f" Ask for a smaller resize_factor than {resize_factor}." if resize_factor > 1 else " Send a larger one."
        raise Fault(
            FailureCode.INVALID_MEDIA,
            f"A picture of {round(width)} x {round(height)} pixels is too small for a face.{hint}",
        )
    return made


def _fill(stream: Stream, room: memoryview) -> int:
    try:
        return stream.fill(room, STALLED_S)
    except TimeoutError as error:
        raise Fault(
            FailureCode.INVALID_MEDIA, f"The video's decoder did nothing for {STALLED_S} s. Export it as MP4."
        ) from error


def _scan(path: Path, format: Format) -> tuple[bytes, Finished]:
    """The head of the first frame as ffmpeg decodes it, and the list of all packets: one pass over the file."""
    # How much of it cannot be decoded is not judged here, where decoding ends with the first frame.
    command = [*ffmpeg.reading(format, "-threads", "1"), "-max_error_rate", "1"]
    command += ["-map", "0:V:0", "-frames:v", "1", "-pix_fmt", "yuv420p", "-threads", "1", "-strict", "-1"]
    command += ["-f", "yuv4mpegpipe", "pipe:3", "-map", "0:V:0", *packets.LISTED]
    with path.open("rb") as file, TemporaryFile() as frame, TemporaryFile() as listing, TemporaryFile() as log:
        with start(Program(command), ffmpeg.SCAN, (file, listing, log, frame)) as process:
            ended = process.wait(SCAN_S)
        for written in (frame, listing, log):
            written.seek(0)
        return frame.read(HEAD_BYTES), Finished(ended.status, ended.cpu_s, listing.read(), log.read())


def _first_frame(head: bytes, scanned: Finished) -> tuple[int, int, Fraction, Fraction]:
    """Width, height, rate and pixel aspect of the first frame, i.e. after rotation."""
    found = re.match(rb"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+) \S+ A(\d+):(\d+)", head)
    if not found:
        raise ffmpeg.invalid("The video cannot be decoded", scanned.stderr)
    width, height, *rest = (int(number) for number in found.groups())
    rate, aspect = Fraction(rest[0], max(1, rest[1])), Fraction(rest[2] or 1, rest[3] or 1)
    return width, height, rate, aspect if Fraction(1, 4) <= aspect <= 4 else Fraction(1)


def _packets(scanned: Finished) -> Packets:
    if scanned.status is None:
        raise Fault(FailureCode.INVALID_MEDIA, f"Reading the video took longer than {SCAN_S} s. Send a shorter one.")
    if scanned.status != 0 or ffmpeg.cut_off(scanned.stderr):
        raise ffmpeg.invalid("The video is damaged or cut off", scanned.stderr)
    found = packets.read(scanned.stdout).get("video")
    if found is None:
        raise ffmpeg.invalid("The video has no frames", scanned.stderr)
    return found


def _rate(declared: Fraction, times: Packets) -> Fraction:
    """Constant rate to read a video at: its own, for a variable one the mean, snapped to a common one, 60 at most."""
    mean = times.count / times.seconds if times.seconds > 0 else declared
    # What a container declares is exact where it agrees with the packets, and a guess where it does not.
    rate = declared if declared > 0 and abs(mean / declared - 1) < Fraction(1, 50) else mean
    if rate.denominator > 1001 or rate.numerator > 120_000 or rate != declared:
        nearest = min(COMMON_FPS, key=lambda common: abs(rate / common - 1))
        rate = nearest if abs(rate / nearest - 1) < Fraction(1, 500) else rate.limit_denominator(1001)
    return min(max(rate, Fraction(1)), FASTEST)
