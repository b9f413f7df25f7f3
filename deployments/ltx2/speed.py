"""Compiled layers, attention kernels and fp8 products, as :mod:`options` has them; all off unless asked for.

A value that this machine can't use ends the start, before any weights are loaded where that can be told.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from deployments.ltx2.options import ATTENTION, FP8, Bucket, SpeedOptions
from deployments.weights import CheckpointError

#: torch's name of the compiler.
BACKEND = "inductor"
#: Compiled forms of a layer, at most: one a bucket and pass of a recipe, and some to spare. torch's default is 8.
MOST_FORMS = 64
#: From Ada on, tensor cores multiply fp8.
FP8_CAPABILITY = (8, 9)
#: Sides that fp8 products take.
FP8_MULTIPLE = 16


def require(options: SpeedOptions) -> None:
    """Whether this machine can do fp8 where it is asked for, in milliseconds. Raises :class:`CheckpointError`."""
    if not options.fp8:
        return
    if importlib.util.find_spec("torchao") is None:
        raise CheckpointError(f"{FP8}=1 needs the package torchao: pip install torchao, or leave the variable out")
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    if capability < FP8_CAPABILITY:
        raise CheckpointError(
            f"{FP8}=1 needs a card of compute capability 8.9 or more (4090, L40S, H100); this machine has "
            + (".".join(map(str, capability)) if any(capability) else "none")
        )


def apply(pipe: Any, options: SpeedOptions) -> None:
    """Change the transformer of ``pipe``, which is on its device. Compiling itself happens in :func:`warmed_up`.

    Raises :class:`CheckpointError` for an attention back end that is unknown or not installed.
    """
    if options.attention:
        _attend(pipe.transformer, options.attention)
    if options.fp8:
        _multiply_in_fp8(pipe.transformer)
    if options.compiled:
        torch._dynamo.config.recompile_limit = MOST_FORMS
        pipe.transformer.compile_repeated_blocks(backend=BACKEND, dynamic=False)


def warmed_up(options: SpeedOptions, render: Callable[[Bucket], object]) -> None:
    """Have every bucket compiled by rendering it, and from then on nothing."""
    if not options.compiled:
        return
    for bucket in options.compiled:
        # Twice: what was seen to differ between the first two calls is compiled once more in the second.
        render(bucket)
        render(bucket)
    torch.compiler.set_stance("eager_on_recompile")


def _attend(transformer: Any, name: str) -> None:
    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        transformer.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"{ATTENTION}={name}: {error}") from error
    # diffusers makes it everybody's; the connectors' masks are more than most of them take.
    _AttentionBackendRegistry.set_active_backend(before)


def _multiply_in_fp8(transformer: Any) -> None:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    layers = tuple(name for name, part in transformer.named_modules() if _is_layer(transformer, part))
    quantize_(
        transformer,
        Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
        filter_fn=lambda module, name: _takes_fp8(module) and name.startswith(tuple(f"{each}." for each in layers)),
    )


def _is_layer(transformer: Any, part: Any) -> bool:
    return type(part).__name__ in transformer._repeated_blocks


def _takes_fp8(module: Any) -> bool:
    """Large products within the layers. What is around them (embeddings, norms, the output) decides on the picture."""
    return isinstance(module, torch.nn.Linear) and all(side % FP8_MULTIPLE == 0 for side in module.weight.shape)
