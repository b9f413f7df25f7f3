"""What tests rent."""

from typing import Any

from cluster.vast.rental import RentRequest

TOKEN = "token-of-the-test"


def request(offer_id: int = 1, **changes: Any) -> RentRequest:
    """A 4090 with a small disk."""
    plain = {"image": "pytorch/pytorch@sha256:1", "disk_gb": 33, "label": "video-api-1", "env": {"TOKEN": TOKEN}}
    return RentRequest(offer_id=offer_id, **{**plain, "most_usd_per_hour": 0.4, "args": ("join",), **changes})
