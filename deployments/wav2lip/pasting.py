"""Faces back into their frames: by OpenCV frame by frame, or by a card, all frames of a batch in one pass.

Both are the original's bilinear enlargement, and agree within a level.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from deployments.wav2lip.boxes import Box
from deployments.wav2lip.network import FACE
from deployments.wav2lip.spec import Blend
from deployments.wav2lip.video import Frame

#: Part of the face's side over which a feathered edge fades.
FADE = 1 / 12

#: Copies of frames with these faces, uint8 (n, 96, 96, 3), in these boxes.
Paste = Callable[[Sequence[Frame], NDArray[np.uint8], Sequence[Box], Blend], list[Frame]]


def _feather() -> NDArray[np.float32]:
    """Weight of the new picture, (96, 96): 1 inside, falling to nearly 0 at the edge."""
    distance = np.minimum(np.arange(FACE), np.arange(FACE)[::-1]) + 0.5
    ramp = np.minimum(1.0, distance / (FACE * FADE)).astype(np.float32)
    return np.outer(ramp, ramp)


_FEATHER = _feather()


def paste_each(frames: Sequence[Frame], faces: NDArray[np.uint8], boxes: Sequence[Box], blend: Blend) -> list[Frame]:
    """See ``Paste``."""
    return [paste(frame, face, box, blend) for frame, face, box in zip(frames, faces, boxes, strict=True)]


def paste(frame: Frame, face: Frame, box: Box, blend: Blend) -> Frame:
    """A copy of ``frame`` with ``face`` in ``box``."""
    top, bottom, left, right = box
    size = (right - left, bottom - top)
    result = frame.copy()
    target = result[top:bottom, left:right]
    sized = cv2.resize(face, size)
    if blend == "feather":
        weight = cv2.resize(_FEATHER, size)
        sized = cv2.blendLinear(sized, np.ascontiguousarray(target), weight, 1 - weight)
    target[:] = sized
    return result


class CardPaste:
    """A ``Paste`` on one device. Only what lies in the boxes goes there and comes back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._feather = torch.from_numpy(_FEATHER).to(device)

    @torch.inference_mode()
    def __call__(
        self, frames: Sequence[Frame], faces: NDArray[np.uint8], boxes: Sequence[Box], blend: Blend
    ) -> list[Frame]:
        """See ``Paste``."""
        results = [frame.copy() for frame in frames]
        targets = [
            frame[top:bottom, left:right] for frame, (top, bottom, left, right) in zip(results, boxes, strict=True)
        ]
        high, wide = (max(target.shape[side] for target in targets) for side in (0, 1))
        places = self._places([target.shape[:2] for target in targets], high, wide)
        mixed = _enlarged(torch.from_numpy(faces).to(self._device).permute(0, 3, 1, 2).float(), places)
        if blend == "feather":
            room = np.zeros((len(frames), high, wide, 3), np.uint8)
            for place, target in zip(room, targets, strict=True):
                place[: target.shape[0], : target.shape[1]] = target
            behind = torch.from_numpy(room).to(self._device).permute(0, 3, 1, 2).float()
            weight = _enlarged(self._feather.expand(len(frames), 1, FACE, FACE), places)
            # OpenCV rounds the enlarged face before it mixes.
            mixed = behind + (mixed.round_() - behind) * weight
        pixels = mixed.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for target, made in zip(targets, pixels, strict=True):
            target[:] = made[: target.shape[0], : target.shape[1]]
        return results

    def _places(self, sizes: Sequence[tuple[int, ...]], high: int, wide: int) -> Tensor:
        """Where in the face each pixel of a box is taken from, (n, high, wide, 2), x first, in -1..1 of its side.

        Beyond a smaller box's own size it means nothing, and is cut off.
        """
        own = torch.tensor(sizes, dtype=torch.float32, device=self._device)
        y = (torch.arange(high, device=self._device) + 0.5) / own[:, :1] * 2 - 1
        x = (torch.arange(wide, device=self._device) + 0.5) / own[:, 1:] * 2 - 1
        count = len(sizes)
        return torch.stack((x[:, None].expand(count, high, wide), y[:, :, None].expand(count, high, wide)), dim=3)


def _enlarged(faces: Tensor, places: Tensor) -> Tensor:
    """(n, c, 96, 96) to (n, c, high, wide). The edge's pixels go on outside, as in OpenCV."""
    return functional.grid_sample(faces, places, mode="bilinear", padding_mode="border", align_corners=False)
