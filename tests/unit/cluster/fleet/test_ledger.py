"""Every second of a rental is booked once."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from cluster.fleet.ledger import moved, so_far
from cluster.fleet.rental import Rental, State
from cluster.fleet.terms import Terms

BEGIN = datetime(2026, 1, 1, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def test_a_clock_that_is_put_back_books_nothing_twice() -> None:
    rental = Rental(
        label="one",
        slot_id="slot",
        node_type="gpu",
        state=State.LOADING,
        since=BEGIN,
        reserved_at=BEGIN,
        offer="1",
        host="1",
        terms=Terms(gpu_usd_per_hour=3600, storage_usd_per_hour=0),
        instance="1",
        begun_at=BEGIN,
        stretch_at=BEGIN,
    )
    rental, first = moved(rental, State.BOOTING, after(100))
    # A minute back.
    rental, second = moved(rental, State.INSTALLING, after(50))
    rental, third = moved(rental, State.WEIGHTS, after(90))
    rental, fourth = moved(rental, State.JOINING, after(130))
    _, last = so_far(rental, after(150))
    spans = [*first, *second, *third, *fourth, *last]
    assert all(one.until == two.begun_at for one, two in pairwise(spans))
    assert sum(each.gpu_usd for each in spans) == 150
