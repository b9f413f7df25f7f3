"""What keeps a whole type from being rented, and what the launcher sees of it."""

import asyncio
import statistics
from dataclasses import replace

import pytest

from cluster.fleet.rental import State, Why
from cluster.fleet.report import Report
from cluster.fleet.waiting import Reason, Wait
from tests.fakes.vast import a100
from tests.fakes.vast_server import Fault
from tests.fakes.virtual_time import virtual
from tests.fakes.world import CAPS, OTHER, TYPE, World

UNSET = Wait(Reason.NO_WEIGHTS, "LTX2_WEIGHTS is not set")
BOTH = replace(CAPS, nodes={TYPE: 5, OTHER: 5})


async def both(one: int = 1, other: int = 1, **changes: object) -> World:
    """A world in which two types are wished for."""
    world = World(caps=BOTH, **changes)
    world.vast.offers += [a100(number) for number in range(51, 56)]
    await world.start()
    world.want(one)
    for number in range(other):
        assert world.fleet.add(f"other-{number}", OTHER)
    return world


def types(world: World) -> list[str]:
    return sorted(each.node_type for each in world.rentals())


@virtual
async def test_a_closed_gate_rents_nothing_for_its_type_and_says_so_until_it_is_opened() -> None:
    world = await both()
    world.fleet.gate(OTHER, UNSET)
    assert world.fleet.waits()[OTHER] == UNSET
    await world.until_works(1)
    await world.passes(5)
    assert types(world) == [TYPE]
    assert world.fleet.waits() == {OTHER: UNSET}
    (waiting,) = [each.waiting for each in world.fleet.nodes() if each.node_type == OTHER]
    assert waiting == UNSET
    world.fleet.gate(OTHER, None)
    await world.until_works(2)
    assert world.fleet.waits() == {}


@virtual
async def test_a_gate_that_closes_ends_nothing() -> None:
    world = await both(other=0)
    await world.until_works(1)
    world.fleet.gate(TYPE, UNSET)
    await world.passes(5)
    assert [each.state for each in world.rentals()] == [State.IDLE]
    # It is in the way of the next one.
    assert world.fleet.waits() == {TYPE: UNSET}


async def fails_at_weights(world: World) -> None:
    await world.passes(4)
    (one,) = [each for each in world.rentals() if each.node_type == TYPE]
    fault = "weights: 403 for ltx2/model.safetensors"
    world.fleet.hear(Report(label=one.label, at=world.clock.now(), state=State.WEIGHTS, fault=fault))
    world.mute.add(one.label)
    await world.passes(2)


@virtual
async def test_weights_that_a_node_can_t_fetch_close_its_type_s_gate_for_an_hour_and_blame_nobody() -> None:
    world = await both()
    await fails_at_weights(world)
    (one,) = [each for each in world.rentals() if each.node_type == TYPE]
    assert (one.why, one.detail) == (Why.WEIGHTS, "weights: 403 for ltx2/model.safetensors")
    assert one.label not in {each.label for each in world.vast.alive}
    assert (world.shelf.hosts, world.shelf.breakers) == ({}, {})
    wait = world.fleet.waits()[TYPE]
    assert (wait.reason, wait.detail) == (Reason.NO_WEIGHTS, one.detail)
    await world.until_works(1)
    # Whoever finds nothing wrong may not see what nodes see.
    world.fleet.gate(TYPE, None)
    await world.passes(300)
    assert types(world) == [TYPE, OTHER]
    await world.passes(60)
    assert types(world) == [TYPE, TYPE, OTHER]
    await world.until_works(2)


@virtual
async def test_one_machine_closes_its_type_s_gate_by_its_word_but_once() -> None:
    world = await both(other=0)
    await fails_at_weights(world)
    (liar,) = world.rentals()
    await world.passes(360)
    (second,) = await world.until_works(1)
    world.want(2)
    await world.until_works(2)
    # It was the cheapest, and the others were not.
    assert liar.host not in {each.host for each in world.rentals() if each.label != liar.label}
    # If there is no other, it is better than none.
    world.want(3)
    await world.until_works(3)
    assert [each.host for each in world.rentals()].count(liar.host) == 2
    assert second.label in {each.label for each in world.vast.alive}


@virtual
async def test_a_gate_that_is_opened_opens_the_one_that_a_node_has_closed() -> None:
    world = await both(other=0)
    await fails_at_weights(world)
    world.fleet.gate(TYPE, UNSET)
    assert world.fleet.waits() == {TYPE: UNSET}
    world.fleet.gate(TYPE, None)
    await world.until_works(1)
    assert len(world.rentals()) == 2


@pytest.mark.parametrize(
    ("error", "reason", "alone"),
    [
        ("invalid_args", Reason.REFUSED, True),
        ("insufficient_credit", Reason.NO_CREDIT, False),
        ("auth_error", Reason.NOT_ALLOWED, False),
    ],
)
@virtual
async def test_a_refusal_pauses_whom_it_concerns(error: str, reason: Reason, alone: bool) -> None:
    world = await both(other=0)
    status = 401 if error == "auth_error" else 400
    world.server.fail("rent", Fault(status=status, body=f'{{"error": "{error}"}}'.encode()))
    await world.passes(2)
    world.fleet.add("other-1", OTHER)
    await world.passes(5)
    assert [each.node_type for each in world.rentals() if each.state is not State.ENDED] == [OTHER] * alone
    concerned = (TYPE,) if alone else (TYPE, OTHER)
    assert {each: wait.reason for each, wait in world.fleet.waits().items()} == dict.fromkeys(concerned, reason)
    await asyncio.sleep(300)
    await world.until_works(2)


@virtual
async def test_a_type_waits_for_nothing_while_a_node_of_it_is_on_its_way() -> None:
    """Who waits for a node gets this one, whatever is in the way of another."""
    world = await both(one=5, other=0)
    await world.passes(3)
    assert {each.state.comes for each in world.rentals()} == {True}
    waiting = [each.waiting for each in world.fleet.nodes() if each.state is None]
    assert {wait.reason for wait in waiting if wait} == {Reason.NO_OFFER}
    assert world.fleet.waits() == {}
    # But it can do nothing without weights.
    world.fleet.gate(TYPE, UNSET)
    assert world.fleet.waits() == {TYPE: UNSET}


@virtual
async def test_why_a_type_waits_is_what_its_slots_wait_for_if_nothing_is_in_the_way_of_all() -> None:
    world = await both(one=5, other=0)
    await world.until_works(3)
    assert {each: wait.reason for each, wait in world.fleet.waits().items()} == {TYPE: Reason.NO_OFFER}


@virtual
async def test_how_long_starts_take_is_the_median_and_survives_a_restart() -> None:
    world = await both(one=3, other=0)
    assert world.fleet.cold_start_s(TYPE) is None
    await world.until_works(3)
    took = [(each.worked_at - each.reserved_at).total_seconds() for each in world.rentals() if each.worked_at]
    assert len(set(took)) > 1
    assert world.fleet.cold_start_s(TYPE) == statistics.median(took)
    assert world.fleet.cold_start_s(OTHER) is None
    await world.restart()
    assert world.fleet.cold_start_s(TYPE) == statistics.median(took)
