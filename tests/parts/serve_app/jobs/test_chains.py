"""Jobs that wait for the video of another: what clients see, and what the rest of the service sees of them."""

import asyncio
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Started, Verdict
from deployments.faults import Fault
from serve_app.jobs import chains
from serve_app.jobs.chains import SourceUnknown, SourceUnusable
from serve_app.jobs.conditions import why_waiting
from serve_app.jobs.demand import demands
from serve_app.jobs.job import Job, Status
from serve_app.jobs.quota import NoPlace, Quota, use_of
from serve_app.jobs.reads import JobReads
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.store import JobStore
from serve_app.jobs.tally import counts
from tests.parts.serve_app.jobs.samples import (
    completed,
    eventually,
    execute,
    failure,
    fetch,
    jobs_of,
    lease_of,
    new_job,
    outcome,
    row,
    running,
    waiting,
)


async def chained_to(store: JobStore, *ids: str, job_id: str | None = None, **changes: Any) -> Job:
    """A job that takes the video of one, and the sound of another."""
    sources = dict(zip(("video", "audio"), (f"job:{each}" for each in ids), strict=False))
    sources.setdefault("audio", "https://x.example/a.wav")
    job = await store.submit(new_job(model="wav2lip", params={}, sources=sources, **changes), job_id)
    assert job is not None
    return job


async def settled(store: JobStore) -> None:
    while await store.settle():
        pass


async def seen(store: JobStore, job_id: str) -> Job:
    job = await store.get(job_id)
    assert job is not None
    return job


async def finish(store: JobStore, source: Job) -> None:
    """Intake, GPU and all."""
    for other in jobs_of(await store.claim_for_intake(1000)):
        assert await store.admit(lease_of(other), {})
    leases = {claimed.id: lease_of(claimed) for claimed in jobs_of(await store.claim_to_run(source.deployment, 1000))}
    assert await store.start(Started(lease=leases[source.id])) is Verdict.GO_ON
    assert await store.complete(outcome(leases[source.id]), f"outputs/{source.id}/1/output.mp4") is Verdict.GO_ON


async def test_it_waits_without_a_lease_and_goes_on_when_its_source_has_ended(store: JobStore) -> None:
    source = await store.submit(new_job())
    assert source is not None
    job = await chained_to(store, source.id)
    assert (job.status, job.stage, job.awaits) == (Status.QUEUED, "waiting_for_source", [source.id])
    waits = why_waiting(job, {})
    assert waits is not None
    assert (waits.code, waits.message) == ("waiting_for_source", f"Waits for job {source.id}.")
    await finish(store, source)
    assert jobs_of(await store.claim_for_intake(10)) == []
    await settled(store)
    assert (await seen(store, job.id)).stage == "queued"
    assert [claimed.id for claimed in jobs_of(await store.claim_for_intake(10))] == [job.id]
    found = await store.resolve(job)
    assert found.videos == {"video": f"outputs/{source.id}/1/output.mp4"}
    assert found.urls == {"audio": "https://x.example/a.wav"}


async def test_it_is_no_reason_to_rent_a_machine_until_then(
    store: JobStore, reads: JobReads, engine: AsyncEngine
) -> None:
    source = await store.submit(new_job())
    assert source is not None
    job = await chained_to(store, source.id, key_id="key_1")
    found = await reads.get(job.id)
    assert found is not None
    assert (found.position, found.eta_s) == (None, None)
    assert (await demands(engine, ["wav2lip"]))["wav2lip"].backlog == 0
    other = await store.submit(new_job(model="wav2lip", params={}))
    assert other is not None
    last = await reads.get(other.id)
    assert last is not None
    assert last.position == 0
    assert await counts(engine) == {"ltx2": {"queued": 1}, "wav2lip": {"queued": 1, "awaiting": 1}}
    # It has its place with its key all the same.
    assert (await use_of(engine, "key_1")).queued == 1
    with pytest.raises(NoPlace):
        await store.submit(new_job(key_id="key_1"), quota=Quota(key_id="key_1", queued_jobs=1))
    assert [each.id for each in await store.list(status=Status.QUEUED, model="wav2lip")] == [other.id, job.id]
    await store.cancel(source.id)
    await settled(store)
    assert (await counts(engine))["wav2lip"] == {"queued": 1, "cancelled": 1}


async def test_it_fails_with_its_source_and_says_why(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    job = await chained_to(store, lease.job_id, webhook_url="https://client.example/hook")
    after = await chained_to(store, job.id)
    await store.fail(failure(lease, "no_face_found", transient=False))
    await settled(store)
    failed = await seen(store, job.id)
    assert (failed.status, failed.error_code) == (Status.FAILED, "source_failed")
    because = f"Job {lease.job_id}, whose video it needs, failed with no_face_found: because of no_face_found."
    assert failed.error_message == because
    last = await seen(store, after.id)
    assert (last.status, last.error_code) == (Status.FAILED, "source_failed")
    assert str(last.error_message).startswith(f"Job {job.id}, whose video it needs, failed with source_failed: Job ")
    assert "no_face_found" in str(last.error_message)
    told = await fetch(engine, "SELECT job_id, event FROM deliveries")
    assert told == [{"job_id": job.id, "event": "job.failed"}]
    assert await fetch(engine, "SELECT * FROM ended_sources") == []


async def test_a_source_that_is_tried_again_is_waited_for(store: JobStore) -> None:
    lease = await running(store)
    job = await chained_to(store, lease.job_id)
    await store.fail(failure(lease))
    await settled(store)
    assert (await seen(store, job.id)).awaits == [lease.job_id]


async def test_it_is_cancelled_with_its_source(store: JobStore) -> None:
    source = await store.submit(new_job())
    assert source is not None
    job = await chained_to(store, source.id)
    after = await chained_to(store, job.id)
    await store.cancel(source.id)
    await settled(store)
    assert [(await seen(store, each.id)).status for each in (job, after)] == [Status.CANCELLED] * 2


async def test_it_fails_if_its_source_is_deleted(store: JobStore) -> None:
    source = await store.submit(new_job())
    assert source is not None
    job = await chained_to(store, source.id)
    await store.delete(source.id)
    await settled(store)
    failed = await seen(store, job.id)
    assert (failed.status, failed.error_code) == (Status.FAILED, "source_failed")
    deleted = f"Job {source.id}, whose video it needs, was deleted. Make that video again, then this one."
    assert failed.error_message == deleted


async def test_it_fails_if_its_source_expires(store: JobStore, engine: AsyncEngine) -> None:
    source = await store.submit(new_job(expires_after=60))
    assert source is not None
    job = await chained_to(store, source.id, expires_after=60)
    await execute(engine, "UPDATE jobs SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL")
    while await store.expire_deadlines():
        pass
    await settled(store)
    failed = await seen(store, job.id)
    assert failed.error_code == "source_failed"
    assert f"Job {source.id}, whose video it needs, failed with expired:" in str(failed.error_message)


async def test_its_time_to_start_begins_when_its_source_is_done(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    job = await chained_to(store, lease.job_id, expires_after=60)
    assert job.expires_at is None
    await store.complete(outcome(lease), "outputs/x/1/output.mp4")
    await settled(store)
    left = "SELECT extract(epoch FROM expires_at - now())::float8 BETWEEN 30 AND 60 AS ok FROM jobs WHERE id = :id"
    assert await fetch(engine, left, id=job.id) == [{"ok": True}]


async def test_of_two_sources_both_are_waited_for(store: JobStore) -> None:
    first, second = await running(store), await running(store, "other")
    job = await chained_to(store, first.job_id, second.job_id)
    assert job.awaits == sorted([first.job_id, second.job_id])
    await store.complete(outcome(first), "outputs/x/1/output.mp4")
    await settled(store)
    assert (await seen(store, job.id)).awaits == [second.job_id]
    await store.complete(outcome(second), "outputs/y/1/output.mp4")
    await settled(store)
    assert (await seen(store, job.id)).awaits is None


async def test_one_job_may_be_both_sources(store: JobStore) -> None:
    lease = await running(store)
    job = await chained_to(store, lease.job_id, lease.job_id)
    await store.complete(outcome(lease), "outputs/x/1/output.mp4")
    await settled(store)
    assert (await store.resolve(await seen(store, job.id))).videos.keys() == {"video", "audio"}


async def test_a_source_that_has_completed_is_used_at_once(store: JobStore) -> None:
    job = await chained_to(store, await completed(store))
    assert (job.awaits, job.stage) == (None, "queued")


async def test_a_video_that_was_made_elsewhere_is_fetched(store: JobStore) -> None:
    source = await waiting(store)
    job = await chained_to(store, source.id)
    await store.end_externally(source.id, video_url="https://videos.example/a.mp4")
    await settled(store)
    found = await store.resolve(await seen(store, job.id))
    assert found.videos == {}
    assert found.urls == {"video": "https://videos.example/a.mp4", "audio": "https://x.example/a.wav"}


async def test_a_video_that_is_deleted_before_it_was_fetched_is_a_failure(store: JobStore) -> None:
    source_id = await completed(store)
    job = await chained_to(store, source_id)
    await store.delete(source_id)
    with pytest.raises(Fault, match=f"Job {source_id}, whose video it needs, was deleted") as raised:
        await store.resolve(job)
    assert (raised.value.code, raised.value.transient) == ("source_failed", False)


async def test_only_jobs_of_the_key_are_there(store: JobStore) -> None:
    source = await store.submit(new_job(key_id="key_1"))
    assert source is not None
    for unknown in (source.id, "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(SourceUnknown) as raised:
            await store.submit(new_job(sources={"video": f"job:{unknown}"}, key_id="key_2"), of_key="key_2")
        assert raised.value.input_name == "video"


async def test_what_will_have_no_video_is_no_source(store: JobStore) -> None:
    opened = await store.open_upload(None)
    cancelled = await store.submit(new_job())
    assert opened is not None
    assert cancelled is not None
    await store.cancel(cancelled.id)
    for source_id, reason in ((opened.id, "is not submitted yet"), (cancelled.id, "was cancelled")):
        with pytest.raises(SourceUnusable, match=f"Job {source_id}.* {reason}"):
            await chained_to(store, source_id)
    # Nor is a job its own, or one that waits for it.
    with pytest.raises(SourceUnusable):
        await chained_to(store, opened.id, job_id=opened.id)


async def test_an_opened_job_may_wait_as_well(store: JobStore) -> None:
    opened = await store.open_upload(None)
    lease = await running(store)
    assert opened is not None
    job = await chained_to(store, lease.job_id, job_id=opened.id, expires_after=60)
    assert (job.id, job.awaits, job.expires_at) == (opened.id, [lease.job_id], None)


async def test_a_source_can_not_end_unseen_while_a_job_that_waits_for_it_is_made(
    store: JobStore, engine: AsyncEngine
) -> None:
    """Whoever ends it waits for the new row; who comes later finds the end."""
    lease = await running(store)
    async with engine.begin() as db:
        new = new_job(sources={"video": f"job:{lease.job_id}"})
        assert await chains.awaited(db, new, None) == [lease.job_id]
        ending = asyncio.create_task(store.complete(outcome(lease), "outputs/x/1/output.mp4"))
        blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%'"
        assert await eventually(lambda: fetch(engine, blocked))
        assert not ending.done()
    assert await ending is Verdict.GO_ON


async def test_who_waits_for_one_job_does_not_wait_for_the_many_that_wait_for_another(
    store: JobStore, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody is forgotten."""
    leases = [await running(store, "many"), await running(store, "one")]
    monkeypatch.setattr(chains, "BATCH", 2)
    many = [await chained_to(store, leases[0].job_id, user_id=f"user-{n % 3}") for n in range(12)]
    one = await chained_to(store, leases[1].job_id)
    for lease in leases:
        await store.complete(outcome(lease), "outputs/x/1/output.mp4")
    for _ in range(2):
        await store.settle()
    assert (await seen(store, one.id)).awaits is None
    # Two dispatchers at once.
    await asyncio.gather(settled(store), settled(store))
    await settled(store)
    assert {(await seen(store, each.id)).awaits for each in many} == {None}
    assert await fetch(engine, "SELECT * FROM ended_sources") == []


async def test_each_key_has_its_turn_whatever_another_has_ended(
    store: JobStore, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "NOTES", 2)
    for n in range(8):
        source = await store.submit(new_job(key_id="key_1", user_id=f"user-{n}"))
        assert source is not None
        await chained_to(store, source.id, key_id="key_1")
        await store.cancel(source.id)
    source = await store.submit(new_job(key_id="key_2"))
    assert source is not None
    waits = await chained_to(store, source.id, key_id="key_2")
    await store.cancel(source.id)
    assert await store.settle() == 2
    assert (await seen(store, waits.id)).status is Status.CANCELLED
    await settled(store)
    assert await fetch(engine, "SELECT * FROM ended_sources") == []


async def test_one_that_is_cancelled_while_its_turn_comes_hides_no_other(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    jobs = [await chained_to(store, lease.job_id) for _ in range(2)]
    await store.complete(outcome(lease), "outputs/x/1/output.mp4")
    first = "SELECT id FROM jobs WHERE awaits @> ARRAY[:id] LIMIT 1"
    async with engine.connect() as db:
        # As `cancel` does it.
        chosen = (await db.execute(text(first), {"id": lease.job_id})).scalar_one()
        await db.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": chosen})
        end = "UPDATE jobs SET status = 'cancelled', completed_at = now(), awaits = NULL WHERE id = :id"
        await db.execute(text(end), {"id": chosen})
        settling = asyncio.create_task(settled(store))
        blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%awaits%'"
        await eventually(lambda: fetch(engine, blocked))
        await db.commit()
    await settling
    states = {each.id: await seen(store, each.id) for each in jobs}
    assert states.pop(chosen).status is Status.CANCELLED
    assert [each.awaits for each in states.values()] == [None]


async def test_retention_forgets_no_one_who_waits(store: JobStore, engine: AsyncEngine) -> None:
    """Its source goes after its age, seen to or not."""
    lease = await running(store)
    job = await chained_to(store, lease.job_id)
    await store.fail(failure(lease, "no_face_found", transient=False))
    await execute(engine, "UPDATE jobs SET completed_at = now() - interval '30 days' WHERE id = :id", id=lease.job_id)
    assert await Retention(engine, None, RetentionPolicy()).forget_jobs() == 1  # type: ignore[arg-type]
    await settled(store)
    failed = await seen(store, job.id)
    assert (failed.status, failed.error_code) == (Status.FAILED, "source_failed")


@pytest.mark.parametrize("policy", [RetentionPolicy(), RetentionPolicy(completed_hours=1000, completed_count=1)])
async def test_retention_keeps_what_somebody_still_needs(
    store: JobStore, engine: AsyncEngine, policy: RetentionPolicy
) -> None:
    """Be it that he waits for another job meanwhile."""
    made = await completed(store)
    await execute(engine, "UPDATE jobs SET completed_at = now() - interval '3 days' WHERE id = :id", id=made)
    lease = await running(store)
    job = await chained_to(store, made, lease.job_id)
    await store.complete(outcome(lease), "outputs/x/1/output.mp4")
    await settled(store)
    retention = Retention(engine, None, policy)  # type: ignore[arg-type]
    assert await retention.forget_jobs() == 0
    assert (await store.resolve(await seen(store, job.id))).videos.keys() == {"video", "audio"}
    (claimed,) = await store.claim_for_intake(1)
    assert await store.admit(claimed.lease, {})
    assert await retention.forget_jobs() == 1
    assert await store.get(made) is None


async def test_retention_waits_for_nobody_who_makes_a_job_of_what_is_old(store: JobStore, engine: AsyncEngine) -> None:
    made = [await completed(store) for _ in range(2)]
    await execute(engine, "UPDATE jobs SET completed_at = now() - interval '3 days'")
    async with engine.begin() as db:
        new = new_job(sources={"video": f"job:{made[1]}"})
        assert await chains.awaited(db, new, None) == []
        forgetting = Retention(engine, None, RetentionPolicy()).forget_jobs()  # type: ignore[arg-type]
        assert await asyncio.wait_for(forgetting, 60) == 1
    assert [(await store.get(each)) is None for each in made] == [True, False]


async def test_retention_spares_what_was_taken_while_it_looked(
    store: JobStore, engine: AsyncEngine, database_url: str
) -> None:
    """Who had his job made between its look and its lock is not in what it saw. Here the new row is there a moment
    later, which a second look sees as well."""
    made = [await completed(store) for _ in range(2)]
    await execute(engine, "UPDATE jobs SET completed_at = now() - interval '3 days'")
    taken = []

    def take(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not taken and "FOR UPDATE SKIP LOCKED" in statement:
            row = "INSERT INTO jobs (id, model, status, source_ids) VALUES ('new', 'ltx2', 'queued', %s)"
            with psycopg.connect(database_url.replace("+psycopg", "")) as other:
                taken.append(other.execute(row, [[made[1]]]).rowcount)

    event.listen(engine.sync_engine, "after_cursor_execute", take)
    assert await Retention(engine, None, RetentionPolicy()).forget_jobs() == 1  # type: ignore[arg-type]
    assert taken == [1]
    assert [(await store.get(each)) is None for each in made] == [True, False]


async def test_nobody_locks_the_job_of_another_key(store: JobStore, engine: AsyncEngine) -> None:
    source = await store.submit(new_job(key_id="key_1"))
    assert source is not None
    async with engine.begin() as db:
        with pytest.raises(SourceUnknown):
            await chains.awaited(db, new_job(sources={"video": f"job:{source.id}"}, key_id="key_2"), "key_2")
        assert await fetch(engine, "SELECT id FROM jobs WHERE id = :id FOR UPDATE NOWAIT", id=source.id)


async def test_a_retry_takes_the_latest_in_place_of_its_source(store: JobStore) -> None:
    source = await store.submit(new_job())
    assert source is not None
    job = await chained_to(store, source.id)
    await store.cancel(source.id)
    await settled(store)
    job = await seen(store, job.id)
    assert (await store.sources_again(job))["video"] == f"job:{source.id}"
    again = await store.submit(new_job(retry_of=source.id))
    assert again is not None
    await store.cancel(again.id)
    last = await store.submit(new_job(retry_of=again.id))
    assert last is not None
    # Somebody else's says what he likes.
    await store.submit(new_job(retry_of=last.id, key_id="key_2"))
    assert (await store.sources_again(job))["video"] == f"job:{last.id}"
    await store.delete(source.id)
    await store.delete(again.id)
    assert await store.sources_again(job) == {"audio": "https://x.example/a.wav"}


async def test_a_retry_takes_a_source_that_has_its_video(store: JobStore) -> None:
    source_id = await completed(store)
    job = await chained_to(store, source_id)
    await store.submit(new_job(retry_of=source_id))
    assert (await store.sources_again(job))["video"] == f"job:{source_id}"


async def test_the_database_itself_refuses_one_that_waits_with_a_lease(engine: AsyncEngine, store: JobStore) -> None:
    lease = await running(store)
    job = await chained_to(store, lease.job_id)
    before: Mapping[str, Any] | None = await row(engine, job.id)
    for change in ("inputs = '{}'", "awaits = NULL", "lease_token = 'x', lease_expires_at = now()"):
        with pytest.raises(Exception, match="jobs_awaiting"):
            await execute(engine, f"UPDATE jobs SET {change} WHERE id = :id", id=job.id)
    assert await row(engine, job.id) == before
