"""The smallest class that can make a job, and never one that cannot."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contract import ANY_SIZE
from serve_app.jobs.assignment import Candidate, TooLarge, assign, reassign

SIZES = st.integers(1, 100)
VARIANTS = ("fast", "standard")


def candidate(gib: int | None, *, had: bool = True, default: str = "", **sizes: int) -> Candidate:
    return Candidate(deployment=f"m-{gib}", gib=gib, sizes=sizes or None, default_variant=default, had=had)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    """Of one model: classes are distinct, and what replicas report need not grow with their memory."""
    classes = draw(st.lists(st.sampled_from([80, 48, 40, 24, None]), min_size=1, unique=True))
    return [
        candidate(
            gib,
            had=draw(st.booleans()),
            default=draw(st.sampled_from(["", *VARIANTS])),
            **draw(st.dictionaries(st.sampled_from(["", *VARIANTS]), SIZES)),
        )
        for gib in classes
    ]


def memory(each: Candidate) -> float:
    return inf if each.gib is None else each.gib


@given(candidates(), st.sampled_from(["", *VARIANTS]), SIZES)
def test_it_is_the_smallest_at_hand_that_covers(found: list[Candidate], variant: str, size: int) -> None:
    had = [each for each in found if each.had]
    counting = had or [max(found, key=memory)]
    able = [each for each in counting if each.most(variant) >= size]
    if able:
        assert assign(found, variant, size) == min(able, key=memory).deployment
        return
    with pytest.raises(TooLarge) as caught:
        assign(found, variant, size)
    # What is said to be the largest would be taken, and nothing larger.
    said = caught.value.most
    assert said[variant] == max(each.most(variant) for each in counting) < size
    for name, most in said.items():
        if most:
            assert assign(found, name, most)
        with pytest.raises(TooLarge):
            assign(found, name, most + 1)


@given(candidates(), st.sampled_from(["", *VARIANTS]), SIZES, st.data())
def test_who_waits_stays_where_he_can_be_served(
    found: list[Candidate], variant: str, size: int, data: st.DataObject
) -> None:
    # One whose deployment is not served any more waits, too.
    now = data.draw(st.sampled_from([*(each.deployment for each in found), "gone"]))
    able = {each.deployment: each for each in found if each.most(variant) >= size}
    if not able:
        with pytest.raises(TooLarge):
            reassign(found, now, variant, size)
        return
    place = reassign(found, now, variant, size)
    assert place in able
    had = [each for each in found if each.had]
    if now in able and (able[now].had or not any(each in had for each in able.values())):
        # Unless none is at hand, and a larger one may come.
        assert place == now or not had
    # Nowhere else than there either: once moved, it does not move again.
    assert reassign(found, place, variant, size) == place


def test_the_default_variant_is_what_the_replica_says_and_on_paper_the_least_of_all() -> None:
    said = candidate(40, default="fast", fast=50, standard=80)
    assert [said.most(name) for name in ("", "fast", "standard", "quality")] == [50, 50, 80, 0]
    on_paper = candidate(40, fast=50, standard=80)
    assert [on_paper.most(name) for name in ("", "fast", "quality")] == [50, 50, 0]
    anything = candidate(None)
    assert [anything.most(name) for name in ("", "quality")] == [ANY_SIZE, ANY_SIZE]


def test_a_class_that_nobody_has_is_no_choice_while_another_is_here() -> None:
    large, small = candidate(80, a=100), candidate(40, had=False, a=50)
    assert assign([large, small], "a", 10) == "m-80"
    assert assign([large, candidate(40, a=50)], "a", 10) == "m-40"
    # The large one is away, and nobody says that it comes back.
    with pytest.raises(TooLarge):
        assign([candidate(80, had=False, a=100), candidate(40, a=50)], "a", 60)
    # But who has been waiting for it waits on.
    assert reassign([candidate(80, had=False, a=100), candidate(40, a=50)], "m-80", "a", 60) == "m-80"
