"""Where a job stands and when it may be done."""

import random

import pytest

from deployments.contract import Started
from serve_app.jobs import queue as queue_module
from serve_app.jobs.queue import JobQueue, Place
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import INPUTS, jobs_of, lease_of, new_job, outcome, running, stopped


@pytest.fixture
def queue(engine) -> JobQueue:
    return JobQueue(engine)


async def submit(store: JobStore, *users: str | None, **changes: object) -> list[str]:
    jobs = [await store.submit(new_job(user, **changes)) for user in users]
    if not jobs:
        return []
    for job in jobs_of(await store.claim_for_intake(1000)):
        await store.admit(lease_of(job), INPUTS)
    return [job.id for job in jobs]


async def position(store: JobStore, queue: JobQueue, job_id: str) -> int:
    return (await queue.place(await store.get(job_id))).position


async def test_places_are_the_order_of_claims(store: JobStore, queue: JobQueue) -> None:
    """Whatever users and priorities there are, and with jobs in flight: the n-th to be claimed is told n."""
    await running(store, "ann")
    await submit(store, "ann", "ann", "bob", None, "ann")
    await submit(store, "bob", priority=4)
    await submit(store, "cid", None, priority=-2)
    waiting = [job for job in await store.list(limit=100) if job.status == "queued"]
    told = {job.id: (await queue.place(job)).position for job in waiting}
    order = [job.id for job in jobs_of(await store.claim_to_run("ltx2", 100))]
    assert told == {job_id: number for number, job_id in enumerate(order)}


@pytest.mark.parametrize("seed", range(6))
async def test_places_are_the_order_of_claims_after_any_history(store: JobStore, queue: JobQueue, seed: int) -> None:
    """Turns that users had, jobs they hold, priorities: whatever decides about the claim decides about the place."""
    chance = random.Random(seed)
    users = ["ann", "bob", "cid", None]
    for _ in range(4):
        for user in users:
            await submit(store, *[user] * chance.randrange(3), priority=chance.randrange(-1, 2))
        claimed = jobs_of(await store.claim_to_run("ltx2", chance.randrange(1, 8)))
        for job in claimed:
            lease = lease_of(job)
            await store.start(Started(lease=lease))
            if chance.random() < 0.6:
                await store.complete(outcome(lease), "outputs/x/1/output.mp4")
    waiting = [job for job in await store.list(limit=100) if job.status == "queued"]
    told = {job.id: (await queue.place(job)).position for job in waiting}
    order = [job.id for job in jobs_of(await store.claim_to_run("ltx2", 100))]
    assert told == {job_id: number for number, job_id in enumerate(order)}


async def test_claimed_jobs_are_ahead_of_waiting_ones(store: JobStore, queue: JobQueue) -> None:
    first, second, third = await submit(store, "ann", "ann", "bob")
    assert [job.id for job in jobs_of(await store.claim_to_run("ltx2", 1))] == [first]
    assert [await position(store, queue, job_id) for job_id in (first, third, second)] == [0, 1, 2]


async def test_only_waiting_jobs_have_a_place(store: JobStore, queue: JobQueue) -> None:
    lease = await running(store)
    assert await queue.place(await store.get(lease.job_id)) is None
    opened = await store.open_upload(None)
    assert await queue.place(opened) is None


async def test_other_models_do_not_count(store: JobStore, queue: JobQueue) -> None:
    await submit(store, "ann", model="wav2lip")
    (job_id,) = await submit(store, "ann")
    assert await position(store, queue, job_id) == 0


async def test_a_long_line_is_not_counted_to_its_end(
    store: JobStore, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "MAX_POSITION", 3)
    *_, last = await submit(store, *["ann"] * 6)
    assert await position(store, queue, last) == 3


async def test_the_estimate_is_that_of_recent_videos(store: JobStore, queue: JobQueue) -> None:
    for seconds in (10.0, 20.0):
        await store.complete(outcome(await running(store), run=seconds), "outputs/x/1/output.mp4")
    working = await running(store)
    _, second = await submit(store, "bob", "bob")
    # The one at work, the one ahead, its own: 15 seconds each.
    assert await queue.place(await store.get(second)) == Place(1, pytest.approx(45.0, abs=1))
    await store.stopped(stopped(working))
    # Nobody works: how long a GPU takes to come is not known.
    assert await queue.place(await store.get(second)) == Place(1, None)


async def test_counts_are_by_model_and_status(store: JobStore, queue: JobQueue) -> None:
    await running(store)
    await submit(store, "ann")
    await submit(store, "ann", model="wav2lip")
    await store.open_upload(None)
    assert await queue.counts() == {"ltx2": {"processing": 1, "queued": 1}, "wav2lip": {"queued": 1}}
