"""Where a job stands and when it may be done."""

import random

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Started
from serve_app.jobs import reads as reads_module
from serve_app.jobs.place import ahead_of
from serve_app.jobs.reads import JobReads
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import INPUTS, api_key, jobs_of, lease_of, new_job, outcome, running, stopped


async def submit(store: JobStore, *users: str | None, **changes: object) -> list[str]:
    jobs = [await store.submit(new_job(user, **changes)) for user in users]
    if not jobs:
        return []
    for job in jobs_of(await store.claim_for_intake(1000)):
        await store.admit(lease_of(job), INPUTS)
    return [job.id for job in jobs]


async def position(reads: JobReads, job_id: str) -> int:
    return (await reads.get(job_id)).position


async def test_places_are_the_order_of_claims(store: JobStore, reads: JobReads) -> None:
    """Whatever users and priorities there are, and with jobs in flight: the n-th to be claimed is told n."""
    await running(store, "ann")
    await submit(store, "ann", "ann", "bob", None, "ann")
    await submit(store, "bob", priority=4)
    await submit(store, "cid", None, priority=-2)
    waiting = [job for job in await store.list(limit=100) if job.status == "queued"]
    told = {job.id: (await reads.get(job.id)).position for job in waiting}
    order = [job.id for job in jobs_of(await store.claim_to_run("ltx2", 100))]
    assert told == {job_id: number for number, job_id in enumerate(order)}


@pytest.mark.parametrize("seed", range(6))
async def test_places_are_the_order_of_claims_after_any_history(store: JobStore, reads: JobReads, seed: int) -> None:
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
    told = {job.id: (await reads.get(job.id)).position for job in waiting}
    order = [job.id for job in jobs_of(await store.claim_to_run("ltx2", 100))]
    assert told == {job_id: number for number, job_id in enumerate(order)}


@pytest.mark.parametrize("seed", range(8))
async def test_places_go_by_the_turns_of_keys(store: JobStore, reads: JobReads, engine: AsyncEngine, seed: int) -> None:
    """Whatever users they have, what was served before, and what a key may run."""
    chance = random.Random(seed)
    owners = [(key, user) for key in ("", "key_1", "key_2") for user in ("ann", "bob", None)]
    await api_key(engine, "key_1", running_jobs=chance.choice([None, 2, 4]))
    await api_key(engine, "key_2")
    for _ in range(4):
        for key, user in owners:
            await submit(store, *[user] * chance.randrange(3), key_id=key, priority=chance.randrange(-1, 2))
        for job in jobs_of(await store.claim_to_run("ltx2", chance.randrange(1, 9))):
            lease = lease_of(job)
            await store.start(Started(lease=lease))
            if chance.random() < 0.6:
                await store.complete(outcome(lease), "outputs/x/1/output.mp4")
    waiting = [job for job in await store.list(limit=100) if job.status == "queued"]
    told = {job.id: (await reads.get(job.id)).position for job in waiting}
    order = [job.id for job in jobs_of(await store.claim_to_run("ltx2", 100))]
    assert len(order) >= 5
    # Those that a limit holds back are behind what else the key has; how far, nobody can say.
    assert {job_id: told[job_id] for job_id in order} == {job_id: number for number, job_id in enumerate(order)}


async def test_a_key_of_many_users_is_ahead_by_its_turn_only(store: JobStore, reads: JobReads) -> None:
    await submit(store, *[f"user {n}" for n in range(20)], key_id="many")
    first, second = await submit(store, "ann", "ann", key_id="one")
    assert [await position(reads, job_id) for job_id in (first, second)] == [1, 3]


async def test_what_a_limit_holds_back_is_ahead_of_nobody_elses(
    store: JobStore, reads: JobReads, engine: AsyncEngine
) -> None:
    await api_key(engine, "key_1", running_jobs=2)
    await submit(store, *["ann"] * 9, key_id="key_1")
    *_, last = await submit(store, *["bob"] * 5, key_id="key_2")
    assert await position(reads, last) == 4 + 2


async def test_claimed_jobs_are_ahead_of_waiting_ones(store: JobStore, reads: JobReads) -> None:
    first, second, third = await submit(store, "ann", "ann", "bob")
    assert [job.id for job in jobs_of(await store.claim_to_run("ltx2", 1))] == [first]
    assert [await position(reads, job_id) for job_id in (first, third, second)] == [0, 1, 2]


async def test_only_waiting_jobs_have_a_place(store: JobStore, reads: JobReads) -> None:
    lease = await running(store)
    assert (await reads.get(lease.job_id)).position is None
    opened = await store.open_upload(None)
    assert (await reads.get(opened.id)).position is None


async def test_other_models_do_not_count(store: JobStore, reads: JobReads) -> None:
    await submit(store, "ann", model="wav2lip")
    (job_id,) = await submit(store, "ann")
    assert await position(reads, job_id) == 0


async def test_a_long_line_is_not_counted_to_its_end(
    store: JobStore, reads: JobReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads_module, "READ", reads_module.READ.replace(ahead_of(), ahead_of(3)))
    *_, last = await submit(store, *["ann"] * 6)
    assert await position(reads, last) == 3


async def test_the_estimate_is_that_of_recent_videos(store: JobStore, reads: JobReads) -> None:
    for seconds in (10.0, 20.0):
        await store.complete(outcome(await running(store), run=seconds), "outputs/x/1/output.mp4")
    working = await running(store)
    _, second = await submit(store, "bob", "bob")
    # The one at work, the one ahead, its own: 15 seconds each.
    seen = await reads.get(second)
    assert (seen.position, seen.eta_s) == (1, pytest.approx(45.0, abs=1))
    await store.stopped(stopped(working))
    # Nobody works: how long a GPU takes to come is not known.
    seen = await reads.get(second)
    assert (seen.position, seen.eta_s) == (1, None)
