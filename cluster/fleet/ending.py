"""The one way on which a rental ends, whatever for; it may be gone again from the start at any time.

The end is written down; the mesh shuts it out, so that its neighbours hear at once, and the provider is told to
destroy it; when a list shows it no more, it has ended. Until then its cost stays reserved.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import structlog

from cluster.fleet.decide import End
from cluster.fleet.door import Door
from cluster.fleet.ledger import moved, so_far
from cluster.fleet.provider import Machine, Provider
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.roll import Roll, ended
from cluster.fleet.terms import Terms

log = structlog.get_logger()


class Ending:
    """Methods raise what the books, the door and the provider do; the next pass begins again."""

    def __init__(self, provider: Provider, door: Door, roll: Roll, now: Callable[[], datetime]) -> None:
        self._provider, self._door, self._roll, self._now = provider, door, roll, now

    async def give_back(self, end: End) -> None:
        rental = await self._begin(end)
        assert rental.instance is not None
        destroying = self._provider.destroy(rental.instance)
        # Neither waits for the other: a mesh whose database is away must cost no dollar.
        shut, destroyed = await asyncio.gather(self._shut(rental), destroying, return_exceptions=True)
        if not isinstance(shut, BaseException):
            rental = replace(rental, door_key=None)
        if not isinstance(destroyed, BaseException):
            rental = replace(rental, destroyed_at=self._now())
        await self._roll.keep(*so_far(rental, self._now()))
        for error in (shut, destroyed):
            if isinstance(error, BaseException):
                raise error

    async def close(self, rental: Rental) -> None:
        """It is gone, or has never been there; why is in it."""
        await self._shut(rental)
        if rental.state is not State.ENDING and rental.why is not None:
            await self._roll.blame(rental, rental.why, self._now())
        rental, done = moved(replace(rental, door_key=None), State.ENDED, self._now())
        await self._roll.keep(replace(rental, ended_at=self._now()), done)

    async def orphan(self, machine: Machine) -> None:
        """A machine with our label that nobody has rented. From here on it is a rental, which ends."""
        now, label = self._now(), machine.label
        former = await self._roll.former(label)
        if former is not None and former.instance not in (None, machine.id):
            # Two with one label.
            label = f"{label}#{machine.id}"
            former = await self._roll.former(label)
        begun = machine.begun_at or now
        if former is None:
            rental = Rental(
                label=label,
                slot_id="",
                node_type="",
                state=State.ENDING,
                since=now,
                reserved_at=now,
                offer="",
                host="",
                terms=Terms(gpu_usd_per_hour=machine.usd_per_hour or 0.0, storage_usd_per_hour=0.0),
                instance=machine.id,
                begun_at=begun,
                why=Why.ORPHAN,
                stretch_at=begun,
            )
        else:
            rental = replace(
                former,
                state=State.ENDING,
                since=now,
                instance=machine.id,
                begun_at=former.begun_at or begun,
                destroyed_at=None,
                ended_at=None,
                why=Why.ORPHAN,
                # What was booked before stays as it is.
                stretch_at=former.destroyed_at or former.begun_at or begun,
            )
        log.warning("fleet.orphan", label=machine.label, instance=machine.id, known=former is not None)
        await self._roll.keep(rental)
        await self.give_back(End(rental, Why.ORPHAN))

    async def _begin(self, end: End) -> Rental:
        if end.rental.state is State.ENDING:
            return end.rental
        rental, done = moved(end.rental, State.ENDING, self._now())
        rental = ended(rental, end.why, end.detail)
        await self._roll.keep(rental, done)
        await self._roll.blame(rental, end.why, self._now())
        return rental

    async def _shut(self, rental: Rental) -> None:
        if rental.door_key is not None:
            await self._door.revoke(rental.door_key)
