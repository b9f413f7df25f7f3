"""S3FD (Zhang et al. 2017), the face detector of the original pipeline: 22.5 M parameters, 187 times CenterFace's work.

No package ships its weights, so the operator supplies the file (``WAV2LIP_S3FD_PATH``); 65 entries in the well-known
layout of the PyTorch port. It is here for parity: Wav2Lip was trained on its boxes.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, normalize, relu

from deployments.wav2lip.boxes import Found, best_of
from deployments.wav2lip.video import Frame
from deployments.weights import CheckpointError

#: Subtracted from RGB in this order by the original, though the numbers are the means of BGR.
MEANS = (104.0, 117.0, 123.0)
SCORE, OVERLAP = 0.5, 0.3
#: Variances of the anchors' regression.
CENTRE, EXTENT = 0.1, 0.2
#: VGG-16 up to conv5_3: widths by block.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
#: Where faces are read off: (layer, channels, norm scale or None). One anchor a cell, of four cells' side.
LEVELS = (
    ("conv3_3_norm", 256),
    ("conv4_3_norm", 512),
    ("conv5_3_norm", 512),
    ("fc7", 1024),
    ("conv6_2", 512),
    ("conv7_2", 256),
)
NORM_SCALES = {"conv3_3_norm": 10.0, "conv4_3_norm": 8.0, "conv5_3_norm": 5.0}


class Norm(nn.Module):
    """L2 norm over the channels with a learnt scale for each."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to the same."""
        return normalize(x, dim=1, eps=1e-10) * self.weight.view(1, -1, 1, 1)


class S3FDNetwork(nn.Module):
    """VGG-16 with six heads."""

    def __init__(self) -> None:
        super().__init__()
        inputs = 3
        for block, widths in enumerate(BLOCKS, 1):
            for layer, outputs in enumerate(widths, 1):
                setattr(self, f"conv{block}_{layer}", nn.Conv2d(inputs, outputs, 3, 1, 1))
                inputs = outputs
        self.fc6 = nn.Conv2d(512, 1024, 3, 1, 3)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.conv6_1 = nn.Conv2d(1024, 256, 1)
        self.conv6_2 = nn.Conv2d(256, 512, 3, 2, 1)
        self.conv7_1 = nn.Conv2d(512, 128, 1)
        self.conv7_2 = nn.Conv2d(128, 256, 3, 2, 1)
        for number, (name, channels) in enumerate(LEVELS):
            if name in NORM_SCALES:
                setattr(self, name, Norm(channels, NORM_SCALES[name]))
            # The finest level tells three kinds of background apart, to keep tiny false faces down.
            setattr(self, f"{name}_mbox_conf", nn.Conv2d(channels, 4 if number == 0 else 2, 3, 1, 1))
            setattr(self, f"{name}_mbox_loc", nn.Conv2d(channels, 4, 3, 1, 1))

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(n, 3, h, w) to, for each level, probabilities of a face (n, h', w') and regressions (n, 4, h', w')."""
        features: dict[str, Tensor] = {}
        for block, widths in enumerate(BLOCKS, 1):
            for layer in range(1, len(widths) + 1):
                x = relu(self.get_submodule(f"conv{block}_{layer}")(x))
            if block >= 3:
                features[f"conv{block}_3_norm"] = self.get_submodule(f"conv{block}_3_norm")(x)
            x = max_pool2d(x, 2, 2)
        x = features["fc7"] = relu(self.fc7(relu(self.fc6(x))))
        x = features["conv6_2"] = relu(self.conv6_2(relu(self.conv6_1(x))))
        features["conv7_2"] = relu(self.conv7_2(relu(self.conv7_1(x))))
        results: list[tuple[Tensor, Tensor]] = []
        for name, _ in LEVELS:
            scores = self.get_submodule(f"{name}_mbox_conf")(features[name])
            background = scores[:, :-1].amax(dim=1)
            face = torch.softmax(torch.stack((background, scores[:, -1]), dim=1), dim=1)[:, 1]
            results.append((face, self.get_submodule(f"{name}_mbox_loc")(features[name])))
        return results


class S3FD:
    """Finds faces at full resolution in each frame, as the original does."""

    every = 1

    def __init__(self, path: Path, device: torch.device) -> None:
        self._device = device
        self.batch = 8 if device.type == "cuda" else 1
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(weights, Mapping):
                raise TypeError("it holds no state dict")
            network = S3FDNetwork()
            network.load_state_dict(weights, strict=True)
        except (
            pickle.UnpicklingError,
            RuntimeError,
            OSError,
            EOFError,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:
            raise CheckpointError(f"WAV2LIP_S3FD_PATH={path} is not an S3FD checkpoint: {error}") from error
        network = network.eval().requires_grad_(False).to(device)
        # torch's stubs know no memory_format alone.
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, frames: Sequence[Frame]) -> list[Found]:
        """Faces of each frame, best first."""
        found: list[Found] = []
        means = torch.tensor(MEANS, device=self._device).view(1, 3, 1, 1)
        for start in range(0, len(frames), self.batch):
            part = np.stack(frames[start : start + self.batch])
            batch = torch.from_numpy(part).to(self._device).permute(0, 3, 1, 2).flip(1).float() - means
            levels = self._network(batch)
            for row in range(len(part)):
                boxes = torch.cat(
                    [_boxes(face[row], shift[row], 2 ** (n + 2)) for n, (face, shift) in enumerate(levels)]
                )
                height, width = part[row].shape[:2]
                best = best_of(boxes.cpu().numpy(), OVERLAP)
                best[:, :4] = np.clip(best[:, :4], 0, [width, height, width, height])
                found.append(best)
        return found


def _boxes(face: Tensor, shift: Tensor, stride: int) -> Tensor:
    """Boxes (n, 5) from one level of one frame: anchors of 4 strides' side, moved and stretched by the regression."""
    rows, columns = torch.nonzero(face > SCORE, as_tuple=True)
    side = 4 * stride
    right, down, wide, high = shift[:, rows, columns]
    middle_x = (columns + 0.5) * stride + right * CENTRE * side
    middle_y = (rows + 0.5) * stride + down * CENTRE * side
    half_w, half_h = side * torch.exp(wide * EXTENT) / 2, side * torch.exp(high * EXTENT) / 2
    corners = (middle_x - half_w, middle_y - half_h, middle_x + half_w, middle_y + half_h, face[rows, columns])
    return torch.stack(corners, dim=1)
