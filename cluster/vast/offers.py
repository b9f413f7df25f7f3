"""Which offers are taken for a node, in which order, and why the others are not."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cluster.vast.cost import Cost, Work, cost
from cluster.vast.node_type import NodeType
from cluster.vast.offer import Offer
from cluster.vast.requirements import Drop, requirements


@dataclass(frozen=True)
class Kept:
    """An offer that fits, and what it costs for the work at hand."""

    offer: Offer
    cost: Cost


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
    wanted = requirements(node)
    kept: list[Kept] = []
    dropped: list[Dropped] = []
    for offer in offers:
        if offer.machine_id in blocked:
            dropped.append(Dropped(offer, Drop.BLOCKED, f"machine {offer.machine_id}"))
            continue
        broken = next((each for each in wanted if not each.met(offer)), None)
        if broken is None:
            kept.append(Kept(offer, cost(offer, node, work)))
        else:
            dropped.append(Dropped(offer, broken.reason, broken.why_not(offer)))
    kept.sort(key=lambda each: (each.cost.total_usd, each.offer.id))
    return Ranking(tuple(kept), tuple(dropped))
