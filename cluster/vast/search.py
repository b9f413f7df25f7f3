"""Looking at the market: queries, and seeing all of it although one answer holds at most 64 offers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.vast.node_type import NodeType
from cluster.vast.offer import Offer
from cluster.vast.requirements import requirements

#: A search as Vast takes it: conditions by field, and how to sort.
Query = Mapping[str, Any]

#: Offers in an answer, whatever limit is asked for.
PAGE = 64
#: Searches for one look at the market, which is enough for 1,280 offers: searches per day are limited.
MOST_PAGES = 20


@dataclass(frozen=True)
class Page:
    """One answer."""

    offers: tuple[Offer, ...]
    #: For each offer that lacks what is asked of every offer, which fields those are.
    unreadable: tuple[str, ...] = ()

    @property
    def full(self) -> bool:
        """There may be more."""
        return len(self.offers) + len(self.unreadable) >= PAGE


@dataclass(frozen=True)
class Market:
    """All that was seen, cheapest first."""

    offers: tuple[Offer, ...]
    unreadable: tuple[str, ...] = ()
    #: False: there are more, dearer ones.
    complete: bool = True


def market(node: NodeType, *, bid: bool = False) -> Query:
    """Every offer with such GPUs that is free now; ``offers.rank`` says why one does not fit."""
    return {
        "gpu_name": {"in": list(node.gpu_names)},
        "num_gpus": {"eq": node.gpus},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        # Of other markets that Vast shows, too.
        "external": {"eq": False},
        # On demand nobody can take it from us by bidding more.
        "type": "bid" if bid else "on-demand",
        # The price then is the one that the rental will have.
        "allocated_storage": node.disk_gb,
        "order": [["dph_total", "asc"]],
        "limit": PAGE,
    }


def fitting(node: NodeType, *, bid: bool = False) -> Query:
    """Only what meets the node type's requirements, so fewer searches."""
    query = dict(market(node, bid=bid))
    for each in requirements(node, bid=bid):
        if each.field:
            query[each.field] = {**query.get(each.field, {}), each.operator: each.value}
    return query


async def pages(query: Query, search: Callable[[Query], Awaitable[Page]], most: int = MOST_PAGES) -> Market:
    """Search again and again, from the last price on.

    Offers at exactly that price come again, so those that were seen are left out by their ids; else more than 64 of one
    price would be the end. It ends with a page that is not full, or without anything new: then the market can't be
    seen whole. An offer whose price changed meanwhile is in it once, at the newer price.
    """
    seen: dict[int, Offer] = {}
    unreadable: tuple[str, ...] = ()
    asked = query
    complete = False
    for _ in range(most):
        page = await search(asked)
        unreadable += page.unreadable
        fresh = any(offer.id not in seen for offer in page.offers)
        seen |= {offer.id: offer for offer in page.offers}
        if complete := not page.full:
            break
        if not fresh:
            break
        last = max(offer.dph_total for offer in page.offers)
        here = sorted(offer.id for offer in seen.values() if offer.dph_total == last)
        # ``id`` finds nothing; this is the same number.
        asked = {**query, "dph_total": {"gte": last}, "ask_contract_id": {"notin": here}}
    offers = sorted(seen.values(), key=lambda offer: (offer.dph_total, offer.id))
    return Market(tuple(offers), unreadable, complete)
