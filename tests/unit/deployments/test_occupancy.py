"""Who is on a replica at the same time."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from deployments.occupancy import Occupancy


class Guests:
    """Come in as tasks and stay until they are told to leave."""

    def __init__(self) -> None:
        self.occupancy = Occupancy()
        self.inside: list[str] = []
        self._stays: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, *, alone: bool = False) -> None:
        self._stays[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._stay(name, alone))
        await settled()

    async def leave(self, name: str) -> None:
        self._stays[name].set()
        await self.tasks.pop(name)
        await settled()

    async def _stay(self, name: str, alone: bool) -> None:
        async with self.occupancy.entered(alone=alone):
            self.inside.append(name)
            try:
                await self._stays[name].wait()
            finally:
                self.inside.remove(name)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def guests() -> AsyncIterator[Guests]:
    guests = Guests()
    yield guests
    for task in guests.tasks.values():
        task.cancel()
    await asyncio.gather(*guests.tasks.values(), return_exceptions=True)


async def test_any_number_may_be_in(guests: Guests) -> None:
    for name in ("a", "b", "c"):
        await guests.come(name)
    assert guests.inside == ["a", "b", "c"]


async def test_one_who_has_to_be_alone_waits_and_keeps_others_out(guests: Guests) -> None:
    await guests.come("a")
    await guests.come("alone", alone=True)
    await guests.come("b")
    assert guests.inside == ["a"]
    await guests.leave("a")
    assert guests.inside == ["alone"]
    await guests.leave("alone")
    assert guests.inside == ["b"]


async def test_two_who_have_to_be_alone_come_one_after_the_other(guests: Guests) -> None:
    await guests.come("first", alone=True)
    await guests.come("second", alone=True)
    assert guests.inside == ["first"]
    await guests.leave("first")
    assert guests.inside == ["second"]


@pytest.mark.parametrize("alone", [False, True])
async def test_who_gives_up_waiting_leaves_nothing_behind(guests: Guests, alone: bool) -> None:
    await guests.come("a")
    await guests.come("alone", alone=True)
    await guests.come("gives up", alone=alone)
    for name in ("gives up", "alone"):
        task = guests.tasks.pop(name)
        task.cancel()
        await asyncio.wait({task})
    await guests.come("b")
    assert guests.inside == ["a", "b"]
