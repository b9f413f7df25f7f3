"""3 x 3 convolutions with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3), for float32 on a CPU.

oneDNN's direct convolutions run at nine tenths of what a core without bfloat16 can multiply; only fewer multiplications
make them faster. Matrices from Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015): a tile of
4 x 4 results costs 36 multiplications a pair of channels instead of 144. What is turned costs work of its own, by
channel and not by pair: from :data:`LEAST_CHANNELS` on that pays. Rounding: 1e-5 of the largest value.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

#: With fewer, turning tiles to and fro costs as much as is saved.
LEAST_CHANNELS = 128
#: Side of a tile of results, and of the input it follows from.
TILE, REACH = 4, 6

_INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_INPUT += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_KERNEL = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


class Winograd(nn.Module):
    """A convolution of kernel 3, stride 1 and padding 1, in float32. It keeps its input's size."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
        assert conv.bias is not None
        inputs, outputs = torch.tensor(_INPUT).float(), torch.tensor(_OUTPUT).float()
        # Both directions at once: one large product instead of two with matrices of 6 x 6.
        self.register_buffer("_turn", torch.kron(inputs, inputs))
        self.register_buffer("_back", torch.kron(outputs, outputs))
        kernel = torch.tensor(_KERNEL).double() / 24
        turned = torch.einsum("ya,oiab,xb->yxio", kernel, conv.weight.double(), kernel)
        self.register_buffer("_weight", turned.flatten(0, 1).float().contiguous())
        self.register_buffer("_bias", conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h, w), channels last."""
        count, channels, height, width = x.shape
        down, across = -(-height // TILE), -(-width // TILE)
        room = (0, 0, 1, TILE * across - width + 1, 1, TILE * down - height + 1)
        padded = functional.pad(x.permute(0, 2, 3, 1), room)
        picture, row, column, channel = padded.stride()
        tiles = padded.as_strided(
            (REACH, REACH, count, down, across, channels),
            (row, column, picture, TILE * row, TILE * column, channel),
        )
        turned = torch.mm(self.get_buffer("_turn"), tiles.reshape(REACH**2, -1)).view(REACH**2, -1, channels)
        made = torch.bmm(turned, self.get_buffer("_weight"))
        back = torch.mm(self.get_buffer("_back"), made.view(REACH**2, -1))
        # In the order of the picture; tiles at the right and lower edge may reach beyond it.
        ordered = back.view(TILE, TILE, count, down, across, -1).permute(2, 3, 0, 4, 1, 5)
        whole = ordered.reshape(count, TILE * down, TILE * across, -1).add_(self.get_buffer("_bias"))
        return whole[:, :height, :width].permute(0, 3, 1, 2)
