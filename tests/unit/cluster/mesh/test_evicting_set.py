"""Who has to go when too many wait."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.mesh.acceptor import _source
from cluster.mesh.evicting_set import EvictingSet


def test_the_oldest_goes() -> None:
    waiting: EvictingSet[int] = EvictingSet(4)
    assert [waiting.add(number, f"10.0.0.{number}") for number in range(6)] == [None] * 4 + [0, 1]
    assert waiting.members() == (2, 3, 4, 5)


def test_one_source_has_half_of_the_places_and_crowds_out_itself_alone() -> None:
    waiting: EvictingSet[str] = EvictingSet(6)
    for honest in ("a", "b", "c"):
        assert waiting.add(honest, honest) is None
    gone = [waiting.add(f"flood {number}", "10.0.0.1") for number in range(1000)]
    assert gone == [None] * 3 + [f"flood {number}" for number in range(997)]
    assert {"a", "b", "c"} < set(waiting.members())


def test_who_has_left_is_no_member_and_may_leave_twice() -> None:
    waiting: EvictingSet[int] = EvictingSet(2)
    waiting.add(1, "x")
    waiting.remove(1)
    waiting.remove(1)
    assert 1 not in waiting
    assert len(waiting) == 0
    assert waiting.add(2, "x") is None


@given(st.integers(2, 20), st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=200))
def test_never_more_than_that_and_nobody_goes_unsaid(most: int, steps: list[tuple[int, bool]]) -> None:
    waiting: EvictingSet[int] = EvictingSet(most)
    inside: dict[int, str] = {}
    for number, (source, leaves) in enumerate(steps):
        if leaves and inside:
            gone = next(iter(inside))
            waiting.remove(gone)
            del inside[gone]
            continue
        inside[number] = str(source)
        crowded_out = waiting.add(number, str(source))
        if crowded_out is not None:
            del inside[crowded_out]
        assert waiting.members() == tuple(inside)
        assert len(waiting) <= most
        assert max(list(inside.values()).count(each) for each in inside.values()) <= most // 2


def test_sources() -> None:
    assert _source("192.0.2.7") == "192.0.2.7"
    # One customer's network: any of its addresses.
    assert _source("2001:db8:1:2:3:4:5:6") == _source("2001:db8:1:2::1%eth0") == "2001:db8:1:2::/64"
    assert _source("2001:db8:1:3::1") != _source("2001:db8:1:2::1")
