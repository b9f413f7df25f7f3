"""A key's quota at the store: what it costs, and that nobody passes beside another."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.quota import NoBudget, NoPlace, Quota, use_of
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import completed, execute, new_job, running, waiting

KEY = "key_1"


@pytest.fixture
def asked(engine: AsyncEngine) -> Iterator[list[tuple[str, Any]]]:
    """What is asked of the database."""
    seen: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        seen.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_a_key_without_limits_pays_nothing(store: JobStore, asked: list[tuple[str, Any]]) -> None:
    await store.submit(new_job(key_id=KEY))
    usual = [statement for statement, _ in asked]
    asked.clear()
    await store.submit(new_job(key_id=KEY), quota=Quota(key_id=KEY))
    assert [statement for statement, _ in asked] == usual


async def test_a_look_reads_what_is_the_keys_and_not_all_there_is(
    store: JobStore, engine: AsyncEngine, asked: list[tuple[str, Any]]
) -> None:
    await execute(
        engine,
        "INSERT INTO jobs (id, model, status, key_id)"
        " SELECT n::text, 'ltx2', 'queued', 'key_' || n % 500 FROM generate_series(1, 20000) n",
    )
    await execute(
        engine,
        "INSERT INTO runs (job_id, attempt, started_at, model, node, effort)"
        " SELECT n::text, 1, now(), 'ltx2', 'node ' || n / 40, 1 FROM generate_series(1, 20000) n",
    )
    async with engine.connect() as db:
        apart = await db.execution_options(isolation_level="AUTOCOMMIT")
        await apart.execute(text("VACUUM ANALYZE jobs, runs"))
    asked.clear()
    await store.submit(new_job(key_id=KEY), quota=Quota(key_id=KEY, queued_jobs=1000, usd_per_day=1))
    looks = [(statement, values) for statement, values in asked if "FROM jobs" in statement or "key_sp" in statement]
    assert len(looks) == 3
    for statement, values in looks:
        async with engine.connect() as db:
            connection = await db.get_raw_connection()
            cursor = await connection.driver_connection.execute(f"EXPLAIN {statement}", values)  # type: ignore[union-attr]
            plan = "\n".join(row[0] for row in await cursor.fetchall())
        assert "Seq Scan on jobs" not in plan, plan
        assert "Seq Scan on runs" not in plan, plan


async def test_what_runs_and_what_has_ended_holds_no_place(store: JobStore) -> None:
    quota = Quota(key_id=KEY, queued_jobs=1)
    await completed(store, key_id=KEY)
    await running(store, key_id=KEY)
    await waiting(store, key_id="key_2")
    assert await store.submit(new_job(key_id=KEY), quota=quota) is not None
    with pytest.raises(NoPlace):
        await store.submit(new_job(key_id=KEY), quota=quota)
    assert await store.open_upload(None, key_id="key_2", quota=Quota(key_id="key_2")) is not None


async def test_who_was_refused_has_left_nothing(store: JobStore, engine: AsyncEngine) -> None:
    quota = Quota(key_id=KEY, queued_jobs=1, usd_per_day=1, unit_usd={"ltx2": 0.6})
    assert await store.submit(new_job(key_id=KEY), quota=quota) is not None
    for refused in (
        store.submit(new_job(key_id=KEY), quota=quota),
        store.open_upload(None, key_id=KEY, quota=quota),
        store.open_upload("01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11", key_id=KEY, quota=quota),
    ):
        with pytest.raises(NoPlace):
            await refused
    with pytest.raises(NoBudget):
        await store.submit(new_job(key_id=KEY), quota=Quota(key_id=KEY, usd_per_day=1, unit_usd={"ltx2": 0.6}))
    use = await use_of(engine, KEY)
    assert (use.running, use.queued, use.usd) == (0, 1, 0)
    assert len(await store.list()) == 1


async def test_ways_in_do_not_pass_beside_each_other(store: JobStore, engine: AsyncEngine) -> None:
    """Submitting and opening uploads at the same time, by several keys, each of which has its own number."""
    names = [f"key_{n}" for n in range(3)]

    async def one(key_id: str, opens: bool) -> bool:
        quota = Quota(key_id=key_id, queued_jobs=4)
        try:
            if opens:
                await store.open_upload(None, key_id=key_id, quota=quota)
            else:
                await store.submit(new_job(key_id=key_id), quota=quota)
        except NoPlace:
            return False
        return True

    passed = await asyncio.gather(
        *(one(key_id, opens) for _ in range(6) for key_id in names for opens in (True, False))
    )
    assert sum(passed) == 4 * len(names)
    assert [(await use_of(engine, key_id)).queued for key_id in names] == [4] * len(names)
