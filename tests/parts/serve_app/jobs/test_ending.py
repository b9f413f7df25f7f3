"""How attempts and jobs end: deadlines of retries, neighbours of a crash, our own store in the way."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Lease, Progress, Started, Verdict
from serve_app.jobs.conditions import EVERY_MODEL, Condition, Conditions
from serve_app.jobs.job import Job, Status
from serve_app.jobs.outlooks import Outlook, Outlooks
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import (
    api_key,
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

BROKEN = Condition("model_unavailable", "ltx2 cannot start: FileNotFoundError: /weights")


async def again(store: JobStore, engine: AsyncEngine) -> Lease:
    """The next attempt of the one job that waits to be retried."""
    await skip_back_off(engine)
    (claimed,) = jobs_of(await store.claim_to_run("ltx2", 10))
    lease = lease_of(claimed)
    assert await store.start(Started(lease=lease)) is Verdict.GO_ON
    return lease


async def seconds_to_start(engine: AsyncEngine, job_id: str) -> float:
    query = "SELECT extract(epoch FROM expires_at - now())::float8 AS s FROM jobs WHERE id = :id"
    return (await fetch(engine, query, id=job_id))[0]["s"]


async def let_deadline_pass(engine: AsyncEngine) -> None:
    await execute(engine, "UPDATE jobs SET expires_at = now() - interval '1 second' WHERE completed_at IS NULL")


# -------------------------------------------------------------------- deadlines


@pytest.mark.parametrize(("given", "granted"), [(600, 600), (None, 24 * 3600)])
async def test_a_retry_has_as_long_to_start_as_the_first_attempt(
    store: JobStore, engine: AsyncEngine, given: float | None, granted: float
) -> None:
    lease = await running(store, expires_after=given)
    await execute(engine, "UPDATE jobs SET expires_at = now() - interval '1 hour'")
    await store.fail(failure(lease))
    assert granted - 60 < await seconds_to_start(engine, lease.job_id) <= granted
    assert await store.expire_deadlines() == 0


async def test_a_deadline_that_is_later_anyway_stays(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store, expires_after=600)
    await execute(engine, "UPDATE jobs SET expires_at = now() + interval '2 days'")
    await store.fail(failure(lease))
    assert await seconds_to_start(engine, lease.job_id) > 47 * 3600


async def test_fetching_again_moves_no_deadline(store: JobStore, engine: AsyncEngine) -> None:
    """The job has not started yet, so the client's time to start still runs."""
    await store.submit(new_job(expires_after=600))
    (claimed,) = jobs_of(await store.claim_for_intake(1))
    await execute(engine, "UPDATE jobs SET expires_at = now() + interval '5 seconds'")
    await store.fail(failure(lease_of(claimed), "source_unreachable"))
    assert await seconds_to_start(engine, claimed.id) <= 5


async def test_a_retry_that_does_not_start_in_time_expires_and_tells_what_came_before(
    store: JobStore, engine: AsyncEngine
) -> None:
    """Before, it waited for ever: a job that had started once had no deadline any more."""
    lease = await running(store, expires_after=600)
    await store.fail(failure(lease))
    await store.fail(failure(await again(store, engine), "timed_out"))
    await let_deadline_pass(engine)
    assert await store.expire_deadlines() == 1
    job = await store.get(lease.job_id)
    assert (job.status, job.error_code) == (Status.FAILED, "expired")
    assert job.error_message == (
        "Attempt 3 did not start before its deadline; attempt 1 failed with worker_lost: because of worker_lost; "
        "attempt 2 failed with timed_out: because of timed_out."
    )


async def test_a_first_start_in_vain_is_told_plainly(store: JobStore, engine: AsyncEngine) -> None:
    job = await waiting(store, expires_after=600)
    await let_deadline_pass(engine)
    await store.expire_deadlines()
    assert (await store.get(job.id)).error_message == "The job did not start before its deadline."


async def test_jobs_of_a_model_that_does_not_start_fail_at_their_deadline_with_the_reason(
    store: JobStore, engine: AsyncEngine
) -> None:
    await Conditions(engine).note("ltx2", BROKEN)
    job, other = await waiting(store, expires_after=600), await waiting(store, expires_after=600, model="wav2lip")
    assert await store.expire_deadlines() == 0
    await let_deadline_pass(engine)
    assert [await store.expire_deadlines() for _ in range(3)] == [1, 1, 0]
    job, other = await store.get(job.id), await store.get(other.id)
    assert (job.status, job.error_code) == (Status.FAILED, "model_unavailable")
    assert job.error_message == f"{BROKEN.message}. The job did not start before its deadline."
    assert other.error_code == "expired"


async def test_what_a_dispatcher_saw_long_ago_is_not_believed(store: JobStore, engine: AsyncEngine) -> None:
    await Conditions(engine).note("ltx2", BROKEN)
    await execute(engine, "UPDATE conditions SET seen_at = now() - interval '10 minutes'")
    job = await waiting(store, expires_after=600)
    await let_deadline_pass(engine)
    await store.expire_deadlines()
    assert (await store.get(job.id)).error_code == "expired"


async def test_a_deadline_names_what_stood_in_the_way(store: JobStore, engine: AsyncEngine) -> None:
    await Conditions(engine).note("ltx2", Condition("no_node_fits", "No node takes a replica of ltx2: needs 1 GPU."))
    await Conditions(engine).note(EVERY_MODEL, Condition("storage_unavailable", "The object store refuses: full."))
    job = await waiting(store, expires_after=600)
    await let_deadline_pass(engine)
    await store.expire_deadlines()
    job = await store.get(job.id)
    assert job.error_code == "expired"
    assert "needs 1 GPU" in job.error_message
    assert "The object store refuses" in job.error_message


async def test_a_deadline_names_the_limit_of_the_key(store: JobStore, engine: AsyncEngine) -> None:
    await api_key(engine, "key_1", running_jobs=1)
    await running(store, key_id="key_1")
    job = await waiting(store, key_id="key_1", expires_after=600)
    await let_deadline_pass(engine)
    await store.expire_deadlines()
    job = await store.get(job.id)
    assert job.error_code == "expired"
    assert job.error_message == (
        "The key may have 1 job running at a time; the job goes on by itself when one of them has ended. "
        "The job did not start before its deadline."
    )


@pytest.mark.parametrize(
    ("code", "ended_as"), [("weights_unavailable", "model_unavailable"), ("cap_reached", "expired")]
)
async def test_a_deadline_says_why_no_machine_was_rented(
    store: JobStore, engine: AsyncEngine, code: str, ended_as: str
) -> None:
    await Outlooks(engine).note("ltx2", Outlook(start_s=300, code=code, message="What the launcher says"))
    job = await waiting(store, expires_after=600)
    await let_deadline_pass(engine)
    await store.expire_deadlines()
    job = await store.get(job.id)
    assert job.error_code == ended_as
    assert job.error_message == "What the launcher says. The job did not start before its deadline."


# -------------------------------------------------------------------- neighbours of a crash


async def at(store: JobStore, lease: Lease, stage: str) -> Lease:
    await store.progress(Progress(lease=lease, stage=stage, percent=20))
    return lease


async def after(store: JobStore, lease: Lease) -> tuple[Status, int, bool]:
    job = await store.get(lease.job_id)
    return job.status, job.faults, job.alone


@pytest.mark.parametrize("silent", [False, True])
async def test_of_three_jobs_on_a_worker_that_died_those_that_did_nothing_keep_their_attempts(
    store: JobStore, engine: AsyncEngine, silent: bool
) -> None:
    """Whether Serve says that it died or only its leases do."""
    guilty = await at(store, await running(store), "generating")
    waits = await at(store, await running(store), "waiting_for_gpu")
    uploads = await at(store, await running(store), "uploading")
    for lease in (guilty, waits, uploads):
        if silent:
            await silence(engine, lease.job_id)
            await store.expire_leases()
        else:
            await store.fail(failure(lease))
    assert await after(store, guilty) == (Status.QUEUED, 1, True)
    assert await after(store, waits) == await after(store, uploads) == (Status.QUEUED, 0, True)
    (retried,) = await fetch(engine, "SELECT value FROM counters WHERE name = 'video_job_retries'")
    assert retried["value"] == 3


@pytest.mark.parametrize("stage", ["preparing", "generating", "denoising", "encoding"])
async def test_what_could_have_killed_the_worker_counts(store: JobStore, stage: str) -> None:
    lease = await at(store, await running(store), stage)
    await store.fail(failure(lease))
    assert await after(store, lease) == (Status.QUEUED, 1, True)


async def test_a_job_that_kills_its_worker_alone_is_to_blame_whatever_its_stage(
    store: JobStore, engine: AsyncEngine
) -> None:
    """Reports come once a second, so a stage may be old: without this, a job that kills at once would never end."""
    lease = await at(store, await running(store), "waiting_for_gpu")
    await store.fail(failure(lease))
    ends = []
    for _ in range(3):
        lease = await at(store, await again(store, engine), "waiting_for_gpu")
        await store.fail(failure(lease))
        ends.append(await after(store, lease))
    assert ends == [(Status.QUEUED, 1, True), (Status.QUEUED, 2, True), (Status.FAILED, 3, True)]
    assert (await store.get(lease.job_id)).error_code == "worker_lost"


async def test_poison_ends_after_three_attempts_and_takes_nobody_along(store: JobStore, engine: AsyncEngine) -> None:
    """On the level of the store: in each round the poison kills the worker that it is on, with all the jobs there."""
    poison = await store.submit(new_job("mallory"))
    innocents = [(await store.submit(new_job("ann"))).id for _ in range(6)]
    for claimed in jobs_of(await store.claim_for_intake(100)):
        await store.admit(lease_of(claimed), {})
    crashes = 0
    for _ in range(50):
        await skip_back_off(engine)
        room = [lease_of(claimed) for claimed in jobs_of(await store.claim_to_run("ltx2", 3))]
        if not room:
            break
        jobs = {lease.job_id: await store.get(lease.job_id) for lease in room}
        # A replica of three slots; who has to be alone gets one for himself.
        for crew in crews(jobs, room):
            for position, lease in enumerate(crew):
                await store.start(Started(lease=lease))
                await at(
                    store, lease, "generating" if position == 0 or lease.job_id == poison.id else "waiting_for_gpu"
                )
            died = any(lease.job_id == poison.id for lease in crew)
            crashes += died
            for lease in crew:
                await (store.fail(failure(lease)) if died else store.complete(outcome(lease), "outputs/x/1/output.mp4"))
    assert (await store.get(poison.id)).status is Status.FAILED
    assert crashes == 3
    ended = [await store.get(job_id) for job_id in innocents]
    assert {job.status for job in ended} == {Status.COMPLETED}
    # At most the one that was at work beside the poison has lost an attempt to it, and only one.
    assert sum(job.faults for job in ended) <= 1


def crews(jobs: dict[str, Job], leases: list[Lease]) -> list[list[Lease]]:
    together = [lease for lease in leases if not jobs[lease.job_id].alone]
    return [[lease] for lease in leases if jobs[lease.job_id].alone] + ([together] if together else [])


async def test_a_worker_that_says_so_spares_the_jobs_it_did_not_come_to(store: JobStore) -> None:
    lease = await at(store, await running(store), "generating")
    await store.fail(failure(lease).model_copy(update={"blameless": True}))
    assert await after(store, lease) == (Status.QUEUED, 0, True)


async def test_other_faults_do_not_make_a_job_lonely(store: JobStore) -> None:
    lease = await at(store, await running(store), "waiting_for_gpu")
    await store.fail(failure(lease, "timed_out"))
    assert await after(store, lease) == (Status.QUEUED, 1, False)


# -------------------------------------------------------------------- our store in the way


async def test_a_job_that_our_store_keeps_waiting_loses_nothing(store: JobStore, engine: AsyncEngine) -> None:
    job = await store.submit(new_job(expires_after=600))
    deadline = (await row(engine, job.id))["expires_at"]
    # It doubles, up to a minute, each spread by a quarter.
    for nominal in (1, 2, 4, 8, 16, 32, 60, 60):
        await skip_back_off(engine)
        (claimed,) = jobs_of(await store.claim_for_intake(1))
        before = await seconds_of(engine, "clock_timestamp()")
        await store.postpone(lease_of(claimed))
        found = await store.get(job.id)
        assert (found.status, found.stage, found.faults, found.attempt) == (Status.QUEUED, "storage_unavailable", 0, 0)
        after, until = await seconds_of(engine, "clock_timestamp()"), await seconds_of(engine, "not_before")
        assert before + 0.74 * nominal < until < after + 1.26 * nominal
    assert (await row(engine, job.id))["expires_at"] == deadline


async def seconds_of(engine: AsyncEngine, moment: str) -> float:
    return (await fetch(engine, f"SELECT extract(epoch FROM {moment})::float8 AS s FROM jobs"))[0]["s"]


async def test_the_wait_begins_anew_once_the_store_was_there(store: JobStore, engine: AsyncEngine) -> None:
    await store.submit(new_job())
    for _ in range(3):
        await skip_back_off(engine)
        (claimed,) = jobs_of(await store.claim_for_intake(1))
        await store.postpone(lease_of(claimed))
    await skip_back_off(engine)
    (claimed,) = jobs_of(await store.claim_for_intake(1))
    await store.admit(lease_of(claimed), {})
    assert (await row(engine, claimed.id))["postponed"] == 0


async def test_a_run_that_our_store_spoils_costs_no_attempt(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store, expires_after=600)
    await execute(engine, "UPDATE jobs SET expires_at = now() - interval '1 hour'")
    await store.postpone(lease, {"run": 3.0})
    job = await store.get(lease.job_id)
    assert (job.status, job.faults, job.timings) == (Status.QUEUED, 0, {"run": 3.0})
    assert await store.expire_deadlines() == 0
    assert (await again(store, engine)).attempt == 2


async def test_a_job_that_is_cancelled_meanwhile_is_not_postponed(store: JobStore) -> None:
    lease = await running(store)
    await store.cancel(lease.job_id)
    await store.postpone(lease)
    assert (await store.get(lease.job_id)).status is Status.CANCELLED


async def test_who_has_lost_the_job_postpones_nothing(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    before = await row(engine, lease.job_id)
    await store.postpone(lease.model_copy(update={"token": "another"}))
    assert await row(engine, lease.job_id) == before


async def test_a_video_that_cannot_be_verified_is_kept_and_its_worker_forgotten(
    store: JobStore, engine: AsyncEngine
) -> None:
    lease = await running(store)
    assert await store.hold(outcome(lease)) is Verdict.GO_ON
    job = await store.get(lease.job_id)
    assert (job.status, job.stage) == (Status.PROCESSING, "storage_unavailable")
    # Whatever becomes of the worker now changes nothing.
    for late in (store.fail(failure(lease)), store.stopped(stopped(lease)), store.hold(outcome(lease))):
        assert await late is Verdict.LEASE_LOST
    assert await store.expire_leases() == 0
    (report,) = await store.unverified()
    assert (report.size, report.notes, report.lease.attempt) == (3, {"seed": 7}, 1)
    assert await store.complete(report, "outputs/x/1/output.mp4") is Verdict.GO_ON
    job = await store.get(lease.job_id)
    assert (job.status, job.attempt, job.outcome, job.timings) == (Status.COMPLETED, 1, None, {"run": 2.0})
    assert await store.unverified() == []


async def test_a_report_that_another_version_kept_keeps_no_other_from_being_verified(
    store: JobStore, engine: AsyncEngine
) -> None:
    odd, good = await running(store), await running(store)
    for lease in (odd, good):
        await store.hold(outcome(lease))
    await execute(engine, """UPDATE jobs SET outcome = '{"unheard": "of"}' WHERE id = :id""", id=odd.job_id)
    assert [report.lease.job_id for report in await store.unverified()] == [good.job_id]


async def test_a_video_that_nobody_can_verify_for_a_day_is_made_again(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    await store.hold(outcome(lease))
    await silence(engine, lease.job_id)
    assert await store.expire_leases() == 1
    job = await store.get(lease.job_id)
    assert (job.status, job.error_code, job.faults, job.outcome) == (Status.QUEUED, "storage_unavailable", 1, None)
    assert await store.unverified() == []


# -------------------------------------------------------------------- ids


ID = "22222222-2222-4222-8222-222222222222"


@pytest.mark.parametrize("forgotten", ["deleted", "by age"])
async def test_the_id_of_a_forgotten_job_is_not_opened_again(
    store: JobStore, engine: AsyncEngine, forgotten: str
) -> None:
    if forgotten == "deleted":
        job_id = ID
        await store.open_upload(job_id)
        await store.delete(job_id)
    else:
        job_id = await completed(store)
        await execute(engine, "UPDATE jobs SET completed_at = now() - interval '2 days'")
        # Forgetting rows touches no media.
        await Retention(engine, None, RetentionPolicy()).forget_jobs()
    assert await store.get(job_id) is None
    assert await store.open_upload(job_id) is None
    assert await store.get(job_id) is None
    assert await store.submit(new_job(), job_id) is None


async def test_folders_differ_though_ids_do_not(store: JobStore, engine: AsyncEngine) -> None:
    first = await store.open_upload(ID)
    assert (await store.open_upload(ID)).folder == first.folder
    await store.delete(ID)
    await execute(engine, "DELETE FROM used_ids")
    second = await store.open_upload(ID)
    assert first.folder != second.folder
    assert first.folder.startswith(f"{ID}/")


# -------------------------------------------------------------------- rows of other versions


async def test_a_row_that_cannot_be_parsed_stops_nobody(store: JobStore, engine: AsyncEngine) -> None:
    """Of a newer or older version, after a redeployment; proved at the level of the store."""
    odd, good = await waiting(store, "ann"), await waiting(store, "bob")
    await execute(
        engine,
        """UPDATE jobs SET inputs = '{"image": {"unheard": "of"}}', timings = '[]', notes = '7', media = '[1]'
           WHERE id = :id""",
        id=odd.id,
    )
    assert {job.id for job in jobs_of(await store.claim_to_run("ltx2", 5))} == {odd.id, good.id}
    assert {job.id for job in await store.list()} == {odd.id, good.id}


@pytest.mark.own_database
async def test_a_status_of_another_version_hides_no_other_job(store: JobStore, engine: AsyncEngine) -> None:
    odd, good = await waiting(store), await waiting(store)
    await execute(engine, "ALTER TABLE jobs DROP CONSTRAINT jobs_status_known")
    await execute(engine, "UPDATE jobs SET status = 'paused' WHERE id = :id", id=odd.id)
    assert [job.id for job in await store.list()] == [good.id]
    assert [job.id for job in jobs_of(await store.claim_to_run("ltx2", 5))] == [good.id]


async def test_a_run_that_is_too_long_for_its_client_is_not_tried_again(store: JobStore) -> None:
    lease = await running(store, timeout_s=5)
    await store.fail(failure(lease, "timed_out"))
    job = await store.get(lease.job_id)
    assert (job.status, job.error_code, job.faults) == (Status.FAILED, "timed_out", 1)
    # Other faults are, whatever its limit.
    lease = await running(store, timeout_s=5)
    await store.fail(failure(lease, "worker_lost"))
    assert (await store.get(lease.job_id)).status is Status.QUEUED
