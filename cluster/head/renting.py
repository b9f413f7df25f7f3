"""The fleet in the launcher: what it is made of, what it hears, and whom it tells.

::

    Ray's monitor ───socket──▶ WishServer ─┐
    bootstrap, node ──mesh───▶ Hub ────────┼─▶ Fleet ─▶ provider of machines
    PostgreSQL: runs of jobs ──────────────┘    │  └──▶ MeshDoor: invitations
                                                └─▶ books · outlooks for the service
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
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
from cluster.fleet.report import Report
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
#: Between two outlooks, which are believed for two minutes.
TELL_S = 10.0
#: Cheapest machines of a market that a price is expected to be among.
_CHEAPEST = 5


class NoWeights(Exception):
    """A type's nodes could not load what they are for; the message says why, and what to do."""


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
        #: By type: the last look at the market.
        self._markets: dict[str, Sequence[Candidate]] = {}
        self._alerts: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="video-api-")))
        #: For the hub.
        self.depot = HeadDepot(describe=self.describe, folder=folder, wheelhouse=options.wheelhouse)

    async def start(self, hub: Hub, user: RayUser | None) -> "asyncio.Future[Any]":
        """Adopt what is rented, and go on. What ends, with an exception, when it can't."""
        options = self._options
        door = MeshDoor(
            self._registry,
            self._identity,
            hub,
            hub_address=options.hub,
            prefix=options.prefix,
            by_hand=BY_HAND,
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
        for node_type in options.caps.nodes:
            await self._look_at_weights(node_type)
        uid = None if user is None else user.uid
        self._wishes = await self._stack.enter_async_context(WishServer(fleet, users(uid)))
        loops = [
            fleet.run(),
            _forever("attend", self._attend, ATTEND_S),
            _forever("weights", self._look_at_all_weights, WEIGHTS_S),
            _forever("market", self._look_at_markets, MARKET_S),
            _forever("tell", self._tell, TELL_S),
        ]
        tasks = [asyncio.create_task(loop) for loop in loops]
        ended = asyncio.gather(*tasks)
        self._stack.push_async_callback(_end, ended)
        return ended

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
            self._fleet.hear(read(text, rental, datetime.now(UTC)))
        except ValueError:
            log.warning("fleet.report_unreadable", label=rental.label)

    async def describe(self, node: Node) -> Assignment:
        """What a rented node is to be. Raises LookupError if nobody has rented it."""
        rental = self._rental(node)
        if rental is None:
            raise LookupError(node.name)
        weights = await self._options.service.weights(rental.node_type)
        names = ("--name", rental.label, "--instance", rental.slot_id, "--node-type", rental.node_type)
        return Assignment(environment=weights, arguments=names)

    def _rental(self, node: Node) -> Rental | None:
        return None if self._fleet is None else self._fleet.by_door(node.token_hash.hex())

    def _tell_somebody(self, name: str, facts: Mapping[str, Any]) -> None:
        task = asyncio.create_task(self._options.service.alert(name, facts))
        self._alerts.add(task)
        task.add_done_callback(self._alerts.discard)

    # ---------------------------------------------------------------- loops

    async def _attend(self) -> None:
        """Whether nodes work or wait."""
        assert self._fleet is not None
        works = {each.id: each for each in self._fleet.nodes() if each.state is not None and each.state.works}
        self._attended = {name: change for name, change in self._attended.items() if name in works}
        if not works:
            return
        since = min((change.at for change in self._attended.values()), default=datetime.now(UTC) - timedelta(days=1))
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
        for node_type in self._options.caps.nodes:
            await self._look_at_weights(node_type)

    async def _look_at_weights(self, node_type: str) -> None:
        assert self._fleet is not None
        try:
            await self._options.service.check_weights(node_type)
        except NoWeights as error:
            self._fleet.gate(node_type, Wait(Reason.NO_WEIGHTS, str(error)))
        else:
            self._fleet.gate(node_type, None)

    async def _look_at_markets(self) -> None:
        for node_type in self._options.caps.nodes:
            try:
                self._markets[node_type] = await self._options.provider.candidates(node_type, ())
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


async def _forever(name: str, step: Any, pause_s: float) -> NoReturn:
    while True:
        try:
            await step()
        except Exception as error:
            # The database or the bucket may be away; what is rented goes on.
            log.warning("fleet.loop_failed", loop=name, error=type(error).__name__, reason=str(error))
        await asyncio.sleep(pause_s)


async def _end(work: "asyncio.Future[Any]") -> None:
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
