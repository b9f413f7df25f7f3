"""The fleet with the books that a real head has, and Vast's API on a socket."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cluster.fleet.books import Deposed, PostgresBooks
from cluster.fleet.fleet import Fleet
from cluster.fleet.rental import State
from cluster.fleet.report import Report
from cluster.vast.client import VastClient
from cluster.vast.provider import VastProvider
from tests.fakes.clock import VirtualClock
from tests.fakes.vast import KEY, FakeVast, offer
from tests.fakes.vast_server import VastServer
from tests.fakes.world import CAPS, KIND, PREFIX, TYPE, MemoryDoor


class Head:
    """One of them, at the same market and the same database as the others."""

    def __init__(self, engine: AsyncEngine, provider: VastProvider, clock: VirtualClock, vast: FakeVast) -> None:
        self.clock, self.vast = clock, vast
        self.fleet = Fleet(provider, PostgresBooks(engine), MemoryDoor(), caps=CAPS, prefix=PREFIX, now=clock.now)

    async def until(self, state: State | None, says: State = State.IDLE) -> None:
        """Passes until the one slot's rental is in that state, or there is no slot. The test's limit ends it."""
        while [each.state for each in self.fleet.nodes()] != ([] if state is None else [state]):
            for contract in self.vast.alive:
                report = Report(label=contract.label, at=self.clock.now(), state=State.IDLE, down_bytes=1e9)
                for each in (report, replace(report, state=says, by_node=False)):
                    self.fleet.hear(each)
            await self.fleet.reconcile()
            # Renting goes on beside the passes.
            await asyncio.sleep(0.01)
            self.clock.seconds += 10


@pytest.fixture
async def heads(engine: AsyncEngine) -> AsyncIterator[tuple[Head, Head]]:
    clock = VirtualClock()
    vast = FakeVast([offer(1), offer(2)], clock)
    async with VastServer(vast) as server, VastClient(KEY, server.url, clock=clock) as client:
        provider = VastProvider(client, {TYPE: KIND}, clock=clock)
        yield Head(engine, provider, clock, vast), Head(engine, provider, clock, vast)


async def test_a_node_comes_works_is_adopted_by_the_next_head_and_goes(
    heads: tuple[Head, Head], engine: AsyncEngine
) -> None:
    first, second = heads
    await first.fleet.start()
    assert first.fleet.add("slot-1", TYPE)
    await first.until(State.BUSY, says=State.BUSY)
    await second.fleet.start()
    with pytest.raises(Deposed):
        await first.fleet.reconcile()
    assert [each.id for each in second.fleet.nodes()] == ["slot-1"]
    await second.until(State.IDLE)
    assert second.fleet.dismiss("slot-1")
    await second.until(None)
    for _ in range(3):
        await second.fleet.reconcile()
        second.clock.seconds += 10
    assert (second.vast.alive, len(second.vast.contracts)) == ([], 1)
    (contract,) = second.vast.contracts.values()
    async with engine.connect() as db:
        columns = "sum(gpu_usd), sum(storage_usd), sum(bandwidth_usd), array_agg(DISTINCT state ORDER BY state)"
        gpu, storage, bandwidth, states = (await db.execute(text(f"SELECT {columns} FROM node_costs"))).one()
        assert (await db.execute(text("SELECT state, why FROM rentals"))).one() == ("ended", "dismissed")
    bill = contract.bill(second.clock.monotonic())
    per_s = (contract.dph_base + 0.1) / 3600
    assert (gpu, storage) == (pytest.approx(bill["gpu"], abs=per_s), pytest.approx(bill["storage"], abs=per_s))
    # The fake's machine has its image without fetching it; the books hold what is expected of it.
    assert bandwidth == pytest.approx((KIND.work.image_bytes + 1e9) / 1e9 * 0.005)
    assert {"loading", "busy", "idle", "ending"} >= set(states) >= {"busy", "idle"}
    assert second.vast.violations == []


@pytest.mark.parametrize("kind", ["", "weights: "])
async def test_a_node_is_ended_whatever_it_says_of_its_fault(
    heads: tuple[Head, Head], engine: AsyncEngine, kind: str
) -> None:
    fleet, vast = heads[0].fleet, heads[0].vast
    await fleet.start()
    assert fleet.add("slot-1", TYPE)
    await heads[0].until(State.IDLE)
    (contract,) = vast.alive
    # What PostgreSQL refuses to keep; and what makes a terminal obey.
    fault = f"{kind}no\0 CUDA \x1b[31m" + 1000 * "é"
    fleet.hear(Report(label=contract.label, at=heads[0].clock.now(), state=State.IDLE, fault=fault))
    await fleet.reconcile()
    assert contract not in vast.alive
    async with engine.connect() as db:
        (detail,) = (await db.execute(text("SELECT detail FROM rentals"))).scalars()
    assert detail.startswith(f"{kind}no  CUDA  [31mé")
    assert len(detail) == 300
    # A gate that it closes says the same.
    assert [each.detail for each in fleet.waits().values()] == [detail] * bool(kind)
