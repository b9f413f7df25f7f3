"""Two machines for one node: who is ready first stays."""

import asyncio
from dataclasses import replace

import pytest

from cluster.fleet.caps import Caps
from cluster.fleet.limits import Limits
from cluster.fleet.rental import State, Why
from cluster.fleet.report import Report
from tests.fakes.vast import Scenario
from tests.fakes.vast_server import Fault
from tests.fakes.virtual_time import virtual
from tests.fakes.world import CAPS, TYPE, World

SLOW, FAST = Scenario(pull_s=120), Scenario(pull_s=20)


async def begun(count: int = 1, *, down_usd_per_gb: float = 0.0, caps: Caps = CAPS) -> World:
    world = World(race=True, offers=6, caps=caps)
    for each in world.vast.offers:
        each["inet_down_cost"] = down_usd_per_gb
    world.vast.scenarios = {1001: SLOW, 1002: FAST}
    await world.start()
    world.want(count)
    return world


@virtual
async def test_who_is_ready_first_stays_and_the_other_is_given_back_and_paid() -> None:
    world = await begun()
    (node,) = await world.until_works(1)
    await world.passes(9)
    slow, fast = world.rentals()
    assert (slow.host, slow.why, slow.state) == ("1001", Why.LOST_RACE, State.ENDED)
    assert (fast.host, fast.state, fast.label, fast.slot_id) == ("1002", State.IDLE, node.label, slow.slot_id)
    assert slow.worked_at is None
    bill = world.contract(slow.label).bill(world.clock.monotonic())
    usd = world.shelf.usd(slow.label, bandwidth=False)
    assert bill["gpu"] + bill["storage"] == pytest.approx(usd, abs=slow.terms.usd_per_hour / 3600)
    assert (world.shelf.hosts, world.shelf.breakers) == ({}, {})
    assert f"key-of-{slow.label}" in world.door.revoked
    # It is over: no further one is tried.
    await world.passes(20)
    assert (len(world.rentals()), [each.id for each in world.fleet.nodes()]) == (2, [node.id])


@virtual
async def test_no_two_of_one_node_are_in_the_cluster_at_the_same_time() -> None:
    world = await begun()
    world.vast.scenarios = {}
    for _ in range(40):
        await world.passes(1)
        ready = [each for each in world.rentals() if each.state in (State.JOINING, State.IDLE)]
        assert len(ready) <= 2
        assert len([each for each in ready if each.worked_at is not None]) <= 1
    assert sorted(str(each.why) for each in world.rentals()) == ["None", "lost_race"]


@virtual
async def test_the_loser_need_not_wait_for_the_next_pass() -> None:
    world = World(race=True, limits=Limits(pass_s=100))
    for each in world.vast.offers:
        each["inet_down_cost"] = 0.0
    await world.start()
    running = asyncio.create_task(world.fleet.run())
    world.want(1)
    await asyncio.sleep(250)
    one, two = world.rentals()
    world.fleet.hear(Report(label=two.label, at=world.clock.now(), state=State.JOINING))
    await asyncio.sleep(5)
    assert [each.why for each in world.rentals()] == [Why.LOST_RACE, None]
    assert [each.label for each in world.vast.alive] == [two.label]
    assert one.label in {label.removeprefix("key-of-") for label in world.door.revoked}
    running.cancel()


@virtual
async def test_where_traffic_is_dear_one_is_started() -> None:
    world = await begun(down_usd_per_gb=0.005)
    await world.until_works(1)
    assert len(world.rentals()) == 1


@virtual
async def test_caps_count_both_and_a_race_waits_for_nobody() -> None:
    world = await begun(2, caps=replace(CAPS, nodes={TYPE: 3}))
    await world.passes(4)
    assert [len({each.slot_id for each in world.rentals()}), len(world.vast.alive)] == [2, 3]
    await world.until_works(2)
    assert all(each.waiting is None for each in world.fleet.nodes())


@virtual
async def test_a_slot_without_a_machine_comes_before_a_race() -> None:
    world = await begun()
    world.vast.scenarios = dict.fromkeys(range(1001, 1007), SLOW)
    world.door.full = True
    await world.passes(1)
    world.want(2)
    world.door.full = False
    # The second one is there at once; the first one tries the door again later, and until then nobody races.
    await world.passes(2)
    assert [each.slot_id for each in world.rentals() if each.state is not State.ENDED] == ["slot-2"]
    await world.passes(5)
    alive = [each.slot_id for each in world.rentals() if each.state is not State.ENDED]
    assert alive[:2] == ["slot-2", "slot-1"]
    assert sorted(alive) == ["slot-1", "slot-1", "slot-2", "slot-2"]


@virtual
async def test_if_one_of_two_fails_the_other_one_goes_on() -> None:
    world = await begun()
    world.vast.scenarios[1002] = Scenario(end="oci_error", pull_s=20)
    (node,) = await world.until_works(1)
    assert [each.why for each in world.rentals()] == [None, Why.BROKEN]
    assert node.label == world.rentals()[0].label


@virtual
async def test_two_that_run_are_two_after_a_restart_and_go_with_their_slot() -> None:
    world = await begun()
    await world.passes(3)
    assert len(world.vast.alive) == 2
    await world.restart(0)
    assert len(world.fleet.nodes()) == 1
    world.want(0)
    await world.passes(9)
    assert (world.vast.alive, world.fleet.nodes()) == ([], [])


@virtual
async def test_a_second_one_whose_answer_is_lost_is_given_back_when_it_shows_up() -> None:
    world = await begun()
    await world.passes(1)
    world.server.fail("rent", Fault(cut=True, worked=True))
    world.vast.scenarios[1001] = FAST
    world.vast.list_omits_s = 58
    await world.until_works(1)
    await world.passes(30)
    assert len(world.vast.alive) == 1
    assert sorted(str(each.why) for each in world.rentals()) == ["None", "lost_race"]
