"""Both books keep the same promises."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from cluster.fleet.books import Books, Deposed, PostgresBooks
from cluster.fleet.caps import Caps
from cluster.fleet.gates import Breaker
from cluster.fleet.ledger import moved, so_far
from cluster.fleet.reconcile import Booked
from cluster.fleet.rental import Rental, State, Why
from cluster.fleet.terms import Terms
from cluster.fleet.waiting import Reason
from tests.fakes.books import MemoryBooks, Shelf

NOW = datetime(2026, 1, 1, 18, tzinfo=UTC)
CAPS = Caps(usd_per_hour=1, usd_per_day=10, usd_per_instance_hour=1, nodes={"gpu": 3})
#: Makes another head's books.
Another = Callable[[], Books]


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def reservation(number: int = 1, usd: float = 0.4) -> Rental:
    return Rental(
        label=f"test-{number}",
        slot_id=f"slot-{number}",
        node_type="gpu",
        state=State.RENTING,
        since=NOW,
        reserved_at=later(number),
        offer=str(number),
        host=f"host-{number}",
        terms=Terms(gpu_usd_per_hour=usd, storage_usd_per_hour=0.0, down_usd_per_gb=0.005),
        start_bytes=1e9,
        stretch_at=NOW,
    )


@pytest.fixture(params=["memory", "postgres"])
def another(request: pytest.FixtureRequest, engine: AsyncEngine) -> Another:
    shelf = Shelf()
    return (lambda: MemoryBooks(shelf)) if request.param == "memory" else (lambda: PostgresBooks(engine))


@pytest.fixture
async def books(another: Another) -> Books:
    books = another()
    await books.take_over()
    return books


async def test_a_rental_comes_back_as_it_was(books: Books, another: Another) -> None:
    rental = reservation()
    assert await books.reserve(rental, CAPS) is None
    assert await books.open_rentals() == [rental]
    rental, _ = moved(rental, State.LOADING, later(5))
    rental = replace(rental, instance="9001", begun_at=later(5), door_key="key", down_bytes=1.5e9)
    ending, done = moved(rental, State.ENDING, later(65))
    ending = replace(ending, why=Why.BROKEN, detail="OCI", destroyed_at=later(70))
    await books.write([ending], done)
    assert await another().open_rentals() == [ending]
    ended, done = moved(ending, State.ENDED, later(100))
    ended = replace(ended, ended_at=later(100))
    await books.write([ended], done)
    assert await books.open_rentals() == []
    assert await books.find("test-1") == ended
    assert await books.find("test-2") is None


async def test_the_caps_hold_beside_what_has_not_ended(books: Books) -> None:
    assert await books.reserve(reservation(1), CAPS) is None
    assert await books.reserve(reservation(2), CAPS) is None
    refused = await books.reserve(reservation(3), CAPS)
    assert refused is not None
    assert refused.reason is Reason.HOUR_CAP
    (first, _) = await books.open_rentals()
    gone = replace(first, state=State.ENDED, ended_at=later(9), why=Why.NOT_RENTED)
    await books.write([gone])
    assert await books.reserve(reservation(3), CAPS) is None
    assert [each.label for each in await books.open_rentals()] == ["test-2", "test-3"]


async def test_of_many_at_once_no_more_are_reserved_than_fit(books: Books) -> None:
    refused = await asyncio.gather(*(books.reserve(reservation(number), CAPS) for number in range(1, 8)))
    assert refused.count(None) == 2
    assert len(await books.open_rentals()) == 2


async def test_what_was_spent_today_is_kept_back_from_the_day(books: Books) -> None:
    rental = reservation()
    await books.reserve(rental, CAPS)
    rental = replace(rental, state=State.IDLE, instance="1", begun_at=NOW, worked_at=NOW)
    assert await books.spent(NOW) == 0
    for until, usd in ((1800, 0.2), (3600, 0.4), (7200, 0.8)):
        # One stretch, which grows.
        await books.write([], so_far(rental, later(until))[1])
        assert await books.spent(NOW) == pytest.approx(usd)
    assert await books.spent(later(1)) == 0
    tight = replace(CAPS, usd_per_day=0.9)
    refused = await books.reserve(reservation(2), tight)
    assert refused is not None
    assert refused.reason is Reason.DAY_CAP
    tomorrow = replace(reservation(2), reserved_at=later(86400))
    assert await books.reserve(tomorrow, tight) is None


async def test_how_long_starts_took_is_known_by_type_and_the_last_ones_only(books: Books, another: Another) -> None:
    for number in range(1, 6):
        # The fifth has not worked.
        works = {"state": State.IDLE, "worked_at": later(number + 100 * number)} if number < 5 else {}
        rental = replace(reservation(number), node_type="gpu" if number != 2 else "other")
        roomy = replace(CAPS, usd_per_hour=9, nodes={"gpu": 9, "other": 9})
        assert await books.reserve(rental, roomy) is None
        await books.write([replace(rental, instance=str(number), begun_at=NOW, **works)])
    assert await another().cold_starts(2) == {"gpu": [400.0, 300.0], "other": [200.0]}


async def test_what_was_charged_is_asked_for_once_it_has_ended_and_until_it_is_known(
    books: Books, another: Another
) -> None:
    ended = {"state": State.ENDED, "why": Why.DISMISSED, "begun_at": NOW, "destroyed_at": later(3600)}
    for number in (1, 2, 3):
        rental = replace(reservation(number), instance=str(number), begun_at=NOW, state=State.IDLE)
        roomy = replace(CAPS, usd_per_hour=9)
        assert await books.reserve(reservation(number), roomy) is None
        # The third runs on; the second costs nothing.
        if number < 3:
            _, done = so_far(rental, later(3600))
            await books.write([replace(rental, ended_at=later(3600 + number), **ended)], done if number == 1 else ())
    assert await another().uncharged(later(3601)) == []
    first, second = await another().uncharged(later(7200))
    assert first == Booked(label="test-1", instance="1", begun_at=NOW, ended_at=later(3601), usd=pytest.approx(0.4))
    assert (second.label, second.usd) == ("test-2", 0)
    await books.charge({"test-1": 0.41, "test-2": 0.0})
    assert await another().uncharged(later(7200)) == []
    # It is no part of the rental itself.
    found = await another().find("test-1")
    assert found is not None
    await books.write([found])
    assert await another().uncharged(later(7200)) == []


async def test_machines_that_failed_and_types_that_pause_are_remembered(books: Books, another: Another) -> None:
    await books.block("1", Why.STUCK, later(10))
    await books.block("2", Why.OFFLINE, later(1000))
    await books.block("1", Why.BROKEN, later(20))
    assert await another().blocked(later(15)) == {"1": Why.BROKEN, "2": Why.OFFLINE}
    assert await another().blocked(later(20)) == {"2": Why.OFFLINE}
    for breaker in (Breaker(3, later(60)), Breaker()):
        await books.set_breaker("gpu", breaker)
        assert await another().breakers() == {"gpu": breaker}


async def test_who_was_replaced_writes_no_more(books: Books, another: Another) -> None:
    rental = reservation()
    await books.reserve(rental, CAPS)
    following = another()
    await following.take_over()
    for writing in (
        books.reserve(reservation(2), CAPS),
        books.write([replace(rental, door_key="mine")]),
        books.block("1", Why.STUCK, later(10)),
        books.set_breaker("gpu", Breaker(9)),
        books.charge({rental.label: 1.0}),
        another().write([rental]),
    ):
        with pytest.raises(Deposed):
            await writing
    assert await following.open_rentals() == [rental]
    assert (await following.blocked(NOW), await following.breakers()) == ({}, {})
    await following.write([replace(rental, door_key="theirs")])


async def test_taking_over_waits_for_who_is_writing(engine: AsyncEngine) -> None:
    first, second = PostgresBooks(engine), PostgresBooks(engine)
    await first.take_over()
    async with first._writing():
        taking = asyncio.create_task(second.take_over())
        await asyncio.wait([taking], timeout=0.2)
        assert not taking.done()
    await taking
    with pytest.raises(Deposed):
        await first.write([])


@pytest.mark.parametrize(
    "change",
    [
        "state = 'ended'",
        "state = 'ending', why = NULL",
        "instance = '1'",
        "ended_at = now()",
    ],
)
async def test_the_database_itself_refuses_impossible_rentals(engine: AsyncEngine, change: str) -> None:
    books = PostgresBooks(engine)
    await books.take_over()
    await books.reserve(reservation(), CAPS)
    with pytest.raises(IntegrityError, match="rentals_"):
        async with engine.begin() as db:
            await db.execute(text(f"UPDATE rentals SET {change}"))
