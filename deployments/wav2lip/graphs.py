"""A function on a card at a few batch sizes only, each recorded once as a CUDA graph and then replayed.

The network is 120 small kernels: started one by one from Python they take longer than they run.
"""

from collections.abc import Callable, Sequence

import structlog
import torch
from torch import Tensor

log = structlog.get_logger()

Function = Callable[..., Tensor]
#: Runs what was recorded again, on the same tensors.
Replay = Callable[[], None]
#: Records a function of these tensors. Raises ``RuntimeError`` where it cannot be recorded.
Record = Callable[[Function, Sequence[Tensor]], tuple[Replay, Tensor]]

#: Calls before a recording: libraries choose their algorithms and allocate in the first ones.
WARM_UPS = 3


def cuda_graph(function: Function, inputs: Sequence[Tensor]) -> tuple[Replay, Tensor]:
    """See ``Record``."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function(*inputs)
    return graph.replay, output


class FixedSizes:
    """``function``, a tensor of tensors that have the batch first and do not depend on each other, at ``sizes`` only.

    A batch is padded to the next size; what the padding gives is cut off. Where a size cannot be recorded it is
    computed eagerly, and the log says so.
    """

    def __init__(self, function: Function, examples: Sequence[Tensor], sizes: Sequence[int], record: Record) -> None:
        self._function = function
        self._recorded: dict[int, tuple[Sequence[Tensor], Replay, Tensor]] = {}
        for size in sizes:
            inputs = [one.new_zeros((size, *one.shape[1:])) for one in examples]
            try:
                self._recorded[size] = (inputs, *record(function, inputs))
            except RuntimeError as error:
                log.warning("no CUDA graph: computed eagerly", batch=size, reason=str(error).splitlines()[:1])

    def __call__(self, *inputs: Tensor) -> Tensor:
        """``function`` of these tensors, wherever they lie."""
        count = len(inputs[0])
        size = min((size for size in self._recorded if size >= count), default=None)
        if size is None:
            return self._function(*inputs)
        places, replay, output = self._recorded[size]
        for place, given in zip(places, inputs, strict=True):
            # What an earlier batch left behind these is as good a padding as any.
            place[:count].copy_(given)
        replay()
        # The next call writes over it.
        return output[:count].clone()
