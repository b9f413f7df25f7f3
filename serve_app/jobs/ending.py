"""How an attempt ends: with a retry, or with the job. Every end of every job is :meth:`Endings.end`, which
``store.py`` calls.

The caller holds the row's lock and has seen that the job has not ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy import func, insert, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.failure_code import FailureCode
from deployments.stage import Stage
from serve_app.jobs import metrics
from serve_app.jobs.conditions import EVERY_MODEL, HOPELESS, believed, of_key
from serve_app.jobs.database import CHANNEL, in_seconds
from serve_app.jobs.job import Job, Status
from serve_app.jobs.owed import owe
from serve_app.jobs.retry import delay_before_retry
from serve_app.jobs.tables import discarded_media, jobs
from serve_app.jobs.webhook_event import event_of

log = structlog.get_logger()

NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_expires_at": None}
#: Seconds that a retry has to start where the client gave none.
START_S = 24 * 3600
#: Stages in which a job does nothing that could kill its worker.
IDLE_STAGES = frozenset({Stage.WAITING_FOR_GPU, Stage.UPLOADING})
#: Of a message, in a list of them.
_BRIEF = 200


@dataclass(frozen=True, kw_only=True)
class Stumble:
    """What ended an attempt."""

    code: FailureCode
    message: str
    transient: bool = True
    #: The worker says that this job was only nearby.
    blameless: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)


class Endings:
    """How attempts and jobs end. Each within the caller's transaction."""

    def __init__(self, webhook_url: str) -> None:
        """``webhook_url`` is told about the end of every job, besides the job's own."""
        self._webhook_url = webhook_url

    async def retry_or_fail(self, db: AsyncConnection, job: Job, stumble: Stumble) -> None:
        """``→ queued`` when another attempt is due, else ``→ failed``; ``→ cancelled`` if that was asked for.

        A worker that dies takes along all jobs it holds, up to three, of which one is to blame. So the attempt counts
        only where the job was doing something, and from then on it runs alone: whoever kills its worker a second time
        did it without company, and nobody loses two attempts to a neighbour.
        """
        lost = stumble.code is FailureCode.WORKER_LOST
        spared = lost and not job.alone and (stumble.blameless or job.stage in IDLE_STAGES)
        faults = job.faults + (not spared)
        spent = {"faults": faults, "timings": sum_timings(job, stumble.timings)}
        if job.cancel_requested_at is not None:
            await self.end(db, job, Status.CANCELLED, **spent)
            return
        # It would be too long for the client's limit again.
        too_long = stumble.code is FailureCode.TIMED_OUT and job.timeout_s is not None
        transient = stumble.transient and not too_long
        delay = delay_before_retry(faults=max(faults, 1), code=stumble.code, transient=transient)
        if delay is None:
            await self.fail(db, job, stumble.code, stumble.message, **spent)
            return
        message = storable(stumble.message)
        values: dict[str, Any] = {
            "stage": Stage.RETRYING,
            "error_code": stumble.code,
            "error_message": message,
            "fault_log": [*job.fault_log, {"attempt": job.attempt, "code": stumble.code, "message": message[:_BRIEF]}],
            "alone": job.alone or lost,
            "not_before": in_seconds(delay),
            **spent,
        }
        await requeue(db, job, values)
        _log(job, "job_retried", code=stumble.code, error=stumble.message, wait_s=round(delay, 1), spared=spared)
        await metrics.count_retry(db, job, stumble.code)

    async def expire(self, db: AsyncConnection, job: Job) -> None:
        """``→ failed``: it did not start in time. Says what stood in the way, and how earlier attempts ended."""
        code, message = FailureCode.EXPIRED, "The job did not start before its deadline"
        if job.attempt:
            message = f"Attempt {job.attempt + 1} did not start before its deadline"
        told = [
            f"attempt {entry['attempt']} failed with {entry['code']}: {entry['message']}"
            if entry["attempt"]
            else f"fetching its inputs failed with {entry['code']}: {entry['message']}"
            for entry in job.fault_log
        ]
        message = "; ".join([message, *told])
        current = await believed(db)
        subjects = (of_key(job.key_id), job.deployment, EVERY_MODEL)
        for condition in (current[subject] for subject in subjects if subject in current):
            if condition.code in HOPELESS:
                code = FailureCode.MODEL_UNAVAILABLE
            reason = condition.message
            message = f"{reason if reason.endswith(('.', '…')) else f'{reason}.'} {message}"
        await self.fail(db, job, code, f"{message}." if not message.endswith(".") else message)

    async def fail(self, db: AsyncConnection, job: Job, code: FailureCode, message: str, **values: Any) -> Job:
        """``→ failed``."""
        return await self.end(db, job, Status.FAILED, error_code=code, error_message=storable(message), **values)

    async def end(self, db: AsyncConnection, job: Job, status: Status, **values: Any) -> Job:
        """Status, counters, webhooks and the wake-up commit together."""
        if status is not Status.FAILED:
            # What an earlier attempt stumbled over is not how the job ended.
            values |= {"error_code": None, "error_message": None}
        values |= {"status": status, "stage": Stage(status), "completed_at": func.now(), **NO_LEASE}
        values |= {"outcome": None, "awaits": None}
        row = (
            (await db.execute(update(jobs).where(jobs.c.id == job.id).values(values).returning(jobs))).mappings().one()
        )
        ended = Job.from_row(row)
        _log(ended, "job_ended", status=status, code=ended.error_code, error=ended.error_message)
        await metrics.count_end(db, ended)
        if job.model:
            await owe(db, ended, event_of(status), self._webhook_url)
        else:
            # An upload that was never submitted is nobody's job yet, and nobody can retry it: its files can go.
            await db.execute(insert(discarded_media).values(job_id=job.id, folder=job.folder))
        # A leased job that never started may still wait on a Serve handle: nobody needs it there any more.
        await notify(db, f"stop:{job.id}" if job.status is Status.QUEUED and job.lease_token else "work")
        return ended


async def requeue(db: AsyncConnection, job: Job, values: Mapping[str, Any]) -> None:
    """Back to the line. A job that had started gets as long again to start once more."""
    deadline = {}
    if job.status is Status.PROCESSING:
        again = in_seconds(START_S if job.expires_after is None else job.expires_after)
        deadline["expires_at"] = func.greatest(jobs.c.expires_at, again)
    back = {"status": Status.QUEUED, "outcome": None, **NO_LEASE, **deadline}
    await db.execute(update(jobs).where(jobs.c.id == job.id).values({**back, **values}))


async def notify(db: AsyncConnection, payload: str) -> None:
    await db.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": payload})


def storable(message: str) -> str:
    """PostgreSQL has no NUL in texts; a message that quotes a program's output may."""
    return message[:2000].replace("\0", "")


def sum_timings(job: Job, timings: Mapping[str, float]) -> dict[str, float]:
    """GPU seconds of failed attempts count as well: they were paid for."""
    return {name: job.timings.get(name, 0.0) + timings.get(name, 0.0) for name in {*job.timings, *timings}}


def _log(job: Job, event: str, **facts: Any) -> None:
    log.info(event, job_id=job.id, request_id=job.request_id, model=job.model, attempt=job.attempt, **facts)
