"""Single steps of a job's life. Their combinations are in ``test_store_machine.py``."""

import asyncio

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Progress, Started, Verdict
from serve_app.jobs.database import connect
from serve_app.jobs.job import Status
from serve_app.jobs.store import JobStore
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
    row,
    running,
    silence,
    skip_back_off,
    stopped,
    waiting,
)


async def test_an_accepted_job_is_on_disk(store: JobStore, database_url: str) -> None:
    job = await store.submit(new_job("ann", webhook_url="https://c.example", request_id="r", priority=3))
    assert job is not None
    other = connect(database_url)
    assert await JobStore(other).get(job.id) == job
    await other.dispose()
    assert (job.status, job.user_id, job.priority, job.params) == (Status.QUEUED, "ann", 3, {"prompt": "hi"})


async def test_ids_sort_by_age(store: JobStore) -> None:
    ids = [(await store.submit(new_job())).id for _ in range(3)]
    assert ids == sorted(ids)


async def test_submitting_wakes_the_dispatcher(store: JobStore, database_url: str) -> None:
    url = database_url.replace("+psycopg", "")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as listener:
        await listener.execute("LISTEN video_api_jobs")
        await store.submit(new_job())
        assert [note.payload async for note in listener.notifies(timeout=30, stop_after=1)] == ["work"]


@pytest.mark.parametrize("after", ["INSERT INTO jobs", "SELECT"])
async def test_an_upload_that_is_deleted_while_it_is_opened_again_is_gone(
    store: JobStore, engine: AsyncEngine, database_url: str, after: str
) -> None:
    job = await store.open_upload(None)
    deleted = []

    def delete(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not deleted and statement.startswith(after):
            with psycopg.connect(database_url.replace("+psycopg", "")) as other:
                other.execute("INSERT INTO used_ids (id, folder) VALUES (%s, 'x')", [job.id])
                deleted.append(other.execute("DELETE FROM jobs WHERE id = %s", [job.id]).rowcount)

    event.listen(engine.sync_engine, "after_cursor_execute", delete)
    assert await store.open_upload(job.id) is None
    assert deleted == [1]
    assert await store.get(job.id) is None


@pytest.mark.parametrize("act", ["cancel", "delete"])
async def test_a_job_in_a_handle_is_called_back(store: JobStore, database_url: str, act: str) -> None:
    """A call that waits for a GPU is what Serve scales on: left there, it would rent one for nothing."""
    job = await waiting(store)
    await store.claim_to_run("ltx2", 1)
    url = database_url.replace("+psycopg", "")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as listener:
        await listener.execute("LISTEN video_api_jobs")
        await getattr(store, act)(job.id)
        assert [n.payload async for n in listener.notifies(timeout=30, stop_after=1)] == [f"stop:{job.id}"]


async def test_retries_end_after_three_attempts(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    for attempt in (1, 2, 3):
        assert lease.attempt == attempt
        assert await store.fail(failure(lease, run=1.5)) is Verdict.GO_ON
        job = await store.get(lease.job_id)
        if attempt < 3:
            assert (job.status, job.stage) == (Status.QUEUED, "retrying")
            await skip_back_off(engine)
            (claimed,) = jobs_of(await store.claim_to_run("ltx2", 1))
            lease = lease_of(claimed)
            await store.start(Started(lease=lease))
    assert (job.status, job.error_code, job.attempt, job.faults) == (Status.FAILED, "worker_lost", 3, 3)
    assert job.timings == {"run": 4.5}


async def test_a_retry_waits_by_the_clock_of_the_database(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    await store.fail(failure(lease))
    (wait,) = await fetch(engine, "SELECT extract(epoch FROM not_before - now())::float8 AS s FROM jobs")
    assert 0 < wait["s"] <= 1.25
    assert jobs_of(await store.claim_to_run("ltx2", 5)) == []


async def test_a_retry_that_succeeds_shows_no_error(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    await store.progress(Progress(lease=lease, stage="generating", percent=70))
    await store.fail(failure(lease))
    await skip_back_off(engine)
    (claimed,) = jobs_of(await store.claim_to_run("ltx2", 1))
    again = lease_of(claimed)
    await store.start(Started(lease=again))
    await store.progress(Progress(lease=again, stage="generating", percent=20))
    assert (await store.get(lease.job_id)).progress == 70
    await store.complete(outcome(again), f"outputs/{lease.job_id}/2/output.mp4")
    job = await store.get(lease.job_id)
    assert (job.status, job.error_code, job.error_message, job.progress) == (Status.COMPLETED, None, None, 100)


async def test_a_start_that_is_repeated_counts_once(store: JobStore) -> None:
    lease = await running(store)
    assert await store.start(Started(lease=lease)) is Verdict.GO_ON
    await store.cancel(lease.job_id)
    assert await store.start(Started(lease=lease)) is Verdict.CANCELLED
    assert (await store.get(lease.job_id)).attempt == 1


async def test_a_cancel_that_comes_too_late_loses_to_the_video(store: JobStore) -> None:
    lease = await running(store)
    asked = await store.cancel(lease.job_id)
    assert (asked.status, asked.cancel_requested_at is not None) == (Status.PROCESSING, True)
    assert await store.progress(Progress(lease=lease, stage="generating", percent=1)) is Verdict.CANCELLED
    assert await store.complete(outcome(lease), "outputs/x/1/output.mp4") is Verdict.GO_ON
    assert (await store.cancel(lease.job_id)).status is Status.COMPLETED


async def test_a_cancelled_job_is_not_retried(store: JobStore) -> None:
    lease = await running(store)
    await store.cancel(lease.job_id)
    await store.fail(failure(lease))
    assert (await store.get(lease.job_id)).status is Status.CANCELLED


async def test_a_cancelled_job_whose_worker_died_ends(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    await store.cancel(lease.job_id)
    await silence(engine, lease.job_id)
    assert await store.expire_leases() == 1
    assert (await store.get(lease.job_id)).status is Status.CANCELLED


async def test_the_worker_that_lost_its_lease_changes_nothing(store: JobStore, engine: AsyncEngine) -> None:
    old = await running(store)
    await silence(engine, old.job_id)
    await store.expire_leases()
    await skip_back_off(engine)
    (claimed,) = jobs_of(await store.claim_to_run("ltx2", 1))
    new = lease_of(claimed)
    await store.start(Started(lease=new))
    before = await row(engine, old.job_id)
    for late in (
        store.start(Started(lease=old)),
        store.progress(Progress(lease=old, stage="generating", percent=99)),
        store.complete(outcome(old), "outputs/old/1/output.mp4"),
        store.fail(failure(old)),
        store.stopped(stopped(old)),
    ):
        assert await late is Verdict.LEASE_LOST
    assert await row(engine, old.job_id) == before
    assert await store.complete(outcome(new), "outputs/new/2/output.mp4") is Verdict.GO_ON


async def test_only_one_of_many_ends_counts(store: JobStore, engine: AsyncEngine) -> None:
    """Every way to end a job at the same moment: one wins, the others see that it has ended."""
    lease = await running(store, webhook_url="https://c.example/hook")
    await asyncio.gather(
        store.complete(outcome(lease), "outputs/x/1/output.mp4"),
        store.complete(outcome(lease), "outputs/x/1/output.mp4"),
        store.fail(failure(lease, "no_face_found", transient=False)),
        store.stopped(stopped(lease)),
        store.end_externally(lease.job_id, video_url="https://e.example/v.mp4"),
        store.cancel(lease.job_id),
    )
    job = await store.get(lease.job_id)
    assert job.status.terminal
    (counted,) = await fetch(engine, "SELECT sum(value) AS n FROM counters WHERE name = 'video_jobs'")
    assert counted["n"] == 1
    told = await fetch(engine, "SELECT * FROM deliveries")
    assert len(told) == (job.status is not Status.CANCELLED)


async def test_a_job_that_does_not_start_in_time_fails(store: JobStore, engine: AsyncEngine) -> None:
    job = await store.submit(new_job(expires_after=5))
    assert await store.expire_deadlines() == 0
    await execute(engine, "UPDATE jobs SET expires_at = now() - interval '1 second'")
    assert await store.expire_deadlines() == 1
    assert (await store.get(job.id)).error_code == "expired"


async def test_an_upload_can_be_ended_only_by_its_owner(store: JobStore) -> None:
    """It has no model yet, so no worker can have made a video of it."""
    opened = await store.open_upload(None)
    await store.end_externally(opened.id, video_url="https://e.example/v.mp4")
    assert (await store.get(opened.id)).status is Status.UPLOADING


async def test_leases_are_renewed_until_a_worker_has_the_job(store: JobStore, engine: AsyncEngine) -> None:
    job = await waiting(store)
    (claimed,) = jobs_of(await store.claim_to_run("ltx2", 1))
    lease = lease_of(claimed)
    await silence(engine, job.id)
    await store.renew([lease])
    assert await store.expire_leases() == 0
    await store.start(Started(lease=lease))
    await silence(engine, job.id)
    # From now on only the worker's own reports count: the dispatcher cannot know whether it lives.
    await store.renew([lease])
    assert await store.expire_leases() == 1


async def test_an_expired_lease_before_the_start_costs_no_attempt(store: JobStore, engine: AsyncEngine) -> None:
    job = await waiting(store)
    await store.claim_to_run("ltx2", 1)
    await silence(engine, job.id)
    assert await store.expire_leases() == 1
    found = await store.get(job.id)
    assert (found.status, found.attempt, found.faults, found.lease_token) == (Status.QUEUED, 0, 0, None)
    assert [again.id for again in jobs_of(await store.claim_to_run("ltx2", 1))] == [job.id]


@pytest.mark.parametrize("late", ["admit", "fail"])
async def test_what_intake_stores_after_a_delete_is_discarded_too(
    store: JobStore, engine: AsyncEngine, late: str
) -> None:
    """The note that the delete left may have been worked off before intake stored its files."""
    await store.submit(new_job())
    (claimed,) = jobs_of(await store.claim_for_intake(1))
    await store.delete(claimed.id)
    await execute(engine, "DELETE FROM discarded_media")
    lease = lease_of(claimed)
    await (store.admit(lease, INPUTS) if late == "admit" else store.fail(failure(lease)))
    assert [noted["job_id"] for noted in await fetch(engine, "SELECT * FROM discarded_media")] == [claimed.id]


async def test_late_files_of_a_job_that_exists_stay(store: JobStore, engine: AsyncEngine) -> None:
    await store.submit(new_job())
    (claimed,) = jobs_of(await store.claim_for_intake(1))
    await store.cancel(claimed.id)
    assert not await store.admit(lease_of(claimed), INPUTS)
    assert await fetch(engine, "SELECT * FROM discarded_media") == []


async def test_pages_follow_each_other_while_jobs_arrive(store: JobStore) -> None:
    old = [(await store.submit(new_job())).id for _ in range(5)]
    page = await store.list(limit=2)
    assert [job.id for job in page] == old[:2:-1]
    await store.submit(new_job())
    rest = await store.list(after=(page[-1].created_at, page[-1].id), limit=10)
    assert [job.id for job in rest] == old[2::-1]


async def test_a_list_is_filtered(store: JobStore) -> None:
    done = await completed(store, "ann")
    queued = (await store.submit(new_job("bob", model="wav2lip"))).id
    assert [job.id for job in await store.list(status=Status.COMPLETED)] == [done]
    assert [job.id for job in await store.list(model="wav2lip")] == [queued]
    assert [job.id for job in await store.list(user_id="ann")] == [done]


async def test_deleting_a_running_job_is_refused(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    assert (await store.delete(lease.job_id)).status is Status.PROCESSING
    assert await row(engine, lease.job_id) is not None
    assert await store.delete("no such job") is None
