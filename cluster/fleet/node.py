"""A node as whoever wished for it sees it."""

from dataclasses import dataclass
from datetime import datetime

from cluster.fleet.rental import State
from cluster.fleet.waiting import Wait


@dataclass(frozen=True, kw_only=True)
class Node:
    """A slot, or a node that joined by hand."""

    id: str
    node_type: str
    #: True: it joined by hand, and all of the rest is nothing.
    guest: bool = False
    #: Of what is rented for it; None: nothing is.
    label: str | None = None
    instance: str | None = None
    state: State | None = None
    since: datetime | None = None
    usd_per_hour: float = 0.0
    #: Why nothing is rented for it.
    waiting: Wait | None = None
    #: Nobody wishes for it any more.
    dismissed: bool = False
