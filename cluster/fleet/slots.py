"""Slots and wishes, in memory: after a restart whoever wished wishes again, and what is rented is a slot already."""

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cluster.fleet.rental import Rental, State
from cluster.fleet.slot import Slot
from cluster.fleet.waiting import Reason, Wait
from cluster.fleet.wish import Wish

#: What is waited for until some rental ends.
_ROOM = (Reason.NODES_CAP, Reason.HOUR_CAP, Reason.DAY_CAP)


class Slots:
    """Nothing here waits."""

    def __init__(self) -> None:
        #: In the order in which they were wished for.
        self._slots: dict[str, Slot] = {}
        #: How many, by node type.
        self.wished: Counter[str] = Counter()

    @property
    def all(self) -> Sequence[Slot]:
        return tuple(self._slots.values())

    def adopt(self, rentals: Iterable[Rental]) -> None:
        """Each that is not ending is a slot that is wished for, until somebody says otherwise."""
        for rental in rentals:
            if rental.slot_id and rental.state is not State.ENDING and rental.slot_id not in self._slots:
                self._slots[rental.slot_id] = Slot(id=rental.slot_id, node_type=rental.node_type)
                self.wished[rental.node_type] += 1

    def wish(self, wish: Wish) -> None:
        """New ones are there at once. Which of too many go, the next pass decides."""
        there = sum(slot.node_type == wish.node_type and not slot.dismissed for slot in self._slots.values())
        self.wished[wish.node_type] = wish.count
        for _ in range(wish.count - there):
            slot = Slot(id=uuid.uuid4().hex, node_type=wish.node_type)
            self._slots[slot.id] = slot

    def dismiss(self, slot_id: str) -> bool:
        """Whatever it does; the wish is for one less. False if there is none, or it is dismissed already."""
        slot = self._slots.get(slot_id)
        if slot is None or slot.dismissed:
            return False
        self._slots[slot_id] = replace(slot, dismissed=True, waiting=None)
        self.wished[slot.node_type] = max(0, self.wished[slot.node_type] - 1)
        return True

    def drop(self, slot: Slot) -> None:
        """It is one too many: the wish is for less already."""
        self._slots[slot.id] = replace(slot, dismissed=True, waiting=None)

    def wait(self, slot_id: str, wait: Wait | None) -> None:
        """Why nothing is rented for it."""
        if (slot := self._slots.get(slot_id)) is not None and not slot.dismissed:
            self._slots[slot_id] = replace(slot, waiting=wait)

    def retry(self) -> None:
        """Something has ended: whoever waits for room may be tried with the next pass."""
        for slot in self._slots.values():
            if slot.waiting is not None and slot.waiting.reason in _ROOM:
                self.wait(slot.id, replace(slot.waiting, until=None))

    def forget(self, held: frozenset[str]) -> None:
        """Those that were dismissed, but for ids for which something is still rented."""
        self._slots = {key: slot for key, slot in self._slots.items() if not slot.dismissed or key in held}
