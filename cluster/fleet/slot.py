"""A node that somebody wishes for, whatever is or is not rented for it."""

from dataclasses import dataclass, field

from cluster.fleet.waiting import Wait


@dataclass(frozen=True)
class Slot:
    id: str = field(kw_only=True)
    node_type: str = field(kw_only=True)
    #: Nobody wishes for it any more; it stays until its rental has been given back.
    dismissed: bool = False
    #: Why nothing is rented for it.
    waiting: Wait | None = None
