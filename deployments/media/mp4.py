"""mp4 out: raw frames and raw sound piped into one ffmpeg process, which has nothing of a stranger's to parse.

The ffmpeg binary is the one that imageio-ffmpeg brings, so every machine encodes alike.
"""

import contextlib
import os
import tempfile
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.media.ffmpeg import ENCODE, program
from deployments.sandbox.process import ENVIRONMENT, File, Limits, Program, start

AAC = ("-c:a", "aac", "-b:a", "192k")
#: What CUDA wants to know of the machine.
_CARD_VARIABLES = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class VideoCodec:
    """How frames are encoded."""

    #: ffmpeg's.
    options: tuple[str, ...]
    #: By the card. Its driver does not work in the sandbox, and the encoder reads raw samples only.
    on_card: bool = False

    @property
    def limits(self) -> Limits:
        """What its ffmpeg may use. CUDA reserves more addresses than a machine has memory."""
        return replace(ENCODE, memory=None) if self.on_card else ENCODE

    def program(self, arguments: list[str]) -> Program:
        """ffmpeg as it has to be run for this codec."""
        card = {name: os.environ[name] for name in _CARD_VARIABLES if name in os.environ} if self.on_card else {}
        command = [program(), "-v", "error", "-nostdin", *arguments]
        return Program(command, {**ENVIRONMENT, **card}, trusted=self.on_card)


#: Visually near lossless at a size a browser streams well.
X264 = VideoCodec(("-c:v", "libx264", "-preset", "veryfast", "-crf", "18"))


@dataclass(frozen=True)
class Sound:
    """Raw sound: float32, little endian, channels interleaved in ffmpeg's order."""

    #: Samples a second.
    rate: int
    channels: int
    #: Read from where it stands to its end.
    file: File


class Mp4Encoder:
    """Writes one H.264 mp4 from frames pushed in order; a context manager that kills ffmpeg when the body raises.

    ``width`` and ``height`` must be even. ``pixel_format`` is ffmpeg's name for the layout of the frames given to
    :meth:`write` (``rgb24`` or ``bgr24``). ``audio_filter`` is applied to ``audio``.
    Raises ``Fault('encode_failed')`` when ffmpeg fails.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: Fraction,
        pixel_format: str = "rgb24",
        audio: Sound | None = None,
        audio_filter: str | None = None,
        codec: VideoCodec = X264,
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"H.264 with 4:2:0 needs even sizes, got {width}x{height}")
        self._shape = (height, width, 3)
        arguments = ["-f", "rawvideo", "-pix_fmt", pixel_format, "-s", f"{width}x{height}", "-r", str(fps)]
        arguments += ["-i", "pipe:3"]
        if audio is not None:
            arguments += ["-f", "f32le", "-ar", str(audio.rate), "-ac", str(audio.channels), "-i", "pipe:4"]
            arguments += ["-map", "0:v:0", "-map", "1:a:0", *AAC]
            arguments += ["-af", audio_filter] if audio_filter else []
        arguments += [*codec.options, "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", "fd:"]
        with contextlib.ExitStack() as opened:
            self._log = opened.enter_context(tempfile.TemporaryFile())
            try:
                # ffmpeg reads `fd:` from descriptor 0 and writes it to descriptor 1. It opens its own output once more
                # to read it when it moves the index to the front.
                written = opened.enter_context(path.open("wb"))
                read_again = opened.enter_context(path.open("rb"))
            except OSError as error:
                raise Fault(FailureCode.ENCODE_FAILED, f"The mp4 cannot be written: {error.strerror}.") from error
            reading, writing = os.pipe()
            frames = opened.enter_context(open(reading, "rb", buffering=0))
            self._frames = opened.enter_context(open(writing, "wb"))
            files = (read_again, written, self._log, frames, *((audio.file,) if audio else ()))
            self._process = start(codec.program(arguments), codec.limits, files)
            for theirs in (written, read_again, frames):
                theirs.close()
            opened.pop_all()

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames, uint8 of shape (n, height, width, 3). Blocks while ffmpeg is behind."""
        if frames.dtype != np.uint8 or frames.shape[1:] != self._shape:
            raise ValueError(f"expected uint8 (n, {self._shape}), got {frames.dtype} {frames.shape}")
        try:
            self._frames.write(np.ascontiguousarray(frames).data.cast("B"))
        except BrokenPipeError as error:
            raise self._fault(self._process.wait().status) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._log:
            if error is not None:
                self._process.kill()
                # Closing flushes what is left of the last frame into a pipe that nobody reads any more.
                with contextlib.suppress(BrokenPipeError):
                    self._frames.close()
                return
            with contextlib.suppress(BrokenPipeError):
                self._frames.close()
            if (status := self._process.wait().status) != 0:
                raise self._fault(status)

    def _fault(self, status: int | None) -> Fault:
        self._log.seek(0)
        lines = self._log.read(64 * 1024).decode(errors="replace").strip().splitlines()
        return Fault(FailureCode.ENCODE_FAILED, f"ffmpeg ended with {status}: {lines[-1] if lines else 'no message'}")


def write_samples(path: Path, samples: NDArray[np.float32]) -> None:
    """Write samples in -1..1 of shape (channels, n) as :class:`Sound` wants them."""
    np.clip(samples, -1.0, 1.0).T.astype("<f4").tofile(path)
