"""The network made ready for one device: folded, channels last, in the fastest arithmetic that is exact enough."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deployments.wav2lip.cores import Cores
from deployments.wav2lip.graphs import FixedSizes, cuda_graph
from deployments.wav2lip.network import BANDS, COLUMNS, FACE, Unit, Wav2Lip, folded
from deployments.wav2lip.winograd import LEAST_CHANNELS, Winograd

#: Batches that a card computes, at most 64: a larger one keeps no card busier.
SIZES = (8, 16, 32, 64)
#: Faces a core takes at once: with more, what one layer wrote has left the cache when the next one reads it.
A_CORE = 8


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
    """A :class:`Wav2Lip` network on one device: a CPU's cores take a part of the batch each, a card a recorded size."""

    def __init__(self, network: Wav2Lip, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self._device = device
        self._dtype = dtype or best_dtype(device)
        network = folded(network).to(device=device, dtype=self._dtype)
        # torch's stubs know no memory_format alone.
        self._network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cuda":
            self.batch = max(SIZES)
            face = torch.empty((1, FACE, FACE, 3), dtype=torch.uint8, device=device)
            with torch.inference_mode():
                mel = torch.empty((1, BANDS, COLUMNS), device=device)
                self._fixed = FixedSizes(self._speak, (face, mel), SIZES, cuda_graph)
            return
        if self._dtype == torch.float32:
            multiply_less(network)
        self._cores = Cores(device)
        self.batch = A_CORE * self._cores.count

    def __call__(self, faces: NDArray[np.uint8], mels: NDArray[np.float32]) -> NDArray[np.uint8]:
        """See :class:`Generator`. Truncates to whole levels as the original does."""
        given = torch.from_numpy(faces), torch.from_numpy(mels)
        if self._device.type == "cuda":
            with torch.inference_mode():
                result: NDArray[np.uint8] = self._fixed(*given).cpu().numpy()
            return result
        share = -(-len(faces) // self._cores.count)
        parts = list(zip(*(torch.split(one, share) for one in given), strict=True))
        return np.concatenate([made.numpy() for made in self._cores.map(lambda part: self._speak(*part), parts)])

    @torch.inference_mode()
    def _speak(self, faces: Tensor, mels: Tensor) -> Tensor:
        """On the network's device: uint8 (n, 96, 96, 3) and float32 (n, 80, 16) to uint8 (n, 96, 96, 3)."""
        # Dividing in float32 before rounding to the network's type keeps the inputs as exact as that type allows.
        reference = faces.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
        stacked = torch.empty(
            (len(faces), 6, FACE, FACE), dtype=self._dtype, device=self._device, memory_format=torch.channels_last
        )
        stacked[:, :3] = reference
        stacked[:, :3, FACE // 2 :] = 0
        stacked[:, 3:] = reference
        spoken: Tensor = self._network(mels.to(self._dtype).unsqueeze(1), stacked)
        return spoken.float().mul_(255.0).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def multiply_less(network: Wav2Lip) -> None:
    """Have the folded ``network`` make its wide residual layers by :class:`Winograd`; they are half of its work."""
    for unit in network.modules():
        if isinstance(unit, Unit) and unit.residual:
            (conv,) = unit.conv_block
            assert isinstance(conv, nn.Conv2d)
            if conv.in_channels >= LEAST_CHANNELS:
                unit.conv_block = nn.Sequential(Winograd(conv))
