"""Keys in memory: who is known without a query, what a stranger can cause, and how soon a change is seen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.access import api_key, key_ring
from serve_app.access.caller import Caller, Limits, Scope
from serve_app.access.key_ring import KeyRing, RingUnavailable
from serve_app.access.key_store import Issued, KeyStore
from serve_app.jobs.database import connect
from tests.parts.serve_app.access.conftest import SECRET
from tests.parts.serve_app.jobs.samples import eventually, execute, fetch
from tests.unit.serve_app.access.test_rate import Clock


async def made(keys: KeyStore, expires_in: float | None = None) -> Issued:
    return await keys.create("ann", {Scope.READ}, Limits(), expires_in)


class Statements:
    """Counts what is asked of the database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.seen: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", self._note)

    def _note(self, _: object, __: object, statement: str, *___: object) -> None:
        self.seen.append(statement)

    def about(self, table: str) -> int:
        return sum(table in statement for statement in self.seen)


@pytest.fixture
def statements(engine: AsyncEngine) -> Statements:
    return Statements(engine)


@asynccontextmanager
async def kept(ring: KeyRing) -> AsyncIterator[None]:
    """While the ring is kept fresh."""
    running = asyncio.create_task(ring.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def known(ring: KeyRing, secret: str) -> Caller | None:
    """Without letting it look again."""
    entry = ring._snapshot.entries.get(ring.store.hashed(secret))
    return None if entry is None else entry.caller


async def test_a_key_is_found_without_a_query_for_each_request(
    keys: KeyStore, ring: KeyRing, statements: Statements
) -> None:
    issued = await made(keys)
    first = await ring.find(issued.secret)
    assert first is not None
    assert first.key_id == issued.key.id
    asked = len(statements.seen)
    assert [await ring.find(issued.secret) for _ in range(100)] == [first] * 100
    assert len(statements.seen) == asked


async def test_those_who_come_first_at_the_same_time_cause_one_look(
    keys: KeyStore, ring: KeyRing, statements: Statements
) -> None:
    issued = await made(keys)
    statements.seen.clear()
    found = await asyncio.gather(*(ring.find(issued.secret) for _ in range(50)))
    assert all(found)
    assert statements.about("api_keys") == 1


async def test_a_thousand_made_up_keys_cause_one_look_a_second(
    ring: KeyRing, statements: Statements, clock: Clock
) -> None:
    assert {await ring.find(api_key.make()) for _ in range(500)} == {None}
    assert statements.about("api_keys") == 1
    clock.now += key_ring.AGAIN_S
    assert set(await asyncio.gather(*(ring.find(api_key.make()) for _ in range(500)))) == {None}
    assert statements.about("api_keys") == 2


@pytest.mark.parametrize("shown", ["", "wrong", "the-api-key", "va_" + "0" * 43, "va_\0", "va_é"])
async def test_what_is_no_key_causes_nothing(ring: KeyRing, statements: Statements, shown: str) -> None:
    assert await ring.find(shown) is None
    assert statements.seen == []


async def test_a_key_expires_by_the_clock_of_the_database(keys: KeyStore, ring: KeyRing, clock: Clock) -> None:
    """And while nobody can ask it."""
    issued = await made(keys, expires_in=100)
    assert await ring.find(issued.secret) is not None
    clock.now += 99
    assert await ring.find(issued.secret) is not None
    clock.now += 1
    assert await ring.find(issued.secret) is None


async def test_the_secret_before_is_good_until_its_time(keys: KeyStore, ring: KeyRing, clock: Clock) -> None:
    issued = await made(keys)
    rotated = await keys.rotate(issued.key.id, overlap_s=100)
    assert rotated is not None
    assert await ring.find(issued.secret) == await ring.find(rotated.secret) is not None
    clock.now += 100
    assert await ring.find(issued.secret) is None
    assert await ring.find(rotated.secret) is not None


async def test_a_change_elsewhere_is_seen_by_its_notification(
    keys: KeyStore, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before anything is read by the clock."""
    monkeypatch.setattr(key_ring, "REFRESH_S", 3600)
    first = await made(keys)
    async with kept(ring):
        await eventually(lambda: known(ring, first.secret))
        second = await made(keys)
        await eventually(lambda: known(ring, second.secret))
        await keys.revoke(first.key.id)

        async def gone() -> bool:
            return await known(ring, first.secret) is None

        await eventually(gone)
        assert await ring.find(second.secret) is not None


async def test_a_change_that_nobody_told_of_is_seen_all_the_same(
    keys: KeyStore, ring: KeyRing, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "REFRESH_S", 0.05)
    issued = await made(keys)
    async with kept(ring):
        await eventually(lambda: known(ring, issued.secret))
        await execute(engine, "UPDATE api_keys SET revoked_at = now()")

        async def gone() -> bool:
            return await known(ring, issued.secret) is None

        await eventually(gone)


async def test_listening_goes_on_after_its_connection_was_cut(
    keys: KeyStore, ring: KeyRing, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "REFRESH_S", 3600)
    monkeypatch.setattr(key_ring, "PAUSE_S", 0.01)
    listening = "SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN video_api_keys' AND pid <> pg_backend_pid()"
    async with kept(ring):
        (before,) = await eventually(lambda: fetch(engine, listening))
        await execute(engine, "SELECT pg_terminate_backend(:pid)", pid=before["pid"])

        async def another() -> bool:
            found = await fetch(engine, listening)
            return bool(found) and found != [before]

        await eventually(another)
        issued = await made(keys)
        await eventually(lambda: known(ring, issued.secret))


async def test_while_the_database_is_away_those_who_are_known_stay_known(
    keys: KeyStore, ring: KeyRing, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of others nobody says that their key is wrong."""
    issued, other = await made(keys), api_key.make()
    assert await ring.find(issued.secret) is not None
    gone = connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    ring.store = KeyStore(gone, SECRET)
    clock.now += timedelta(days=1).total_seconds()
    for _ in range(3):
        with pytest.raises(RingUnavailable):
            await ring.find(other)
    assert await ring.find(issued.secret) is not None
    ring.store = keys
    clock.now += key_ring.AGAIN_S
    assert await ring.find(other) is None
    await gone.dispose()


async def test_a_change_made_here_is_known_at_once(keys: KeyStore, ring: KeyRing, clock: Clock) -> None:
    """However lately it was looked."""
    assert await ring.find(api_key.make()) is None
    issued = await made(keys)
    await ring.changed()
    assert await ring.find(issued.secret) is not None
    await keys.revoke(issued.key.id)
    await ring.changed()
    assert await ring.find(issued.secret) is None
    assert clock.now == 1000


async def test_a_change_is_made_though_it_cannot_be_read_now(keys: KeyStore, ring: KeyRing, clock: Clock) -> None:
    """Else the answer with the secret would be lost."""
    issued = await made(keys)
    gone = connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    ring.store = KeyStore(gone, SECRET)
    await ring.changed()
    ring.store = keys
    clock.now += key_ring.AGAIN_S
    assert await ring.find(issued.secret) is not None
    await gone.dispose()


async def test_use_is_written_at_most_once_a_minute(
    keys: KeyStore, ring: KeyRing, clock: Clock, statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ring, "REFRESH_S", 0.01)
    one, other = await made(keys), await made(keys)

    async def rounds(number: int) -> None:
        begun = statements.about("UPDATE api_keys")
        reads = statements.about("revoked_at IS NULL")

        async def went_by() -> bool:
            await ring.find(one.secret)
            return statements.about("revoked_at IS NULL") >= reads + number

        await eventually(went_by)
        writes.append(statements.about("UPDATE api_keys") - begun)

    writes: list[int] = []
    async with kept(ring):
        await rounds(5)
        await rounds(5)
        clock.now += key_ring.NOTE_S
        await rounds(5)
    assert writes == [1, 0, 1]
    used = {key.id: key.last_used_at is not None for key in await keys.list()}
    assert used == {one.key.id: True, other.key.id: False}
