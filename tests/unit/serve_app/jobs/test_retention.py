"""Old jobs go, rows and media together, and a store that fails in the middle loses track of nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.store import JobStore
from serve_app.storage.base import StorageError
from serve_app.storage.local import LocalStorage
from tests.unit.serve_app.jobs.samples import completed, execute, failure, fetch, new_job, running, stopped


class Stumbling(LocalStorage):
    """Refuses to delete below these folders."""

    refused: set[str] = set()  # noqa: RUF012 - set per instance by the tests

    async def delete_prefix(self, prefix: str) -> int:
        if prefix in self.refused:
            raise StorageError("The store does not answer.", transient=True)
        return await super().delete_prefix(prefix)


@pytest.fixture
def storage(tmp_path: Path) -> Stumbling:
    return Stumbling(tmp_path, "http://127.0.0.1:1", b"k" * 32)


@pytest.fixture
def retention(engine: AsyncEngine, storage: Stumbling) -> Retention:
    return Retention(engine, storage, RetentionPolicy(completed_hours=24, completed_count=3, failed_hours=168))


async def chunks() -> AsyncIterator[bytes]:
    yield b"x"


def keys(job_id: str) -> tuple[str, str]:
    return f"inputs/{job_id}/image.png", f"outputs/{job_id}/1/output.mp4"


async def with_media(storage: LocalStorage, job_id: str) -> str:
    for key in keys(job_id):
        await storage.write(key, chunks(), 10)
    return job_id


async def media(storage: LocalStorage, job_id: str) -> list[bool]:
    return [await storage.stat(key) is not None for key in keys(job_id)]


async def age(engine: AsyncEngine, job_id: str, hours: float) -> None:
    statement = "UPDATE jobs SET completed_at = now() - make_interval(secs => :s) WHERE id = :id"
    await execute(engine, statement, id=job_id, s=hours * 3600)


async def left(store: JobStore) -> set[str]:
    return {job.id for job in await store.list(limit=100)}


async def test_each_outcome_has_its_age(
    store: JobStore, engine: AsyncEngine, retention: Retention, storage: Stumbling
) -> None:
    jobs = {}
    for hours in (23, 25, 167, 169):
        jobs["completed", hours] = await completed(store)
        lease = await running(store)
        await store.fail(failure(lease, "no_face_found", transient=False))
        jobs["failed", hours] = lease.job_id
        lease = await running(store)
        await store.stopped(stopped(lease))
        jobs["cancelled", hours] = lease.job_id
    waiting = (await store.submit(new_job())).id
    for (_, hours), job_id in jobs.items():
        await age(engine, job_id, hours)
    assert await retention.forget_jobs() == 5
    kept = {("completed", 23)} | {(end, hours) for end in ("failed", "cancelled") for hours in (23, 25, 167)}
    assert await left(store) == {jobs[key] for key in kept} | {waiting}


async def test_of_completed_jobs_the_newest_stay(store: JobStore, retention: Retention) -> None:
    ids = [await completed(store) for _ in range(5)]
    assert await retention.forget_jobs() == 2
    assert await left(store) == set(ids[2:])
    assert await retention.forget_jobs() == 0


async def test_media_go_with_the_row(
    store: JobStore, engine: AsyncEngine, retention: Retention, storage: Stumbling
) -> None:
    old, young = [await with_media(storage, await completed(store)) for _ in range(2)]
    await age(engine, old, 25)
    await retention.forget_jobs()
    assert await retention.delete_media() == 1
    assert (await media(storage, old), await media(storage, young)) == ([False, False], [True, True])
    assert await fetch(engine, "SELECT * FROM discarded_media") == []
    assert await retention.delete_media() == 0


@pytest.mark.parametrize("folder", ["inputs", "outputs"])
async def test_a_store_that_fails_in_the_middle_is_asked_again(
    store: JobStore, engine: AsyncEngine, retention: Retention, storage: Stumbling, folder: str
) -> None:
    """And the media of other jobs need not wait until it is well."""
    first, stuck, last = [await with_media(storage, await completed(store)) for _ in range(3)]
    for job_id in (first, stuck, last):
        await store.delete(job_id)
    storage.refused = {f"{folder}/{stuck}/"}
    assert await retention.delete_media() == 2
    assert [await media(storage, job_id) for job_id in (first, last)] == [[False, False]] * 2
    assert any(await media(storage, stuck))
    assert [noted["job_id"] for noted in await fetch(engine, "SELECT job_id FROM discarded_media")] == [stuck]
    # Nothing more can be done now: a count of 0 is what ends the loop.
    assert await retention.delete_media() == 0
    storage.refused = set()
    assert await retention.delete_media() == 1
    assert await media(storage, stuck) == [False, False]
    assert await fetch(engine, "SELECT * FROM discarded_media") == []


async def test_a_receiver_that_never_answers_keeps_no_job_beyond_its_age(
    store: JobStore, engine: AsyncEngine, retention: Retention
) -> None:
    """Its webhook is tried for three days, but not for longer than there is a video to tell of; and at least once."""
    job_id = await completed(store, webhook_url="https://c.example/hook")
    await age(engine, job_id, 25)
    await retention.forget_jobs()
    assert await store.get(job_id) is not None
    await execute(engine, "UPDATE deliveries SET attempts = 1, next_attempt_at = now() + interval '1 day'")
    await retention.forget_jobs()
    assert await store.get(job_id) is None
    assert await fetch(engine, "SELECT * FROM deliveries") == []


async def test_a_burst_of_jobs_costs_no_webhook(store: JobStore, engine: AsyncEngine, retention: Retention) -> None:
    """What is over number stays until its webhook is off, and does not keep others that are over number."""
    told = await completed(store)
    owed = [await completed(store, webhook_url="https://c.example/hook") for _ in range(2)]
    newest = [await completed(store) for _ in range(3)]
    await execute(engine, "UPDATE deliveries SET attempts = 1")
    assert await retention.forget_jobs() == 1
    assert await left(store) == {*owed, *newest}
    assert told not in await left(store)
    await execute(engine, "UPDATE deliveries SET next_attempt_at = NULL")
    assert await retention.forget_jobs() == 2
    assert await left(store) == set(newest)
