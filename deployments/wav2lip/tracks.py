"""One face followed through a stream of frames, with as little detection as will do and a bounded look ahead.

Faces are looked for in every k-th frame and boxes interpolated in between; where that is not safe (the face moved far,
came, went, or the scene was cut) every frame is looked at.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.wav2lip.boxes import Box, Found, Smoother, area, overlap, padded
from deployments.wav2lip.video import Frame

#: Overlap from which two boxes are taken for one face; from which the way between two key frames is a straight line.
SAME, STRAIGHT = 0.3, 0.5
#: Frames after which a face that is gone is given up and another may be taken: half a second.
GIVEN_UP = 12
#: Mean difference of two small grey pictures, in levels, from which the scene was cut.
CUT = 30.0
THUMBNAIL = (32, 18)
#: Bytes of frames held for a batch of key frames.
HELD = 64 * 1024**2


class Detector(Protocol):
    """What is needed of a face detector. Tests plug in a cheap one."""

    #: Frames from one detection to the next.
    every: int
    #: Frames a call takes best.
    batch: int

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        """Faces of each frame, best first."""


class Seen(NamedTuple):
    """A frame and where the followed face is in it, as found."""

    frame: Frame
    box: NDArray[np.float32] | None
    #: The face was taken up here: after a gap, a cut, or at the start.
    anew: bool


class Follower:
    """Chooses the face and stays with it. ``rank`` 0 is the largest face where it is taken up, 1 the next."""

    def __init__(self, detector: Detector, rank: int) -> None:
        self._detector = detector
        self._rank = rank
        self._last: NDArray[np.float32] | None = None
        self._gone = 0

    def follow(self, frames: Iterator[Frame]) -> Iterator[Seen]:
        """The same frames with their boxes. Reads ahead by at most a batch of key frames."""
        first = next(frames, None)
        if first is None:
            return
        yield self._choose(first, self._detector([first])[0], cut=False)
        every = self._detector.every
        intervals = max(1, min(self._detector.batch, HELD // (every * first.nbytes)))
        before = _thumbnail(first)
        while block := list(islice(frames, every * intervals)):
            keys = self._detector([*block[every - 1 :: every], *([block[-1]] if len(block) % every else [])])
            for start, found in zip(range(0, len(block), every), keys, strict=True):
                interval = block[start : start + every]
                thumbnails = [before, *(_thumbnail(frame) for frame in interval)]
                before = thumbnails[-1]
                cuts = [_differ(a, b) > CUT for a, b in pairwise(thumbnails)]
                yield from self._between(interval, found, cuts)

    def _between(self, interval: list[Frame], found: Found, cuts: list[bool]) -> Iterator[Seen]:
        """The frames behind a key frame up to the next, in which ``found`` was seen."""
        start = self._last if self._gone == 0 else None
        if not any(cuts):
            if start is None and len(found) == 0:
                for frame in interval:
                    yield self._choose(frame, found, cut=False)
                return
            end = None if start is None else _same(start, found, STRAIGHT)
            if start is not None and end is not None:
                self._last = end
                for number, frame in enumerate(interval, 1):
                    yield Seen(frame, start + (end - start) * (number / len(interval)), anew=False)
                return
        each = [*(self._detector(interval[:-1]) if len(interval) > 1 else []), found]
        for frame, faces, cut in zip(interval, each, cuts, strict=True):
            yield self._choose(frame, faces, cut=cut)

    def _choose(self, frame: Frame, faces: Found, *, cut: bool) -> Seen:
        """Pick the followed face among those found in a frame."""
        if self._last is not None and not cut:
            box = _same(self._last, faces, SAME)
            jumped = None if box is not None else _near(self._last, faces)
            if box is not None or jumped is not None:
                anew = self._gone > 0 or jumped is not None
                self._last, self._gone = box if jumped is None else jumped, 0
                return Seen(frame, self._last, anew)
            self._gone += 1
            if self._gone <= GIVEN_UP:
                return Seen(frame, None, anew=False)
        self._last, self._gone = None, 0
        if len(faces) > self._rank:
            self._last = faces[np.argsort(-area(faces), kind="stable")[self._rank]]
        return Seen(frame, self._last, anew=True)


def steady(spots: Iterator[Seen], pads: Sequence[float], *, smoothing: bool) -> Iterator[tuple[Frame, Box | None]]:
    """Padded and, if asked for, smoothed boxes; reads four frames ahead. Runs that a gap or cut parts stay apart."""
    smoother = Smoother()
    waiting: deque[Frame] = deque()
    for frame, found, anew in spots:
        height, width = frame.shape[:2]
        box = None if found is None else padded(found, pads, width, height)
        if not smoothing:
            yield frame, box
            continue
        if box is None or anew:
            for certain in smoother.finish():
                yield waiting.popleft(), certain
        if box is None:
            yield frame, None
            continue
        waiting.append(frame)
        for certain in smoother.push(box):
            yield waiting.popleft(), certain
    for certain in smoother.finish():
        yield waiting.popleft(), certain


def _same(box: NDArray[np.float32], faces: Found, least: float) -> NDArray[np.float32] | None:
    """The face that overlaps ``box`` most, if by ``least``."""
    if len(faces) == 0:
        return None
    common = overlap(box, faces)
    best = int(np.argmax(common))
    return faces[best] if common[best] >= least else None


def _near(box: NDArray[np.float32], faces: Found) -> NDArray[np.float32] | None:
    """The face of about the same size that is nearest to ``box``, at most its own side away.

    Interviews are full of cuts that only shift the speaker a little; the picture as a whole hardly changes there.
    """
    if len(faces) == 0:
        return None
    middles = (faces[:, :2] + faces[:, 2:4] - box[:2] - box[2:4]) / 2
    distances = np.hypot(middles[:, 0], middles[:, 1])
    best = int(np.argmin(distances))
    size = float(area(box[None])[0])
    alike = 0.4 < float(area(faces[best : best + 1])[0]) / max(size, 1e-9) < 2.5
    return faces[best] if alike and distances[best] <= size**0.5 else None


def _thumbnail(frame: Frame) -> NDArray[np.float32]:
    # A sample of the pixels will do: averaging them all would cost a tenth of the detection.
    stride = max(1, min(frame.shape[:2]) // 64)
    small = cv2.resize(frame[::stride, ::stride], THUMBNAIL, interpolation=cv2.INTER_AREA)
    grey: NDArray[np.float32] = small.mean(axis=2, dtype=np.float32)
    return grey


def _differ(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).mean())
