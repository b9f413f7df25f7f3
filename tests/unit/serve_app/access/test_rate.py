"""The bucket of a key, against what it promises: never more than its number in a window, and no wait too long."""

import re

from hypothesis import given
from hypothesis import strategies as st

from serve_app.access.rate import WINDOW_S, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 5), st.floats(0, 200)), max_size=80)


@given(GAPS, st.integers(1, 20))
def test_in_a_window_pass_at_most_a_full_bucket_and_what_came_in_since(gaps: list[float], limit: int) -> None:
    clock = Clock()
    rates, passed = Rates(clock), []
    for gap in gaps:
        clock.now += gap
        if rates.take("a", limit).allowed:
            passed.append(clock.now)
    for first, begun in enumerate(passed):
        for last in range(first, len(passed)):
            most = limit + (passed[last] - begun) * limit / WINDOW_S
            assert last - first + 1 <= most + 1e-6


@given(GAPS, st.integers(1, 20))
def test_so_many_more_pass_at_once_as_was_told(gaps: list[float], limit: int) -> None:
    clock = Clock()
    rates = Rates(clock)
    standing = rates.take("a", limit)
    for gap in gaps:
        clock.now += gap
        standing = rates.take("a", limit)
    more = [rates.take("a", limit).allowed for _ in range(limit + 1)]
    assert more.count(True) == standing.remaining


@given(st.integers(1, 5000), st.floats(0, 1e6))
def test_who_waits_as_long_as_he_was_told_passes(limit: int, start: float) -> None:
    clock = Clock()
    clock.now += start
    rates = Rates(clock)
    while (standing := rates.take("a", limit)).allowed:
        pass
    clock.now += standing.wait_s
    assert rates.take("a", limit).allowed
    clock.now += standing.full_s
    assert rates.take("a", limit).remaining == limit - 1


def test_keys_have_buckets_of_their_own() -> None:
    rates = Rates(Clock())
    assert [rates.take(key, 1).allowed for key in ("a", "a", "b")] == [True, False, True]


def test_the_headers_are_those_of_the_draft() -> None:
    clock = Clock()
    rates = Rates(clock)
    first = rates.take("a", 2).headers
    assert first == {"ratelimit-policy": '"default";q=2;w=60', "ratelimit": '"default";r=1;t=30'}
    rates.take("a", 2)
    refused = rates.take("a", 2).headers
    assert refused == {**first, "ratelimit": '"default";r=0;t=60', "retry-after": "30"}
    assert re.fullmatch(r'"[a-z]+";r=\d+;t=\d+', refused["ratelimit"])


def test_a_key_that_is_silent_costs_nothing() -> None:
    clock = Clock()
    rates = Rates(clock)
    for number in range(1000):
        rates.take(str(number), 10)
    clock.now += WINDOW_S
    rates.take("last", 10)
    assert len(rates._buckets) == 1
