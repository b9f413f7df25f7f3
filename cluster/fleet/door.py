"""What the fleet needs of the mesh: letting a node in, and shutting it out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class DoorFull(Exception):
    """There is no room for another node."""


@dataclass(frozen=True)
class Admission:
    """For one node, once."""

    #: What it is revoked by. It names this admission for ever: never one that has got its place afterwards.
    key: str
    #: What the node needs to come in, a token among it.
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Guest:
    """A node that joined by hand: nobody here has rented it, and nobody here may end it."""

    id: str
    node_type: str


class Door(Protocol):
    """May raise its storage's own errors."""

    async def admit(self, label: str) -> Admission:
        """Raises :class:`DoorFull`."""
        ...

    async def revoke(self, key: str) -> None:
        """Whether it has joined or not, its neighbours hear of it at once. It is fine if that was done before."""
        ...

    async def guests(self) -> Sequence[Guest]:
        """Those that are there now."""
        ...
