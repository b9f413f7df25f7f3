"""The image that a container was started from: what it has, and whether a node can be made of it."""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from cluster.bootstrap.fault import Fault
from cluster.bootstrap.order import File, Order, normalized

#: They come with the image's torch, for its CUDA. What the head has of them is for a CPU, if it has any.
_OF_TORCH = re.compile(r"(torch|torchvision|torchaudio|triton|nvidia-.*|cuda-.*)")


@dataclass(frozen=True)
class Image:
    """What Python finds there."""

    #: Major and minor number.
    python: str
    #: By normalized name.
    versions: Mapping[str, str]

    @classmethod
    def here(cls) -> "Image":
        """Reads what is written about the packages; imports none of them."""
        versions: dict[str, str] = {}
        for found in metadata.distributions():
            # The first is the one that is imported. What is half removed has no name.
            if name := found.metadata["Name"]:
                versions.setdefault(normalized(name), found.version)
        return cls(".".join(platform.python_version_tuple()[:2]), versions)

    def check(self, order: Order) -> None:
        """Raises Fault if a node of that head can't run on it: before anything large is fetched for nothing."""
        torch = self.versions.get("torch", "none")
        for name, has, wants in (("Python", self.python, order.python), ("torch", _public(torch), order.torch)):
            if has != wants:
                raise Fault(f"the image has {name} {has}, the head wants {wants}: give this type of node another image")

    def is_ours(self, order: Order) -> bool:
        """It is of our own making, and of the head's version: nothing is missing."""
        return self.versions.get(order.distribution) == order.version

    def lacks(self, order: Order) -> tuple[File, ...]:
        """The files that have to be fetched: not the wheel of what is there in that very version."""
        return tuple(file for file in order.files if not self._has(file))

    def constraints(self, text: str) -> str:
        """The head's pins, and the image's own torch instead of the head's."""
        kept = [line for line in text.splitlines() if not _OF_TORCH.fullmatch(normalized(line.partition("==")[0]))]
        pins = [f"{name}=={version}" for name, version in self.versions.items() if _OF_TORCH.fullmatch(name)]
        return "\n".join([*kept, *sorted(pins), ""])

    def _has(self, file: File) -> bool:
        wheel = file.wheel
        if wheel is None:
            return False
        name, version = wheel
        return _public(self.versions.get(name, "none")) == _public(version)


def _public(version: str) -> str:
    """Without what names the build, ``+cu126``."""
    return version.partition("+")[0]
