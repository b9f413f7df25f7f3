"""Seeing the whole market although an answer holds 64 offers."""

from collections import Counter
from itertools import cycle, islice
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.vast.node_type import GPU_40GB, GPU_4090, GPU_A100, NODE_TYPES, NodeType
from cluster.vast.offer import Offer
from cluster.vast.offers import rank
from cluster.vast.search import PAGE, Page, Query, fitting, market, pages
from tests.fakes.vast import FakeVast, a100, offer
from tests.unit.cluster.vast.market import WORK, rtx4090


def a100_40gb(number: int, **changes: Any) -> dict[str, Any]:
    return a100(number, **{"gpu_ram": 40536, **changes})


class Searches:
    """The fake's market, without a network."""

    def __init__(self, *prices: float) -> None:
        self.vast = FakeVast([offer(number, dph_base=price) for number, price in enumerate(prices, 1)])
        self.count = 0

    async def __call__(self, query: Query) -> Page:
        self.count += 1
        return Page(tuple(Offer.model_validate(each) for each in self.vast.search(query)["offers"]))


@given(st.integers(0, 5 * PAGE), st.lists(st.floats(0.1, 2), min_size=1, max_size=100))
@example(5 * PAGE, [0.3])
@example(PAGE, [0.3])
@example(3 * PAGE, [0.1, 1 / 3])
async def test_every_offer_is_found_once(count: int, some: list[float]) -> None:
    prices = list(islice(cycle(some), count))
    searches = Searches(*prices)
    found = await pages(market(GPU_4090), searches)
    assert found.complete
    assert sorted(each.id for each in found.offers) == list(range(1, len(prices) + 1))
    assert [each.dph_total for each in found.offers] == sorted(each.dph_total for each in found.offers)
    # The offers at the last price of a page may come once more, and no others.
    assert searches.count <= len(prices) // (PAGE // 2) + 1


async def test_a_market_that_is_too_large_is_not_said_to_be_whole() -> None:
    searches = Searches(*(number / 100 for number in range(1, 300)))
    found = await pages(market(GPU_4090), searches, most=3)
    assert (searches.count, found.complete, len(found.offers)) == (3, False, 3 * PAGE)
    # The cheapest ones.
    assert {each.id for each in found.offers} == set(range(1, 3 * PAGE + 1))


async def test_a_server_that_says_the_same_again_and_again_is_left() -> None:
    asked: Counter[str] = Counter()

    async def same(_: Query) -> Page:
        asked["search"] += 1
        return Page(tuple(rtx4090(number) for number in range(PAGE)))

    found = await pages(market(GPU_4090), same)
    assert (asked["search"], found.complete, len(found.offers)) == (2, False, PAGE)


async def test_a_page_that_can_t_be_read_is_full_all_the_same() -> None:
    asked: list[Query] = []

    async def search(query: Query) -> Page:
        asked.append(query)
        return Page((rtx4090(len(asked)),), ("id",) * (PAGE - 1 if len(asked) == 1 else 2))

    found = await pages(market(GPU_4090), search)
    assert (len(asked), len(found.unreadable), found.complete) == (2, PAGE + 1, True)


async def test_a_page_of_nothing_readable_ends_it() -> None:
    async def search(_: Query) -> Page:
        return Page((), ("id",) * PAGE)

    found = await pages(market(GPU_4090), search)
    assert (found.offers, len(found.unreadable), found.complete) == ((), PAGE, False)


async def test_a_price_that_changed_meanwhile_is_the_newer_one() -> None:
    answers = [
        Page(tuple(rtx4090(number, dph_total=number) for number in range(PAGE))),
        Page((rtx4090(3, dph_total=100),)),
    ]

    async def search(_: Query) -> Page:
        return answers.pop(0)

    found = await pages(market(GPU_4090), search)
    assert len(found.offers) == PAGE
    assert (found.offers[-1].id, found.offers[-1].dph_total) == (3, 100)


@pytest.mark.parametrize("node", NODE_TYPES.values(), ids=str)
async def test_asking_for_less_keeps_the_same(node: NodeType) -> None:
    """The conditions of the search and the judgement of its result are one thing said twice."""
    odd = [
        {"verification": "unverified"}, {"hosting_type": 0}, {"gpu_ram": 30000}, {"gpu_ram": 60000}, {"num_gpus": 2},
        {"reliability": 0.5}, {"cuda_max_good": 12.1}, {"cpu_cores_effective": 2}, {"cpu_ram": 4000},
        {"disk_space": 9}, {"inet_down": 10}, {"duration": 60}, {"gpu_frac": 0.01}, {"rented": True},
    ]  # fmt: skip
    make = {GPU_A100.name: a100, GPU_40GB.name: a100_40gb}.get(node.name, offer)
    searches = Searches()
    searches.vast.offers = [make(number, **changes) for number, changes in enumerate([{}, *odd, {}], 1)]
    all_offers, few = await pages(market(node), searches), await pages(fitting(node), searches)
    # But for our share of the host's memory, which the search does not know.
    assert len(few.offers) == 3
    # Whoever has been rented is in no market.
    assert len(all_offers.offers) in (len(odd) + 1, len(odd))
    assert rank(all_offers.offers, node, WORK).kept == rank(few.offers, node, WORK).kept
    assert len(rank(few.offers, node, WORK).kept) == 2
