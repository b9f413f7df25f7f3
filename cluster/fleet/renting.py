"""Renting one machine for one slot."""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from cluster.fleet.caps import Caps
from cluster.fleet.decide import found, wrong_terms
from cluster.fleet.door import Door, DoorFull
from cluster.fleet.ending import Ending
from cluster.fleet.gates import Gates
from cluster.fleet.ledger import moved
from cluster.fleet.limits import Limits
from cluster.fleet.provider import (
    AccountRefused,
    Candidate,
    Machine,
    Misrented,
    OfferGone,
    Order,
    Provider,
    ProviderError,
    Status,
    Unclear,
)
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.roll import Roll, ended
from cluster.fleet.slots import Slot
from cluster.fleet.waiting import Reason, Wait

log = structlog.get_logger()


class Renting:
    """A candidate is chosen, its cost reserved, its way into the mesh made, and only then is it rented."""

    def __init__(
        self,
        provider: Provider,
        door: Door,
        roll: Roll,
        ending: Ending,
        *,
        caps: Caps,
        limits: Limits,
        gates: Gates,
        prefix: str,
        now: Callable[[], datetime],
    ) -> None:
        self._provider, self._door, self._roll, self._ending = provider, door, roll, ending
        self._gates = gates
        self._caps, self._limits, self._prefix, self._now = caps, limits, prefix, now
        #: Labels of rentals that are being rented: nobody else may touch them.
        self.labels: set[str] = set()
        #: The same of those beside which a second one may be rented, once.
        self.races: set[str] = set()
        #: Offers that somebody is about to reserve.
        self._chosen: set[str] = set()

    async def rent(self, slot: Slot) -> Wait | None:
        """Try one candidate. What the slot waits for from now on, if there was none. Raises what books and door do."""
        try:
            candidates = await self._candidates(slot)
        except ProviderError as error:
            return self._paused(slot.node_type, error)
        candidate, wait = self._choice(candidates)
        return wait if candidate is None else await self._reserve(slot, candidate)

    async def race(self, slot: Slot, first: Rental) -> None:
        """Try one beside it, on another machine and where its traffic is cheap. Raises what books and door do."""
        self.races.discard(first.label)
        try:
            candidates = await self._candidates(slot)
        except ProviderError as error:
            self._paused(slot.node_type, error)
            return
        cheap = [each for each in candidates if each.host != first.host and self._is_cheap_to_lose(each)]
        candidate, _ = self._choice(cheap)
        now = self._roll.rentals.get(first.label)
        if candidate is not None and now is not None and now.state.place < State.JOINING.place:
            await self._reserve(slot, candidate)

    def _is_cheap_to_lose(self, candidate: Candidate) -> bool:
        traffic_usd = candidate.terms.traffic_usd(candidate.start_bytes, 0)
        return traffic_usd < self._limits.race_traffic * candidate.terms.gpu_usd_per_hour * candidate.start_s / 3600

    async def _candidates(self, slot: Slot) -> Sequence[Candidate]:
        blocked = await self._roll.blocked(self._now())
        candidates = await self._provider.candidates(slot.node_type, blocked)
        bids, doubted = self._gates.bids(slot.node_type, self._now()), self._gates.doubted(self._now())
        return sorted((each for each in candidates if bids or not each.bid), key=lambda each: each.host in doubted)

    async def _reserve(self, slot: Slot, candidate: Candidate) -> Wait | None:
        rental = self._reservation(slot, candidate)
        self.labels.add(rental.label)
        self._chosen.add(rental.offer)
        try:
            if (refused := await self._roll.reserve(rental, self._caps)) is not None:
                return replace(refused, until=self._in(self._limits.retry_s))
            return await self._order(rental, candidate)
        finally:
            self.labels.discard(rental.label)
            self._chosen.discard(rental.offer)

    async def _order(self, rental: Rental, candidate: Candidate) -> Wait | None:
        try:
            admission = await self._door.admit(rental.label)
        except DoorFull:
            self._roll.give_up(rental)
            return Wait(Reason.DOOR, until=self._in(self._limits.retry_s))
        except Exception:
            # Whatever it is: what is kept back for it, others may have.
            self._roll.give_up(rental)
            raise
        rental = replace(rental, door_key=admission.key)
        await self._roll.keep(rental)
        order = Order(label=rental.label, node_type=rental.node_type, candidate=candidate, env=admission.env)
        asked_at = self._now()
        try:
            async with asyncio.timeout(self._limits.rent_s):
                machine = await self._provider.rent(order)
        except (Unclear, TimeoutError) as error:
            # The row stays as it is, and with it what it may cost, until a list tells.
            log.warning("fleet.unclear", label=rental.label, reason=str(error))
            return None
        except Misrented as error:
            await self._misrented(rental, error, asked_at)
            return None
        except ProviderError as error:
            await self._ending.close(ended(rental, Why.NOT_RENTED, str(error)))
            return None if isinstance(error, OfferGone) else self._paused(rental.node_type, error)
        await self._roll.keep(found(rental, machine, self._now()))
        if candidate.race and not self._raced(rental):
            self.races.add(rental.label)
        return None

    def _raced(self, rental: Rental) -> bool:
        """It is the second one itself."""
        others = (each for each in self._roll.rentals.values() if each.label != rental.label)
        return any(each.slot_id == rental.slot_id and each.holds_slot for each in others)

    async def _misrented(self, rental: Rental, error: Misrented, asked_at: datetime) -> None:
        """It has cost something since we asked for it, at the latest."""
        machine = Machine(id=error.instance, label=rental.label, status=Status.LOADING, begun_at=asked_at)
        rental, done = moved(found(rental, machine, self._now()), State.ENDING, self._now())
        destroyed_at = self._now() if error.destroyed else None
        why = wrong_terms(rental)
        await self._roll.keep(replace(ended(rental, why, str(error)), destroyed_at=destroyed_at), done)
        await self._roll.blame(rental, why, self._now())
        if rental.bid:
            self._gates.on_demand(rental.node_type, self._in(self._limits.on_demand_s))

    def _choice(self, candidates: Sequence[Candidate]) -> tuple[Candidate | None, Wait | None]:
        there = [each for each in self._roll.rentals.values() if each.holds_slot]
        taken = {each.offer for each in there} | self._chosen
        free = [each for each in candidates if each.offer not in taken]
        if not free:
            return None, Wait(Reason.NO_OFFER, until=self._in(self._limits.retry_s))
        most = self._caps.usd_per_instance_hour
        cheap = [each for each in free if each.terms.usd_per_hour <= most]
        if not cheap:
            least = min(each.terms.usd_per_hour for each in free)
            detail = f"from ${least:.3f} on; ${most:.3f} are allowed"
            return None, Wait(Reason.PRICE_CAP, detail, self._in(self._limits.retry_s))
        left = self._caps.usd_per_hour - sum(each.terms.usd_per_hour for each in self._roll.rentals.values())
        # If none fits beside the others, the reservation says so.
        return next((each for each in cheap if each.terms.usd_per_hour <= left), cheap[0]), None

    def _reservation(self, slot: Slot, candidate: Candidate) -> Rental:
        now = self._now()
        return Rental(
            label=f"{self._prefix}-{uuid.uuid4().hex}",
            slot_id=slot.id,
            node_type=slot.node_type,
            state=State.RENTING,
            since=now,
            reserved_at=now,
            offer=candidate.offer,
            host=candidate.host,
            terms=candidate.terms,
            bid=candidate.bid,
            start_s=candidate.start_s,
            start_bytes=candidate.start_bytes,
            image_bytes=candidate.image_bytes,
            line_mbps=candidate.line_mbps,
            stretch_at=now,
        )

    def _paused(self, node_type: str, error: ProviderError) -> Wait:
        """For all types what is about the account, or no answer; what is about this request for its type only."""
        least = self._limits.account_pause_s if isinstance(error, AccountRefused) else self._limits.retry_s
        seconds = least if error.retry_after_s is None else error.retry_after_s
        wait = Wait(error.reason, str(error), self._in(seconds))
        self._gates.pause(wait, node_type if error.reason is Reason.REFUSED else None)
        log.warning("fleet.provider_refuses", reason=error.reason.value, detail=str(error), pause_s=seconds)
        return wait

    def _in(self, seconds: float) -> datetime:
        return self._now() + timedelta(seconds=seconds)
