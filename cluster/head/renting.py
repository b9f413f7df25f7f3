"""The fleet in the launcher: what it is made of, what it hears, and whom it tells.

::

    Ray's monitor ───socket──▶ WishServer ─┐
    bootstrap, node ──mesh───▶ Hub ────────┼─▶ Fleet ─▶ provider of machines
    PostgreSQL: runs of jobs ──────────────┘    │  └──▶ MeshDoor: invitations
                                                └─▶ books · outlooks for the service
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, Protocol

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from cluster.autoscaler.configuration import BY_HAND, Autoscaling, ClusterConfig
from cluster.autoscaler.server import WishServer, users
from cluster.fleet.books import PostgresBooks
from cluster.fleet.caps import Caps
from cluster.fleet.fleet import Fleet
from cluster.fleet.limits import Limits
from cluster.fleet.provider import Candidate, Provider, ProviderError
from cluster.fleet.rental import Rental, State
from cluster.fleet.report import WEIGHTS_FAULT, Report
from cluster.fleet.waiting import Reason, Wait
from cluster.head.attendance import Change, Run, changes
from cluster.head.depot import Assignment, HeadDepot
from cluster.head.door import MeshDoor
from cluster.head.said import read
from cluster.isolation import RayUser
from cluster.mesh.hub import Hub
from cluster.mesh.identity import HubIdentity
from cluster.mesh.registry import Node, PostgresRegistry

log = structlog.get_logger()

#: Seconds between two looks: at the runs of jobs, at weights, at the market if nobody else looks at it. Vast limits
#: searches by the day.
ATTEND_S, WEIGHTS_S, MARKET_S = 2.0, 20.0, 1800.0
#: To the next look at a market that did not show itself; and for a look at weights.
AGAIN_S, LOOK_S = 60.0, 20.0
#: Between two outlooks, which are believed for two minutes.
TELL_S = 10.0
#: Cheapest machines of a market that a price is expected to be among.
_CHEAPEST = 5


class NoWeights(Exception):
    """A type's nodes could not load what they are for; the message says why, and what to do.

    ``passing``: it may be otherwise in a moment, without anybody's doing.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What to expect of a node type."""

    #: Why none is rented; None: nothing stands in the way.
    wait: Wait | None
    #: Seconds from the rent to the first job: measured, or else expected; None: nothing is known yet.
    start_s: float | None
    #: Dollars per hour, from the cheapest machine to one a little dearer; None: no market was seen yet.
    usd_per_hour: tuple[float, float] | None
    #: Dollars for what a start fetches.
    traffic_usd: float
    #: Dollars left of the account's; None: not known.
    credit_usd: float | None


class ServiceSide(Protocol):
    """What the fleet asks of the service that its nodes are for."""

    async def check_weights(self, node_type: str) -> None:
        """Whether a node of the type could fetch all that it needs. Raises :class:`NoWeights`."""
        ...

    async def weights(self, node_type: str) -> Mapping[str, str]:
        """Variables by which it does, with fresh links. Raises :class:`NoWeights`."""
        ...

    async def runs(self, engine: AsyncEngine, nodes: Collection[str], since: datetime) -> Sequence[Run]:
        """Of these nodes: those that go on, and those that have ended since."""
        ...

    async def publish(self, engine: AsyncEngine, outlooks: Mapping[str, Outlook]) -> None:
        """Tell the service, by node type."""
        ...

    async def alert(self, name: str, facts: Mapping[str, Any]) -> None:
        """Tell whoever runs it."""
        ...


@dataclass(frozen=True, kw_only=True)
class RentingOptions:
    provider: Provider
    service: ServiceSide
    caps: Caps
    cluster: ClusterConfig
    #: Of labels; no other deployment that uses the provider's account may have it.
    prefix: str
    #: ``HOST:PORT`` at which nodes reach this head.
    hub: str
    #: Dollars of credit below which somebody is told.
    low_credit_usd: float
    #: Folder of wheels that nodes install from, instead of an index; None: there is none.
    wheelhouse: Path | None


class Renting:
    """Make it, give :attr:`depot` and :meth:`hear` to the hub, then :meth:`start` it; :meth:`close` at the end."""

    def __init__(
        self, options: RentingOptions, engine: AsyncEngine, registry: PostgresRegistry, identity: HubIdentity
    ) -> None:
        self._options, self._engine = options, engine
        self._registry, self._identity = registry, identity
        self._fleet: Fleet | None = None
        #: Of each node, by its slot's id: whether it was last known to work.
        self._attended: dict[str, Change] = {}
        #: By type: the last look at the market, and when it was, by the loop's clock.
        self._markets: dict[str, Sequence[Candidate]] = {}
        self._looked: dict[str, float] = {}
        self._alerts: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="video-api-")))
        #: For the hub.
        self.depot = HeadDepot(describe=self.describe, folder=folder, wheelhouse=options.wheelhouse)

    async def start(self, hub: Hub, user: RayUser | None) -> asyncio.Task[NoReturn]:
        """Adopt what is rented, and go on. What ends, with :class:`~cluster.fleet.books.Deposed`, when it can't."""
        options = self._options
        door = MeshDoor(
            self._registry,
            self._identity,
            hub,
            hub_address=options.hub,
            by_hand=BY_HAND,
            is_rented=lambda node: self._rental(node) is not None,
        )
        fleet = Fleet(
            options.provider,
            PostgresBooks(self._engine),
            door,
            caps=options.caps,
            limits=Limits(low_credit_usd=options.low_credit_usd),
            prefix=options.prefix,
            on_event=self._tell_somebody,
        )
        await fleet.start()
        self._stack.push_async_callback(fleet.close)
        self._fleet = fleet
        # Before anything is rented.
        await self._look_at_all_weights()
        uid = None if user is None else user.uid
        self._wishes = await self._stack.enter_async_context(WishServer(fleet, users(uid)))
        loops = [
            fleet.run(),
            _forever("attend", self._attend, ATTEND_S),
            _forever("weights", self._look_at_all_weights, WEIGHTS_S),
            _forever("market", self._look_at_markets, AGAIN_S),
            _forever("tell", self._tell, TELL_S),
        ]
        self._stack.push_async_callback(_end, self._alerts)
        tasks = [asyncio.create_task(loop) for loop in loops]
        self._stack.push_async_callback(_end, tasks)
        # The others go on whatever happens.
        return tasks[0]

    async def close(self) -> None:
        await self._stack.aclose()

    @property
    def autoscaling(self) -> Autoscaling:
        """How Ray finds us."""
        path = self._wishes.folder / "cluster.yaml"
        path.write_text(self._options.cluster.of_fleet(self._wishes.path))
        path.chmod(0o644)
        return Autoscaling.by(path)

    # ---------------------------------------------------------------- what nodes say and ask

    def hear(self, node: Node, text: str) -> None:
        """A bootstrap or a node has said something of itself."""
        rental = self._rental(node)
        if rental is None or self._fleet is None:
            return
        try:
            report = read(text, rental, datetime.now(UTC))
        except ValueError:
            log.warning("fleet.report_unreadable", label=rental.label)
            return
        # Nothing works that has not joined; it would be waited for without an end.
        if node.live or not report.state.works:
            self._fleet.hear(report)

    async def describe(self, node: Node) -> Assignment:
        """What a rented node is to be. Raises LookupError if nobody has rented it, and :class:`NoWeights`."""
        rental = self._rental(node)
        if rental is None or rental.state is State.ENDING:
            raise LookupError(node.name)
        try:
            weights = await self._options.service.weights(rental.node_type)
        except NoWeights as error:
            self._deny(rental, error)
            raise
        names = ("--name", rental.label, "--instance", rental.slot_id, "--node-type", rental.node_type)
        # Those that Ray was told it would have: what is to run on it has its weights there, and nothing else has.
        config = self._options.cluster.node_types.get(rental.node_type)
        pairs = [] if config is None else [f"{key}={value}" for key, value in sorted(config.labels.items())]
        labels = tuple(word for pair in pairs for word in ("--label", pair))
        return Assignment(environment=weights, arguments=(*names, *labels))

    def _deny(self, rental: Rental, error: NoWeights) -> None:
        """There were weights when it was rented. It asks again, but waits for nothing where nothing is to come."""
        assert self._fleet is not None
        log.warning("fleet.no_weights", label=rental.label, reason=str(error))
        self._fleet.gate(rental.node_type, Wait(Reason.NO_WEIGHTS, str(error)))
        if not error.passing:
            fault = f"{WEIGHTS_FAULT}{error}"
            self._fleet.hear(Report(label=rental.label, at=datetime.now(UTC), state=State.INSTALLING, fault=fault))

    def _rental(self, node: Node) -> Rental | None:
        return None if self._fleet is None else self._fleet.by_door(node.token_hash.hex())

    def _tell_somebody(self, name: str, facts: Mapping[str, Any]) -> None:
        task = asyncio.create_task(self._options.service.alert(name, facts))
        self._alerts.add(task)
        task.add_done_callback(self._told)

    def _told(self, task: asyncio.Task[None]) -> None:
        self._alerts.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("fleet.alert_failed", error=type(error).__name__, reason=str(error))

    # ---------------------------------------------------------------- loops

    async def _attend(self) -> None:
        """Whether nodes work or wait."""
        assert self._fleet is not None
        works = {each.id: each for each in self._fleet.nodes() if each.state is not None and each.state.works}
        self._attended = {name: change for name, change in self._attended.items() if name in works}
        if not works:
            return
        # Of one that nothing was said of yet, all that it can have done.
        begin = datetime.now(UTC) - timedelta(days=1)
        since = min(self._attended[name].at if name in self._attended else begin for name in works)
        by_node: defaultdict[str, list[Run]] = defaultdict(list)
        for run in await self._options.service.runs(self._engine, works.keys(), since):
            by_node[run.node].append(run)
        for name, runs in by_node.items():
            label = works[name].label
            assert label is not None
            for change in changes(self._attended.get(name), runs):
                state = State.BUSY if change.busy else State.IDLE
                self._fleet.hear(Report(label=label, at=change.at, state=state, by_node=False))
                self._attended[name] = change

    async def _look_at_all_weights(self) -> None:
        await asyncio.gather(*map(self._look_at_weights, self._options.caps.nodes))

    async def _look_at_weights(self, node_type: str) -> None:
        """What can't be looked at can't be fetched."""
        assert self._fleet is not None
        wait: Wait | None = None
        try:
            async with asyncio.timeout(LOOK_S):
                await self._options.service.check_weights(node_type)
        except NoWeights as error:
            wait = Wait(Reason.NO_WEIGHTS, str(error))
        except TimeoutError:
            wait = Wait(Reason.NO_WEIGHTS, f"no answer within {LOOK_S:g} s")
        except Exception as error:
            log.error("fleet.weights_unknown", node_type=node_type, error=type(error).__name__, reason=str(error))
            wait = Wait(Reason.NO_WEIGHTS, type(error).__name__)
        self._fleet.gate(node_type, wait)

    async def _look_at_markets(self) -> None:
        now = asyncio.get_running_loop().time()
        for node_type in self._options.caps.nodes:
            if now - self._looked.get(node_type, -MARKET_S) < MARKET_S:
                continue
            try:
                self._markets[node_type] = await self._options.provider.candidates(node_type, ())
                self._looked[node_type] = now
            except ProviderError as error:
                log.info("fleet.market_unknown", node_type=node_type, reason=str(error))

    async def _tell(self) -> None:
        assert self._fleet is not None
        waits = self._fleet.waits()
        outlooks = {}
        for node_type in self._options.caps.nodes:
            cheapest = self._markets.get(node_type, ())[:_CHEAPEST]
            measured = self._fleet.cold_start_s(node_type)
            outlooks[node_type] = Outlook(
                wait=waits.get(node_type),
                start_s=measured or (median(each.start_s for each in cheapest) if cheapest else None),
                usd_per_hour=_range([each.terms.usd_per_hour for each in cheapest]),
                traffic_usd=max((each.terms.traffic_usd(each.start_bytes, 0) for each in cheapest), default=0.0),
                credit_usd=self._fleet.credit_usd,
            )
        await self._options.service.publish(self._engine, outlooks)


def _range(amounts: Sequence[float]) -> tuple[float, float] | None:
    return (min(amounts), max(amounts)) if amounts else None


async def _forever(name: str, step: Callable[[], Awaitable[None]], pause_s: float) -> NoReturn:
    while True:
        try:
            await step()
        except Exception as error:
            # The database or the bucket may be away; what is rented goes on.
            log.warning("fleet.loop_failed", loop=name, error=type(error).__name__, reason=str(error))
        await asyncio.sleep(pause_s)


async def _end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
