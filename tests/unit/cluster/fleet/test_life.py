"""A rental from the wish to its end, and each way on which one may fail."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from cluster.fleet.gates import Breaker
from cluster.fleet.limits import STEPS_S, Limits, step_s
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.report import Report
from cluster.fleet.terms import Terms
from tests.fakes.vast import Scenario
from tests.fakes.vast_server import Fault
from tests.fakes.virtual_time import virtual
from tests.fakes.world import CAPS, IMAGE_BYTES, WEIGHT_BYTES, World


async def begun(count: int = 1, **changes: object) -> World:
    """So many are wished for."""
    world = World(**changes)
    await world.start()
    world.want(count)
    return world


def first(world: World) -> Rental:
    return world.rentals()[0]


async def replaced(world: World, why: Why) -> Rental:
    """The first one ends for that reason, and the second one works on another machine, for the same slot."""
    (node,) = await world.until_works(1)
    await world.passes(8)
    one, two = world.rentals()
    assert (one.why, one.state, two.label, two.slot_id) == (why, State.ENDED, node.label, one.slot_id)
    assert one.host != two.host
    assert [each.label for each in world.vast.alive] == [two.label]
    assert world.vast.violations == []
    return one


@virtual
async def test_what_is_wished_for_comes_and_goes_and_is_booked_by_state() -> None:
    world = await begun()
    world.vast.scenarios[1001] = Scenario(pull_s=100, boot_s=30, pull_bytes=IMAGE_BYTES)
    (node,) = await world.until_works(1)
    (contract,) = world.vast.alive
    assert (node.instance, node.state, node.waiting) == (str(contract.id), State.IDLE, None)
    assert contract.body["env"] == {"TOKEN": "token-of-the-test"}
    world.busy.add(contract.label)
    await world.passes(10)
    world.busy.clear()
    await world.passes(10)
    world.want(0)
    await world.passes(8)
    assert (world.vast.alive, world.fleet.nodes(), first(world).state) == ([], [], State.ENDED)
    assert world.door.revoked == [f"key-of-{contract.label}"]
    # What it was doing, all the time, and nothing twice.
    spans = sorted(world.shelf.stretches.values(), key=lambda each: each.begun_at)
    assert all(one.until == two.begun_at for one, two in pairwise(spans))
    assert [each.state for each in spans] == [
        State.LOADING, State.INSTALLING, State.WEIGHTS, State.JOINING, State.IDLE, State.BUSY, State.IDLE, State.ENDING
    ]  # fmt: skip
    bill = contract.bill(world.clock.monotonic())
    assert sum(bill.values()) == pytest.approx(world.shelf.usd(contract.label), abs=contract.dph_base / 3600)
    assert bill["bandwidth"] == pytest.approx((IMAGE_BYTES + WEIGHT_BYTES) / 1e9 * contract.offer["inet_down_cost"])
    assert bill["bandwidth"] == pytest.approx(sum(each.bandwidth_usd for each in spans))


@virtual
async def test_a_container_that_was_not_heard_of_is_booting() -> None:
    world = await begun()
    await world.passes(1)
    world.mute.add(first(world).label)
    await world.passes(2)
    assert first(world).state is State.BOOTING


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Scenario(end="stuck_loading"), Why.STUCK),
        (Scenario(end="oci_error", pull_s=60), Why.BROKEN),
        (Scenario(end="exits", pull_s=60, after_s=10), Why.EXITED),
        (Scenario(end="offline", pull_s=60, after_s=30), Why.OFFLINE),
        (Scenario(end="outbid", pull_s=60, after_s=60), Why.OUTBID),
    ],
)
@virtual
async def test_a_machine_that_fails_is_given_back_and_left_alone(plan: Scenario, why: Why) -> None:
    world = await begun()
    world.vast.scenarios[1001] = plan
    one = await replaced(world, why)
    assert world.shelf.hosts[one.host][0] is why
    assert world.shelf.breakers.get("gpu_4090", Breaker()).failures == 0
    bill = world.contract(one.label).bill(world.clock.monotonic())
    late_usd = 12 * one.terms.usd_per_hour / 3600
    assert bill["gpu"] + bill["storage"] == pytest.approx(world.shelf.usd(one.label, bandwidth=False), abs=late_usd)


@pytest.mark.parametrize(
    ("line_mbps", "loading_s", "weights_s"),
    [
        # 9 GB of image, 70 GB of packages and weights.
        (1000.0, 300.0, 840.0),
        (5000.0, 300.0, 300.0),
        (300.0, 480.0, 1800.0),
        (100.0, 900.0, 1800.0),
        (0.0, 900.0, 1800.0),
    ],
)
def test_a_step_may_take_as_long_as_its_machine_s_line_explains(
    line_mbps: float, loading_s: float, weights_s: float
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    rental = Rental(
        label="one",
        slot_id="slot",
        node_type="gpu",
        state=State.LOADING,
        since=now,
        reserved_at=now,
        offer="1",
        host="1",
        terms=Terms(gpu_usd_per_hour=1, storage_usd_per_hour=0),
        start_bytes=79e9,
        image_bytes=9e9,
        line_mbps=line_mbps,
        stretch_at=now,
    )
    assert step_s(rental) == pytest.approx(loading_s)
    assert step_s(replace(rental, state=State.WEIGHTS)) == pytest.approx(weights_s)
    assert step_s(replace(rental, state=State.BUSY)) is None


@virtual
async def test_who_loads_for_longer_than_its_line_explains_is_stuck() -> None:
    world = await begun()
    world.vast.scenarios[1001] = Scenario(end="stuck_loading")
    one = await replaced(world, Why.STUCK)
    assert one.begun_at is not None
    assert one.destroyed_at is not None
    # 6 GB at 1,800 Mb/s explain less than the least that is given.
    assert 300 < (one.destroyed_at - one.begun_at).total_seconds() < 320


@virtual
async def test_a_node_that_never_says_a_word_is_stuck() -> None:
    world = await begun()
    await world.passes(1)
    world.mute.add(first(world).label)
    one = await replaced(world, Why.STUCK)
    assert one.begun_at is not None
    assert (one.since - one.begun_at).total_seconds() < STEPS_S[State.BOOTING] + 180


@virtual
async def test_a_node_that_falls_silent_in_its_start_is_replaced() -> None:
    world = await begun()
    await world.passes(3)
    assert first(world).state is State.INSTALLING
    world.mute.add(first(world).label)
    await replaced(world, Why.SILENT)


@virtual
async def test_a_step_that_would_take_too_long_is_given_up_before_it_has() -> None:
    world = await begun()
    await world.passes(4)
    one = first(world)
    assert one.state is State.WEIGHTS
    for left_s, ended in ((270.0, False), (295.0, True)):
        world.fleet.hear(Report(label=one.label, at=world.clock.now(), state=State.WEIGHTS, left_s=left_s))
        world.mute.add(one.label)
        await world.passes(1)
        assert (first(world).why is Why.TOO_SLOW) is ended
    await replaced(world, Why.TOO_SLOW)


@virtual
async def test_a_node_that_says_that_it_can_t_go_on_is_replaced_and_its_machine_is_not_blamed() -> None:
    world = await begun()
    await world.passes(3)
    one = first(world)
    world.fleet.hear(Report(label=one.label, at=world.clock.now(), state=State.INSTALLING, fault="Python 3.9"))
    world.mute.add(one.label)
    await world.passes(1)
    assert (first(world).why, first(world).detail) == (Why.FAILED, "Python 3.9")
    assert world.shelf.hosts == {}
    assert world.shelf.breakers["gpu_4090"].failures == 1


@virtual
async def test_a_machine_that_was_given_back_by_others_is_missed_after_a_while() -> None:
    world = await begun()
    await world.until_works(1)
    world.vast.destroy(int(first(world).instance or 0))
    await world.passes(5)
    assert first(world).state is State.IDLE
    await world.passes(5)
    assert (first(world).state, first(world).why) == (State.ENDED, Why.GONE)


@virtual
async def test_a_fresh_machine_may_be_in_no_list_for_a_while() -> None:
    world = await begun()
    world.vast.list_omits_s = 55
    await world.until_works(1)
    assert len(world.vast.contracts) == 1


@virtual
async def test_a_machine_that_is_dearer_than_agreed_is_not_kept() -> None:
    world = await begun()
    world.vast.offers[0]["dph_base"] = 0.3
    await world.provider.candidates("gpu_4090", ())
    world.vast.offers[0]["dph_base"] = 0.35
    one = await replaced(world, Why.WRONG_TERMS)
    assert "0.3" in one.detail
    bill = world.contract(one.label).bill(world.clock.monotonic())
    assert bill["gpu"] + bill["storage"] <= world.shelf.usd(one.label, bandwidth=False)


@virtual
async def test_an_offer_that_is_gone_is_not_tried_again() -> None:
    world = await begun()
    await world.provider.candidates("gpu_4090", ())
    world.vast.offers[0]["rented"] = True
    await replaced(world, Why.NOT_RENTED)
    assert world.vast.asked["rent"] == 2
    assert world.shelf.hosts == {}


@pytest.mark.parametrize("omitted_s", [0, 50])
@virtual
async def test_an_answer_that_was_lost_rents_nothing_twice(omitted_s: float) -> None:
    world = await begun()
    world.vast.list_omits_s = omitted_s
    world.server.fail("rent", Fault(cut=True, worked=True))
    await world.until_works(1)
    assert (world.vast.asked["rent"], len(world.rentals())) == (1, 1)


@virtual
async def test_what_is_not_clear_for_minutes_is_found_by_a_later_list() -> None:
    world = await begun()
    # The client gives up after one.
    world.vast.list_omits_s = 90
    world.server.fail("rent", Fault(cut=True, worked=True))
    await world.passes(8)
    assert first(world).instance is None
    (node,) = await world.until_works(1)
    assert (len(world.vast.contracts), node.label) == (1, first(world).label)
    world.want(0)
    await world.passes(8)
    (contract,) = world.vast.contracts.values()
    paid = sum(contract.bill(world.clock.monotonic())[name] for name in ("gpu", "storage"))
    assert world.shelf.usd(contract.label, bandwidth=False) == pytest.approx(paid, abs=contract.dph_base / 3600)


@virtual
async def test_a_provider_that_hangs_is_not_waited_for() -> None:
    world = await begun(limits=Limits(rent_s=12))
    world.server.fail("rent", Fault(silent=True, worked=True))
    await world.passes(2)
    assert first(world).instance is None
    await world.passes(1)
    # The client itself would have waited for longer.
    assert world.clock.monotonic() < 35
    assert first(world).instance == "9001"


@virtual
async def test_what_never_shows_up_was_not_rented() -> None:
    world = await begun()
    world.server.fail("rent", Fault(cut=True))
    one = await replaced(world, Why.NEVER_SEEN)
    assert one.instance is None
    assert world.shelf.usd(one.label) == 0
    assert f"key-of-{one.label}" in world.door.revoked


@virtual
async def test_what_shows_up_after_all_is_given_back_and_paid() -> None:
    world = await begun()
    world.vast.list_omits_s = 500
    world.server.fail("rent", Fault(cut=True, worked=True))
    for _ in range(60):
        await world.passes(1)
        if first(world).state is State.ENDED and world.vast.contracts[9001].ended is None:
            break
    await world.passes(30)
    (contract,) = [each for each in world.vast.contracts.values() if each.label == first(world).label]
    assert contract.ended is not None
    assert first(world).why is Why.ORPHAN
    paid = sum(contract.bill(world.clock.monotonic())[name] for name in ("gpu", "storage"))
    assert world.shelf.usd(contract.label, bandwidth=False) == pytest.approx(paid, abs=contract.dph_base / 3600)


@virtual
async def test_an_end_that_fails_is_begun_again_and_costs_until_it_succeeds() -> None:
    world = await begun()
    await world.until_works(1)
    world.want(0)
    world.server.fail("destroy", *[Fault()] * 8)
    await world.passes(10)
    (contract,) = world.vast.contracts.values()
    assert (contract.ended is None, first(world).state) == (False, State.ENDED)
    paid = sum(contract.bill(world.clock.monotonic())[name] for name in ("gpu", "storage"))
    assert world.shelf.usd(contract.label, bandwidth=False) == pytest.approx(paid, abs=contract.dph_base / 3600)


@virtual
async def test_an_end_that_was_accepted_and_did_not_happen_is_begun_again() -> None:
    world = await begun()
    await world.until_works(1)
    world.want(0)
    world.server.fail("destroy", Fault(status=200, body=b'{"success": true}'))
    await world.passes(1)
    assert first(world).destroyed_at is not None
    await world.passes(9)
    (contract,) = world.vast.contracts.values()
    assert (contract.ended is None, first(world).state) == (False, State.ENDED)
    paid = sum(contract.bill(world.clock.monotonic())[name] for name in ("gpu", "storage"))
    assert world.shelf.usd(contract.label, bandwidth=False) == pytest.approx(paid, abs=contract.dph_base / 3600)


@virtual
async def test_a_fresh_machine_that_no_list_shows_yet_has_not_ended() -> None:
    world = await begun()
    world.vast.list_omits_s = 50
    await world.passes(2)
    world.want(0)
    world.server.fail("destroy", Fault(status=200, body=b'{"success": true}'))
    await world.passes(10)
    assert world.vast.alive == []
    # Else it would have been found as nobody's.
    assert [(each.state, each.why) for each in world.rentals()] == [(State.ENDED, Why.DISMISSED)]


@pytest.mark.parametrize("end", ["offline", "outbid"])
@virtual
async def test_a_machine_that_is_stopped_costs_its_disk_until_it_is_given_back(end: str) -> None:
    world = await begun()
    world.vast.scenarios[1001] = Scenario(end=end, after_s=60)
    world.server.fail("destroy", *[Fault()] * 19)
    await world.passes(25)
    one = first(world)
    assert (one.ended_at or one.since) > one.reserved_at + timedelta(seconds=120)
    bill = world.contract(one.label).bill(world.clock.monotonic())
    late_usd = 12 * one.terms.usd_per_hour / 3600
    assert bill["gpu"] + bill["storage"] == pytest.approx(world.shelf.usd(one.label, bandwidth=False), abs=late_usd)


@virtual
async def test_a_day_s_costs_are_booked_on_that_day() -> None:
    world = await begun(hour=23)
    await world.until_works(1)
    await asyncio.sleep(3600)
    world.speak()
    await world.passes(2)
    spans = [each for each in world.shelf.stretches.values() if each.begun_at.date() != each.until.date()]
    assert all(each.until.hour == each.until.minute == each.until.second == 0 for each in spans)
    assert len(spans) == 1
    assert {each.begun_at.day for each in world.shelf.stretches.values()} == {1, 2}


@virtual
async def test_a_door_that_does_not_open_rents_nothing() -> None:
    world = await begun()
    world.door.full = True
    await world.passes(3)
    (node,) = world.fleet.nodes()
    assert node.waiting is not None
    assert (node.waiting.reason.value, world.vast.asked["rent"]) == ("door", 0)
    world.door.full = False
    await world.until_works(1)


@virtual
async def test_a_door_that_fails_is_not_the_machine_s_fault() -> None:
    world = await begun()
    world.door.broken = True
    await world.passes(2)
    assert {each.why for each in world.rentals() if each.state is State.ENDED} == {Why.NOT_RENTED}
    assert (world.vast.asked["rent"], world.shelf.hosts, world.shelf.breakers) == (0, {}, {})
    world.door.broken = False
    await world.until_works(1)


@virtual
async def test_a_door_that_can_t_be_shut_keeps_no_machine_alive() -> None:
    world = await begun()
    await world.until_works(1)
    world.want(0)
    world.door.broken = True
    with pytest.raises(OSError, match="the door"):
        await world.passes(1)
    assert world.vast.alive == []
    await asyncio.sleep(70)
    with pytest.raises(OSError, match="the door"):
        await world.passes(1)
    assert first(world).state is State.ENDING
    world.door.broken = False
    await world.passes(2)
    assert (first(world).state, world.door.revoked) == (State.ENDED, [f"key-of-{first(world).label}"])


@pytest.mark.parametrize("away_s", [0.0, 600.0])
@virtual
async def test_one_list_that_is_empty_by_mistake_ends_nothing_that_works(away_s: float) -> None:
    world = await begun(2)
    await world.until_works(2)
    there = world.vast.alive
    if away_s:
        # The first list of a head, or the first one after a while.
        await world.restart(away_s)
    world.server.fail("list", Fault(status=200, body=b'{"instances": []}'))
    await world.passes(10)
    assert world.vast.alive == there
    assert [each.state for each in world.rentals()] == [State.IDLE, State.IDLE]
    # One that is away for longer is.
    world.server.fail("list", *[Fault(status=200, body=b'{"instances": []}')] * 8)
    await world.passes(9)
    assert {each.why for each in world.rentals()} >= {Why.GONE}


@pytest.mark.parametrize(("down_bytes", "up_bytes"), [(1e15, 0.0), (0.0, 1e15), (1e15, 1e15)])
@virtual
async def test_a_node_that_claims_traffic_costs_the_others_no_day(down_bytes: float, up_bytes: float) -> None:
    world = await begun(3, caps=replace(CAPS, usd_per_day=20.0))
    await world.until_works(3)
    liar, *others = world.rentals()
    said = Report(label=liar.label, at=world.clock.now(), state=State.IDLE, down_bytes=down_bytes, up_bytes=up_bytes)
    world.fleet.hear(said)
    await world.passes(10)
    ended = world.shelf.rentals[liar.label]
    assert (ended.why, ended.state, world.shelf.hosts[liar.host][0]) == (Why.TRAFFIC, State.ENDED, Why.TRAFFIC)
    assert [world.shelf.rentals[each.label].state for each in others] == [State.IDLE, State.IDLE]
    # At most what its start fetches once more, and media.
    most_usd = liar.terms.traffic_usd(2 * liar.start_bytes + 30e9, 30e9)
    assert world.shelf.usd(liar.label) - world.shelf.usd(liar.label, bandwidth=False) <= most_usd
