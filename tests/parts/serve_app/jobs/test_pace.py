"""When jobs may be done, by what the table says of others: clips of two lengths."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Progress, Started
from serve_app.jobs.queue import JobQueue
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import completed, execute, failure, outcome, running, skip_back_off, waiting

SHORT, LONG = 1.0, 10.0


@pytest.fixture
def queue(engine: AsyncEngine) -> JobQueue:
    return JobQueue(engine)


async def made(store: JobStore, effort: float, **timings: float) -> None:
    lease = await running(store, effort=effort)
    await store.complete(outcome(lease, **timings), "outputs/x/1/output.mp4")


async def eta(store: JobStore, queue: JobQueue, job_id: str) -> float | None:
    job = await store.get(job_id)
    assert job is not None
    place = await queue.place(job)
    return await queue.until_done(job) if place is None else place.eta_seconds


async def begun(engine: AsyncEngine, job_id: str, seconds: float) -> None:
    """As if its replica had it for so long."""
    statement = "UPDATE jobs SET started_at = now() - make_interval(secs => :seconds) WHERE id = :id"
    await execute(engine, statement, id=job_id, seconds=seconds)


async def test_a_long_clip_takes_longer_than_a_short_one(store: JobStore, queue: JobQueue, engine: AsyncEngine) -> None:
    await made(store, SHORT, prepare=1, run=10, publish=1)
    await made(store, LONG, prepare=5, run=70, publish=5)
    works = (await running(store, effort=SHORT)).job_id
    await begun(engine, works, 0)
    short = await waiting(store, "ann", effort=SHORT)
    long = await waiting(store, "ann", effort=LONG)
    last = await waiting(store, "ann", effort=SHORT)
    # The one at work; then each waits for those ahead of it and takes its own time.
    assert await eta(store, queue, works) == pytest.approx(12, abs=1)
    assert await eta(store, queue, short.id) == pytest.approx(12 + 12, abs=1)
    assert await eta(store, queue, long.id) == pytest.approx(12 + 10 + 80, abs=1)
    # Of the two ahead of it the mean is taken, and no run has been like that.
    assert await eta(store, queue, last.id) == pytest.approx(12 + 2 * 5.5 * 8.5 + 12, abs=1)


async def test_what_runs_goes_by_how_far_it_is(store: JobStore, queue: JobQueue, engine: AsyncEngine) -> None:
    await made(store, SHORT, run=100)
    lease = await running(store, effort=SHORT)
    await store.progress(Progress(lease=lease, stage="denoising", percent=80))
    await begun(engine, lease.job_id, 80)
    assert await eta(store, queue, lease.job_id) == pytest.approx(20, abs=1)
    waits = await waiting(store, "bob", effort=SHORT)
    assert await eta(store, queue, waits.id) == pytest.approx(20 + 100, abs=1)


async def test_who_is_second_on_a_replica_waits_for_the_first(
    store: JobStore, queue: JobQueue, engine: AsyncEngine
) -> None:
    await made(store, SHORT, run=100)
    first = await running(store, effort=SHORT)
    await store.progress(Progress(lease=first, stage="denoising", percent=50))
    await begun(engine, first.job_id, 50)
    second = await running(store, "bob", effort=SHORT)
    await store.progress(Progress(lease=second, stage="waiting_for_gpu", percent=0))
    assert await eta(store, queue, second.job_id) == pytest.approx(50 + 100, abs=1)
    assert await eta(store, queue, first.job_id) == pytest.approx(50, abs=1)


async def test_of_the_first_job_ever_its_own_pace_is_known(
    store: JobStore, queue: JobQueue, engine: AsyncEngine
) -> None:
    lease = await running(store)
    assert await eta(store, queue, lease.job_id) is None
    await store.progress(Progress(lease=lease, stage="denoising", percent=20))
    await begun(engine, lease.job_id, 20)
    assert await eta(store, queue, lease.job_id) == pytest.approx(80, abs=1)
    waits = await waiting(store, "bob")
    assert await eta(store, queue, waits.id) is None


async def test_what_a_fault_has_cost_is_no_pace(store: JobStore, queue: JobQueue, engine: AsyncEngine) -> None:
    """Timings are summed over attempts."""
    lease = await running(store, effort=SHORT)
    await store.fail(failure(lease, "out_of_memory", run=500))
    await skip_back_off(engine)
    (claim,) = await store.claim_to_run("ltx2", 1)
    await store.start(Started(lease=claim.lease))
    await store.complete(outcome(claim.lease, run=10), "outputs/x/2/output.mp4")
    lease = await running(store, effort=SHORT)
    await store.progress(Progress(lease=lease, stage="denoising", percent=1))
    assert await eta(store, queue, lease.job_id) is None


async def test_what_has_ended_or_begins_only_takes_no_time(store: JobStore, queue: JobQueue) -> None:
    assert await eta(store, queue, await completed(store)) is None
    opened = await store.open_upload(None)
    assert opened is not None
    assert await eta(store, queue, opened.id) is None
