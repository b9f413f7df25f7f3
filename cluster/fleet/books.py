"""What the fleet remembers: rentals and what they cost, machines and node types that failed. In PostgreSQL."""

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Table, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cluster.fleet.caps import Caps, room
from cluster.fleet.gates import Breaker
from cluster.fleet.ledger import Stretch, midnight
from cluster.fleet.reconcile import Booked
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.tables import blocked_hosts, breakers, fleet_terms, node_costs, rentals
from cluster.fleet.terms import Terms
from cluster.fleet.waiting import Wait

_PRICES = tuple(each.name for each in fields(Terms))
_TOTAL = node_costs.c.gpu_usd + node_costs.c.storage_usd + node_costs.c.bandwidth_usd


class Deposed(Exception):
    """Another head has taken over the books since: this one may rent and write no more."""


class Books(Protocol):
    """All methods may raise the storage's own errors, and those that write :class:`Deposed`; then nothing is written.

    Moments are the caller's: there is one writer.
    """

    async def take_over(self) -> None:
        """From now on nobody else may write. For whoever leads."""
        ...

    async def open_rentals(self) -> Sequence[Rental]:
        """Those that have not ended, oldest first."""
        ...

    async def find(self, label: str) -> Rental | None: ...

    async def reserve(self, rental: Rental, caps: Caps) -> Wait | None:
        """Write it down before it is rented, if the caps allow it beside all others; else what forbids it."""
        ...

    async def write(self, changed: Sequence[Rental], done: Sequence[Stretch] = ()) -> None:
        """All or nothing. A stretch that is there already, by label and begin, is the same one at a later moment."""
        ...

    async def cold_starts(self, most: int) -> Mapping[str, Sequence[float]]:
        """By node type: seconds from the reservation to the first moment of work, of so many at most, newest first."""
        ...

    async def uncharged(self, before: datetime) -> Sequence[Booked]:
        """What was rented and ended before then, and of which it is not known yet what was charged for it."""
        ...

    async def charge(self, usd: Mapping[str, float]) -> None:
        """What was charged for rentals, by label."""
        ...

    async def spent(self, since: datetime) -> float:
        """Dollars of all stretches that began then or later."""
        ...

    async def block(self, host: str, why: Why, until: datetime) -> None: ...

    async def blocked(self, now: datetime) -> Mapping[str, Why]:
        """By machine."""
        ...

    async def set_breaker(self, node_type: str, breaker: Breaker) -> None: ...

    async def breakers(self) -> Mapping[str, Breaker]:
        """By node type."""
        ...


class PostgresBooks:
    """The books of a real head."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._term = 0

    async def take_over(self) -> None:
        row = insert(fleet_terms).values(one=1, term=1)
        row = row.on_conflict_do_update(index_elements=["one"], set_={"term": fleet_terms.c.term + 1})
        async with self._engine.begin() as db:
            self._term = (await db.execute(row.returning(fleet_terms.c.term))).scalar_one()

    async def open_rentals(self) -> Sequence[Rental]:
        async with self._engine.connect() as db:
            return await _open(db)

    async def find(self, label: str) -> Rental | None:
        async with self._engine.connect() as db:
            row = (await db.execute(select(rentals).where(rentals.c.label == label))).one_or_none()
        return None if row is None else _rental(row)

    async def reserve(self, rental: Rental, caps: Caps) -> Wait | None:
        async with self._writing() as db:
            spent = await _spent(db, midnight(rental.reserved_at))
            refused = room(caps, rental, await _open(db), spent)
            if refused is None:
                await db.execute(insert(rentals).values(_row(rental)))
        return refused

    async def write(self, changed: Sequence[Rental], done: Sequence[Stretch] = ()) -> None:
        async with self._writing() as db:
            await _upsert(db, rentals, [_row(each) for each in changed])
            await _upsert(db, node_costs, [vars(each) for each in done])

    async def cold_starts(self, most: int) -> Mapping[str, Sequence[float]]:
        each = rentals.c
        seconds = func.extract("epoch", each.worked_at - each.reserved_at).label("seconds")
        place = func.row_number().over(partition_by=each.node_type, order_by=each.worked_at.desc()).label("place")
        worked = select(each.node_type, seconds, place).where(each.worked_at.is_not(None)).subquery()
        query = select(worked).where(worked.c.place <= most).order_by(worked.c.place)
        found = defaultdict[str, list[float]](list)
        async with self._engine.connect() as db:
            for row in await db.execute(query):
                found[row.node_type].append(float(row.seconds))
        return found

    async def uncharged(self, before: datetime) -> Sequence[Booked]:
        each, cost = rentals.c, node_costs.c
        usd = func.coalesce(func.sum(cost.gpu_usd + cost.storage_usd + cost.bandwidth_usd), 0.0)
        query = select(each.label, each.instance, each.begun_at, each.ended_at, usd.label("usd"))
        query = query.select_from(rentals.outerjoin(node_costs)).group_by(each.label)
        query = query.where(each.charged_usd.is_(None), each.instance.is_not(None), each.ended_at < before)
        async with self._engine.connect() as db:
            return [Booked(**row._mapping) for row in await db.execute(query.order_by(each.ended_at))]

    async def charge(self, usd: Mapping[str, float]) -> None:
        async with self._writing() as db:
            for label, amount in usd.items():
                await db.execute(update(rentals).where(rentals.c.label == label).values(charged_usd=amount))

    async def spent(self, since: datetime) -> float:
        async with self._engine.connect() as db:
            return await _spent(db, since)

    async def usd(self, labels: Sequence[str]) -> Mapping[str, float]:
        """Dollars of each rental so far."""
        query = select(node_costs.c.label, func.sum(_TOTAL)).where(node_costs.c.label.in_(labels))
        async with self._engine.connect() as db:
            return {label: float(total) for label, total in await db.execute(query.group_by(node_costs.c.label))}

    async def block(self, host: str, why: Why, until: datetime) -> None:
        async with self._writing() as db:
            await _upsert(db, blocked_hosts, [{"host": host, "why": why, "until": until}])

    async def blocked(self, now: datetime) -> Mapping[str, Why]:
        async with self._engine.connect() as db:
            found = await db.execute(select(blocked_hosts).where(blocked_hosts.c.until > now))
            return {row.host: Why(row.why) for row in found}

    async def set_breaker(self, node_type: str, breaker: Breaker) -> None:
        async with self._writing() as db:
            await _upsert(db, breakers, [{"node_type": node_type, **vars(breaker)}])

    async def breakers(self) -> Mapping[str, Breaker]:
        async with self._engine.connect() as db:
            found = await db.execute(select(breakers))
            return {row.node_type: Breaker(row.failures, row.closed_until) for row in found}

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        """One at a time, and only while nobody has taken over: whoever wants to waits for the end of this."""
        async with self._engine.begin() as db:
            term = (await db.execute(select(fleet_terms.c.term).with_for_update())).scalar_one_or_none()
            if term is None or term != self._term:
                raise Deposed("another head keeps the fleet's books now")
            yield db


async def _open(db: AsyncConnection) -> Sequence[Rental]:
    query = select(rentals).where(rentals.c.state != State.ENDED).order_by(rentals.c.reserved_at, rentals.c.label)
    return [_rental(row) for row in await db.execute(query)]


async def _spent(db: AsyncConnection, since: datetime) -> float:
    total = func.coalesce(func.sum(_TOTAL), 0.0)
    return float((await db.execute(select(total).where(node_costs.c.begun_at >= since))).scalar_one())


async def _upsert(db: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    query = insert(table)
    changed = {name: query.excluded[name] for name in rows[0] if not table.c[name].primary_key}
    keys = [column.name for column in table.primary_key]
    await db.execute(query.on_conflict_do_update(index_elements=keys, set_=changed), [dict(row) for row in rows])


def _row(rental: Rental) -> dict[str, Any]:
    row = dict(vars(rental))
    prices: Terms = row.pop("terms")
    return {**row, **vars(prices)}


def _rental(row: Any) -> Rental:
    found = dict(row._mapping)
    # The provider's, and no part of a rental's life.
    del found["charged_usd"]
    terms = Terms(**{name: found.pop(name) for name in _PRICES})
    why = found.pop("why")
    return Rental(**{**found, "state": State(found["state"])}, terms=terms, why=None if why is None else Why(why))
