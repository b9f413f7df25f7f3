"""When a node works, by its runs."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from cluster.head.attendance import Change, Run, changes, spells

ZERO = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return ZERO + timedelta(seconds=seconds)


def run(begun: float, ended: float | None = None) -> Run:
    return Run(node="n", begun_at=at(begun), ended_at=None if ended is None else at(ended))


def test_runs_beside_each_other_are_one_spell() -> None:
    assert list(spells([run(4, 6), run(0, 5), run(9, 10), run(5, 5.5)])) == [(at(0), at(6)), (at(9), at(10))]
    assert list(spells([run(0, 5), run(3), run(4, 5)])) == [(at(0), None)]
    assert list(spells([])) == []


def test_what_was_said_is_not_said_again() -> None:
    assert changes(None, [run(1)]) == [Change(at(1), True)]
    assert changes(Change(at(1), True), [run(1)]) == []
    assert changes(Change(at(1), True), [run(1, 4)]) == [Change(at(4), False)]
    assert changes(Change(at(4), False), [run(1, 4)]) == []


def test_a_run_that_was_told_late_counts_from_what_was_said() -> None:
    """It is known to have worked at four, and that it went on until seven."""
    assert changes(Change(at(4), False), [run(1, 4), run(3, 7)]) == [Change(at(4), True), Change(at(7), False)]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9) | st.none()), max_size=12),
    st.integers(1, 12),
)
def test_however_often_it_is_asked_the_time_of_work_is_the_same(
    raw: Sequence[tuple[int, int | None]], step: int
) -> None:
    runs = [run(begun, None if length is None else begun + length) for begun, length in raw]
    last: Change | None = None
    worked = 0.0
    for now in range(0, 80, step):
        # As they would be told at that moment.
        told = [
            Run(
                node="n",
                begun_at=each.begun_at,
                ended_at=each.ended_at if each.ended_at and each.ended_at <= at(now) else None,
            )
            for each in runs
            if each.begun_at <= at(now)
        ]
        for change in changes(last, told):
            assert last is None or (change.at >= last.at and change.busy is not last.busy)
            if not change.busy:
                worked += (change.at - last.at).total_seconds()
            last = change
    whole = sum((until - begun).total_seconds() for begun, until in spells(runs) if until is not None)
    open_since = [begun for begun, until in spells(runs) if until is None]
    assert worked == whole
    assert (last is not None and last.busy) == bool(open_since)
