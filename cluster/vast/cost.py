"""What a machine costs for the work at hand, from its first second to its last. All amounts are dollars."""

import math
from dataclasses import dataclass

from cluster.vast.node_type import NodeType
from cluster.vast.offer import Offer

#: Vast's prices of storage are by the month: a twelfth of a year.
_MONTH_H = 730.0
_GB = 1e9
#: How often somebody bids more, as we expect it: Vast publishes nothing of it.
_OUTBID_PER_HOUR = 0.1


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a node is rented for. Bytes and seconds are expectations, of one node from its rent to its end."""

    #: Fetched before it can work.
    image_bytes: float
    package_bytes: float
    weight_bytes: float
    #: Inputs fetched and videos stored while it works.
    media_in_bytes: float
    media_out_bytes: float
    #: Seconds of the start that do not depend on its line: boot, unpacking, loading weights into the GPU, joining.
    setup_s: float
    #: Seconds of the GPU, attempts that fail included.
    busy_s: float
    #: Seconds without work before it is given back.
    idle_s: float

    @property
    def start_bytes(self) -> float:
        return self.image_bytes + self.package_bytes + self.weight_bytes


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it is made of."""

    #: Seconds from the rent to the first job.
    cold_start_s: float
    #: The GPU while it starts, works and waits.
    cold_usd: float
    busy_usd: float
    idle_usd: float
    storage_usd: float
    bandwidth_usd: float
    #: What is expected to be lost because it breaks, and is paid once more elsewhere.
    risk_usd: float

    @property
    def total_usd(self) -> float:
        parts = (self.cold_usd, self.busy_usd, self.idle_usd, self.storage_usd, self.bandwidth_usd, self.risk_usd)
        return sum(parts)


def cost(offer: Offer, node: NodeType, work: Work, bid_usd: float | None = None) -> Cost:
    """The whole cost. It is the sum of what Vast meters, from its price list::

        start   = setup + (image + packages + weights) / line
        GPU     = price per hour × (start + busy + idle)
        storage = disk × price per GB and month / 730 h × (start + busy + idle)
        traffic = (image + packages + weights + inputs) × price in + videos × price out

    A start counts as paid from its first second: Vast's pages differ on whether loading is free. And the machine's
    reliability r is taken for the chance that it lasts: then a node is expected to break (1 - r) / r times before
    one lasts, each time with its start and, since that comes at any moment, half of its work in vain. A bid
    (``bid_usd``, dollars per hour for the GPUs) may be outdone at any moment as well, so its chance is smaller.
    """
    cold_s = work.setup_s + (8 * work.start_bytes / (offer.inet_down_mbps * 1e6) if work.start_bytes else 0.0)
    all_s = cold_s + work.busy_s + work.idle_s
    gpu = (offer.dph_base if bid_usd is None else bid_usd) / 3600
    disk = node.disk_gb * offer.storage_cost / _MONTH_H / 3600
    fetching = work.start_bytes / _GB * offer.inet_down_cost
    media = (work.media_in_bytes * offer.inet_down_cost + work.media_out_bytes * offer.inet_up_cost) / _GB
    lasts = offer.reliability * (1.0 if bid_usd is None else math.exp(-_OUTBID_PER_HOUR * all_s / 3600))
    breaks = (1 - lasts) / lasts
    lost = (gpu + disk) * (cold_s + work.busy_s / 2) + fetching + media / 2
    return Cost(
        cold_start_s=cold_s,
        cold_usd=gpu * cold_s,
        busy_usd=gpu * work.busy_s,
        idle_usd=gpu * work.idle_s,
        storage_usd=disk * all_s,
        bandwidth_usd=fetching + media,
        risk_usd=breaks * lost,
    )
