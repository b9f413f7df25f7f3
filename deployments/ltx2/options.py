"""What an operator may set to make LTX-2 faster on a card. Imported on the head too; :mod:`speed` carries it out.

``LTX2_COMPILE=1024x576x121,768x512x121`` compiles the transformer's layers for clips of these widths, heights and
frames (at 24 a second, and with the recipe that is meant where none is named) before the replica is ready. Any other
clip is made without: nothing is compiled while a client waits.
``LTX2_ATTENTION=_native_cudnn`` names one of diffusers' attention back ends.
``LTX2_FP8=1`` multiplies in fp8 by torchao. It changes what is seen: compare before it is used.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from deployments.weights import CheckpointError

COMPILE, ATTENTION, FP8 = "LTX2_COMPILE", "LTX2_ATTENTION", "LTX2_FP8"


@dataclass(frozen=True, order=True)
class Bucket:
    """A size and length of clips that is compiled for."""

    width: int
    height: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What the operator has chosen."""

    compiled: tuple[Bucket, ...] = ()
    attention: str | None = None
    fp8: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises :class:`CheckpointError` for a value that is none."""
        named = environment.get(COMPILE, "")
        fp8 = environment.get(FP8, "")
        if fp8 not in ("", "0", "1"):
            raise CheckpointError(f"{FP8}={fp8}: give 1 or 0")
        return cls(
            compiled=tuple(_bucket(each.strip()) for each in named.split(",")) if named else (),
            attention=environment.get(ATTENTION) or None,
            fp8=fp8 == "1",
        )


def _bucket(text: str) -> Bucket:
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    width, height, frames = (int(part) for part in found.groups()) if found else (0, 0, 0)
    if not found or width < 64 or height < 64 or width % 32 or height % 32 or frames % 8 != 1:
        raise CheckpointError(
            f"{COMPILE}: {text!r} is no width x height x frames, such as 1024x576x121: sides are multiples of 32, "
            "frames one more than a multiple of 8"
        )
    return Bucket(width, height, frames)
