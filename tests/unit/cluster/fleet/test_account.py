"""What the provider says of the account: what is left to spend, and its charges beside the ledger."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from cluster.fleet.books import Deposed
from cluster.fleet.limits import Limits
from cluster.fleet.reconcile import Booked, compare
from tests.fakes.books import MemoryBooks
from tests.fakes.vast import Scenario
from tests.fakes.vast_server import Fault
from tests.fakes.virtual_time import virtual
from tests.fakes.world import IMAGE_BYTES, World

NOW = datetime(2026, 1, 10, 6, tzinfo=UTC)


def booked(usd: float, *, ended_days_ago: float = 1) -> Booked:
    ended_at = NOW - timedelta(days=ended_days_ago)
    return Booked(label="one", instance="1", begun_at=ended_at - timedelta(hours=1), ended_at=ended_at, usd=usd)


@pytest.mark.parametrize(
    ("usd", "charged", "differs"),
    [
        (1.0, 1.0, False),
        (1.0, 1.05, False),
        (1.0, 1.06, True),
        (1.0, 0.94, True),
        # A cent, of however little.
        (0.02, 0.03, False),
        (0.02, 0.031, True),
        (0.0, 0.02, True),
        (10.0, 10.4, False),
    ],
)
def test_a_charge_differs_by_more_than_a_twentieth_and_a_cent(usd: float, charged: float, differs: bool) -> None:
    (found,) = compare([booked(usd)], {"1": charged, "2": 9.0}, NOW)
    assert (found.charged_usd, found.differs) == (charged, differs)


def test_what_is_in_no_charge_is_waited_for_and_then_was_free() -> None:
    assert compare([booked(1.0, ended_days_ago=2.9)], {}, NOW) == []
    (found,) = compare([booked(1.0, ended_days_ago=3.1)], {}, NOW)
    assert (found.charged_usd, found.differs) == (0.0, True)
    (free,) = compare([booked(0.0, ended_days_ago=3.1)], {}, NOW)
    assert not free.differs


@virtual
async def test_low_credit_is_told_once_and_once_that_it_is_back() -> None:
    world = World(limits=Limits(low_credit_usd=7.0))
    await world.start()
    for deposit in (9.0, 6.5, 6.0, 5.0, 8.0, 9.0, 6.0):
        world.vast.deposit = deposit
        await world.passes(32)
    assert world.events == [
        ("credit_low", {"credit_usd": 6.5, "limit_usd": 7.0}),
        ("credit_back", {"credit_usd": 8.0, "limit_usd": 7.0}),
        ("credit_low", {"credit_usd": 6.0, "limit_usd": 7.0}),
    ]
    # Not to know is no news.
    world.server.fail("account", *[Fault()] * 8)
    await world.passes(40)
    assert len(world.events) == 3


async def spent(count: int = 2) -> World:
    """So many came, worked and went, of which the first was charged for twice."""
    world = World(hour=18)
    world.vast.scenarios = {each: Scenario(pull_s=60, pull_bytes=IMAGE_BYTES) for each in (1001, 1002, 1003)}
    await world.start()
    world.want(count)
    await world.until_works(count)
    await asyncio.sleep(1800)
    world.speak()
    world.want(0)
    await world.passes(12)
    first = world.vast.contracts[9001]
    first.surcharge_usd = sum(first.bill(world.clock.monotonic()).values())
    return world


async def until(world: World, day: int, hour: int) -> None:
    moment = datetime(2026, 1, day, hour, 1, tzinfo=UTC)
    while world.clock.now() < moment:
        await asyncio.sleep(600)
        await world.passes(1)


@virtual
async def test_charges_are_compared_in_the_morning_and_what_differs_is_told() -> None:
    world = await spent()
    assert (world.vast.asked["charges"], world.shelf.charged) == (0, {})
    with capture_logs() as logs:
        await until(world, 2, 5)
        assert world.vast.asked["charges"] == 0
        await until(world, 2, 7)
    one, two = world.rentals()
    assert world.shelf.charged == {
        one.label: pytest.approx(2 * world.shelf.usd(one.label), rel=0.02),
        two.label: pytest.approx(world.shelf.usd(two.label), rel=0.02),
    }
    (told,) = [each for each in logs if each["event"] == "fleet.charge"]
    assert (told["label"], told["instance"]) == (one.label, "9001")
    assert told["charged_usd"] > 1.9 * told["booked_usd"]
    # It is known now, and not asked for again.
    await until(world, 4, 7)
    assert world.vast.asked["charges"] == 1
    assert world.vast.violations == []


@virtual
async def test_charges_that_do_not_come_are_asked_for_again_and_no_pass_waits_for_them() -> None:
    world = await spent()
    world.server.fail("charges", Fault(silent=True), *[Fault()] * 7)
    await until(world, 2, 6)
    before = world.clock.monotonic()
    await world.fleet.reconcile()
    assert world.clock.monotonic() - before < 2
    assert world.shelf.charged == {}
    await until(world, 2, 9)
    assert len(world.shelf.charged) == 2


@virtual
async def test_a_head_that_was_replaced_writes_no_charges() -> None:
    world = await spent()
    await until(world, 2, 5)
    await asyncio.sleep(3600)
    await world.fleet.reconcile()
    # While it asks, another one takes over.
    await MemoryBooks(world.shelf).take_over()
    await asyncio.sleep(10)
    with pytest.raises(Deposed):
        await world.fleet.reconcile()
    assert world.shelf.charged == {}
    await world.fleet.close()
