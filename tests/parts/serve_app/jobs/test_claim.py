"""Whose job is next, what that costs, and that no job is handed out twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deployments.contract import Started
from serve_app.jobs.dispatcher import share_of
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import (
    INPUTS,
    eventually,
    execute,
    fetch,
    jobs_of,
    lease_of,
    new_job,
    running,
    silence,
)


async def admitted(store: JobStore, *users: str | None, **changes: object) -> list[str]:
    """Ids of waiting jobs of these users, oldest first."""
    jobs = [await store.submit(new_job(user, **changes)) for user in users]
    for job in jobs_of(await store.claim_for_intake(1000)):
        await store.admit(lease_of(job), INPUTS)
    return [job.id for job in jobs]


async def claim(store: JobStore, window: int, model: str = "ltx2") -> list[str]:
    return [job.id for job in jobs_of(await store.claim_to_run(model, window))]


async def test_a_newcomer_is_next_to_a_user_with_fifty_jobs(store: JobStore) -> None:
    first, *_ = await admitted(store, *["ann"] * 50)
    assert await claim(store, 1) == [first]
    (newcomer,) = await admitted(store, "bob")
    assert await claim(store, 2) == [newcomer]


async def test_slow_sources_of_one_user_leave_room_for_others(store: JobStore) -> None:
    for _ in range(5):
        await store.submit(new_job("ann"))
    assert len(jobs_of(await store.claim_for_intake(8, share=4))) == 4
    assert jobs_of(await store.claim_for_intake(4, share=4)) == []
    bob = await store.submit(new_job("bob"))
    assert [job.id for job in jobs_of(await store.claim_for_intake(4, share=4))] == [bob.id]


async def test_users_take_turns(store: JobStore) -> None:
    ann = await admitted(store, *["ann"] * 4)
    bob = await admitted(store, *["bob"] * 2)
    nobody = await admitted(store, None)
    assert await claim(store, 7) == [ann[0], bob[0], nobody[0], ann[1], bob[1], ann[2], ann[3]]


async def test_priority_orders_the_jobs_of_one_user_only(store: JobStore) -> None:
    low, high = await admitted(store, "ann", priority=0) + await admitted(store, "ann", priority=5)
    (other,) = await admitted(store, "bob", priority=-5)
    assert await claim(store, 3) == [high, other, low]


async def test_the_window_counts_what_is_in_flight(store: JobStore) -> None:
    await running(store, "bob")
    await admitted(store, *["ann"] * 5)
    assert await claim(store, 1) == []
    assert len(await claim(store, 3)) == 2
    assert await claim(store, 3) == []


async def test_windows_of_models_are_their_own(store: JobStore) -> None:
    await admitted(store, "ann")
    (other,) = await admitted(store, "ann", model="wav2lip")
    assert await claim(store, 1) != []
    assert await claim(store, 1, "wav2lip") == [other]


async def test_a_job_in_intake_is_not_claimed_to_run(store: JobStore) -> None:
    await store.submit(new_job())
    assert await claim(store, 5) == []
    await store.claim_for_intake(1)
    assert await claim(store, 5) == []


@pytest.mark.parametrize("rounds", range(3))
async def test_many_claims_at_once_hand_out_each_job_once(store: JobStore, rounds: int) -> None:
    jobs = await admitted(store, *["ann", "bob", None] * 10)
    for window in (7, 20, 30):
        found = await asyncio.gather(*(claim(store, window) for _ in range(8)))
        handed_out = [job for ids in found for job in ids]
        assert len(handed_out) == len(set(handed_out))
        leased = [job for job in await store.list(limit=100) if job.lease_token]
        assert len(leased) == window
    assert {job.id for job in leased} == set(jobs)


async def test_many_intakes_at_once_take_each_job_once(store: JobStore) -> None:
    jobs = {(await store.submit(new_job())).id for _ in range(12)}
    found = await asyncio.gather(*(store.claim_for_intake(3) for _ in range(6)))
    handed_out = [job.id for claims in found for job in jobs_of(claims)]
    assert len(handed_out) == len(set(handed_out))
    assert set(handed_out) <= jobs


async def line(engine: AsyncEngine, user: str) -> bool:
    """Whether the user is among those whose turn a claim to run may find it to be."""
    return bool(
        await fetch(
            engine, "SELECT 1 FROM turns WHERE queue = 'ltx2' AND owner = '/' || :u AND since IS NOT NULL", u=user
        )
    )


async def test_a_user_is_in_line_while_a_job_can_be_taken(store: JobStore, engine: AsyncEngine) -> None:
    first, second = await admitted(store, "ann", "ann")
    assert await line(engine, "ann")
    await store.cancel(first)
    assert await line(engine, "ann")
    (job,) = jobs_of(await store.claim_to_run("ltx2", 1))
    assert job.id == second
    assert not await line(engine, "ann")
    await silence(engine, second)
    await store.expire_leases()
    assert await line(engine, "ann")
    await store.delete(second)
    assert not await line(engine, "ann")


async def test_whoever_backs_off_is_in_line_again_when_that_is_over(store: JobStore, engine: AsyncEngine) -> None:
    (job_id,) = await admitted(store, "ann")
    (job,) = jobs_of(await store.claim_to_run("ltx2", 1))
    await store.release(lease_of(job))
    assert not await line(engine, "ann")
    assert await claim(store, 1) == []
    async with engine.begin() as db:
        # As if time had passed: no trigger sees that.
        await db.execute(text("SET LOCAL session_replication_role = replica"))
        await db.execute(text("UPDATE jobs SET not_before = now() - interval '1 second'"))
        await db.execute(text("UPDATE turns SET later = now() - interval '1 second' WHERE later IS NOT NULL"))
    assert await claim(store, 1) == [job_id]


@pytest.mark.parametrize("order", ["cancel, submit", "submit, cancel"])
async def test_nobody_drops_out_of_line_while_somebody_else_changes_it(
    store: JobStore, engine: AsyncEngine, order: str
) -> None:
    """Of two transactions neither of which sees the other's job, the second has the last word on the line."""
    (old,) = await admitted(store, "ann")
    cancelled = text(
        "UPDATE jobs SET status = 'cancelled', completed_at = now(), lease_token = NULL, lease_expires_at = NULL"
        " WHERE id = :id"
    )
    submitted = text(
        "INSERT INTO jobs (id, model, status, user_id, inputs) VALUES ('new', 'ltx2', 'queued', 'ann', '{}')"
    )
    steps = {"cancel": (cancelled, {"id": old}), "submit": (submitted, {})}
    first, second = (steps[name] for name in order.split(", "))

    async def later() -> None:
        async with engine.begin() as db:
            await db.execute(*second)

    async with engine.begin() as db:
        await db.execute(*first)
        other = asyncio.create_task(later())
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await eventually(lambda: fetch(engine, waits))
    await other
    assert await claim(store, 1) == ["new"]


@pytest.fixture
async def slow_engine(engine: AsyncEngine, database_url: str) -> AsyncIterator[AsyncEngine]:
    """Its statements stop at ``now()``, after their snapshot was taken, while somebody holds advisory lock 1."""
    await execute(engine, "CREATE SCHEMA slow")
    await execute(
        engine,
        """
        CREATE FUNCTION slow.now() RETURNS timestamptz VOLATILE LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_catalog.pg_advisory_xact_lock_shared(1);
            RETURN pg_catalog.now();
        END $$
        """,
    )
    slow = create_async_engine(database_url, connect_args={"options": "-c search_path=slow,public,pg_catalog"})
    yield slow
    await slow.dispose()


@pytest.mark.own_database
async def test_a_row_cancelled_between_snapshot_and_lock_is_not_returned(
    store: JobStore, engine: AsyncEngine, database_url: str, slow_engine: AsyncEngine
) -> None:
    cancelled, kept = await admitted(store, "ann", "bob")
    url = database_url.replace("+psycopg", "")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as gate:
        await gate.execute("SELECT pg_advisory_lock(1)")
        claiming = asyncio.create_task(claim(JobStore(slow_engine, lease_s=3600), 5))
        waiting_in_gate = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND NOT granted"
        await eventually(lambda: fetch(engine, waiting_in_gate))
        await store.cancel(cancelled)
        await gate.execute("SELECT pg_advisory_unlock(1)")
        assert await claiming == [kept]


async def test_starting_frees_no_room_and_ending_does(store: JobStore) -> None:
    await admitted(store, *["ann"] * 3)
    (job,) = jobs_of(await store.claim_to_run("ltx2", 1))
    await store.start(Started(lease=lease_of(job)))
    assert await claim(store, 1) == []
    await store.end_externally(job.id, error="x")
    assert len(await claim(store, 1)) == 1


def test_the_last_slots_are_for_who_has_none() -> None:
    """However many users take their share: there is room for one more."""
    slots, share, held = 32, 4, Counter[int]()
    for user in range(100):
        while held[user] < share_of(slots - held.total(), slots, share) and held.total() < slots:
            held[user] += 1
    assert held[0] == share
    assert sum(1 for taken in held.values() if taken) >= 14
