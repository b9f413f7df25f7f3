"""Boxes around faces: overlap, suppression of doubles, padding, and the original's smoothing over time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Faces of one frame, (n, 5): left, top, right, bottom in pixels, score; best first.
Found = NDArray[np.float32]
#: One face, whole pixels as the original orders them: top, bottom, left, right (bottom and right exclusive).
Box = tuple[int, int, int, int]

NONE_FOUND: Found = np.empty((0, 5), np.float32)
#: Frames averaged by the smoothing: this one and the four that follow.
SPAN = 5
#: Pixels; a smaller box holds no mouth.
SMALLEST = 4


def overlap(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of one box (4+) with each of ``others`` (n, 4+)."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:4], others[:, 2:4])
    common = np.prod(np.clip(high - low, 0, None), axis=1)
    union = area(box[None]) + area(others) - common
    result: NDArray[np.float32] = common / np.maximum(union, 1e-9)
    return result


def area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Square pixels of each of ``boxes`` (n, 4+)."""
    result: NDArray[np.float32] = np.prod(np.clip(boxes[:, 2:4] - boxes[:, :2], 0, None), axis=1)
    return result


def best_of(boxes: Found, most_overlap: float) -> Found:
    """``boxes`` by falling score, without those that overlap a better one by more (non-maximum suppression)."""
    rest = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    kept: list[NDArray[np.float32]] = []
    while len(rest):
        kept.append(rest[0])
        rest = rest[1:][overlap(rest[0], rest[1:]) <= most_overlap]
    return np.stack(kept) if kept else NONE_FOUND


def padded(box: NDArray[np.float32], pads: Sequence[float], width: int, height: int) -> Box | None:
    """A found box (left, top, right, bottom) with ``pads`` (top, bottom, left, right) added, inside the frame.

    Truncated to whole pixels before padding, as the original does. None where nothing worth cropping remains.
    """
    left, top, right, bottom = (int(value) for value in box[:4])
    top, bottom = max(0, top - int(pads[0])), min(height, bottom + int(pads[1]))
    left, right = max(0, left - int(pads[2])), min(width, right + int(pads[3]))
    return (top, bottom, left, right) if min(bottom - top, right - left) >= SMALLEST else None


class Smoother:
    """Over one unbroken run of boxes, the mean of each and the next four, truncated to whole pixels.

    The original averages in place, so that at the end, where fewer than four follow, the window stays on the last five
    rows, of which the earlier ones are smoothed by then. That is kept: it is what the published results show.
    """

    def __init__(self) -> None:
        #: The last rows, at most five; the first of five is smoothed already.
        self._rows: list[Box] = []

    def push(self, box: Box) -> list[Box]:
        """Take the next box and return the one that became certain, if any: that of four boxes ago."""
        self._rows.append(box)
        del self._rows[:-SPAN]
        if len(self._rows) < SPAN:
            return []
        self._rows[0] = self._mean()
        return [self._rows[0]]

    def finish(self) -> list[Box]:
        """End the run: the boxes that are still to come. The smoother is ready for another run then."""
        first = 1 if len(self._rows) == SPAN else 0
        for row in range(first, len(self._rows)):
            self._rows[row] = self._mean()
        rest, self._rows = self._rows[first:], []
        return rest

    def _mean(self) -> Box:
        top, bottom, left, right = (int(value) for value in np.mean(self._rows, axis=0))
        return top, bottom, left, right
