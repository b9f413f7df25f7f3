"""Slots, in memory: after a restart what is rented is a slot already, and whoever misses one adds it again."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from cluster.fleet.caps import Caps
from cluster.fleet.rental import Rental, State
from cluster.fleet.waiting import Reason, Wait

#: For each node that a type may have, so many slots at a time, those with it that were dismissed and are not gone yet.
#: Whoever adds and dismisses without end fills no memory.
_PER_NODE = 8
#: What is waited for until some rental ends.
_ROOM = (Reason.NODES_CAP, Reason.HOUR_CAP, Reason.DAY_CAP)


@dataclass(frozen=True)
class Slot:
    """A node that somebody wishes for, whatever is or is not rented for it."""

    id: str = field(kw_only=True)
    node_type: str = field(kw_only=True)
    #: Nobody wishes for it any more; it stays until its rental has been given back.
    dismissed: bool = False
    #: Why nothing is rented for it.
    waiting: Wait | None = None


@dataclass(frozen=True, kw_only=True)
class Node:
    """A slot with what is rented for it, or a node that joined by hand, of which nothing more is known: as whoever
    wished for it sees it."""

    id: str
    node_type: str
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

    @classmethod
    def of(cls, slot: Slot, rental: Rental | None) -> "Node":
        node = cls(id=slot.id, node_type=slot.node_type, waiting=slot.waiting, dismissed=slot.dismissed)
        if rental is None:
            return node
        return replace(
            node,
            label=rental.label,
            instance=rental.instance,
            state=rental.state,
            since=rental.since,
            usd_per_hour=rental.terms.usd_per_hour,
            waiting=None,
        )


class Slots:
    """Nothing here waits."""

    def __init__(self) -> None:
        #: In the order in which they were added.
        self._slots: dict[str, Slot] = {}

    @property
    def all(self) -> Sequence[Slot]:
        return tuple(self._slots.values())

    def adopt(self, rentals: Iterable[Rental]) -> None:
        """Each that is not ending is for a slot, until somebody dismisses it."""
        for rental in rentals:
            if rental.slot_id and rental.state is not State.ENDING and rental.slot_id not in self._slots:
                self._slots[rental.slot_id] = Slot(id=rental.slot_id, node_type=rental.node_type)

    def add(self, slot: Slot, caps: Caps) -> bool:
        """True if it is there, since now or before. One that was dismissed does not come back."""
        there = self._slots.get(slot.id)
        if there is not None:
            return not there.dismissed and there.node_type == slot.node_type
        alike = [each for each in self._slots.values() if each.node_type == slot.node_type]
        most = caps.nodes.get(slot.node_type, 0)
        if sum(not each.dismissed for each in alike) >= most or len(alike) >= _PER_NODE * most:
            return False
        self._slots[slot.id] = slot
        return True

    def dismiss(self, slot_id: str) -> bool:
        """Whatever it does. False if there is none, or it is dismissed already."""
        slot = self._slots.get(slot_id)
        if slot is None or slot.dismissed:
            return False
        self._slots[slot_id] = replace(slot, dismissed=True, waiting=None)
        return True

    def wait(self, slot_id: str, wait: Wait | None) -> None:
        """Why nothing is rented for it."""
        if (slot := self._slots.get(slot_id)) is not None and not slot.dismissed:
            self._slots[slot_id] = replace(slot, waiting=wait)

    def room(self) -> None:
        """Something has ended: whoever waits for room may be tried with the next pass."""
        self._retry(lambda slot, wait: wait.reason in _ROOM)

    def opened(self, node_type: str) -> None:
        """What stood in the way of the type does so no more."""
        self._retry(lambda slot, wait: slot.node_type == node_type)

    def _retry(self, who: Callable[[Slot, Wait], bool]) -> None:
        for slot in self._slots.values():
            if slot.waiting is not None and who(slot, slot.waiting):
                self.wait(slot.id, replace(slot.waiting, until=None))

    def forget(self, held: frozenset[str]) -> None:
        """Those that were dismissed, but for ids for which something is still rented."""
        self._slots = {key: slot for key, slot in self._slots.items() if not slot.dismissed or key in held}
