"""Slots against a model: any order of coming, going and giving up."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.fair import FairSlots, key_of

OWNERS = ("/ann", "/bob", "key_1/ann", "key_1/cleo", "key_2/", "")


class Visitor:
    """A task that takes a slot and keeps it until told to leave."""

    def __init__(self, slots: FairSlots, owner: str, came: Callable[["Visitor"], None]) -> None:
        self.owner = owner
        self.inside = False
        self.leave = asyncio.Event()
        self._slots = slots
        self._came = came
        self.task = asyncio.create_task(self._visit())

    async def _visit(self) -> None:
        async with self._slots.hold(self.owner):
            self.inside = True
            self._came(self)
            try:
                await self.leave.wait()
            finally:
                self.inside = False


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


#: ``come`` of an owner; ``leave`` or ``cancel`` of the n-th who is there; ``both``: one leaves, the next gives up.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.sampled_from(OWNERS)),
        st.tuples(st.sampled_from(["leave", "cancel", "both"]), st.integers(0, 30)),
    ),
    max_size=80,
)


@settings(max_examples=200)
@given(total=st.integers(1, 5), share=st.integers(1, 5), steps=STEPS)
def test_any_order_of_coming_and_going(total: int, share: int, steps: list[tuple[str, object]]) -> None:
    asyncio.run(check(total, share, steps))


async def check(total: int, share: int, steps: list[tuple[str, object]]) -> None:
    slots = FairSlots(total, share, clock=Clock())
    visitors: list[Visitor] = []
    entered: list[Visitor] = []
    keys: set[str] = set()
    for step, what in steps:
        waiting_before = [v for v in visitors if not v.inside and not v.task.done()]
        if step == "come":
            visitors.append(Visitor(slots, str(what), entered.append))
            keys.add(key_of(str(what)))
        elif visitors:
            visitor = visitors[int(str(what)) % len(visitors)]
            if step in ("leave", "both"):
                visitor.leave.set()
            if step == "both":
                # In the moment in which somebody is given the slot, the next in line gives up.
                for other in waiting_before[:1]:
                    other.task.cancel()
            if step == "cancel":
                visitor.task.cancel()
        await settle()
        visitors = [v for v in visitors if not v.task.done()]
        held = Counter(v.owner for v in visitors if v.inside)
        waiting = [v for v in visitors if not v.inside]
        assert held.total() <= total
        assert all(n <= share for n in held.values())
        of_key = Counter(key_of(v.owner) for v in visitors if v.inside)
        free = total - held.total()
        # Nobody waits who could have a slot. A key that is not alone leaves a third of what it has.
        assert all(
            not free or held[v.owner] == share or (len(keys) > 1 and of_key[key_of(v.owner)] >= max(1, 3 * (free - 1)))
            for v in waiting
        )
        # Within an owner who came first is in first.
        for owner in OWNERS:
            order = [v for v in entered if v.owner == owner]
            still = [v for v in waiting if v.owner == owner]
            assert not set(map(id, order)) & set(map(id, still))
    for visitor in visitors:
        visitor.task.cancel()
    await asyncio.gather(*(v.task for v in visitors), return_exceptions=True)
    # Everything was given back.
    fresh = [Visitor(slots, f"new {n}/", entered.append) for n in range(total)]
    await settle()
    assert all(v.inside for v in fresh)
    assert slots._waiting == {}
    for visitor in fresh:
        visitor.task.cancel()
    await asyncio.gather(*(v.task for v in fresh), return_exceptions=True)
    assert not slots._held
    assert not slots._held_by_key


class Clock:
    """Stands still but for what a test adds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def leave(visitors: list[Visitor]) -> None:
    for visitor in visitors:
        visitor.task.cancel()
    await asyncio.gather(*(v.task for v in visitors), return_exceptions=True)


async def test_owners_take_turns() -> None:
    slots, entered = FairSlots(1, 1, clock=Clock()), list[Visitor]()
    visitors = [Visitor(slots, owner, entered.append) for owner in ["/ann"] * 5 + ["/bob"] * 2 + ["/cleo"]]
    await settle()
    for _ in visitors:
        entered[-1].leave.set()
        await settle()
    assert [v.owner for v in entered] == ["/ann", "/ann", "/bob", "/cleo", "/ann", "/bob", "/ann", "/ann"]
    assert entered == [visitors[n] for n in (0, 1, 5, 7, 2, 6, 3, 4)]


async def test_who_used_least_is_next() -> None:
    """Not who had fewest turns: bob's are short."""
    clock = Clock()
    slots, entered = FairSlots(1, 1, clock=clock), list[Visitor]()
    visitors = [Visitor(slots, owner, entered.append) for owner in ["/ann"] * 4 + ["/bob"] * 4]
    await settle()
    for _ in visitors:
        clock.now += 5 if entered[-1].owner == "/ann" else 1
        entered[-1].leave.set()
        await settle()
    assert [v.owner for v in entered] == ["/ann", "/bob", "/bob", "/bob", "/bob", "/ann", "/ann", "/ann"]


async def test_heavy_owners_leave_a_slot_to_the_others_however_many_they_are() -> None:
    clock = Clock()
    slots, entered = FairSlots(2, 1, spare=1, clock=clock), list[Visitor]()
    for owner in ("/ann", "/cleo", "/dan"):
        visitor = Visitor(slots, owner, entered.append)
        await settle()
        clock.now += 20
        visitor.leave.set()
        await settle()
    heavy = [Visitor(slots, owner, entered.append) for owner in ("/ann", "/cleo", "/dan") for _ in range(3)]
    await settle()
    assert [v.owner for v in heavy if v.inside] == ["/ann"]
    light = Visitor(slots, "/bob", entered.append)
    await settle()
    assert light.inside
    another = Visitor(slots, "/eve", entered.append)
    await settle()
    assert not another.inside
    # A heavy one's end is nothing to another heavy one while who used little waits.
    clock.now += 20
    entered[-2].leave.set()
    await settle()
    assert another.inside
    light.leave.set()
    await settle()
    assert [v.owner for v in heavy if v.inside] == ["/cleo"]
    await leave([*heavy, light, another])


async def test_use_is_forgotten() -> None:
    clock = Clock()
    slots, entered = FairSlots(2, 2, spare=1, clock=clock), list[Visitor]()
    visitor = Visitor(slots, "/ann", entered.append)
    await settle()
    clock.now += 20
    visitor.leave.set()
    await settle()
    ann = [Visitor(slots, "/ann", entered.append) for _ in range(2)]
    await settle()
    assert [v.inside for v in ann] == [True, False]
    await leave(ann)
    clock.now += 120
    ann = [Visitor(slots, "/ann", entered.append) for _ in range(2)]
    await settle()
    assert [v.inside for v in ann] == [True, True]
    await leave(ann)
    for n in range(100):
        async with slots.hold(f"/owner {n}"):
            clock.now += 60
    assert len(slots._used._used) < 20


async def test_who_holds_a_share_waits_although_slots_are_free() -> None:
    slots, entered = FairSlots(3, 2), list[Visitor]()
    ann = [Visitor(slots, "/ann", entered.append) for _ in range(5)]
    await settle()
    bob = Visitor(slots, "/bob", entered.append)
    await settle()
    assert [v.owner for v in entered] == ["/ann", "/ann", "/bob"]
    for visitor in (*ann, bob):
        visitor.task.cancel()
    await asyncio.gather(*(v.task for v in (*ann, bob)), return_exceptions=True)


async def test_the_wait_of_one_who_waits_is_bounded() -> None:
    """However many others join, it is at most a slot for each owner before one has its turn."""
    slots, entered = FairSlots(1, 1), list[Visitor]()
    first = Visitor(slots, "/ann", entered.append)
    await settle()
    mine = Visitor(slots, "/bob", entered.append)
    crowd = [Visitor(slots, "/ann", entered.append) for _ in range(100)]
    await settle()
    first.leave.set()
    await settle()
    assert entered[-1] is mine
    for visitor in (mine, *crowd):
        visitor.task.cancel()
    await asyncio.gather(*(v.task for v in (mine, *crowd)), return_exceptions=True)


async def come(slots: FairSlots, key: str, users: int) -> list[Visitor]:
    """Visitors who want to stay, each another user of the key."""
    visitors = [Visitor(slots, f"{key}/{n}", lambda _: None) for n in range(users)]
    await settle()
    return visitors


def inside(visitors: list[Visitor]) -> int:
    return sum(visitor.inside for visitor in visitors)


@pytest.mark.parametrize(("total", "most"), [(2, 1), (4, 3), (8, 6), (32, 24), (128, 96)])
async def test_a_key_with_many_users_leaves_slots_to_the_others(total: int, most: int) -> None:
    slots = FairSlots(total, 1, clock=Clock())
    await leave(await come(slots, "quiet", 1))
    many = await come(slots, "many", 200)
    assert inside(many) == most
    quiet = await come(slots, "quiet", 1)
    assert inside(quiet) == 1
    await leave([*many, *quiet])


async def test_three_keys_that_take_what_they_can_leave_one_slot_to_a_fourth() -> None:
    slots = FairSlots(64, 1, clock=Clock())
    for n in range(4):
        await leave(await come(slots, f"key_{n}", 1))
    greedy = [await come(slots, f"key_{n}", 200) for n in range(3)]
    fourth = await come(slots, "key_3", 1)
    assert inside(fourth) == 1
    await leave([*greedy[0], *greedy[1], *greedy[2], *fourth])


async def test_a_key_that_is_alone_loses_nothing() -> None:
    """The usual deployment has one. Others count for ten minutes."""
    clock = Clock()
    slots = FairSlots(8, 1, clock=clock)
    alone = await come(slots, "", 20)
    assert inside(alone) == 8
    await leave(alone)
    await leave(await come(slots, "other", 1))
    clock.now += 11 * 60
    alone = await come(slots, "", 20)
    await leave(alone[:8])
    assert inside(alone) == 8
    await leave(alone[8:])


async def test_a_new_name_for_its_user_gives_a_key_no_turn_before_another_key() -> None:
    clock = Clock()
    slots, entered = FairSlots(1, 1, clock=clock), list[Visitor]()
    owners = ["many/1", "many/2", "many/3", "quiet/ann", "quiet/ann"]
    visitors = [Visitor(slots, owner, entered.append) for owner in owners]
    await settle()
    for _ in visitors:
        clock.now += 5 if entered[-1].owner.startswith("many") else 1
        entered[-1].leave.set()
        await settle()
    assert [v.owner for v in entered] == ["many/1", "quiet/ann", "quiet/ann", "many/2", "many/3"]


async def test_a_failing_block_gives_its_slot_back() -> None:
    slots = FairSlots(1, 1)
    with pytest.raises(ZeroDivisionError):
        async with slots.hold("/ann"):
            _ = 1 / 0
    async with asyncio.timeout(1), slots.hold("/bob"):
        pass
