"""A launcher that rents: real database, hub, door and fleet, the fake Vast on a port, and a service that a test speaks
for. Nodes are whoever shows the token that a contract's environment has."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cluster.autoscaler.configuration import ClusterConfig
from cluster.bootstrap.head import Head as LineToHead
from cluster.fleet.caps import Caps
from cluster.head.attendance import Run
from cluster.head.renting import Outlook, Renting, RentingOptions
from cluster.mesh.agent import Agent, join
from cluster.mesh.dialer import HubAddress
from cluster.mesh.hub import Hub, HubLimits
from cluster.mesh.identity import HubIdentity
from cluster.mesh.plan import Slot
from cluster.mesh.registry import PostgresRegistry
from cluster.vast.client import VastClient
from cluster.vast.provider import VastProvider
from tests.fakes.clock import VirtualClock
from tests.fakes.vast import KEY, Contract, FakeVast, offer
from tests.fakes.vast_server import VastServer
from tests.fakes.world import KIND, TYPE
from tests.parts.cluster.mesh.loopback import until
from tests.ports import free_port

ROOT = Path(__file__).parents[4]
IDENTITY = HubIdentity.derived(b"the launcher of the tests.......")
PREFIX = "va-test"
#: For what takes a fraction of a second.
PATIENCE_S = 20
CAPS = Caps(usd_per_hour=5, usd_per_day=50, usd_per_instance_hour=1, nodes={TYPE: 2})


@dataclass
class Service:
    """See :class:`cluster.head.renting.ServiceSide`. By node type."""

    #: Raised when weights are looked for.
    faults: dict[str, Exception] = field(default_factory=dict)
    #: Never answers for these.
    silent: set[str] = field(default_factory=set)
    found: list[Run] = field(default_factory=list)
    told: Mapping[str, Outlook] = field(default_factory=dict)
    #: So many times it can't be told.
    away: int = 0
    alerts: asyncio.Queue[tuple[str, Mapping[str, Any]]] = field(default_factory=asyncio.Queue)
    alert_fault: Exception | None = None

    async def check_weights(self, node_type: str) -> None:
        if node_type in self.silent:
            await asyncio.Event().wait()
        if node_type in self.faults:
            raise self.faults[node_type]

    async def weights(self, node_type: str) -> Mapping[str, str]:
        await self.check_weights(node_type)
        return {"WAV2LIP_WEIGHTS": "https://store/manifest.json?signature=secret"}

    async def runs(self, engine: AsyncEngine, nodes: Collection[str], since: datetime) -> Sequence[Run]:
        return [each for each in self.found if each.node in nodes and (each.ended_at is None or each.ended_at > since)]

    async def publish(self, engine: AsyncEngine, outlooks: Mapping[str, Outlook]) -> None:
        if self.away:
            self.away -= 1
            raise ConnectionError("the database is away")
        self.told = outlooks

    async def alert(self, name: str, facts: Mapping[str, Any]) -> None:
        self.alerts.put_nowait((name, facts))
        if self.alert_fault is not None:
            raise self.alert_fault


@dataclass
class Machine:
    """What is rented, as its bootstrap and its node see it."""

    contract: Contract

    @property
    def env(self) -> Mapping[str, str]:
        return self.contract.body["env"]

    @property
    def line(self) -> LineToHead:
        return LineToHead(self.env["HUB"], self.env["MESH_TOKEN"])

    async def say(self, **facts: Any) -> None:
        await self.say_text(json.dumps(facts))

    async def say_text(self, text: str) -> None:
        await asyncio.to_thread(self.line.say, text)

    async def order(self) -> Mapping[str, Any]:
        return json.loads(await asyncio.to_thread(lambda: b"".join(self.line.fetch("config.json"))))


@dataclass
class Launcher:
    renting: Renting
    hub: Hub
    engine: AsyncEngine
    vast: FakeVast
    server: VastServer
    service: Service
    registry: PostgresRegistry
    #: Done when it can't go on.
    ended: asyncio.Task[NoReturn]
    state: Path

    async def wish(self, *add: str, dismiss: Sequence[str] = ()) -> Mapping[str, str]:
        """As Ray's monitor does. All nodes that there are, by id."""
        reader, writer = await asyncio.open_unix_connection(self._socket())
        writer.write(json.dumps({"add": dict.fromkeys(add, TYPE), "dismiss": list(dismiss)}).encode() + b"\n")
        answer = json.loads(await reader.readline())
        writer.close()
        return answer["nodes"]

    def _socket(self) -> str:
        """As Ray is told of it."""
        path = Path(self.renting.autoscaling.flags[0].partition("=")[2])
        return yaml.safe_load(path.read_text())["provider"]["socket"]

    async def rented(self, slot_id: str = "slot-1") -> Machine:
        """The machine of a slot that is wished for, known by its instance."""
        await self.wish(slot_id)
        await self.until("SELECT instance IS NOT NULL FROM rentals", [(True,)])
        (contract,) = self.vast.alive
        return Machine(contract)

    async def joined(self, token: str, name: str, number: int) -> tuple[Agent, "asyncio.Task[None]"]:
        """A node on that token, connected. ``number`` is of its addresses here."""
        address = HubAddress("127.0.0.1", self.hub.port)
        credentials = await join(address, token, name, self.state / f"{number}.json")
        agent = Agent(address, credentials, listen_on=lambda other: address_of(number, other))
        running = asyncio.create_task(agent.run())
        await agent.ready.wait()
        return agent, running

    async def works(self, count: int = 1) -> None:
        """Every node says that it is up, and is believed."""
        for node in await self.registry.nodes():
            # As one that has joined.
            self.renting.hear(replace(node, key_hash=b"its key"), '{"state": "idle"}')
        await self.until("SELECT state FROM rentals WHERE why IS NULL", [("idle",)] * count)

    async def passes(self, count: int) -> None:
        """So many more are over."""
        seen = self.vast.asked["list"]
        await until(lambda: self.vast.asked["list"] > seen + count)

    async def query(self, sql: str) -> list[Any]:
        async with self.engine.connect() as db:
            return [tuple(row) for row in await db.execute(text(sql))]

    async def until(self, sql: str, wanted: list[Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.query(sql) != wanted:  # noqa: ASYNC110 - nothing tells of what the fleet does
                await asyncio.sleep(0.02)

    async def until_told(self, condition: Any) -> Outlook:
        """The service hears what fulfils the condition."""
        async with asyncio.timeout(PATIENCE_S):
            await until(lambda: TYPE in self.service.told and condition(self.service.told[TYPE]))
        return self.service.told[TYPE]


def address_of(number: int, other: Slot) -> str:
    """Where that end listens for the other one. Whoever runs tests beside these has another process."""
    return f"127.{80 + os.getpid() % 100}.{number}.{other.number}"


def market(*offers: Mapping[str, Any], **more: Any) -> FakeVast:
    """Nobody waits for its pace."""
    return FakeVast(list(offers), VirtualClock(), **more)


@asynccontextmanager
async def launcher(
    engine: AsyncEngine, state: Path, service: Service, vast: FakeVast | None = None, **changes: Any
) -> AsyncIterator[Launcher]:
    """It runs. ``changes`` are of its options."""
    vast = vast or market(offer(1), offer(2, dph_base=0.5), offer(3, dph_base=0.6))
    clock = vast.clock
    registry = PostgresRegistry(engine)
    port = free_port()
    async with VastServer(vast) as server, VastClient(KEY, server.url, clock=clock) as client:
        options = RentingOptions(
            provider=VastProvider(client, {TYPE: KIND}, clock=clock),
            service=service,
            caps=CAPS,
            cluster=ClusterConfig.read(ROOT / "configs/cluster.yaml"),
            prefix=PREFIX,
            hub=f"127.0.0.1:{port}",
            low_credit_usd=5.0,
            wheelhouse=state,
        )
        renting = Renting(replace(options, **changes), engine, registry, IDENTITY)
        hub = Hub(
            IDENTITY,
            registry,
            host="127.0.0.1",
            port=port,
            # What happens at once does not happen because it is read again and again.
            limits=HubLimits(sync_s=3600),
            listen_on=partial(address_of, 1),
            depot=renting.depot,
            on_report=renting.hear,
        )
        async with hub:
            try:
                ended = await renting.start(hub, None)
                yield Launcher(renting, hub, engine, vast, server, service, registry, ended, state)
            finally:
                await renting.close()
