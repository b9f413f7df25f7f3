"""Carries a plan of the memory out on a diffusers pipeline: what is where, and what makes room for whom."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading

from deployments import host_memory
from deployments.ltx2 import activations, memory, parts
from deployments.ltx2.checkpoint import UPSAMPLER, Checkpoint
from deployments.ltx2.memory import TEXT, Memory, Plan
from deployments.ltx2.recipes import RecipeName, canvas, recipes_of

_HOST = torch.device("cpu")
_EIGHT_BITS = torch.float8_e4m3fn
#: Parts that a plan may have off the card, the one first that is largest while it loads.
_MOVED = ("transformer", *TEXT)


def planned(folder: Path, facts: Checkpoint, device: torch.device, joint: Path | None) -> Plan:
    """The plan for the checkpoint in ``folder`` and the memory that is free now. Nothing is loaded.

    ``joint`` is the folder of the upsampler, without which there is no recipe ``fast``. Raises
    :class:`CheckpointError` when nothing fits.
    """
    return memory.plan(
        facts.version,
        parts.read(folder, 2 if device.type == "cuda" else 4, joint),
        free(device),
        width=parts.width_of(folder),
        recipes=recipes_of(two_stages=joint is not None),
    )


def free(device: torch.device) -> Memory:
    """Memory of the device and of the host, and what of it is in use."""
    host = host_memory.read()
    if device.type != "cuda":
        return Memory(card=host.total, used=host.total - host.free, host=host.free, shared=True)
    left, card = torch.cuda.mem_get_info(device)
    return Memory(card=card, used=card - left, host=host.free)


def load(make: Callable[..., Any], plan: Plan, device: torch.device) -> Any:
    """A pipeline whose parts are loaded to where ``plan`` has them: what stays off the card is never on it.

    ``make(device_map=…, **parts)`` is ``from_pretrained`` of a pipeline, whose ``parts`` are not loaded but taken.
    """
    taken: dict[str, Any] = {}
    for name in _MOVED:
        if name in plan.weights and plan.off_card(name):
            others = dict.fromkeys((*plan.weights, "tokenizer"))
            others.pop(name)
            others.pop(UPSAMPLER, None)
            taken[name] = getattr(make(device_map=_HOST.type, **others), name)
            if name == "transformer":
                _store_in_eight_bits(taken[name])
    # Straight to the device: 66 GB of weights need not fit the host's memory as well.
    return make(device_map=device.type, **taken)


class Placement:
    """The parts of ``pipe`` where ``plan`` has them; they stay there but for a job that needs the room."""

    def __init__(self, pipe: Any, plan: Plan, device: torch.device) -> None:
        self.plan = plan
        self._device = device
        self._vae = pipe.vae
        self._text = [part for name in TEXT if (part := getattr(pipe, name, None)) is not None]
        for name, part in pipe.components.items():
            if not isinstance(part, torch.nn.Module):
                continue
            if name == "transformer" and plan.arrangement in ("fp8", "streamed"):
                _store_in_eight_bits(part)
            if plan.streams(name):
                _stream(part, device)
            else:
                part.to(device)
        if plan.parks:
            for part in self._text:
                part.register_forward_pre_hook(self._come_back)

    def make_room(self, recipe: RecipeName, width: int, height: int, frames: int) -> None:
        """Before a clip of this size is made, and after its prompts were encoded."""
        if self.plan.parked(recipe, width, height, frames):
            for part in self._text:
                part.to(_HOST)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        tile(self._vae, *canvas(recipe, width, height), self.plan.tile(recipe, width, height, frames))

    def _come_back(self, module: Any, args: Any) -> None:
        module.to(self._device)


def tile(vae: Any, width: int, height: int, side: int | None) -> None:
    """Have ``vae`` decode pictures of ``width`` x ``height`` in tiles of this side in pixels, or (None) at once."""
    vae.disable_tiling()
    if side is not None:
        vae.enable_tiling(
            tile_sample_min_height=side,
            tile_sample_min_width=side,
            tile_sample_stride_height=activations.stride(height, side),
            tile_sample_stride_width=activations.stride(width, side),
        )


def _store_in_eight_bits(transformer: Any) -> None:
    """Half the bytes. A layer that computes is cast back meanwhile; norms stay as they are. Once is enough."""
    if any(each.dtype is _EIGHT_BITS for each in transformer.parameters()):
        return
    transformer.enable_layerwise_casting(storage_dtype=_EIGHT_BITS, compute_dtype=transformer.dtype)


def _stream(part: Any, device: torch.device) -> None:
    """Keep it on the host, from where each tensor comes before it is needed, on CUDA while the one before computes."""
    cuda = device.type == "cuda"
    apply_group_offloading(
        part, device, _HOST, offload_type="leaf_level", use_stream=cuda, record_stream=cuda, non_blocking=cuda
    )
