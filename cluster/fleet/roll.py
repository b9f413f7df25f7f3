"""All rentals that have not ended, and what is known of node types: in memory, as the books have it."""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from cluster.fleet.books import Books, Deposed
from cluster.fleet.caps import Caps
from cluster.fleet.gates import Breaker
from cluster.fleet.ledger import Stretch, so_far
from cluster.fleet.limits import BLOCKED_S, FAILURES, Limits
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.waiting import Wait

log = structlog.get_logger()

#: Starts that a type is judged by: the market changes, and so do images.
_STARTS = 20


class Roll:
    """What changes is written first, and true here only then. Methods raise as the books do."""

    def __init__(self, books: Books, limits: Limits) -> None:
        self._books = books
        self._limits = limits
        #: By label, oldest first.
        self.rentals: dict[str, Rental] = {}
        #: By node type.
        self.breakers: dict[str, Breaker] = {}
        #: Seconds of each type's last starts, from the reservation to the first moment of work.
        self.cold_starts: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_STARTS))

    async def load(self) -> None:
        """Once, at the start: nobody else writes from then on."""
        await self._books.take_over()
        self.rentals = {each.label: each for each in await self._books.open_rentals()}
        self.breakers = dict(await self._books.breakers())
        for node_type, seconds in (await self._books.cold_starts(_STARTS)).items():
            self.cold_starts[node_type].extend(reversed(seconds))

    async def reserve(self, rental: Rental, caps: Caps) -> Wait | None:
        """None if it was; then it is here."""
        try:
            wait = await self._books.reserve(rental, caps)
        except Deposed:
            raise
        except Exception:
            # It may be in the books all the same, and would be kept back from the caps for ever.
            self.give_up(rental)
            raise
        if wait is None:
            self.rentals[rental.label] = rental
        return wait

    def give_up(self, rental: Rental) -> None:
        """Nothing was asked of the provider for it: the next pass closes it, and blames nobody."""
        self.rentals[rental.label] = ended(rental, Why.NOT_RENTED)

    async def keep(self, rental: Rental, done: Sequence[Stretch] = ()) -> None:
        before = self.rentals.get(rental.label)
        await self._books.write([rental], done)
        if rental.state is State.ENDED:
            self.rentals.pop(rental.label, None)
        else:
            self.rentals[rental.label] = rental
        if rental.worked_at is not None and before is not None and before.worked_at is None:
            self.cold_starts[rental.node_type].append((rental.worked_at - rental.reserved_at).total_seconds())
        if before is None or before.state is not rental.state:
            why = None if rental.why is None else rental.why.value
            facts = {"slot_id": rental.slot_id, "instance": rental.instance, "why": why, "detail": rental.detail}
            log.info("fleet.rental", label=rental.label, state=rental.state.value, **facts)

    async def book(self, rentals: Iterable[Rental], now: datetime) -> None:
        """What each has cost so far."""
        booked = [so_far(each, now) for each in rentals]
        changed = [rental for rental, _ in booked]
        await self._books.write(changed, [stretch for _, done in booked for stretch in done])
        self.rentals.update({each.label: each for each in changed})

    async def former(self, label: str) -> Rental | None:
        """One that has ended, or has not."""
        return self.rentals.get(label) or await self._books.find(label)

    async def blame(self, rental: Rental, why: Why, at: datetime) -> None:
        """Its machine, and its type if it has never worked, for the way it ends."""
        if rental.host and (seconds := BLOCKED_S.get(why)) is not None:
            await self._books.block(rental.host, why, at + timedelta(seconds=seconds))
        if rental.worked_at is None and why in FAILURES:
            breaker = self.breakers.get(rental.node_type, Breaker()).failed(at, self._limits)
            await self._set(rental.node_type, breaker)
            log.warning("fleet.failure", node_type=rental.node_type, why=why.value, failures=breaker.failures)

    async def praise(self, node_type: str) -> None:
        """One of its nodes can work."""
        if self.breakers.get(node_type, Breaker()).failures:
            await self._set(node_type, Breaker())

    async def blocked(self, now: datetime) -> frozenset[str]:
        """Machines that are not to be tried."""
        return frozenset(await self._books.blocked(now))

    async def spent(self, since: datetime) -> float:
        return await self._books.spent(since)

    async def _set(self, node_type: str, breaker: Breaker) -> None:
        await self._books.set_breaker(node_type, breaker)
        self.breakers[node_type] = breaker


def ended(rental: Rental, why: Why, detail: str = "") -> Rental:
    """Why it ends; the first reason stays."""
    return rental if rental.why is not None else replace(rental, why=why, detail=detail)
