"""Which offers are taken for a node, in which order, and why the others are not."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cluster.vast.cost import Cost, Work, cost
from cluster.vast.node_type import NodeType
from cluster.vast.offer import Offer
from cluster.vast.rental import MIN_BID
from cluster.vast.requirements import Drop, requirements

#: Of the least bid that is taken: the next one who bids that does not take it from us at once.
_OVERBID = 1.2


@dataclass(frozen=True)
class Kept:
    """An offer that fits, and what it costs for the work at hand."""

    offer: Offer
    cost: Cost
    #: Dollars per hour that are bid for its GPUs; None: on demand.
    bid_usd: float | None = None


@dataclass(frozen=True)
class Dropped:
    """An offer that does not."""

    offer: Offer
    reason: Drop
    #: What it has and what it should have.
    detail: str


@dataclass(frozen=True)
class Ranking:
    """Every offer is in one of them."""

    #: Cheapest in all first; then by id, so that the same market always gives the same order.
    kept: tuple[Kept, ...]
    #: As they came.
    dropped: tuple[Dropped, ...]


def rank(offers: Iterable[Offer], node: NodeType, work: Work, blocked: Collection[int] = ()) -> Ranking:
    """Judge and sort. ``blocked`` are ids of machines that are not to be tried."""
    on_demand, bids = requirements(node), requirements(node, bid=True)
    kept: list[Kept] = []
    dropped: list[Dropped] = []
    for offer in offers:
        if offer.machine_id in blocked:
            dropped.append(Dropped(offer, Drop.BLOCKED, f"machine {offer.machine_id}"))
            continue
        broken = next((each for each in (bids if offer.is_bid else on_demand) if not each.met(offer)), None)
        if broken is None:
            bid_usd = _bid(offer, node)
            kept.append(Kept(offer, cost(offer, node, work, bid_usd), bid_usd))
        else:
            dropped.append(Dropped(offer, broken.reason, broken.why_not(offer)))
    kept.sort(key=lambda each: (each.cost.total_usd, each.offer.id))
    return Ranking(tuple(kept), tuple(dropped))


def _bid(offer: Offer, node: NodeType) -> float | None:
    if not offer.is_bid or offer.min_bid is None or node.spot_usd_per_hour is None:
        return None
    return max(MIN_BID, min(offer.min_bid * _OVERBID, node.spot_usd_per_hour))
