"""The fleet itself: pass after pass it looks, decides and carries out.

A pass has all rentals but those that are being rented: each of these belongs to the task that rents it, since that may
take minutes. Whatever happens to either, the books have a row for everything that may cost money, so whoever comes
next goes on from there.
"""

import asyncio
import contextlib
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import structlog

from cluster.fleet.account import Account, OnEvent
from cluster.fleet.books import Books, Deposed
from cluster.fleet.caps import Caps
from cluster.fleet.decide import Decision, End, Listing, Situation, decide
from cluster.fleet.door import Door, Guest
from cluster.fleet.ending import Ending
from cluster.fleet.gates import Breaker, Gates
from cluster.fleet.ledger import midnight, moved
from cluster.fleet.limits import BIDS_FAILED, Limits, most_traffic
from cluster.fleet.provider import Provider, ProviderError
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.renting import Renting
from cluster.fleet.report import Report
from cluster.fleet.roll import Roll
from cluster.fleet.slots import Node, Slot, Slots
from cluster.fleet.waiting import Reason, Wait

log = structlog.get_logger()

#: Reports of one node that are kept from one pass to the next.
_REPORTS = 64


def system_now() -> datetime:
    return datetime.now(UTC)


def nobody(name: str, facts: Mapping[str, Any]) -> None:
    """Hears of nothing."""


class Fleet:
    """Begin with :meth:`start`; then :meth:`run`, or :meth:`reconcile` again and again; :meth:`close` at the end.

    For whoever leads (``cluster.head.leader``), and for him only.
    """

    def __init__(
        self,
        provider: Provider,
        books: Books,
        door: Door,
        *,
        caps: Caps,
        limits: Limits | None = None,
        prefix: str,
        now: Callable[[], datetime] = system_now,
        on_event: OnEvent = nobody,
    ) -> None:
        """``prefix`` is this deployment's alone: what is unknown and has a label that begins with it is destroyed.

        ``on_event`` hears ``credit_low`` and ``credit_back``, with ``credit_usd`` and ``limit_usd``: once each, and
        anew after a restart.
        """
        self._provider, self._door, self._caps, self._now = provider, door, caps, now
        self._limits = limits or Limits()
        self._prefix = prefix
        self._roll = Roll(books, self._limits)
        self._slots, self._gates = Slots(), Gates()
        self._ending = Ending(provider, door, self._roll, now)
        self._renting = Renting(
            provider,
            door,
            self._roll,
            self._ending,
            caps=caps,
            limits=self._limits,
            gates=self._gates,
            prefix=prefix,
            now=now,
        )
        self._guests: Sequence[Guest] = ()
        self._account = Account(provider, books, self._limits, now, on_event)
        #: By label.
        self._reports: defaultdict[str, deque[Report]] = defaultdict(lambda: deque(maxlen=_REPORTS))
        #: Since when no list has shown it.
        self._missed: dict[str, datetime] = {}
        self._last: dict[str, Report] = {}
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._awake = asyncio.Event()

    async def start(self) -> None:
        """Take the books over, and adopt what is rented."""
        await self._roll.load()
        now = self._now()
        for rental in self._roll.rentals.values():
            if State.INSTALLING.place <= rental.state.place <= State.BUSY.place:
                # It has been heard of, and may have spoken to nobody meanwhile.
                self._last[rental.label] = Report(label=rental.label, at=now, state=rental.state)
        self._slots.adopt(self._roll.rentals.values())
        log.info("fleet.starts", rentals=len(self._roll.rentals))

    async def close(self) -> None:
        """Whatever is being rented stays as it is in the books, and whoever comes next resolves it."""
        await self._account.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---------------------------------------------------------------- what others want

    def add(self, slot_id: str, node_type: str) -> bool:
        """A node is wished for; the same id again is the same node. Never waits.

        False, and nothing happens, if there may be no more of that type, none at all of an unknown one, or the id is
        of another type or was dismissed.
        """
        before = len(self._slots.all)
        added = self._slots.add(Slot(id=slot_id, node_type=node_type), self._caps)
        if len(self._slots.all) > before:
            self._awake.set()
        return added

    def dismiss(self, node_id: str) -> bool:
        """Give it back, even if it works. False, and nothing happens, if it is nothing of ours."""
        dismissed = self._slots.dismiss(node_id)
        if dismissed:
            self._awake.set()
        return dismissed

    def gate(self, node_type: str, wait: Wait | None) -> None:
        """Nothing is rented for the type from now on; None: whatever fits. Never waits.

        A node that says that its weights can't be fetched closes it for an hour as well. That one, None opens too, but
        only where it ends a gate: whoever looks again and again, and finds nothing wrong, may not see what nodes see.
        """
        if wait is not None:
            self._gates.close(node_type, wait)
        elif self._gates.open(node_type):
            self._slots.opened(node_type)
            self._awake.set()

    def hear(self, report: Report) -> None:
        """A node has said something of itself. Never waits."""
        rental = self._roll.rentals.get(report.label)
        if rental is None:
            return
        self._reports[report.label].append(report)
        if report.state.place >= State.JOINING.place and any(
            each is not rental and each.slot_id == rental.slot_id and each.state is not State.ENDING
            for each in self._roll.rentals.values()
        ):
            # It has won, and the other one must not join as well.
            self._awake.set()

    def by_door(self, key: str) -> Rental | None:
        """Whose admission that is. Never waits."""
        return next((each for each in self._roll.rentals.values() if each.door_key == key), None)

    def nodes(self) -> Sequence[Node]:
        """All that there are, those that joined by hand as well. Never waits."""
        held = self._held()
        found = [Node.of(slot, held.get(slot.id)) for slot in self._slots.all]
        return [*found, *(Node(id=each.id, node_type=each.node_type) for each in self._guests)]

    def waits(self) -> Mapping[str, Wait]:
        """Why nothing is rented for a type, or for the first of its slots; nothing of one where nothing is in the way,
        or a node is on its way that can work when it comes.

        Never waits.
        """
        slots = {each.node_type: each.waiting for each in reversed(self._slots.all) if each.waiting is not None}
        coming = {each.node_type for each in self._roll.rentals.values() if each.state.comes}
        found = {**slots, **self._closed(self._now())}
        return {name: wait for name, wait in found.items() if name not in coming or wait.reason is Reason.NO_WEIGHTS}

    @property
    def credit_usd(self) -> float | None:
        """Dollars that the provider's account has left; None: not known yet."""
        return self._account.credit_usd

    def cold_start_s(self, node_type: str) -> float | None:
        """Seconds from the decision to rent to the first moment of work: the median of late; None: there was none."""
        starts = self._roll.cold_starts.get(node_type)
        return statistics.median(starts) if starts else None

    # ---------------------------------------------------------------- passes

    async def run(self) -> NoReturn:
        """Pass after pass. Raises :class:`Deposed` and nothing else."""
        while True:
            self._awake.clear()
            try:
                await self.reconcile()
            except Deposed:
                raise
            except Exception as error:
                # The books or the mesh may be away; what is rented goes on, and so must this.
                log.exception("fleet.pass_failed", error=type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.pass_s):
                    await self._awake.wait()

    async def reconcile(self) -> None:
        """One pass. Raises what the books and the door do."""
        self._reap()
        self._guests = await self._door.guests()
        await self._account.look()
        listing = await self._list()
        for label in tuple(self._reports):
            if label not in self._renting.labels:
                await self._listen(label)
        await self._carry_out(decide(await self._situation(listing)))

    async def _list(self) -> Listing | None:
        asked_at = self._now()
        try:
            machines = await self._provider.machines()
        except ProviderError as error:
            log.warning("fleet.list_failed", reason=str(error))
            return None
        known = {each.instance: each.label for each in self._roll.rentals.values() if each.instance is not None}
        ours = [each for each in machines if each.id in known or each.label.startswith(f"{self._prefix}-")]
        missed = known.keys() - {each.id for each in ours}
        self._missed = {known[each]: self._missed.get(known[each], asked_at) for each in missed}
        return Listing(asked_at, ours)

    async def _listen(self, label: str) -> None:
        """What a node has said since the last pass, in the order and at the moments in which it was heard."""
        reports = self._reports.pop(label, ())
        for report in reports:
            rental = self._roll.rentals.get(label)
            if rental is None or rental.state is State.ENDING or rental.instance is None:
                return
            if report.by_node:
                self._last[label] = report.beside(self._last.get(label))
            elif not rental.state.works:
                continue
            most_down, most_up = most_traffic(rental, self._now())
            rental = replace(
                rental,
                down_bytes=max(rental.down_bytes, min(rental.image_bytes + report.down_bytes, most_down)),
                up_bytes=max(rental.up_bytes, min(report.up_bytes, most_up)),
            )
            # Of one that works, it knows no more than that.
            known = report.by_node and rental.state.works
            state = State.IDLE if report.by_node and report.state.works else report.state
            if known or not rental.state.may_become(state):
                self._roll.rentals[label] = rental
                continue
            at = min(max(report.at, rental.since, rental.stretch_at), self._now())
            await self._roll.keep(*moved(rental, state, at))
            if state.works:
                await self._roll.praise(rental.node_type)

    async def _situation(self, listing: Listing | None) -> Situation:
        now = self._now()
        theirs = self._renting.labels
        await self._roll.book([each for each in self._roll.rentals.values() if each.label not in theirs], now)
        spent = await self._roll.spent(midnight(now))
        return Situation(
            now=now,
            caps=self._caps,
            limits=self._limits,
            breakers=dict(self._roll.breakers),
            closed=self._closed(now),
            slots=self._slots.all,
            rentals=tuple(self._roll.rentals.values()),
            renting=frozenset(theirs),
            races=frozenset(self._renting.races),
            begun=frozenset(self._tasks.values()),
            listing=listing,
            missed=self._missed,
            reports=self._last,
            spent_today_usd=spent,
        )

    def _closed(self, now: datetime) -> Mapping[str, Wait]:
        """By type: what is in the way of all of its slots."""
        gates = self._gates.closed(now)
        broke = self._account.broke(sum(each.terms.usd_per_hour for each in self._roll.rentals.values()))
        types = {*self._caps.nodes, *gates, *(slot.node_type for slot in self._slots.all)}
        found = {
            each: gates.get(each)
            or self._gates.paused(each, now)
            or broke
            or self._roll.breakers.get(each, Breaker()).closed(now)
            for each in types
        }
        return {node_type: wait for node_type, wait in found.items() if wait is not None}

    async def _carry_out(self, decision: Decision) -> None:
        for slot in decision.lost:
            self._slots.dismiss(slot.id)
        for slot_id, wait in decision.waits.items():
            self._slots.wait(slot_id, wait)
        for end in decision.ends:
            if end.rental.state is not State.ENDING:
                self._learn(end)
        for move in decision.moves:
            await self._roll.keep(move.rental, move.done)
        for slot in decision.fills:
            self._tasks[asyncio.create_task(self._rent(slot))] = slot.id
        for slot, rental in decision.races:
            self._tasks[asyncio.create_task(self._renting.race(slot, rental))] = slot.id
        ends = (self._ending.give_back(end) for end in decision.ends)
        orphans = (self._ending.orphan(machine) for machine in decision.orphans)
        closings = (self._close(rental) for rental in decision.closings)
        # One that fails keeps no other: each begins anew with the next pass.
        await self._each(*closings, *ends, *orphans)
        self._slots.forget(frozenset(each.slot_id for each in self._roll.rentals.values() if each.holds_slot))

    def _learn(self, end: End) -> None:
        """What the way on which a rental ends says of its type."""
        now, node_type = self._now(), end.rental.node_type
        if end.why is Why.WEIGHTS:
            until = now + timedelta(seconds=self._limits.weights_pause_s)
            self._gates.report(node_type, Wait(Reason.NO_WEIGHTS, end.detail, until), end.rental.host, now)
        elif end.why in BIDS_FAILED:
            self._gates.on_demand(node_type, now + timedelta(seconds=self._limits.on_demand_s))

    async def _each(self, *work: Coroutine[Any, Any, None]) -> None:
        failed = [each for each in await asyncio.gather(*work, return_exceptions=True) if each is not None]
        serious = [each for each in failed if not isinstance(each, ProviderError)]
        for error in failed:
            log.warning("fleet.ending_failed", error=type(error).__name__, reason=str(error))
        if serious:
            raise next((each for each in serious if isinstance(each, Deposed)), serious[0])

    async def _close(self, rental: Rental) -> None:
        await self._ending.close(rental)
        for known in (self._last, self._reports):
            known.pop(rental.label, None)
        self._renting.races.discard(rental.label)
        # What was kept back for it, somebody else may have.
        self._slots.room()

    async def _rent(self, slot: Slot) -> None:
        self._slots.wait(slot.id, await self._renting.rent(slot))

    def _reap(self) -> None:
        """How renting has ended. Raises :class:`Deposed`; anything else is no reason to stop."""
        for task in [each for each in self._tasks if each.done()]:
            slot_id = self._tasks.pop(task)
            error = task.exception()
            if isinstance(error, Deposed):
                raise error
            if error is not None:
                log.error("fleet.renting_failed", slot_id=slot_id, error=type(error).__name__, exc_info=error)

    def _held(self) -> Mapping[str, Rental]:
        """By slot; of two, the one that has come further."""
        held = [each for each in self._roll.rentals.values() if each.holds_slot]
        held.sort(key=lambda each: (each.state is not State.ENDING, each.state.place))
        return {each.slot_id: each for each in held}
