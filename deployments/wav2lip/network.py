"""The Wav2Lip network: 36.30 M parameters, laid out so that the published checkpoints' 352 entries fit by name.

Two encoders (a face, a piece of sound), one decoder that joins the face encoder's features on its way up. Every unit is
convolution, batch norm, (input added,) ReLU. Sizes are those of the 96 x 96 model of "A Lip Sync Expert Is All You Need
for Speech to Lip Generation In the Wild" (Prajwal et al. 2020).
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: Pixels; side of the square that the network reads and writes.
FACE = 96
#: Mel bands and columns of one piece of sound (0.2 s).
BANDS, COLUMNS = 80, 16

Stride = int | tuple[int, int]


class Unit(nn.Module):
    """Convolution (or its transpose) + batch norm, plus the input where ``residual``, then ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: Stride = 1,
        padding: int = 0,
        *,
        residual: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        conv: nn.Module
        if up:
            extra = 1 if stride == 2 else 0
            conv = nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, output_padding=extra)
        else:
            conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.conv_block = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h', w')."""
        y = self.conv_block(x)
        if self.residual:
            y += x
        return torch.relu_(y)


def _stack(first: Unit, width: int, residuals: int) -> nn.Sequential:
    return nn.Sequential(first, *(_residual(width) for _ in range(residuals)))


def _residual(width: int) -> Unit:
    return Unit(width, width, 3, 1, 1, residual=True)


class Wav2Lip(nn.Module):
    """Sound and face to the face that speaks it."""

    def __init__(self) -> None:
        super().__init__()
        self.face_encoder_blocks = nn.ModuleList(
            [
                _stack(Unit(6, 16, 7, 1, 3), 16, 0),
                _stack(Unit(16, 32, 3, 2, 1), 32, 2),
                _stack(Unit(32, 64, 3, 2, 1), 64, 3),
                _stack(Unit(64, 128, 3, 2, 1), 128, 2),
                _stack(Unit(128, 256, 3, 2, 1), 256, 2),
                _stack(Unit(256, 512, 3, 2, 1), 512, 1),
                nn.Sequential(Unit(512, 512, 3, 1, 0), Unit(512, 512, 1, 1, 0)),
            ]
        )
        self.audio_encoder = nn.Sequential(
            *_stack(Unit(1, 32, 3, 1, 1), 32, 2),
            *_stack(Unit(32, 64, 3, (3, 1), 1), 64, 2),
            *_stack(Unit(64, 128, 3, 3, 1), 128, 2),
            *_stack(Unit(128, 256, 3, (3, 2), 1), 256, 1),
            Unit(256, 512, 3, 1, 0),
            Unit(512, 512, 1, 1, 0),
        )
        self.face_decoder_blocks = nn.ModuleList(
            [
                nn.Sequential(Unit(512, 512, 1, 1, 0)),
                _stack(Unit(1024, 512, 3, 1, 0, up=True), 512, 1),
                _stack(Unit(1024, 512, 3, 2, 1, up=True), 512, 2),
                _stack(Unit(768, 384, 3, 2, 1, up=True), 384, 2),
                _stack(Unit(512, 256, 3, 2, 1, up=True), 256, 2),
                _stack(Unit(320, 128, 3, 2, 1, up=True), 128, 2),
                _stack(Unit(160, 64, 3, 2, 1, up=True), 64, 2),
            ]
        )
        self.output_block = nn.Sequential(Unit(80, 32, 3, 1, 1), nn.Conv2d(32, 3, 1), nn.Sigmoid())

    def forward(self, mel: Tensor, face: Tensor) -> Tensor:
        """``mel`` (n, 1, 80, 16) and ``face`` (n, 6, 96, 96) in 0..1 to BGR (n, 3, 96, 96) in 0..1.

        The face's first three channels are BGR with the lower half zeroed, the last three the reference BGR.
        """
        features: list[Tensor] = []
        for block in self.face_encoder_blocks:
            face = block(face)
            features.append(face)
        x: Tensor = self.audio_encoder(mel)
        for block in self.face_decoder_blocks:
            x = torch.cat((block(x), features.pop()), dim=1)
        result: Tensor = self.output_block(x)
        return result


def folded(network: Wav2Lip) -> Wav2Lip:
    """A copy for inference whose batch norms are folded into the convolutions: same result, one pass less per unit."""
    result = copy.deepcopy(network).eval().requires_grad_(False)
    for unit in [module for module in result.modules() if isinstance(module, Unit)]:
        conv, norm = unit.conv_block[0], unit.conv_block[1]
        assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
        assert isinstance(norm, nn.BatchNorm2d)
        fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
        unit.conv_block = nn.Sequential(fused)
    return result


def entry_shapes() -> dict[str, tuple[int, ...]]:
    """Shape by name of all 352 entries of the state dict."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Wav2Lip().state_dict().items()}
