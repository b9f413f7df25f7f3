"""What a node type asks of an offer: once for Vast's search, and once more of what it finds.

The second time because a condition that a server does not know may be passed over in silence, and because a search that
leaves out what does not fit can't say why.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.explained import Explained
from cluster.vast.node_type import NodeType
from cluster.vast.offer import Offer


class Drop(Explained):
    """Why an offer is not taken."""

    NOT_FREE = "not_free", "Somebody has rented it."
    BLOCKED = "blocked", "Its machine was tried, and failed."
    OTHER_GPU = "other_gpu", "It has other GPUs, or another number of them."
    GPU_MEMORY = "gpu_memory", "Its GPU has another amount of memory: it is of another class."
    UNVERIFIED_HOST = "unverified_host", "Vast has not verified its host, and a Ray cluster trusts its nodes."
    NO_DATACENTER = "no_datacenter", "It is in no datacenter that Vast has vetted, and a Ray cluster trusts its nodes."
    UNRELIABLE = "unreliable", "It has been down too often."
    OLD_DRIVER = "old_driver", "Its driver does not take the version of CUDA that we need."
    FEW_CORES = "few_cores", "It has too few CPU cores for Ray and the work."
    LITTLE_MEMORY = "little_memory", "Our share of its host memory is too small."
    SMALL_DISK = "small_disk", "Its disk is too small for weights and image."
    SLOW_LINE = "slow_line", "Its line is too slow to fetch the weights by."
    DEAR_BID = "dear_bid", "Less than the least bid for it may be bid."
    ENDS_SOON = "ends_soon", "Its host takes it back too soon."


_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "gte": operator.ge,
    "lte": operator.le,
    "in": lambda found, wanted: found in wanted,
}


@dataclass(frozen=True)
class Requirement:
    """One condition."""

    reason: Drop
    #: In Vast's search; empty where it has none.
    field: str
    operator: str
    value: Any
    of: Callable[[Offer], Any]
    unit: str = ""

    def met(self, offer: Offer) -> bool:
        return _OPERATORS[self.operator](self.of(offer), self.value)

    def why_not(self, offer: Offer) -> str:
        """What it has and what it should have. Empty where the reason says it all."""
        if isinstance(self.value, bool):
            return ""
        sign = {"eq": "instead of", "gte": "below", "lte": "above", "in": "not one of"}[self.operator]
        wanted = ", ".join(self.value) if self.operator == "in" else _said(self.value)
        return f"{_said(self.of(offer))} {sign} {wanted}{self.unit}"


def requirements(node: NodeType, *, bid: bool = False) -> Sequence[Requirement]:
    """All of them, those that say most about an offer first. ``bid``: of one to bid for."""
    least, greatest = node.gpu_ram_mb
    found = [
        Requirement(Drop.NOT_FREE, "rentable", "eq", True, lambda offer: offer.rentable is not False),
        Requirement(Drop.OTHER_GPU, "gpu_name", "in", list(node.gpu_names), lambda offer: offer.gpu_name),
        Requirement(Drop.OTHER_GPU, "num_gpus", "eq", node.gpus, lambda offer: offer.num_gpus, " GPUs"),
        Requirement(Drop.GPU_MEMORY, "gpu_ram", "gte", least, lambda offer: offer.gpu_ram_mb, " MB"),
        Requirement(Drop.GPU_MEMORY, "gpu_ram", "lte", greatest, lambda offer: offer.gpu_ram_mb, " MB"),
    ]
    if not node.trust_any_host:
        found += [
            Requirement(Drop.UNVERIFIED_HOST, "verified", "eq", True, lambda offer: offer.verified),
            Requirement(Drop.NO_DATACENTER, "datacenter", "eq", True, lambda offer: offer.datacenter),
        ]
    found += [
        Requirement(Drop.UNRELIABLE, "reliability", "gte", node.reliability, lambda offer: offer.reliability),
        Requirement(Drop.OLD_DRIVER, "cuda_max_good", "gte", node.cuda, lambda offer: offer.cuda_max_good),
        Requirement(
            Drop.FEW_CORES, "cpu_cores_effective", "gte", node.cpu_cores, lambda offer: offer.cpu_cores_effective
        ),
        # The search knows the whole machine's memory alone.
        Requirement(Drop.LITTLE_MEMORY, "cpu_ram", "gte", node.cpu_ram_mb, lambda offer: offer.cpu_ram_mb, " MB"),
        Requirement(Drop.LITTLE_MEMORY, "", "gte", node.cpu_ram_mb, lambda offer: offer.own_ram_mb, " MB"),
        Requirement(Drop.SMALL_DISK, "disk_space", "gte", node.disk_gb, lambda offer: offer.disk_space_gb, " GB"),
        Requirement(
            Drop.SLOW_LINE, "inet_down", "gte", node.inet_down_mbps, lambda offer: offer.inet_down_mbps, " Mb/s"
        ),
        Requirement(Drop.ENDS_SOON, "duration", "gte", node.duration_s, lambda offer: offer.duration_s, " s"),
    ]
    if bid:
        most = node.spot_usd_per_hour or 0.0
        found.append(Requirement(Drop.DEAR_BID, "min_bid", "lte", most, _least_bid, " dollars per hour"))
    return found


def _least_bid(offer: Offer) -> float:
    return float("inf") if offer.min_bid is None else offer.min_bid


def _said(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, int | float) else str(value)
