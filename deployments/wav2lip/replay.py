"""The source's frames once more, for sound that lasts longer, without holding a clip of any length in memory."""

import tempfile
from array import array
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from deployments.wav2lip.spec import SyncMode
from deployments.wav2lip.video import Frame, Source, read

#: A clip of up to this many bytes is simply kept.
KEPT = 64 * 1024**2
#: Frames on disk: JPEG without colour subsampling, far finer than the H.264 that follows.
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 97, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


class Replay:
    """Given every frame once in order (:meth:`keep`), it tells what comes afterwards (:meth:`frames`).

    ``loop`` decodes a long clip again; ``pingpong``, which has to go backwards, reads it from a file in ``workdir``
    that is gone with this object; ``hold`` and still images need one frame.
    """

    def __init__(self, source: Source, mode: SyncMode, workdir: Path) -> None:
        self._source = source
        self._mode: SyncMode = "hold" if source.still else mode
        self._small = source.frames * source.frame_bytes <= KEPT
        self._frames: list[Frame] = []
        self._count = 0
        self._spool: IO[bytes] | None = None
        self._offsets = array("q")
        if self._mode == "pingpong" and not self._small:
            self._spool = tempfile.TemporaryFile(dir=workdir)  # noqa: SIM115 - closed by close()

    def keep(self, frame: Frame) -> None:
        """Take the next frame of the first pass. It must not be written to afterwards."""
        self._count += 1
        if self._mode == "hold":
            self._frames = [frame]
        elif self._small:
            self._frames.append(frame)
        elif self._spool is not None:
            self._offsets.append(self._spool.tell())
            self._spool.write(cv2.imencode(".jpg", frame, JPEG)[1].tobytes())

    def frames(self) -> Iterator[tuple[int, Frame]]:
        """Number and picture of the frames behind the first pass, without end. Close it to end what it runs."""
        total = self._count
        if self._mode == "hold" or total == 1:
            while True:
                yield total - 1, self._frames[0] if self._frames else self._picture(0)
        elif self._mode == "loop" and not self._small:
            while True:
                yield from enumerate(read(self._source, total))
        elif self._mode == "loop":
            for number in count():
                yield number % total, self._frames[number % total]
        else:
            # Neither turning point is shown twice: 0 1 2 3 2 1 0 1 ...
            period = 2 * total - 2
            for number in count(total):
                index = number % period
                index = index if index < total else period - index
                yield index, self._picture(index)

    def close(self) -> None:
        """Remove the file, if there is one."""
        if self._spool is not None:
            self._spool.close()

    def _picture(self, index: int) -> Frame:
        if self._spool is None:
            return self._frames[index]
        end = self._offsets[index + 1] if index + 1 < len(self._offsets) else self._spool.seek(0, 2)
        self._spool.seek(self._offsets[index])
        data = np.frombuffer(self._spool.read(end - self._offsets[index]), np.uint8)
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR_BGR)
        assert frame is not None
        return np.asarray(frame, np.uint8)
