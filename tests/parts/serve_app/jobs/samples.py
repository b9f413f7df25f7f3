"""Jobs in every state, made through the store itself, and looks behind its back."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Ability, Failure, Lease, MediaFacts, Outcome, Started, Stopped, Verdict
from serve_app.intake.inputs import StoredInput
from serve_app.jobs.abilities import Abilities
from serve_app.jobs.deliveries import Deliveries
from serve_app.jobs.job import Claim, Job, NewJob
from serve_app.jobs.store import JobStore

IMAGE = StoredInput(content_type="image/png", key="inputs/x/image.png", size=10)
INPUTS = {"image": IMAGE}
FACTS = MediaFacts(width=64, height=64, fps="24/1", frames=25, has_audio=False)


def new_job(user_id: str | None = None, **changes: Any) -> NewJob:
    """What a client may ask for."""
    values: dict[str, Any] = {"model": "ltx2", "params": {"prompt": "hi"}, "sources": {"image": "https://x.example/a"}}
    return NewJob(**(values | {"user_id": user_id} | changes))


def lease_of(job: Job) -> Lease:
    """The lease of a job as it was claimed."""
    return Claim.of(job).lease


def jobs_of(claims: Sequence[Claim]) -> list[Job]:
    return [claim.job for claim in claims]


async def api_key(engine: AsyncEngine, key_id: str, *, running_jobs: int | None = None) -> None:
    """A key, so many of whose jobs may run at a time."""
    await execute(
        engine,
        "INSERT INTO api_keys (id, name, hash, hint, scopes, running_jobs)"
        " VALUES (:id, :id, :id, :id, '{generate}', :running_jobs)",
        id=key_id,
        running_jobs=running_jobs,
    )


async def waiting(store: JobStore, user_id: str | None = None, **changes: Any) -> Job:
    """A job that waits for a GPU, its inputs admitted."""
    job = await store.submit(new_job(user_id, **changes))
    assert job is not None
    claimed = jobs_of(await store.claim_for_intake(1000))
    for other in claimed:
        assert await store.admit(lease_of(other), INPUTS)
    assert job.id in {other.id for other in claimed}
    return job


async def running(store: JobStore, user_id: str | None = None, **changes: Any) -> Lease:
    """The lease of a job that a replica works on."""
    job = await waiting(store, user_id, **changes)
    leases = {claimed.id: lease_of(claimed) for claimed in jobs_of(await store.claim_to_run("ltx2", 1000))}
    assert await store.start(Started(lease=leases[job.id])) is Verdict.GO_ON
    return leases[job.id]


async def completed(store: JobStore, user_id: str | None = None, **changes: Any) -> str:
    """The id of a job that has its video."""
    lease = await running(store, user_id, **changes)
    assert await store.complete(outcome(lease), f"outputs/{lease.job_id}/1/output.mp4") is Verdict.GO_ON
    return lease.job_id


def outcome(lease: Lease, **timings: float) -> Outcome:
    return Outcome(lease=lease, size=3, md5="x" * 32, media=FACTS, timings=timings or {"run": 2.0}, notes={"seed": 7})


def failure(lease: Lease, code: str = "worker_lost", *, transient: bool = True, **timings: float) -> Failure:
    return Failure(lease=lease, code=code, message=f"because of {code}", transient=transient, timings=timings)


def stopped(lease: Lease, **timings: float) -> Stopped:
    return Stopped(lease=lease, timings=timings)


async def deployed(
    engine: AsyncEngine, name: str, gib: int | None = None, ability: Mapping[str, Any] | None = None, ago_s: float = 0
) -> None:
    """A deployment as the dispatcher writes it down; a replica of it has said ``ability`` so many seconds ago."""
    await execute(
        engine,
        "INSERT INTO abilities (deployment, model, gib, had_at, said)"
        " SELECT :name, :model, :gib, now(), CASE WHEN said IS NULL THEN '{}'::jsonb ELSE"
        " jsonb_build_object('a', jsonb_build_object('at', extract(epoch FROM now()) - :ago_s, 'ability', said)) END"
        " FROM (SELECT CAST(:ability AS jsonb) AS said) AS replica",
        name=name,
        model=name.partition("-")[0],
        gib=gib,
        ability=None if ability is None else json.dumps(ability),
        ago_s=ago_s,
    )


async def reported(abilities: Abilities) -> dict[str, Ability]:
    """What replicas have said lately, by deployment."""
    told = [each for found in (await abilities.told()).values() for each in found]
    return {each.candidate.deployment: each.ability for each in told if each.ability is not None}


async def execute(engine: AsyncEngine, statement: str, **values: object) -> None:
    async with engine.begin() as db:
        await db.execute(text(statement), values)


async def fetch(engine: AsyncEngine, statement: str, **values: object) -> list[Mapping[str, Any]]:
    async with engine.connect() as db:
        return [dict(row) for row in (await db.execute(text(statement), values)).mappings()]


async def row(engine: AsyncEngine, job_id: str) -> Mapping[str, Any] | None:
    """Every column of one job."""
    found = await fetch(engine, "SELECT * FROM jobs WHERE id = :id", id=job_id)
    return found[0] if found else None


async def skip_back_off(engine: AsyncEngine) -> None:
    """As if every wait before a retry were over."""
    await execute(engine, "UPDATE jobs SET not_before = now() - interval '1 second' WHERE status = 'queued'")


async def silence(engine: AsyncEngine, job_id: str) -> None:
    """As if nobody had renewed the lease in time."""
    statement = "UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE id = :id"
    await execute(engine, statement, id=job_id)


async def eventually(condition: Callable[[], Awaitable[Any]], within_s: float = 30) -> Any:
    """The first true value of ``condition``; the limit only turns a hang into a failure."""
    async with asyncio.timeout(within_s):
        while not (value := await condition()):  # noqa: ASYNC110 - what changes is in the database
            await asyncio.sleep(0.02)
    return value


async def ended(engine: AsyncEngine, job_id: str) -> None:
    """Cancelled, whatever it did."""
    await execute(
        engine,
        """UPDATE jobs SET status = 'cancelled', completed_at = now(), lease_token = NULL, lease_expires_at = NULL
            WHERE id = :id""",
        id=job_id,
    )


async def deliver(deliveries: Deliveries) -> int:
    """Send what is due, once. How many that were."""
    due = await deliveries.claim()
    for delivery in due:
        await deliveries.send(delivery)
    return len(due)


async def come_due(engine: AsyncEngine) -> None:
    """Whatever is to be delivered later is due now."""
    await execute(engine, "UPDATE deliveries SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL")
