"""Why nothing is rented for a slot at the moment."""

from dataclasses import dataclass
from datetime import datetime

from cluster.explained import Explained
from cluster.fleet.words import written


class Reason(Explained):
    """Each with what it means, for people."""

    NODES_CAP = "nodes_cap", "There are as many nodes of its type as there may be."
    PRICE_CAP = "price_cap", "Every machine that fits costs more by the hour than one may."
    HOUR_CAP = "hour_cap", "All nodes together would cost more by the hour than they may."
    DAY_CAP = "day_cap", "Today would cost more than a day may. It goes on at midnight UTC."
    NO_OFFER = "no_offer", "No machine that fits is on offer."
    NO_WEIGHTS = "no_weights", "The weights of its model are not set, or can't be read."
    FAILURES = "failures", "Nodes of its type have failed one after another; after a pause one is tried again."
    NO_CREDIT = "no_credit", "The provider's account has less credit left than an hour of what runs costs."
    NOT_ALLOWED = "not_allowed", "The provider does not accept the key, or not for this."
    REFUSED = "refused", "The provider refuses what is asked of it."
    PROVIDER = "provider", "The provider does not answer, or wants fewer requests."
    DOOR = "door", "The mesh has no room for another node."


@dataclass(frozen=True)
class Wait:
    """Why, and for how long at least."""

    reason: Reason
    #: For people; empty where the reason says it all.
    detail: str = ""
    #: Nothing is tried before; None: with the next pass.
    until: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", written(self.detail))
