"""What a module computes and moves when it is called: counted on the ``meta`` device, so no card and no memory."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Work:
    """Operators by what each computes and moves, and how often it runs."""

    #: How many there are of (FLOPs, bytes read and written).
    operators: Counter[tuple[int, int]] = field(default_factory=Counter)
    #: FLOPs of attention scores and values alone, which are among the others.
    attention: int = 0

    @property
    def flops(self) -> int:
        return sum(flops * count for (flops, _), count in self.operators.items())

    @property
    def moved(self) -> int:
        """Bytes, with every operator a kernel of its own."""
        return sum(moved * count for (_, moved), count in self.operators.items())

    def __add__(self, other: "Work") -> "Work":
        return Work(self.operators + other.operators, self.attention + other.attention)

    def __mul__(self, times: int) -> "Work":
        return Work(Counter({each: n * times for each, n in self.operators.items()}), self.attention * times)

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Least time on a card with these peaks: each operator takes what it is bound by, and nothing is fused."""
        return sum(
            count * max(flops / flops_per_s, moved / bytes_per_s) for (flops, moved), count in self.operators.items()
        )


def counted(call: Callable[[], object]) -> Work:
    """The work of ``call``, whose tensors are on ``meta``."""
    operators: Counter[tuple[int, int]] = Counter()
    attention = _Attention(operators)
    # Not in inference mode, where composite operators would arrive here whole, which no formula knows.
    with torch.no_grad(), attention, _Operators(operators):
        call()
    return Work(operators, attention.flops)


class _Attention(TorchFunctionMode):
    """Counts attention as one kernel that keeps its scores to itself, as those of cards do. ``meta`` has none such."""

    def __init__(self, operators: Counter[tuple[int, int]]) -> None:
        super().__init__()
        self._operators = operators
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        made = query.new_empty((*query.shape[:-1], value.shape[-1]))
        pairs = math.prod(query.shape[:-1]) * key.shape[-2]
        flops = 2 * pairs * (query.shape[-1] + value.shape[-1])
        self._operators[flops, _bytes(query, key, value, made)] += 1
        self.flops += flops
        return made


class _Operators(TorchDispatchMode):
    """Counts every operator that is a kernel."""

    def __init__(self, operators: Counter[tuple[int, int]]) -> None:
        super().__init__()
        self._operators = operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        packet = func._overloadpacket
        # One that writes into its input hands it back, too, but does work.
        view = not func._schema.is_mutable and not _storages(made).isdisjoint(_storages((args, kwargs)))
        if view or packet.__name__.startswith(("empty", "new_empty")):
            return made
        formula = flop_registry.get(packet)
        flops = formula(*args, **kwargs, out_val=made) if formula else 0
        self._operators[flops, _bytes(args, kwargs, made)] += 1
        return made


def _storages(values: Any) -> set[int]:
    return {each.untyped_storage()._cdata for each in _tensors(values)}


def _bytes(*values: Any) -> int:
    return sum(each.numel() * each.element_size() for each in _tensors(values))


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    # An operator that writes into its input has it as its output as well: read once, written once.
    return (each for each in tree_iter(values) if isinstance(each, torch.Tensor))
