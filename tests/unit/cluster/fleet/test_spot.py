"""Machines for which somebody else may bid more."""

import asyncio

import pytest

from cluster.fleet.rental import Rental, State, Why
from tests.fakes.vast import Scenario
from tests.fakes.vast_server import Fault
from tests.fakes.virtual_time import virtual
from tests.fakes.world import TYPE, World


async def begun(count: int = 1) -> World:
    world = World(spot_usd=0.3, offers=6)
    await world.start()
    world.want(count)
    return world


def bids(world: World) -> list[bool]:
    return [each.bid for each in world.rentals()]


def ledger_is_the_bill(world: World, rental: Rental, *, late_s: float = 1.0) -> None:
    bill = world.contract(rental.label).bill(world.clock.monotonic())
    late_usd = late_s * rental.terms.usd_per_hour / 3600
    assert world.shelf.usd(rental.label, bandwidth=False) == pytest.approx(bill["gpu"] + bill["storage"], abs=late_usd)


@virtual
async def test_a_bid_is_rented_at_its_price_and_books_hold_what_it_costs() -> None:
    world = await begun()
    await world.until_works(1)
    (contract,) = world.vast.alive
    (rental,) = world.rentals()
    assert (contract.is_bid, rental.bid) == (True, True)
    assert rental.terms.gpu_usd_per_hour == contract.dph_base == pytest.approx(0.18)
    world.want(0)
    await world.passes(9)
    ledger_is_the_bill(world, rental)


@virtual
async def test_who_is_outbid_is_given_back_at_once_and_for_an_hour_nothing_is_bid() -> None:
    world = await begun()
    world.vast.scenarios[1001] = Scenario(end="outbid", after_s=40)
    await world.until_works(1)
    await world.passes(3)
    one, two = world.rentals()
    assert (one.why, one.bid, two.bid) == (Why.OUTBID, True, False)
    assert one.destroyed_at is not None
    assert one.begun_at is not None
    # A pass after the host stopped it.
    assert (one.destroyed_at - one.begun_at).total_seconds() < 40 + 15
    assert world.shelf.breakers == {}
    (why, until) = world.shelf.hosts[one.host]
    assert (why, (until - one.destroyed_at).total_seconds()) == (Why.OUTBID, pytest.approx(3600, abs=15))
    await world.passes(6)
    ledger_is_the_bill(world, one, late_s=12)
    world.want(2)
    await world.passes(100)
    assert bids(world) == [True, False, False]
    await world.passes(260)
    # Nobody bids more any more.
    del world.vast.scenarios[1001]
    world.want(3)
    await world.until_works(3)
    assert bids(world) == [True, False, False, True]


@virtual
async def test_a_bid_that_is_silently_taken_as_on_demand_is_given_back_and_its_machine_hardly_blamed() -> None:
    world = await begun()
    world.vast.overlooks_bids = True
    await world.until_works(1)
    one, two = world.rentals()
    assert (one.why, two.bid, two.state) == (Why.NO_BID, False, State.IDLE)
    assert "on demand where a bid was made" in one.detail
    assert [each.label for each in world.vast.alive] == [two.label]
    assert world.shelf.breakers == {}
    assert world.shelf.hosts[one.host][0] is Why.NO_BID


@virtual
async def test_a_bid_below_the_least_leaves_nothing_stopped() -> None:
    world = await begun()
    await world.provider.candidates(TYPE, ())
    world.vast.offers[0]["min_bid"] = 0.5
    await world.until_works(1)
    one, two = world.rentals()
    assert (one.why, two.bid) == (Why.NO_BID, False)
    assert [each.label for each in world.vast.alive] == [two.label]


@virtual
async def test_nor_does_one_whose_answer_was_lost_and_the_books_hold_no_less_than_the_bill() -> None:
    world = await begun()
    await world.provider.candidates(TYPE, ())
    world.vast.offers[0]["min_bid"] = 0.5
    await world.fleet.reconcile()
    await asyncio.sleep(0.15)
    # The head is gone before it hears that it has rented something.
    assert len(world.vast.contracts) == 1
    await world.restart()
    await world.until_works(1)
    one, two = world.rentals()
    assert (one.why, two.bid) == (Why.OUTBID, False)
    assert [each.label for each in world.vast.alive] == [two.label]
    await world.passes(6)
    paid = sum(world.contract(one.label).bill(world.clock.monotonic())[meter] for meter in ("gpu", "storage"))
    assert paid < world.shelf.usd(one.label, bandwidth=False) < paid + 60 * one.terms.usd_per_hour / 3600


@virtual
async def test_the_trap_is_seen_even_if_the_answer_was_lost() -> None:
    world = await begun()
    # The client gives up after one minute; a list finds it.
    world.vast.list_omits_s = 90
    world.vast.overlooks_bids = True
    world.server.fail("rent", Fault(cut=True, worked=True))
    await world.passes(12)
    world.vast.list_omits_s = 0
    await world.until_works(1)
    await world.passes(9)
    one, two = world.rentals()
    assert (one.why, one.instance, two.bid) == (Why.NO_BID, "9001", False)
    assert [each.label for each in world.vast.alive] == [two.label]
    ledger_is_the_bill(world, one)


@virtual
async def test_nor_is_a_machine_kept_that_is_dearer_than_agreed_if_the_answer_was_lost() -> None:
    world = World()
    await world.start()
    world.want(1)
    await world.provider.candidates(TYPE, ())
    world.vast.offers[0]["dph_base"] = 0.4
    world.vast.list_omits_s = 90
    world.server.fail("rent", Fault(cut=True, worked=True))
    await world.passes(12)
    world.vast.list_omits_s = 0
    await world.until_works(1)
    await world.passes(9)
    one, two = world.rentals()
    assert (one.why, two.state) == (Why.WRONG_TERMS, State.IDLE)
    assert "0.4090 dollars per hour where 0.3660 were agreed" in one.detail
    ledger_is_the_bill(world, one)
