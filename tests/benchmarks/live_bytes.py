"""Peak bytes that a computation holds, counted storage by storage; under fake tensors nothing is computed or held.

:class:`LiveBytes` sees every operation that reaches torch's dispatcher. A storage counts from the operation that made
it until nothing refers to it, as in a caching allocator, and whatever shares it (views, results in place) counts once.
What one operation needs within itself (a convolution's workspace) does not reach it.
"""

import weakref
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[misc]  # torch.utils is untyped here
    """As a context: counts what is made within it. ``held`` were there before and never count."""

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        #: Bytes that live now, and the most that ever did.
        self.now = 0
        self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what came of it."""
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self._see(each.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _see(self, storage: Any) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size: int) -> None:
        self.now -= size


def weights_of(module: Any) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return list(chain(module.parameters(), module.buffers()))


def bytes_of(module: Any) -> int:
    """Of its weights, each storage once."""
    storages = {id(each.untyped_storage()): each.untyped_storage().nbytes() for each in weights_of(module)}
    return sum(storages.values())


def faked(module: Any, mode: FakeTensorMode) -> Any:
    """A module on ``meta``, given fake weights on the CPU; to be called within ``mode``.

    On the CPU and not on ``meta``, since there attention is computed by the kernel that never holds all pairs of
    tokens, as on a GPU.
    """
    with mode:
        for each in module.modules():
            for name, tensor in each._parameters.items():
                if tensor is not None:
                    each._parameters[name] = torch.nn.Parameter(_like(tensor), requires_grad=False)
            for name, tensor in each._buffers.items():
                if tensor is not None:
                    each._buffers[name] = _like(tensor)
    return module


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def peak(modules: Iterable[Any], call: Callable[[], Any]) -> int:
    """Most bytes at once of ``call`` beyond the weights of ``modules``, without gradients. Its result counts."""
    counter = LiveBytes(chain.from_iterable(map(weights_of, modules)))
    with torch.no_grad(), counter:
        call()
    return counter.peak
