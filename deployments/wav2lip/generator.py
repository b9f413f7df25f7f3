"""The network made ready for one device: folded, channels last, in the fastest arithmetic that is exact enough."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deployments.wav2lip.network import FACE, Wav2Lip, folded


class Generator(Protocol):
    """What the pipeline needs of a network. Tests plug in a cheap one."""

    #: Faces a call takes best.
    batch: int

    def __call__(self, faces: NDArray[np.uint8], mels: NDArray[np.float32]) -> NDArray[np.uint8]:
        """BGR faces (n, 96, 96, 3) and their sound (n, 80, 16) to BGR faces (n, 96, 96, 3)."""


def best_dtype(device: torch.device) -> torch.dtype:
    """float16 on CUDA; on a CPU bfloat16 where the processor multiplies it natively, else float32.

    Emulated bfloat16 is slower than float32, and float16 on a CPU eight times slower, so only native support counts.
    """
    if device.type == "cuda":
        return torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


class TorchGenerator:
    """A :class:`Wav2Lip` network on one device."""

    def __init__(self, network: Wav2Lip, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self._device = device
        self._dtype = dtype or best_dtype(device)
        # On a CPU larger batches only cost page faults (2.2 GB at 128), on a GPU smaller ones leave it idle.
        self.batch = 64 if device.type == "cuda" else 16
        network = folded(network).to(device=device, dtype=self._dtype)
        # torch's stubs know no memory_format alone.
        self._network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, faces: NDArray[np.uint8], mels: NDArray[np.float32]) -> NDArray[np.uint8]:
        """See :class:`Generator`. Truncates to whole levels as the original does."""
        count = len(faces)
        picture = torch.from_numpy(faces).to(self._device).permute(0, 3, 1, 2)
        # Dividing in float32 before rounding to the network's type keeps the inputs as exact as that type allows.
        reference = picture.to(torch.float32).div_(255.0)
        stacked = torch.empty(
            (count, 6, FACE, FACE), dtype=self._dtype, device=self._device, memory_format=torch.channels_last
        )
        stacked[:, :3] = reference
        stacked[:, :3, FACE // 2 :] = 0
        stacked[:, 3:] = reference
        sound = torch.from_numpy(mels).to(device=self._device, dtype=self._dtype).unsqueeze(1)
        spoken = self._network(sound, stacked)
        levels = spoken.float().mul_(255.0).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        result: NDArray[np.uint8] = levels.cpu().numpy()
        return result
