"""Just enough ONNX to run a small convolutional network in torch, so that it can use the replica's device in batches.

An ONNX file is a protobuf message (github.com/onnx/onnx/blob/main/onnx/onnx.proto); the few fields needed are read here
by number rather than through the onnx package, which would be a dependency for one file of 7 MB.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

#: Field numbers of ModelProto, GraphProto, NodeProto, AttributeProto and TensorProto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 2, 3, 8
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW, _FLOAT32 = 1, 2, 4, 8, 9, 1


@dataclass(frozen=True)
class _Node:
    operator: str
    inputs: tuple[str, ...]
    output: str
    #: Integers as lists, floats as numbers.
    attributes: dict[str, Any]


class OnnxNetwork(nn.Module):
    """A graph of convolutions, batch norms, ReLU, sigmoid and sums. Raises ``ValueError`` for anything else."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = memoryview(_one(memoryview(path.read_bytes()), _MODEL_GRAPH))
        self._nodes = [_node(memoryview(part)) for part in _all(graph, _GRAPH_NODE)]
        unknown = {node.operator for node in self._nodes} - _OPERATORS.keys()
        if unknown:
            raise ValueError(f"{path} uses operators that are not known here: {sorted(unknown)}")
        used = {name for node in self._nodes for name in node.inputs}
        self._names: dict[str, str] = {}
        present: set[str] = set()
        for number, part in enumerate(_all(graph, _GRAPH_INITIALIZER)):
            name = bytes(_one(part, _TENSOR_NAME)).decode()
            present.add(name)
            # Training's counters come along in some exports; no node reads them.
            if name in used:
                self._names[name] = f"weight{number}"
                self.register_buffer(f"weight{number}", _tensor(name, part))
        inputs = [bytes(_one(memoryview(part), 1)).decode() for part in _all(graph, _GRAPH_INPUT)]
        (self._input,) = (name for name in inputs if name not in present)
        self._outputs = [bytes(_one(memoryview(part), 1)).decode() for part in _all(graph, _GRAPH_OUTPUT)]
        self._spent = self._last_uses()
        for node, spent in zip(self._nodes, self._spent, strict=True):
            if node.operator == "Relu" and node.inputs[0] not in spent:
                raise ValueError(f"{path} reads a value again that ReLU overwrites here: {node.inputs[0]}")

    def forward(self, x: Tensor) -> list[Tensor]:
        """The graph's outputs, in its order, for its one input."""
        values = {name: self.get_buffer(buffer) for name, buffer in self._names.items()}
        values[self._input] = x
        for node, spent in zip(self._nodes, self._spent, strict=True):
            values[node.output] = _OPERATORS[node.operator](node, *(values[name] for name in node.inputs))
            for name in spent:
                del values[name]
        return [values[name] for name in self._outputs]

    def _last_uses(self) -> list[list[str]]:
        """Values that no node after each node needs: memory given back early is memory that is warm when used again."""
        seen = {*self._outputs, *self._names, self._input}
        spent: list[list[str]] = []
        for node in reversed(self._nodes):
            spent.append(sorted(set(node.inputs) - seen))
            seen.update(node.inputs)
        return spent[::-1]


def _convolve(node: _Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pads = node.attributes["pads"]
    return functional.conv2d(
        x, weight, bias, node.attributes["strides"], pads[:2], node.attributes["dilations"], node.attributes["group"][0]
    )


def _convolve_up(node: _Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.conv_transpose2d(
        x, weight, bias, node.attributes["strides"], node.attributes["pads"][:2], groups=node.attributes["group"][0]
    )


def _normalise(node: _Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=node.attributes["epsilon"])


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Conv": _convolve,
    "ConvTranspose": _convolve_up,
    "BatchNormalization": _normalise,
    "Relu": lambda _node, x: torch.relu_(x),
    "Sigmoid": lambda _node, x: torch.sigmoid(x),
    "Add": lambda _node, x, y: x + y,
}


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Value at ``at`` and the position behind it: seven bits a byte, lowest first."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and raw value of each field of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}[wire]
        yield number, data[at : at + size]
        at += size


def _all(data: memoryview, wanted: int) -> list[Any]:
    return [value for number, value in _fields(data) if number == wanted]


def _one(data: memoryview, wanted: int) -> Any:
    found = _all(data, wanted)
    if not found:
        raise ValueError("this is no ONNX model")
    return found[0]


def _node(data: memoryview) -> _Node:
    attributes: dict[str, Any] = {}
    for part in _all(data, _NODE_ATTRIBUTE):
        name = bytes(_one(part, _ATTRIBUTE_NAME)).decode()
        floats = _all(part, _ATTRIBUTE_FLOAT)
        ints = _all(part, _ATTRIBUTE_INTS) or _all(part, _ATTRIBUTE_INT)
        attributes[name] = float(np.frombuffer(floats[0], "<f4")[0]) if floats else ints
    return _Node(
        operator=bytes(_one(data, _NODE_OPERATOR)).decode(),
        inputs=tuple(bytes(name).decode() for name in _all(data, _NODE_INPUT)),
        output=bytes(_one(data, _NODE_OUTPUT)).decode(),
        attributes=attributes,
    )


def _tensor(name: str, data: memoryview) -> Tensor:
    if _one(data, _TENSOR_TYPE) != _FLOAT32:
        raise ValueError(f"{name} is not float32")
    # Packed floats and raw bytes are the same on the wire.
    content = _all(data, _TENSOR_RAW) or _all(data, _TENSOR_FLOATS)
    array = np.frombuffer(content[0], "<f4").reshape(_all(data, _TENSOR_DIMS))
    return torch.from_numpy(array.copy())
