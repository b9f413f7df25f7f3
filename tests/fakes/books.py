"""The fleet's books in memory: as PostgreSQL's, to which a test compares them, for hours of virtual time."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from cluster.fleet.books import Deposed
from cluster.fleet.caps import Caps, room
from cluster.fleet.gates import Breaker
from cluster.fleet.ledger import Stretch, midnight
from cluster.fleet.reconcile import Booked
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.waiting import Wait


class Shelf:
    """What outlives a head."""

    def __init__(self) -> None:
        self.term = 0
        self.rentals: dict[str, Rental] = {}
        self.stretches: dict[tuple[str, datetime], Stretch] = {}
        self.hosts: dict[str, tuple[Why, datetime]] = {}
        self.breakers: dict[str, Breaker] = {}
        #: Dollars, by label.
        self.charged: dict[str, float] = {}

    def usd(self, label: str, *, bandwidth: bool = True) -> float:
        """What one rental has cost."""
        mine = [each for each in self.stretches.values() if each.label == label]
        return sum(each.gpu_usd + each.storage_usd + each.bandwidth_usd * bandwidth for each in mine)


class MemoryBooks:
    """See :class:`cluster.fleet.books.Books`."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._term = 0

    async def take_over(self) -> None:
        self.shelf.term += 1
        self._term = self.shelf.term

    async def open_rentals(self) -> Sequence[Rental]:
        there = [each for each in self.shelf.rentals.values() if each.state is not State.ENDED]
        return sorted(there, key=lambda each: (each.reserved_at, each.label))

    async def find(self, label: str) -> Rental | None:
        return self.shelf.rentals.get(label)

    async def reserve(self, rental: Rental, caps: Caps) -> Wait | None:
        # Others may choose meanwhile.
        await asyncio.sleep(0)
        self._check()
        spent = await self.spent(midnight(rental.reserved_at))
        refused = room(caps, rental, await self.open_rentals(), spent)
        if refused is None:
            assert rental.label not in self.shelf.rentals
            self.shelf.rentals[rental.label] = rental
        return refused

    async def write(self, changed: Sequence[Rental], done: Sequence[Stretch] = ()) -> None:
        self._check()
        self.shelf.rentals.update({each.label: each for each in changed})
        self.shelf.stretches.update({(each.label, each.begun_at): each for each in done})

    async def cold_starts(self, most: int) -> Mapping[str, Sequence[float]]:
        worked = [each for each in self.shelf.rentals.values() if each.worked_at is not None]
        worked.sort(key=lambda each: each.worked_at, reverse=True)
        found = defaultdict[str, list[float]](list)
        for each in worked:
            if each.worked_at is not None and len(found[each.node_type]) < most:
                found[each.node_type].append((each.worked_at - each.reserved_at).total_seconds())
        return found

    async def uncharged(self, before: datetime) -> Sequence[Booked]:
        return [
            Booked(
                label=each.label,
                instance=each.instance,
                begun_at=each.begun_at,
                ended_at=each.ended_at,
                usd=self.shelf.usd(each.label),
            )
            for each in sorted(self.shelf.rentals.values(), key=lambda each: each.ended_at or before)
            if each.instance is not None and each.begun_at is not None and each.label not in self.shelf.charged
            if each.ended_at is not None and each.ended_at < before
        ]

    async def charge(self, usd: Mapping[str, float]) -> None:
        self._check()
        self.shelf.charged.update(usd)

    async def spent(self, since: datetime) -> float:
        done = [each for each in self.shelf.stretches.values() if each.begun_at >= since]
        return sum(each.gpu_usd + each.storage_usd + each.bandwidth_usd for each in done)

    async def block(self, host: str, why: Why, until: datetime) -> None:
        self._check()
        self.shelf.hosts[host] = why, until

    async def blocked(self, now: datetime) -> Mapping[str, Why]:
        return {host: why for host, (why, until) in self.shelf.hosts.items() if until > now}

    async def set_breaker(self, node_type: str, breaker: Breaker) -> None:
        self._check()
        self.shelf.breakers[node_type] = breaker

    async def breakers(self) -> Mapping[str, Breaker]:
        return dict(self.shelf.breakers)

    def _check(self) -> None:
        if self._term != self.shelf.term:
            raise Deposed("another head keeps the fleet's books now")
