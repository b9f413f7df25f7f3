"""What may be asked for."""

from typing import Any

import pytest

from cluster.vast.rental import BadRequest, RentRequest

SECRET = "token-of-the-test"


def request(**changes: Any) -> RentRequest:
    plain = {"offer_id": 1, "image": "x", "disk_gb": 8, "label": "l", "most_usd_per_hour": 1.0}
    return RentRequest(**{**plain, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "l" * 256},
        {"image": "i" * 1024},
        {"args": ("a" * 4000,), "onstart": "b" * 96},
        {"env": {"A": "v" * 255}},
        {"env": {f"{number:05}": "v" * 250 for number in range(128)}},
        {"bid_usd": 0.001},
        {"bid_usd": 128},
    ],
)
def test_what_is_just_within_the_limits_is_taken(changes: dict) -> None:
    assert request(**changes).body()["client_id"] == "me"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"label": ""}, "label"),
        ({"label": "l" * 257}, "label"),
        ({"image": ""}, "image"),
        ({"image": "i" * 1025}, "image"),
        ({"disk_gb": 7.9}, "disk_gb"),
        ({"disk_gb": float("nan")}, "disk_gb"),
        ({"args": ("a" * 4000,), "onstart": "b" * 97}, "args and onstart"),
        ({"env": {"A": "v", "B": SECRET * 16}}, "env: B"),
        ({"env": {f"{number:05}": "v" * 251 for number in range(128)}}, "env: at most 32768"),
        ({"bid_usd": 0}, "bid_usd"),
        ({"bid_usd": 129}, "bid_usd"),
        ({"most_usd_per_hour": 0}, "most_usd_per_hour"),
        ({"most_usd_per_hour": float("nan")}, "most_usd_per_hour"),
    ],
)
def test_what_vast_would_refuse_is_refused_before_it_is_sent(changes: dict, field: str) -> None:
    with pytest.raises(BadRequest, match=field) as caught:
        request(**changes)
    assert SECRET not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(BadRequest, match=r"label.*; disk_gb"):
        request(label="", disk_gb=1)


def test_on_demand_sends_no_price_and_no_empty_command() -> None:
    assert not {"price", "onstart"} & request().body().keys()


def test_secrets_are_not_shown() -> None:
    shown = repr(request(env={"A": SECRET}, args=(SECRET,), onstart=SECRET))
    assert SECRET not in shown
