"""What may be spent. Looked at before anything is rented, and while the day goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.fleet.rental import Rental, State
from cluster.fleet.waiting import Reason, Wait

#: Seconds that a node may go on costing after it was found too dear: a pass, the provider's pace of endings times the
#: nodes of a fleet, and tries that fail. So much of its price is always kept back from the day.
HEADROOM_S = 300.0
#: Sums of many prices differ from themselves in the last digits.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Dollars, but for the nodes. Raises ValueError."""

    usd_per_hour: float
    #: From midnight to midnight, UTC.
    usd_per_day: float
    usd_per_instance_hour: float
    #: By type; none of a type that is not named.
    nodes: Mapping[str, int]

    def __post_init__(self) -> None:
        amounts = (self.usd_per_hour, self.usd_per_day, self.usd_per_instance_hour, *self.nodes.values())
        if not all(0 <= each < float("inf") for each in amounts):
            raise ValueError("caps: from 0 on, and an end to each")


def room(caps: Caps, wanted: Rental, there: Sequence[Rental], spent_today_usd: float) -> Wait | None:
    """What forbids to rent it beside those that have not ended; None: nothing."""
    # One whose end the provider has accepted is no node any more; what it may cost is kept back for longer.
    alike = sum(each.node_type == wanted.node_type and each.destroyed_at is None for each in there)
    most = caps.nodes.get(wanted.node_type, 0)
    if alike >= most:
        return Wait(Reason.NODES_CAP, f"{alike} of {most}")
    price = wanted.terms.usd_per_hour
    if price > caps.usd_per_instance_hour:
        return Wait(Reason.PRICE_CAP, f"${price:.3f} of ${caps.usd_per_instance_hour:.3f} per hour")
    hourly = sum(each.terms.usd_per_hour for each in there) + price
    if hourly > caps.usd_per_hour + _ROUNDING:
        return Wait(Reason.HOUR_CAP, f"${hourly:.3f} of ${caps.usd_per_hour:.3f} per hour")
    # It has to be worth its start: else it would be ended right after it, and tomorrow rented again.
    start = price * (wanted.start_s + HEADROOM_S) / 3600
    day = spent_today_usd + sum(map(_outstanding, (*there, wanted))) + start
    if day > caps.usd_per_day + _ROUNDING:
        return Wait(Reason.DAY_CAP, f"${day:.2f} of ${caps.usd_per_day:.2f}")
    return None


def too_dear(caps: Caps, there: Sequence[Rental], spent_today_usd: float) -> Sequence[Rental]:
    """Those that have to end now, lest the day cost more than it may: who has come least far goes first.

    What is kept back for one pays for its end; what is left of it, once it has ended, the others may go on with.
    """
    missing = spent_today_usd + sum(map(_outstanding, there)) - caps.usd_per_day
    running = [each for each in there if each.state is not State.ENDING and each.instance is not None]
    running.sort(key=lambda each: (each.worked_at is not None, each.state is State.BUSY, each.label))
    chosen: list[Rental] = []
    while running and missing > _ROUNDING:
        chosen.append(running.pop(0))
        missing -= _outstanding(chosen[-1])
    return chosen


def _outstanding(rental: Rental) -> float:
    """What it will cost today even if its end begins now, and what its start has still to fetch."""
    if rental.destroyed_at is not None:
        return 0.0
    fetching = 0.0
    if rental.worked_at is None and rental.state is not State.ENDING:
        fetching = max(0.0, rental.start_bytes - rental.down_bytes)
    return rental.terms.usd_per_hour * HEADROOM_S / 3600 + rental.terms.traffic_usd(fetching, 0)
