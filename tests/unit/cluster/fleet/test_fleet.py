"""Many at once: caps, slots, failures in a row, restarts, two heads, and what is nobody's."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest

from cluster.fleet.books import Deposed
from cluster.fleet.caps import Caps
from cluster.fleet.door import Guest
from cluster.fleet.fleet import Fleet
from cluster.fleet.limits import Limits
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.report import Report
from cluster.fleet.slots import Node
from cluster.fleet.waiting import Reason, Wait
from tests.fakes.books import MemoryBooks
from tests.fakes.vast import Scenario, offer
from tests.fakes.vast_server import Fault, too_many
from tests.fakes.virtual_time import virtual
from tests.fakes.world import CAPS, PREFIX, TYPE, World


async def begun(count: int, **changes: object) -> World:
    world = World(**{"offers": count + 3, **changes})
    await world.start()
    world.want(count)
    return world


def reasons(world: World) -> list[Reason | None]:
    return [None if each.waiting is None else each.waiting.reason for each in world.fleet.nodes()]


def stray(world: World, label: str, number: int = 77) -> int:
    """Somebody else rents something."""
    world.vast.offers.append(offer(number))
    body = {"client_id": "me", "image": "x", "disk": 33, "label": label, "runtype": "args", "env": {}}
    return int(world.vast.rent(number, body)["new_contract"])


# -------------------------------------------------------------------- caps


@pytest.mark.parametrize(
    ("caps", "most", "reason"),
    [
        (replace(CAPS, usd_per_hour=0.8), 2, Reason.HOUR_CAP),
        (replace(CAPS, usd_per_instance_hour=0.36), 0, Reason.PRICE_CAP),
        (replace(CAPS, usd_per_day=0.12), 1, Reason.DAY_CAP),
    ],
)
@virtual
async def test_at_a_cap_slots_wait_and_say_why(caps: object, most: int, reason: Reason) -> None:
    world = await begun(4, caps=caps)
    await world.passes(8)
    assert len(world.vast.contracts) == most
    assert [each for each in reasons(world) if each is not None] == [reason] * (4 - most)
    assert all(each.waiting is None or each.waiting.detail for each in world.fleet.nodes())


@virtual
async def test_room_that_becomes_free_is_taken() -> None:
    world = await begun(2, caps=replace(CAPS, nodes={TYPE: 2}), limits=Limits(retry_s=600))
    two = await world.until_works(2)
    await world.passes(8)
    world.fleet.dismiss(two[0].id)
    world.want(2)
    await world.passes(1)
    assert reasons(world)[-1] is Reason.NODES_CAP
    # Given back; seen to be gone; and then at once.
    await world.passes(2)
    assert len(world.vast.contracts) == 3


@virtual
async def test_the_day_s_cap_ends_what_runs_before_it_is_exceeded_and_the_next_day_goes_on() -> None:
    world = await begun(2, caps=replace(CAPS, usd_per_day=0.5), hour=23)
    await world.until_works(2)
    world.busy = {each.label for each in world.rentals()[:1]}
    while world.clock.now().day == 1:
        world.want(2)
        await world.passes(1)
        usd = sum(sum(meters.values()) for meters in world.vast.bill().values())
        assert usd <= 0.5
    assert {each.why for each in world.rentals() if each.why is not None} == {Why.DAY_CAP}
    # Who works goes last.
    first, second = sorted(world.rentals(), key=lambda each: each.since)[:2]
    assert second.label in world.busy
    assert first.label not in world.busy
    await world.until_works(2)


# -------------------------------------------------------------------- slots


@virtual
async def test_a_slot_is_there_at_once_and_added_again_it_is_the_same() -> None:
    world = await begun(0)
    assert [world.fleet.add(each, TYPE) for each in ("one", "two", "one")] == [True] * 3
    assert [each.id for each in world.fleet.nodes()] == ["one", "two"]
    await world.until_works(2)
    assert world.fleet.add("one", TYPE)
    await world.passes(2)
    assert {each.slot_id for each in world.rentals()} == {"one", "two"}
    # No two go for one offer.
    assert world.vast.asked["rent"] == 2


@virtual
async def test_no_more_slots_than_its_type_may_have_and_none_of_an_unknown_one() -> None:
    world = await begun(0, caps=replace(CAPS, nodes={TYPE: 2}))
    added = [world.fleet.add(each, TYPE) for each in ("one", "two", "three", "one")]
    assert added == [True, True, False, True]
    assert not world.fleet.add("other", "gpu_b300")
    assert not world.fleet.add("one", "gpu_b300")
    await world.until_works(2)
    # Whoever goes makes room, though his machine is there until it is given back.
    assert world.fleet.dismiss("one")
    assert world.fleet.add("three", TYPE)
    assert not world.fleet.add("four", TYPE)
    await world.passes(12)
    assert [each.id for each in world.fleet.nodes()] == ["two", "three"]


@virtual
async def test_who_was_dismissed_does_not_come_back_by_being_added_again() -> None:
    world = await begun(1)
    (node,) = await world.until_works(1)
    world.server.fail("destroy", *[Fault()] * 8)
    world.fleet.dismiss(node.id)
    assert not world.fleet.add(node.id, TYPE)
    await world.passes(2)
    (there,) = world.fleet.nodes()
    assert (there.id, there.dismissed) == (node.id, True)
    await world.passes(10)
    assert (world.fleet.nodes(), len(world.vast.contracts), world.vast.alive) == ([], 1, [])


@pytest.mark.parametrize("after_s", [0.05, 0.25, 0.45, 3.0, 6.0])
@virtual
async def test_who_is_dismissed_while_it_is_being_rented_leaves_nothing(after_s: float) -> None:
    world = await begun(1)
    # Looking at the market takes longer than a pass.
    world.server.fail("search", *[Fault()] * (3 if after_s < 1 else 1))
    await world.fleet.reconcile()
    await asyncio.sleep(after_s)
    world.want(0)
    await world.passes(12)
    assert (world.vast.alive, world.fleet.nodes()) == ([], [])
    assert {each.state for each in world.rentals()} <= {State.ENDED}


@virtual
async def test_who_is_dismissed_by_name_goes_even_if_it_works_and_is_not_replaced() -> None:
    world = await begun(2)
    one, two = await world.until_works(2)
    world.busy = {one.label or ""}
    await world.passes(2)
    assert world.fleet.dismiss(one.id)
    assert not world.fleet.dismiss(one.id)
    await world.passes(10)
    assert [each.id for each in world.fleet.nodes()] == [two.id]
    assert len(world.vast.contracts) == 2


@virtual
async def test_a_node_that_has_worked_and_is_lost_is_gone_and_not_another_one_of_its_name() -> None:
    world = await begun(2)
    world.vast.scenarios[1001] = Scenario(end="exits", after_s=300)
    await world.until_works(2)
    await world.passes(40)
    lost = next(each for each in world.rentals() if each.why is Why.EXITED)
    assert lost.slot_id not in {each.id for each in world.fleet.nodes()}
    assert (len(world.fleet.nodes()), len(world.vast.contracts)) == (1, 2)


@virtual
async def test_what_nobody_offers_is_waited_for() -> None:
    world = World(offers=0)
    await world.start()
    world.want(1)
    await world.passes(3)
    assert reasons(world) == [Reason.NO_OFFER]
    world.vast.offers.append(offer(1))
    await world.until_works(1)


@virtual
async def test_nodes_that_joined_by_hand_are_listed_and_left_alone() -> None:
    world = await begun(0)
    stray(world, "my-own-machine")
    world.door.by_hand.append(Guest("by-hand", TYPE))
    await world.passes(3)
    (node,) = world.fleet.nodes()
    assert node == Node(id="by-hand", node_type=TYPE)
    assert not world.fleet.dismiss("by-hand")
    await world.passes(3)
    assert len(world.vast.alive) == 1
    assert world.door.revoked == []


@virtual
async def test_whether_it_is_busy_no_node_says_itself() -> None:
    world = await begun(1)
    await world.passes(4)
    (one,) = world.rentals()
    world.fleet.hear(Report(label=one.label, at=world.clock.now(), state=State.BUSY))
    await world.passes(1)
    assert world.rentals()[0].state is State.IDLE
    world.fleet.hear(Report(label=one.label, at=world.clock.now(), state=State.BUSY))
    await world.passes(1)
    assert world.rentals()[0].state is State.IDLE


# -------------------------------------------------------------------- failures


@virtual
async def test_a_type_that_fails_again_and_again_pauses_for_longer_each_time() -> None:
    world = World(offers=9)
    for number in range(1, 7):
        world.vast.scenarios[number + 1000] = Scenario(end="oci_error")
    await world.start()
    world.want(1)
    await world.until_works(1)
    at = [each.reserved_at for each in world.rentals()]
    gaps = [(after - before).total_seconds() for before, after in pairwise(at)]
    assert all(gap < 60 for gap in gaps[:2])
    for gap, least in zip(gaps[2:], (120, 240, 480, 960), strict=True):
        assert least < gap < least + 60
    assert world.shelf.breakers[TYPE].failures == 0


@virtual
async def test_after_a_pause_one_is_tried() -> None:
    world = World(offers=9)
    for number in range(1, 9):
        world.vast.scenarios[number + 1000] = Scenario(end="oci_error")
    await world.start()
    world.want(3)
    await world.passes(8)
    before = len(world.rentals())
    assert reasons(world) == [Reason.FAILURES] * 3
    assert all(each.waiting is not None and each.waiting.until for each in world.fleet.nodes())
    await asyncio.sleep(120)
    await world.passes(2)
    assert len(world.rentals()) == before + 1


@pytest.mark.parametrize(
    ("endpoint", "fault", "reason", "pause_s"),
    [
        ("rent", Fault(status=400, body=b'{"error": "insufficient_credit", "msg": ""}'), Reason.NO_CREDIT, 300),
        ("search", Fault(status=401, body=b'{"error": "auth_error"}'), Reason.NOT_ALLOWED, 300),
        ("rent", Fault(status=400, body=b'{"error": "invalid_args"}'), Reason.REFUSED, 300),
        ("search", Fault(status=429, body=b'{"error": "search_quota_exceeded"}'), Reason.PROVIDER, 6 * 3600),
        ("search", Fault(status=429, headers={"Retry_After": "900"}), Reason.PROVIDER, 900),
    ],
)
@virtual
async def test_what_the_account_can_t_do_is_not_tried_on(
    endpoint: str, fault: Fault, reason: Reason, pause_s: float
) -> None:
    world = await begun(1)
    world.server.fail(endpoint, fault)
    await world.passes(4)
    assert reasons(world) == [reason]
    (node,) = world.fleet.nodes()
    assert node.waiting is not None
    assert node.waiting.until is not None
    assert (node.waiting.until - world.clock.now()).total_seconds() == pytest.approx(pause_s - 30, abs=20)
    assert world.vast.asked[endpoint] == 1
    await asyncio.sleep(pause_s)
    await world.until_works(1)


@virtual
async def test_a_provider_that_does_not_answer_ends_nobody() -> None:
    world = await begun(2)
    await world.until_works(2)
    for endpoint in ("list", "search", "show"):
        world.server.fail(endpoint, *[Fault(), too_many(), Fault(cut=True)] * 30)
    world.want(3)
    await world.passes(12)
    assert len(world.vast.alive) == 2
    assert {each.state for each in world.rentals()} == {State.IDLE}


@virtual
async def test_credit_for_less_than_an_hour_rents_nothing_more() -> None:
    world = await begun(2)
    await world.until_works(2)
    world.vast.deposit = sum(sum(meters.values()) for meters in world.vast.bill().values()) + 0.8
    world.want(3)
    await asyncio.sleep(400)
    await world.passes(3)
    assert world.fleet.credit_usd is not None
    assert 0 < world.fleet.credit_usd < 0.8
    assert [each for each in reasons(world) if each] == [Reason.NO_CREDIT]
    world.vast.deposit += 100
    await asyncio.sleep(300)
    await world.until_works(3)


# -------------------------------------------------------------------- orphans


@virtual
async def test_what_has_our_label_and_is_nobody_s_goes_at_the_start_and_later() -> None:
    world = World()
    number, other = stray(world, f"{PREFIX}-1"), stray(world, f"{PREFIX}ish-2", 78)
    await world.start()
    await world.passes(2)
    assert [each.id for each in world.vast.alive] == [other]
    later = [stray(world, f"{PREFIX}-same", 79), stray(world, f"{PREFIX}-same", 80)]
    await world.passes(2)
    assert [each.id for each in world.vast.alive] == [other]
    await world.passes(8)
    assert {(each.why, each.state) for each in world.rentals()} == {(Why.ORPHAN, State.ENDED)}
    for each in (number, *later):
        contract = world.vast.contracts[each]
        paid = sum(contract.bill(world.clock.monotonic()).values())
        (rental,) = [rental for rental in world.rentals() if rental.instance == str(each)]
        assert world.shelf.usd(rental.label) == pytest.approx(paid, abs=contract.dph_base / 3600)


@virtual
async def test_what_is_being_rented_is_no_orphan() -> None:
    world = await begun(1)
    # The machine is there for a minute before the fleet knows its number.
    world.vast.show_omits_s = 55
    await world.until_works(1)
    assert len(world.vast.contracts) == 1


# -------------------------------------------------------------------- restarts


@virtual
async def test_another_head_adopts_what_works_and_rents_nothing_twice() -> None:
    world = await begun(2)
    before = {each.id for each in await world.until_works(2)}
    await world.restart()
    assert {each.id for each in world.fleet.nodes()} == before
    assert set(world.want(2)) == before
    await world.passes(10)
    assert len(world.vast.contracts) == 2
    assert {each.state for each in world.rentals()} == {State.IDLE}


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.25, 0.35, 0.45, 2.3, 2.5, 6.0])
@virtual
async def test_a_head_that_is_killed_while_it_rents_leaves_one_machine_and_not_two(after_s: float) -> None:
    world = await begun(1)
    world.vast.list_omits_s = 20
    await world.fleet.reconcile()
    await asyncio.sleep(after_s)
    slot_ids = {each.slot_id for each in world.rentals()}
    await world.restart()
    assert {each.id for each in world.fleet.nodes()} == slot_ids
    world.want(1)
    await world.until_works(1)
    await world.passes(10)
    assert len(world.vast.alive) == 1
    assert len({each.slot_id for each in world.rentals()}) == 1


@pytest.mark.parametrize("after_s", [0.1, 0.25, 0.35, 0.6])
@virtual
async def test_a_head_that_is_killed_while_it_gives_back_has_it_given_back(after_s: float) -> None:
    world = await begun(1)
    await world.until_works(1)
    world.want(0)
    passing = asyncio.create_task(world.fleet.reconcile())
    await asyncio.wait([passing], timeout=after_s)
    passing.cancel()
    await asyncio.gather(passing, return_exceptions=True)
    await world.restart()
    world.want(0)
    await world.passes(10)
    assert world.vast.alive == []
    assert {each.state for each in world.rentals()} == {State.ENDED}


@virtual
async def test_a_node_that_worked_before_a_restart_is_not_silent_because_nobody_listened() -> None:
    world = await begun(1)
    await world.until_works(1)
    await world.restart(3600)
    await world.passes(3)
    assert {each.state for each in world.rentals()} == {State.IDLE}
    # Nor is it spared because it says nothing to the next one.
    world.mute = {each.label for each in world.rentals()}
    await world.restart()
    await world.passes(25)
    assert {each.state for each in world.rentals()} == {State.IDLE}
    await world.passes(10)
    assert world.rentals()[0].why is Why.SILENT


@virtual
async def test_of_two_heads_one_rents() -> None:
    world = await begun(1)
    first = world.fleet
    await world.start()
    world.want(2)
    for _ in range(4):
        with pytest.raises(Deposed):
            await first.reconcile()
        await world.passes(1)
    await world.until_works(2)
    assert len(world.vast.contracts) == 2
    await first.close()


# -------------------------------------------------------------------- running


class _Shaky(MemoryBooks):
    """The database is away for a moment."""

    away = lost = 0

    async def reserve(self, rental: Rental, caps: Caps) -> Wait | None:
        wait = await super().reserve(rental, caps)
        if self.lost:
            self.lost -= 1
            raise OSError("the answer is lost")
        return wait

    async def write(self, *args: object) -> None:
        if self.away:
            self.away -= 1
            raise OSError("no database")
        await super().write(*args)


@virtual
async def test_a_reservation_whose_answer_was_lost_is_kept_back_for_a_moment_only() -> None:
    world = World(caps=replace(CAPS, nodes={TYPE: 1}))
    await world.start()
    books = _Shaky(world.shelf)
    world.fleet = Fleet(world.provider, books, world.door, caps=world.caps, prefix=PREFIX, now=world.clock.now)
    await world.fleet.start()
    world.want(1)
    books.lost = 1
    await world.passes(4)
    assert world.rentals()[0].why is Why.NOT_RENTED
    await world.until_works(1)
    assert (world.shelf.hosts, world.shelf.breakers, len(world.vast.contracts)) == ({}, {}, 1)


@virtual
async def test_it_runs_on_whatever_fails_and_hears_of_a_slot_at_once() -> None:
    world = World()
    await world.start()
    books = _Shaky(world.shelf)
    limits = Limits(pass_s=100)
    fleet = Fleet(world.provider, books, world.door, caps=CAPS, limits=limits, prefix=PREFIX, now=world.clock.now)
    await fleet.start()
    running = asyncio.create_task(fleet.run())
    await asyncio.sleep(10)
    fleet.add("one", TYPE)
    await asyncio.sleep(10)
    assert len(world.vast.contracts) == 1
    books.away = 3
    await asyncio.sleep(400)
    assert (books.away, running.done()) == (0, False)
    await MemoryBooks(world.shelf).take_over()
    await asyncio.sleep(130)
    assert isinstance(running.exception(), Deposed)
    await fleet.close()


def test_every_reason_says_what_it_means() -> None:
    for kind in (State, Why, Reason):
        assert all(each.meaning.endswith(".") for each in kind)
        assert len({each.meaning for each in kind}) == len(kind)


@virtual
async def test_who_adds_and_dismisses_without_end_fills_no_memory_and_asks_the_provider_no_more_often() -> None:
    world = await begun(0, caps=replace(CAPS, nodes={TYPE: 2}))
    # Between two passes, or while a pass hangs.
    added = [
        number for number in range(1000) if world.fleet.add(f"x-{number}", TYPE) and world.fleet.dismiss(f"x-{number}")
    ]
    assert len(added) == len(world.fleet.nodes()) == 16
    await world.passes(1)
    assert world.fleet.nodes() == []
    assert world.fleet.add("y", TYPE)
    running = asyncio.create_task(world.fleet.run())
    await asyncio.sleep(100)
    asked = world.vast.asked["list"]
    for _ in range(100):
        await asyncio.sleep(1)
        # That is no news.
        assert world.fleet.add("y", TYPE)
        assert not world.fleet.add("z", "unheard-of")
        assert not world.fleet.dismiss("z")
    assert world.vast.asked["list"] - asked <= 10
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
