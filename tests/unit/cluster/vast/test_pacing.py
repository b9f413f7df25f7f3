"""Requests keep their distance, on a clock that nobody waits for."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.vast.pacing import INTERVALS_S, Endpoint, Pace
from tests.fakes.clock import VirtualClock
from tests.fakes.vast import PACING_S


@given(st.lists(st.tuples(st.sampled_from(Endpoint), st.floats(0, 10)), min_size=1, max_size=20))
async def test_no_two_requests_to_an_endpoint_come_closer_than_allowed(asked: list[tuple[Endpoint, float]]) -> None:
    clock = VirtualClock()
    pace = Pace(clock)
    at: dict[Endpoint, list[tuple[float, float]]] = {}

    async def request(endpoint: Endpoint, takes_s: float) -> None:
        async with pace.turn(endpoint):
            begun = clock.monotonic()
            clock.seconds += takes_s
            at.setdefault(endpoint, []).append((begun, clock.monotonic()))

    await asyncio.gather(*(request(*each) for each in asked))
    assert sum(map(len, at.values())) == len(asked)
    for endpoint, times in at.items():
        for (_, ended), (begun, _) in pairwise(times):
            assert begun - ended >= INTERVALS_S[endpoint] - 1e-6


async def test_endpoints_do_not_wait_for_each_other() -> None:
    clock = VirtualClock()
    pace = Pace(clock)
    for endpoint in Endpoint:
        async with pace.turn(endpoint):
            pass
    assert clock.slept == []


async def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    pace, done = Pace(VirtualClock()), []

    async def request(number: int) -> None:
        async with pace.turn(Endpoint.RENT):
            done.append(number)

    await asyncio.gather(*map(request, range(5)))
    assert done == list(range(5))


@pytest.mark.parametrize(("pause_s", "waits_s"), [(60.0, 60.0), (0.5, INTERVALS_S[Endpoint.LIST])])
async def test_a_pause_only_ever_makes_it_longer(pause_s: float, waits_s: float) -> None:
    clock = VirtualClock()
    pace = Pace(clock)
    async with pace.turn(Endpoint.LIST):
        pass
    pace.pause(Endpoint.LIST, pause_s)
    async with pace.turn(Endpoint.LIST):
        assert clock.seconds == pytest.approx(waits_s)


async def test_who_fails_or_leaves_takes_no_turn_with_him() -> None:
    clock = VirtualClock()
    pace = Pace(clock)
    with pytest.raises(RuntimeError):
        async with pace.turn(Endpoint.SHOW):
            raise RuntimeError
    task = asyncio.create_task(pace.turn(Endpoint.SHOW).__aenter__())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    async with pace.turn(Endpoint.SHOW):
        assert clock.seconds == pytest.approx(INTERVALS_S[Endpoint.SHOW])


def test_we_come_less_often_than_vast_wants() -> None:
    assert {endpoint for endpoint in Endpoint if INTERVALS_S[endpoint] <= PACING_S[endpoint]} == set()
