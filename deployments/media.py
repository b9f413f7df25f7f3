"""mp4 out: raw frames piped into one ffmpeg process, audio muxed in the same pass.

The ffmpeg binary is the one that imageio-ffmpeg brings, so every machine encodes alike.
"""

import contextlib
import subprocess
import tempfile
import wave
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from deployments.faults import Fault

#: libx264, visually near lossless at a size a browser streams well.
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "18")
AAC = ("-c:a", "aac", "-b:a", "192k")


def ffmpeg_path() -> str:
    """Path of the ffmpeg executable."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


class Mp4Encoder:
    """Writes one H.264 mp4 from frames pushed in order; a context manager that kills ffmpeg when the body raises.

    ``width`` and ``height`` must be even. ``pixel_format`` is ffmpeg's name for the layout of the frames given to
    :meth:`write` (``rgb24`` or ``bgr24``). ``audio`` is any file ffmpeg reads; ``audio_filter`` is applied to it.
    Raises ``Fault('encode_failed')`` when ffmpeg does.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: Fraction,
        pixel_format: str = "rgb24",
        audio: Path | None = None,
        audio_filter: str | None = None,
        video_codec: tuple[str, ...] = X264,
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"H.264 with 4:2:0 needs even sizes, got {width}x{height}")
        self._shape = (height, width, 3)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__, with the process
        command = [ffmpeg_path(), "-y", "-v", "error", "-nostdin"]
        command += [
            "-f",
            "rawvideo",
            "-pix_fmt",
            pixel_format,
            "-s",
            f"{width}x{height}",
            "-r",
            str(fps),
            "-i",
            "pipe:0",
        ]
        if audio is not None:
            command += ["-protocol_whitelist", "file,pipe", "-i", str(audio), "-map", "0:v:0", "-map", "1:a:0", *AAC]
            if audio_filter:
                command += ["-af", audio_filter]
        command += [*video_codec, "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._stderr)

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames, uint8 of shape (n, height, width, 3). Blocks while ffmpeg is behind."""
        if frames.dtype != np.uint8 or frames.shape[1:] != self._shape:
            raise ValueError(f"expected uint8 (n, {self._shape}), got {frames.dtype} {frames.shape}")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frames).data.cast("B"))
        except BrokenPipeError:
            self._fail()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        if error is not None:
            self._process.kill()
            self._process.wait()
            # Closing flushes what is left of the last frame into a pipe that nobody reads any more.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._stderr.close()
            return
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            self._fail()
        if self._process.wait() != 0:
            self._fail()
        self._stderr.close()

    def _fail(self) -> None:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        raise Fault("encode_failed", f"ffmpeg ended with {code}: {lines[-1] if lines else 'no message'}")


def write_wav(path: Path, samples: NDArray[np.float32], rate: int) -> None:
    """Write float samples in -1..1, shape (channels, n), as 16-bit PCM."""
    pcm = (np.clip(samples, -1.0, 1.0).T * 32767).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setnchannels(samples.shape[0])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(pcm.tobytes())
