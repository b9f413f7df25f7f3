"""Offers as a search returns them."""

from typing import Any

from cluster.vast.cost import Work
from cluster.vast.offer import Offer
from tests.fakes import vast

WORK = Work(
    image_bytes=9e9,
    package_bytes=0.5e9,
    weight_bytes=70e9,
    media_in_bytes=20e6,
    media_out_bytes=200e6,
    setup_s=60,
    busy_s=3000,
    idle_s=300,
)


def a100(number: int = 1, **changes: Any) -> Offer:
    """One of 80 GB, by the wire's names."""
    return _offer(vast.a100(number, **changes))


def rtx4090(number: int = 1, **changes: Any) -> Offer:
    return _offer(vast.offer(number, **changes))


def _offer(record: dict[str, Any]) -> Offer:
    return Offer.model_validate({"dph_total": record["dph_base"], **record})
