"""The only place that changes a job's state.

Two rules make jobs neither lost nor doubled:

- Who works on a job holds a lease: a random token with an expiry. Every write by a worker has ``lease_token = <its
  token>`` in its WHERE clause, so a worker that lost the lease changes nothing.
- A job ends in :func:`_end` and nowhere else: status, counters, webhooks and the wake-up commit together.

Time is the database's: no clock of another machine decides anything.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import structlog
import uuid_utils
from sqlalchemy import CursorResult, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deployments.contract import Failure, Lease, Outcome, Progress, Started, Stopped, Verdict
from serve_app.intake.inputs import StoredInput
from serve_app.jobs import metrics
from serve_app.jobs.claim import CLAIM_FOR_INTAKE, CLAIM_TO_RUN
from serve_app.jobs.database import CHANNEL, in_seconds
from serve_app.jobs.delivery_queue import new_row
from serve_app.jobs.job import Job, NewJob, Status
from serve_app.jobs.retry import delay_before_retry
from serve_app.jobs.tables import deliveries, discarded_media, jobs

#: Seconds that an opened upload waits for its ``generate``.
UPLOAD_WINDOW_S = 24 * 3600

MAX_CLAIM_S = 30

log = structlog.get_logger()

_NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_expires_at": None}


class JobStore:
    """Jobs in PostgreSQL. Every method is one transaction."""

    def __init__(self, engine: AsyncEngine, *, lease_s: float = 30, webhook_url: str = "") -> None:
        self._engine = engine
        self._lease_s = lease_s
        #: Seconds a claim lives until a worker starts on it. Short: the dispatcher is near, and when it dies the next
        #: one should not wait for long.
        self.claim_s = min(lease_s, MAX_CLAIM_S)
        #: Told about the end of every job, besides the job's own ``webhook_url``.
        self._webhook_url = webhook_url

    # ---------------------------------------------------------------- clients

    async def open_upload(self, job_id: str | None) -> Job:
        """Open a job for uploads, or find the one opened before under this id (whatever became of it)."""
        values = {
            "id": job_id or str(uuid_utils.uuid7()),
            "status": Status.UPLOADING,
            "stage": "waiting_for_upload",
            "expires_at": in_seconds(UPLOAD_WINDOW_S),
        }
        async with self._engine.begin() as db:
            await db.execute(upsert(jobs).values(values).on_conflict_do_nothing())
            return await _get(db, str(values["id"]))

    async def submit(self, new: NewJob, job_id: str | None = None) -> Job | None:
        """Accept a job; with ``job_id``, the one that was opened for uploads. When this returns it is on disk.

        Returns None when ``job_id`` does not name a job in ``uploading``.
        """
        values: dict[str, Any] = {
            "status": Status.QUEUED,
            "stage": "queued",
            "model": new.model,
            "params": dict(new.params),
            "sources": dict(new.sources),
            "uploads": dict(new.uploads),
            "user_id": new.user_id,
            "webhook_url": new.webhook_url,
            "request_id": new.request_id,
            "priority": new.priority,
            "expires_at": None if new.expires_after is None else in_seconds(new.expires_after),
        }
        async with self._engine.begin() as db:
            if job_id is None:
                statement: Any = insert(jobs).values(id=str(uuid_utils.uuid7()), **values)
            else:
                opened = (jobs.c.id == job_id) & (jobs.c.status == Status.UPLOADING)
                statement = update(jobs).where(opened).values(values)
            row = (await db.execute(statement.returning(jobs))).mappings().one_or_none()
            await _notify(db, "work")
        return None if row is None else Job.from_row(row)

    async def get(self, job_id: str) -> Job | None:
        async with self._engine.connect() as db:
            row = (await db.execute(select(jobs).where(jobs.c.id == job_id))).mappings().one_or_none()
        return None if row is None else Job.from_row(row)

    async def list(
        self,
        *,
        status: Status | None = None,
        model: str | None = None,
        user_id: str | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int = 20,
    ) -> Sequence[Job]:
        """Newest first, those after the position ``(created_at, id)``."""
        query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        for column, value in ((jobs.c.status, status), (jobs.c.model, model), (jobs.c.user_id, user_id)):
            if value is not None:
                query = query.where(column == value)
        if after is not None:
            query = query.where(func.row(jobs.c.created_at, jobs.c.id) < func.row(*after))
        async with self._engine.connect() as db:
            return [Job.from_row(row) for row in (await db.execute(query)).mappings()]

    async def cancel(self, job_id: str) -> Job | None:
        """Cancel at once what no replica works on; ask a replica to stop otherwise. Idempotent; None if unknown."""
        async with self._engine.begin() as db:
            job = await _lock(db, job_id)
            if job is None or job.status.terminal:
                return job
            if job.status is not Status.PROCESSING:
                return await _end(db, self._webhook_url, job, Status.CANCELLED)
            await _notify(db, f"stop:{job_id}")
            asked = func.coalesce(jobs.c.cancel_requested_at, func.now())
            await db.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested_at=asked))
            return await _get(db, job_id)

    async def delete(self, job_id: str) -> Job | None:
        """Forget a job and its media. One that a replica works on is returned as it is: cancel it first."""
        async with self._engine.begin() as db:
            job = await _lock(db, job_id)
            if job is None or job.status is Status.PROCESSING:
                return job
            await db.execute(insert(discarded_media).values(job_id=job_id))
            await db.execute(delete(jobs).where(jobs.c.id == job_id))
            await _notify(db, f"stop:{job_id}" if job.lease_token else "work")
            return job

    async def end_externally(
        self, job_id: str, *, video_url: str | None = None, error: str | None = None
    ) -> Job | None:
        """A worker outside the cluster reports the end of a job. A job that has ended stays as it is."""
        async with self._engine.begin() as db:
            job = await _lock(db, job_id)
            if job is None or job.status.terminal or job.status is Status.UPLOADING:
                return job
            if video_url is not None:
                return await _end(db, self._webhook_url, job, Status.COMPLETED, progress=100, result_url=video_url)
            return await _fail(db, self._webhook_url, job, "worker_failed", error or "The worker gave no reason.")

    # ---------------------------------------------------------------- dispatcher

    async def claim_for_intake(self, limit: int, share: int = 1000) -> Sequence[Job]:
        """Lease jobs whose inputs have not been fetched yet; fair between users, as below, and at most ``share`` of one
        user's at a time."""
        async with self._engine.begin() as db:
            ids = list((await db.execute(CLAIM_FOR_INTAKE, {"limit": limit, "share": share})).scalars())
            return await self._lease(db, ids, stage="fetching")

    async def admit(self, lease: Lease, inputs: Mapping[str, StoredInput]) -> bool:
        """Intake is done: the job may run. False if the lease was lost (cancelled, expired)."""
        values = {"inputs": {name: item.model_dump(mode="json") for name, item in inputs.items()}, "stage": "queued"}
        async with self._engine.begin() as db:
            statement = update(jobs).where(jobs.c.id == lease.job_id, jobs.c.lease_token == lease.token)
            done = cast("CursorResult[Any]", await db.execute(statement.values(**values, **_NO_LEASE))).rowcount == 1
            if not done:
                await _discard_orphans(db, lease.job_id)
            await _notify(db, "work")
        return done

    async def claim_to_run(self, model: str, window: int) -> Sequence[Job]:
        """Lease jobs for the GPU, as many as keep at most ``window`` of the model in flight.

        Fair between users: a user's n-th job in flight or waiting ranks behind everybody else's (n-1)-th; within a
        rank by priority, then age. The cost follows the number of users with waiting jobs, not the number of jobs.
        """
        async with self._engine.begin() as db:
            # Claims of one model take turns, so that two dispatchers cannot overfill the window together.
            await db.execute(text("SELECT pg_advisory_xact_lock(hashtext('claim:' || :model))"), {"model": model})
            ids = list((await db.execute(CLAIM_TO_RUN, {"model": model, "window": window})).scalars())
            return await self._lease(db, ids, stage="waiting_for_gpu")

    async def renew(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Keep leases of jobs in intake or waiting on a Serve handle. Once started, the worker keeps its lease itself.

        Returns those that are lost: the job was taken back, has ended or is deleted.
        """
        lost = []
        async with self._engine.begin() as db:
            for lease in leases:
                await db.execute(self._renewal(lease, self.claim_s).where(jobs.c.status == Status.QUEUED))
                if await _held(db, lease) is None:
                    lost.append(lease)
        return lost

    async def release(self, lease: Lease) -> None:
        """Give a job back that was never started, e.g. since the handle broke before a replica had it."""
        async with self._engine.begin() as db:
            mine = (jobs.c.id == lease.job_id) & (jobs.c.lease_token == lease.token)
            unstarted = mine & (jobs.c.status == Status.QUEUED)
            again = in_seconds(1)
            await db.execute(update(jobs).where(unstarted).values(stage="queued", not_before=again, **_NO_LEASE))
            await _notify(db, "work")

    # ---------------------------------------------------------------- reports of a worker

    async def start(self, report: Started) -> Verdict:
        """``queued → processing``. Repeating it, as after a lost answer, changes nothing more."""
        lease = report.lease
        async with self._engine.begin() as db:
            statement = self._renewal(lease, self._lease_s).where(
                jobs.c.status == Status.QUEUED, jobs.c.attempt == lease.attempt - 1
            )
            await db.execute(
                statement.values(
                    status=Status.PROCESSING,
                    stage="preparing",
                    attempt=lease.attempt,
                    started_at=func.coalesce(jobs.c.started_at, func.now()),
                )
            )
            return await _verdict(db, lease)

    async def progress(self, report: Progress) -> Verdict:
        """Renew the lease and note how far the work is."""
        async with self._engine.begin() as db:
            percent = func.greatest(jobs.c.progress, report.percent)
            working = self._renewal(report.lease, self._lease_s).where(jobs.c.status == Status.PROCESSING)
            await db.execute(working.values(progress=percent, stage=report.stage))
            return await _verdict(db, report.lease)

    async def complete(self, report: Outcome, output_key: str) -> Verdict:
        """``processing → completed``. A cancel that comes after the last step loses: the video exists."""
        async with self._engine.begin() as db:
            job = await _held(db, report.lease)
            if job is None or job.status is not Status.PROCESSING:
                await _discard_orphans(db, report.lease.job_id)
                return Verdict.LEASE_LOST
            await _end(
                db,
                self._webhook_url,
                job,
                Status.COMPLETED,
                progress=100,
                output_key=output_key,
                media=report.media.model_dump(mode="json"),
                timings=_sum_timings(job, report.timings),
                notes=report.notes,
            )
            return Verdict.GO_ON

    async def fail(self, report: Failure) -> Verdict:
        """``processing → queued`` when another attempt is due, else ``→ failed``. Also ends a failed intake."""
        async with self._engine.begin() as db:
            job = await _held(db, report.lease)
            if job is None:
                await _discard_orphans(db, report.lease.job_id)
                return Verdict.LEASE_LOST
            await self._fault(db, job, report.code, report.message, report.transient, report.timings)
            return Verdict.GO_ON

    async def stopped(self, report: Stopped) -> Verdict:
        """The worker obeyed a cancel: ``processing → cancelled``."""
        async with self._engine.begin() as db:
            job = await _held(db, report.lease)
            if job is None:
                await _discard_orphans(db, report.lease.job_id)
                return Verdict.LEASE_LOST
            await _end(db, self._webhook_url, job, Status.CANCELLED, timings=_sum_timings(job, report.timings))
            return Verdict.GO_ON

    # ---------------------------------------------------------------- sweeps

    async def expire_leases(self) -> int:
        """Take a job back from a worker that has gone silent. Returns how many: call again while it is not 0.

        One a time: transactions that end several jobs would lock the same counters in different orders.
        """
        silent = select(jobs).where(jobs.c.lease_token.is_not(None), jobs.c.lease_expires_at < func.now())
        async with self._engine.begin() as db:
            rows = (await db.execute(silent.limit(1).with_for_update(skip_locked=True))).mappings().all()
            for job in map(Job.from_row, rows):
                if job.status is Status.PROCESSING:
                    await self._fault(db, job, "worker_lost", "The GPU worker stopped reporting.", True, {})
                else:
                    # Never started: not the job's fault and no attempt.
                    await db.execute(update(jobs).where(jobs.c.id == job.id).values(stage="queued", **_NO_LEASE))
            if rows:
                await _notify(db, "work")
        return len(rows)

    async def expire_deadlines(self) -> int:
        """Fail a job that did not start in time, or an upload nobody submitted. Returns how many, as above."""
        late = select(jobs).where(
            jobs.c.status.in_([Status.QUEUED, Status.UPLOADING]),
            jobs.c.completed_at.is_(None),
            jobs.c.expires_at < func.now(),
            # A job that started in time and waits for another attempt has kept its deadline.
            jobs.c.started_at.is_(None),
        )
        async with self._engine.begin() as db:
            rows = (await db.execute(late.limit(1).with_for_update(skip_locked=True))).mappings().all()
            for job in map(Job.from_row, rows):
                message = "The job did not start before its deadline."
                await _fail(db, self._webhook_url, job, "expired", message)
        return len(rows)

    # ---------------------------------------------------------------- inside

    async def _lease(self, db: AsyncConnection, ids: Sequence[str], *, stage: str) -> Sequence[Job]:
        leased = []
        for job_id in ids:
            statement = update(jobs).where(jobs.c.id == job_id).returning(jobs)
            values = {
                "lease_token": secrets.token_hex(16),
                "lease_expires_at": in_seconds(self.claim_s),
                "stage": stage,
            }
            leased.append(Job.from_row((await db.execute(statement.values(values))).mappings().one()))
        return leased

    def _renewal(self, lease: Lease, seconds: float) -> Any:
        mine = (jobs.c.id == lease.job_id) & (jobs.c.lease_token == lease.token)
        return update(jobs).where(mine).values(lease_expires_at=in_seconds(seconds))

    async def _fault(
        self, db: AsyncConnection, job: Job, code: str, message: str, transient: bool, timings: Mapping[str, float]
    ) -> None:
        faults = job.faults + 1
        spent = {"faults": faults, "timings": _sum_timings(job, timings)}
        if job.cancel_requested_at is not None:
            await _end(db, self._webhook_url, job, Status.CANCELLED, **spent)
            return
        delay = delay_before_retry(faults=faults, code=code, transient=transient)
        if delay is None:
            await _fail(db, self._webhook_url, job, code, message, **spent)
            return
        values = {
            "status": Status.QUEUED,
            "stage": "retrying",
            "error_code": code,
            "error_message": _storable(message),
            "not_before": in_seconds(delay),
            **spent,
            **_NO_LEASE,
        }
        await db.execute(update(jobs).where(jobs.c.id == job.id).values(values))
        _log(job, "job_retried", code=code, error=message, wait_s=round(delay, 1))
        await metrics.count(db, metrics.RETRIES, (job.model or "", code))


async def _get(db: AsyncConnection, job_id: str) -> Job:
    return Job.from_row((await db.execute(select(jobs).where(jobs.c.id == job_id))).mappings().one())


async def _lock(db: AsyncConnection, job_id: str) -> Job | None:
    row = (await db.execute(select(jobs).where(jobs.c.id == job_id).with_for_update())).mappings().one_or_none()
    return None if row is None else Job.from_row(row)


async def _held(db: AsyncConnection, lease: Lease) -> Job | None:
    """The job, locked, if the lease on it still holds."""
    mine = select(jobs).where(jobs.c.id == lease.job_id, jobs.c.lease_token == lease.token)
    row = (await db.execute(mine.with_for_update())).mappings().one_or_none()
    return None if row is None else Job.from_row(row)


async def _verdict(db: AsyncConnection, lease: Lease) -> Verdict:
    job = await _held(db, lease)
    if job is None or job.status is not Status.PROCESSING:
        return Verdict.LEASE_LOST
    return Verdict.GO_ON if job.cancel_requested_at is None else Verdict.CANCELLED


async def _fail(db: AsyncConnection, webhook_url: str, job: Job, code: str, message: str, **values: Any) -> Job:
    return await _end(db, webhook_url, job, Status.FAILED, error_code=code, error_message=_storable(message), **values)


async def _end(db: AsyncConnection, webhook_url: str, job: Job, status: Status, **values: Any) -> Job:
    """Every end of every job. The caller holds the row's lock and has seen that it has not ended."""
    if status is not Status.FAILED:
        # What an earlier attempt stumbled over is not how the job ended.
        values |= {"error_code": None, "error_message": None}
    values |= {"status": status, "stage": status, "completed_at": func.now(), **_NO_LEASE}
    row = (await db.execute(update(jobs).where(jobs.c.id == job.id).values(values).returning(jobs))).mappings().one()
    ended = Job.from_row(row)
    _log(ended, "job_ended", status=status, code=ended.error_code, error=ended.error_message)
    await metrics.count_end(db, ended)
    # An upload that was never submitted is nobody's job yet.
    if status in (Status.COMPLETED, Status.FAILED) and job.model is not None:
        urls = dict.fromkeys(url for url in (job.webhook_url, webhook_url) if url)
        rows = [new_row(ended, url) for url in urls]
        if rows:
            await db.execute(insert(deliveries), rows)
    # A leased job that never started may still wait on a Serve handle: nobody needs it there any more.
    await _notify(db, f"stop:{job.id}" if job.status is Status.QUEUED and job.lease_token else "work")
    return ended


def _storable(message: str) -> str:
    """PostgreSQL has no NUL in texts; a message that quotes a program's output may."""
    return message[:2000].replace("\0", "")


async def _discard_orphans(db: AsyncConnection, job_id: str) -> None:
    """What a worker stored after its job was deleted goes as well: the first note may have been worked off by then."""
    gone = text("INSERT INTO discarded_media (job_id) SELECT :id WHERE NOT EXISTS (SELECT FROM jobs WHERE id = :id)")
    await db.execute(gone, {"id": job_id})


def _log(job: Job, event: str, **facts: Any) -> None:
    log.info(event, job_id=job.id, request_id=job.request_id, model=job.model, attempt=job.attempt, **facts)


async def _notify(db: AsyncConnection, payload: str) -> None:
    await db.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": payload})


def _sum_timings(job: Job, timings: Mapping[str, float]) -> dict[str, float]:
    """GPU seconds of failed attempts count as well: they were paid for."""
    return {name: job.timings.get(name, 0.0) + timings.get(name, 0.0) for name in {*job.timings, *timings}}
