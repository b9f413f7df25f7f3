"""Old jobs go, rows and media together, and a store that fails in the middle loses track of nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Started
from serve_app.jobs import tally
from serve_app.jobs.job import Job
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.store import JobStore
from serve_app.storage import keys
from serve_app.storage.base import StorageError
from serve_app.storage.local import LocalStorage
from tests.parts.serve_app.jobs.samples import (
    INPUTS,
    completed,
    execute,
    failure,
    fetch,
    jobs_of,
    lease_of,
    new_job,
    outcome,
    running,
    stopped,
)


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


def media_keys(folder: str) -> tuple[str, str]:
    return keys.verified(folder, "image", "png"), keys.output(folder, 1)


async def with_media(storage: LocalStorage, folder: str) -> None:
    for key in media_keys(folder):
        await storage.write(key, chunks(), 10)


async def media(storage: LocalStorage, folder: str) -> list[bool]:
    return [await storage.stat(key) is not None for key in media_keys(folder)]


async def with_video(store: JobStore, storage: LocalStorage, job_id: str | None = None) -> Job:
    """A completed job with its media."""
    job = await store.get(job_id or await completed(store))
    await with_media(storage, job.folder)
    return job


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


async def test_one_users_burst_costs_nobody_else_a_video(store: JobStore, retention: Retention) -> None:
    """And jobs without a user are those of one."""
    others = [await completed(store, user) for user in ("bob", None)]
    burst = [await completed(store, "ann") for _ in range(5)]
    assert await retention.forget_jobs() == 2
    assert await left(store) == {*others, *burst[2:]}
    nobodys = [await completed(store) for _ in range(3)]
    assert await retention.forget_jobs() == 1
    assert await left(store) == {others[0], *burst[2:], *nobodys}


async def test_media_go_with_the_row(
    store: JobStore, engine: AsyncEngine, retention: Retention, storage: Stumbling
) -> None:
    old, young = [await with_video(store, storage) for _ in range(2)]
    await age(engine, old.id, 25)
    await retention.forget_jobs()
    assert await retention.delete_media() == 1
    assert (await media(storage, old.folder), await media(storage, young.folder)) == ([False, False], [True, True])
    assert await fetch(engine, "SELECT * FROM discarded_media") == []
    assert await retention.delete_media() == 0


@pytest.mark.parametrize("folder", ["inputs", "outputs"])
async def test_a_store_that_fails_in_the_middle_is_asked_again(
    store: JobStore, engine: AsyncEngine, retention: Retention, storage: Stumbling, folder: str
) -> None:
    """And the media of other jobs need not wait until it is well."""
    first, stuck, last = [await with_video(store, storage) for _ in range(3)]
    for job in (first, stuck, last):
        await store.delete(job.id)
    storage.refused = {f"{folder}/{stuck.folder}/"}
    assert await retention.delete_media() == 2
    assert [await media(storage, job.folder) for job in (first, last)] == [[False, False]] * 2
    assert any(await media(storage, stuck.folder))
    assert [noted["job_id"] for noted in await fetch(engine, "SELECT job_id FROM discarded_media")] == [stuck.id]
    # Nothing more can be done now: a count of 0 is what ends the loop.
    assert await retention.delete_media() == 0
    storage.refused = set()
    assert await retention.delete_media() == 1
    assert await media(storage, stuck.folder) == [False, False]
    assert await fetch(engine, "SELECT * FROM discarded_media") == []


async def test_media_that_never_go_stand_in_nobodys_way(
    store: JobStore, retention: Retention, storage: Stumbling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there are as many as are looked at in a turn."""
    monkeypatch.setattr(retention, "BATCH", 2)
    jobs = [await with_video(store, storage) for _ in range(3)]
    for job in jobs:
        await store.delete(job.id)
    storage.refused = {f"outputs/{job.folder}/" for job in jobs[:2]}
    assert [await retention.delete_media() for _ in range(2)] == [0, 1]
    assert await media(storage, jobs[2].folder) == [False, False]
    storage.refused = set()
    assert await retention.delete_media() == 2


async def test_cleaning_up_after_a_job_spares_another_of_the_same_id(
    store: JobStore, engine: AsyncEngine, retention: Retention, storage: Stumbling
) -> None:
    """A client chooses the id of an upload. The note of the first job is worked off when the second has its video."""
    opened = await store.open_upload("11111111-1111-4111-8111-111111111111")
    await with_media(storage, opened.folder)
    await store.delete(opened.id)
    # Nobody may open it again so soon; after a month, or with a note that a failing store kept for as long, one may.
    await execute(engine, "DELETE FROM used_ids")
    await store.open_upload(opened.id)
    await store.submit(new_job(), opened.id)
    for claimed in jobs_of(await store.claim_for_intake(1)):
        await store.admit(lease_of(claimed), INPUTS)
    (claimed,) = jobs_of(await store.claim_to_run("ltx2", 1))
    await store.start(Started(lease=lease_of(claimed)))
    await store.complete(outcome(lease_of(claimed)), keys.output(claimed.folder, 1))
    again = await with_video(store, storage, opened.id)
    assert await retention.delete_media() == 1
    assert await media(storage, opened.folder) == [False, False]
    assert await media(storage, again.folder) == [True, True]
    assert await storage.stat((await store.get(opened.id)).output_key) is not None


async def test_media_of_an_older_version_go_with_their_row(
    store: JobStore, engine: AsyncEngine, retention: Retention, storage: Stumbling
) -> None:
    """Version 0002 had no nonces: keys began with the id alone, and so do its notes."""
    job_id = await completed(store)
    await execute(engine, "UPDATE jobs SET nonce = ''")
    await with_media(storage, job_id)
    await with_media(storage, "noted")
    await execute(engine, "INSERT INTO discarded_media (job_id) VALUES ('noted')")
    await store.delete(job_id)
    assert await retention.delete_media() == 2
    assert [await media(storage, folder) for folder in (job_id, "noted")] == [[False, False]] * 2


async def test_used_ids_and_turns_are_forgotten_in_time(
    store: JobStore, engine: AsyncEngine, retention: Retention
) -> None:
    for user in ("ann", "bob"):
        await store.delete(await completed(store, user))
    await execute(
        engine,
        "UPDATE used_ids SET forgotten_at = now() - interval '31 days' WHERE id = (SELECT min(id) FROM used_ids)",
    )
    # Who waits is in line, however long that takes.
    await store.submit(new_job("cid"))
    await execute(engine, "UPDATE turns SET served_at = now() - interval '25 hours' WHERE owner <> '/bob'")
    await retention.tidy()
    assert len(await fetch(engine, "SELECT 1 FROM used_ids")) == 1
    assert {row["owner"] for row in await fetch(engine, "SELECT owner FROM turns")} == {"/bob", "/cid"}


async def test_adding_up_the_tally_changes_no_count(store: JobStore, engine: AsyncEngine, retention: Retention) -> None:
    for _ in range(3):
        await completed(store)
    await store.submit(new_job(model="wav2lip"))
    await store.delete(await completed(store))
    before = await tally.counts(engine)
    await retention.tidy()
    assert await tally.counts(engine) == before == {"ltx2": {"completed": 3}, "wav2lip": {"queued": 1}}
    assert len(await fetch(engine, "SELECT 1 FROM job_tally")) == 2


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
