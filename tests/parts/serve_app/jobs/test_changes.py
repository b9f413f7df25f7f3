"""What a client can see raises a job's version and is told; what it cannot see is not (migration 0012)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Progress, Started
from serve_app.jobs.database import CHANGES, listen
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import (
    INPUTS,
    execute,
    failure,
    lease_of,
    new_job,
    outcome,
    running,
    waiting,
)


class Told:
    """What was notified since the last question."""

    def __init__(self, engine: AsyncEngine, payloads: AsyncIterator[str]) -> None:
        self._engine = engine
        self._payloads = payloads

    async def since(self) -> list[str]:
        """A notification of our own marks the end: they come in the order of their commits."""
        await execute(self._engine, f"SELECT pg_notify('{CHANGES}', 'end')")
        found = []
        async with asyncio.timeout(20):
            while (payload := await anext(self._payloads)) != "end":
                found.append(payload)
        return found


@pytest.fixture
async def told(engine: AsyncEngine, database_url: str) -> AsyncIterator[Told]:
    async with aclosing(listen(database_url, CHANGES)) as payloads:
        assert await anext(payloads) == ""
        yield Told(engine, payloads)


async def version(store: JobStore, job_id: str) -> int:
    job = await store.get(job_id)
    assert job is not None
    return job.version


async def test_a_create_tells_nobody(store: JobStore, told: Told) -> None:
    job = await store.submit(new_job())
    assert job is not None
    assert job.version == 0
    assert await told.since() == []


async def test_each_step_of_a_job_is_told_with_its_version(store: JobStore, told: Told) -> None:
    job = await store.submit(new_job())
    assert job is not None
    (claim,) = await store.claim_for_intake(1)
    await store.admit(claim.lease, INPUTS)
    (claim,) = await store.claim_to_run("ltx2", 1)
    assert await told.since() == [f"{job.id} {number}" for number in (1, 2, 3)]
    lease = lease_of(claim.job)
    await store.start(Started(lease=lease))
    # Out of the line.
    assert await told.since() == [f"{job.id} 4 ltx2"]
    await store.progress(Progress(lease=lease, stage="denoising", percent=30))
    await store.cancel(job.id)
    assert await told.since() == [f"{job.id} 5", f"{job.id} 6"]
    await store.complete(outcome(lease), "outputs/x/1/output.mp4")
    assert await told.since() == [f"{job.id} 7"]
    assert await version(store, job.id) == 7
    await store.delete(job.id)
    assert await told.since() == [f"{job.id} 8"]


async def test_leases_are_renewed_in_silence(store: JobStore, told: Told) -> None:
    lease = await running(store)
    await store.progress(Progress(lease=lease, stage="denoising", percent=30))
    claimed = await waiting(store, "bob")
    (claim,) = await store.claim_to_run("ltx2", 2)
    await told.since()
    before = await version(store, lease.job_id), await version(store, claimed.id)
    await store.progress(Progress(lease=lease, stage="denoising", percent=30))
    await store.start(Started(lease=lease))
    assert await store.renew([claim.lease]) == []
    assert await told.since() == []
    assert (await version(store, lease.job_id), await version(store, claimed.id)) == before


async def test_a_line_moves_when_a_job_leaves_it_or_comes_back(store: JobStore, told: Told) -> None:
    cancelled, deleted = await waiting(store, "ann"), await waiting(store, "bob")
    lease = await running(store, "cid")
    await told.since()
    await store.cancel(cancelled.id)
    assert (await told.since())[0].split()[2:] == ["ltx2"]
    await store.delete(deleted.id)
    assert (await told.since())[0].split()[2:] == ["ltx2"]
    # A retry.
    await store.fail(failure(lease))
    assert (await told.since())[0].split()[2:] == ["ltx2"]


async def test_an_upload_that_is_submitted_comes_into_the_line(store: JobStore, told: Told) -> None:
    opened = await store.open_upload(None)
    assert opened is not None
    assert await told.since() == []
    await store.submit(new_job(), opened.id)
    assert await told.since() == [f"{opened.id} 1 ltx2"]


async def test_what_is_undone_is_told_to_nobody(store: JobStore, engine: AsyncEngine, told: Told) -> None:
    lease = await running(store)
    await told.since()
    before = await version(store, lease.job_id)
    async with engine.connect() as db:
        await db.execute(text("UPDATE jobs SET progress = 50"))
        await db.rollback()
    assert await told.since() == []
    assert await version(store, lease.job_id) == before
