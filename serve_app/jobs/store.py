"""What clients, the dispatcher and workers may do to a job; with ``ending.py`` the only place that changes its status.

Two rules make jobs neither lost nor doubled:

- Who works on a job holds a lease: a random token with an expiry. Every write by a worker has ``lease_token = <its
  token>`` in its WHERE clause, so a worker that lost the lease changes nothing.
- A job ends in :meth:`~serve_app.jobs.ending.Endings.end` and nowhere else: status, counters, webhooks and the wake-up
  commit together.

Time is the database's: no clock of another machine decides anything.
"""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import structlog
from pydantic import ValidationError
from sqlalchemy import ColumnElement, CursorResult, delete, func, insert, select, true, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deployments.contract import Failure, Lease, Outcome, Progress, Started, Stopped, Verdict
from deployments.failure_code import FailureCode
from deployments.stage import Stage
from serve_app.fair import FairSlots
from serve_app.intake.inputs import StoredInput
from serve_app.jobs import chains, claim, idempotency
from serve_app.jobs.accepting import accept, columns_of
from serve_app.jobs.batches import Batches
from serve_app.jobs.database import in_seconds
from serve_app.jobs.ending import NO_LEASE, Endings, Stumble, notify, requeue, sum_timings
from serve_app.jobs.idempotency import Answer, IdempotencyKey
from serve_app.jobs.job import AWAITING, Claim, Job, NewJob, Status, chained, new_id, new_nonce
from serve_app.jobs.owed import owe
from serve_app.jobs.quota import Quota
from serve_app.jobs.rows import discard_orphans, get, held, lock, readable, renew, verdict
from serve_app.jobs.tables import discarded_media, jobs, used_ids
from serve_app.jobs.tally import LINES
from serve_app.jobs.webhook_event import JobEvent

#: Transactions in which a job is accepted at a time, and half as many of one user: while they wait for each other they
#: hold connections that everybody needs.
SLOTS = 8
#: Columns of a job that is opened for uploads.
_OPENED_WITH = frozenset({"id", "nonce", "key_id"})
#: Seconds that an opened upload waits for its ``generate``.
UPLOAD_WINDOW_S = 24 * 3600
#: Seconds for which a finished video is kept while the store cannot be asked about it.
VERIFY_S = 24 * 3600
MAX_CLAIM_S = 30
#: Seconds until a job that was given back unstarted is handed out again.
AGAIN_S = 1
#: Longest wait between two tries while our own store stands in the way; it doubles from one second.
MAX_POSTPONED_S = 60

log = structlog.get_logger()


class JobStore:
    """Jobs in PostgreSQL. Every method is one transaction."""

    def __init__(self, engine: AsyncEngine, *, lease_s: float = 30, webhook_url: str = "") -> None:
        self._engine = engine
        self._lease_s = lease_s
        #: Seconds a claim lives until a worker starts on it. Short: the dispatcher is near, and when it dies the next
        #: one should not wait for long.
        self.claim_s = min(lease_s, MAX_CLAIM_S)
        self._ends = Endings(webhook_url)
        #: Of those who wait for each other: for a key's quota, or for who has the same idempotency key.
        self._slots = FairSlots(SLOTS, SLOTS // 2)
        self._accepting = Batches(engine.url.render_as_string(hide_password=False), accept)

    async def aclose(self) -> None:
        """Close the connections that are not the engine's."""
        await self._accepting.aclose()

    # ---------------------------------------------------------------- clients

    async def open_upload(self, job_id: str | None, *, key_id: str = "", quota: Quota | None = None) -> Job | None:
        """Open a job for uploads, or find the one that the key opened before under this id (whatever became of it).
        Raises NoPlace where the key's quota has no room for another.

        None if the id is another key's, or was that of a job which is forgotten by now: links and records of it may
        still be about.
        """
        values = {
            "id": job_id or new_id(),
            "key_id": key_id,
            "nonce": new_nonce(),
            "status": Status.UPLOADING,
            "stage": Stage.WAITING_FOR_UPLOAD,
            "expires_at": in_seconds(UPLOAD_WINDOW_S),
        }
        async with self._engine.connect() as db:
            if quota is not None:
                await quota.require_upload(db, job_id)
            await db.execute(upsert(jobs).values(values).on_conflict_do_nothing())
            # Only now: the insert has waited for whoever deletes this very id at the same moment. Who deletes it after
            # that takes away the row, or is seen by the second look.
            found = (await db.execute(select(jobs).where(jobs.c.id == values["id"]))).mappings().one_or_none()
            used = (await db.execute(select(used_ids.c.id).where(used_ids.c.id == values["id"]))).first()
            if found is None or used is not None:
                return None
            await db.commit()
            job = Job.from_row(found)
            return job if job.key_id == key_id else None

    async def submit(
        self, new: NewJob, job_id: str | None = None, *, of_key: str | None = None, quota: Quota | None = None
    ) -> Job | None:
        """Accept a job; with ``job_id``, the one that was opened for uploads. When this returns it is on disk. Raises
        NoPlace or NoBudget where the key's quota has no room for it, SourceUnknown or SourceUnusable where it can't
        have the video of another job that it asks for.

        Returns None when ``job_id`` does not name a job of the key in ``uploading``.
        """
        if job_id is None and (quota is None or not quota.limits_jobs) and not chained(new.sources):
            return await self._accepting.ask(new)
        async with self._slots.hold(new.owner), self._engine.begin() as db:
            return await _accept(db, new, job_id, of_key, quota)

    async def require(self, quota: Quota, new: NewJob, *, opened: bool = False) -> None:
        """Raises NoPlace or NoBudget where the quota has no room for it now; asked before what is dear is done.
        ``opened``: it has its place since it was opened for uploads."""
        async with self._slots.hold(new.owner), self._engine.begin() as db:
            await quota.require(db, new, opened=opened)

    async def submit_once(
        self,
        key: IdempotencyKey,
        answer: Callable[[Job], Answer],
        new: NewJob,
        job_id: str | None = None,
        *,
        of_key: str | None = None,
        quota: Quota | None = None,
    ) -> tuple[Job | None, Answer] | None:
        """As :meth:`submit`, but once for all requests with ``key``: the job and what is ``answer``-ed commit together.

        Returns no job beside the answer if that is of an earlier request, or of one that came at the same time. None as
        above; the key is free then. Raises what :func:`~serve_app.jobs.idempotency.take` does, and :meth:`submit`.
        """
        async with self._slots.hold(new.owner), self._engine.begin() as db:
            if (given := await idempotency.take(db, key)) is not None:
                return None, given
            job = await _accept(db, new, job_id, of_key, quota)
            if job is None:
                await db.rollback()
                return None
            made = answer(job)
            await idempotency.keep(db, key, made)
            return job, made

    async def answered(self, key: IdempotencyKey) -> Answer | None:
        """What the request with ``key`` was answered with; None if it is new. Raises ``KeyReused``."""
        async with self._engine.connect() as db:
            return await idempotency.find(db, key)

    async def get(self, job_id: str, *, of_key: str | None = None) -> Job | None:
        """With ``of_key``, here and below, only if it is a job of that key."""
        async with self._engine.connect() as db:
            row = (await db.execute(select(jobs).where(jobs.c.id == job_id, _of(of_key)))).mappings().one_or_none()
        return None if row is None else Job.from_row(row)

    async def sources_again(self, job: Job) -> Mapping[str, str]:
        """Where its inputs are to be had if it is made once more: see ``chains.py``."""
        async with self._engine.connect() as db:
            return await chains.sources_again(db, job)

    async def list(
        self,
        *,
        status: Status | None = None,
        model: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int = 20,
        of_key: str | None = None,
        submitted: bool = False,
        oldest_first: bool = False,
    ) -> Sequence[Job]:
        """Newest first, those after the position ``(created_at, id)``, that have all pairs of ``metadata``. With
        ``submitted``, without those that wait for uploads."""
        place = (jobs.c.created_at, jobs.c.id)
        order = place if oldest_first else tuple(column.desc() for column in place)
        query = select(jobs).order_by(*order).where(_of(of_key)).limit(limit)
        if submitted:
            query = query.where(jobs.c.status != Status.UPLOADING)
        if status is not None:
            query = query.where(jobs.c.status.in_([status, AWAITING] if status is Status.QUEUED else [status]))
        for column, value in ((jobs.c.model, model), (jobs.c.user_id, user_id)):
            if value is not None:
                query = query.where(column == value)
        if metadata:
            query = query.where(jobs.c.metadata.contains(dict(metadata)))
        if after is not None:
            position, row = func.row(*place), func.row(*after)
            query = query.where(position > row if oldest_first else position < row)
        async with self._engine.connect() as db:
            return readable((await db.execute(query)).mappings())

    async def cancel(self, job_id: str, *, of_key: str | None = None) -> Job | None:
        """Cancel at once what no replica works on; ask a replica to stop otherwise. Idempotent; None if unknown."""
        async with self._engine.begin() as db:
            job = await lock(db, job_id)
            if job is None or of_key not in (None, job.key_id):
                return None
            if job.status.terminal:
                return job
            if job.status is not Status.PROCESSING:
                return await self._ends.end(db, job, Status.CANCELLED)
            await notify(db, f"stop:{job_id}")
            asked = func.coalesce(jobs.c.cancel_requested_at, func.now())
            await db.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested_at=asked))
            return await get(db, job_id)

    async def delete(self, job_id: str, *, of_key: str | None = None) -> Job | None:
        """Forget a job and its media. One that a replica works on is returned as it is: cancel it first."""
        async with self._engine.begin() as db:
            job = await lock(db, job_id)
            if job is None or of_key not in (None, job.key_id):
                return None
            if job.status is Status.PROCESSING:
                return job
            await db.execute(insert(discarded_media).values(job_id=job_id, folder=job.folder))
            await db.execute(upsert(used_ids).values(id=job_id, folder=job.folder).on_conflict_do_nothing())
            await db.execute(delete(jobs).where(jobs.c.id == job_id))
            await notify(db, f"stop:{job_id}" if job.lease_token else "work")
            return job

    async def end_externally(
        self, job_id: str, *, video_url: str | None = None, error: str | None = None
    ) -> Job | None:
        """A worker outside the cluster reports the end of a job. A job that has ended stays as it is."""
        async with self._engine.begin() as db:
            job = await lock(db, job_id)
            if job is None or job.status.terminal or job.status is Status.UPLOADING:
                return job
            if video_url is not None:
                return await self._ends.end(db, job, Status.COMPLETED, progress=100, result_url=video_url)
            return await self._ends.fail(db, job, FailureCode.WORKER_FAILED, error or "The worker gave no reason.")

    # ---------------------------------------------------------------- dispatcher

    async def claim_for_intake(self, limit: int, share: int = 1000, *, free: int = 10**6) -> Sequence[Claim]:
        """Lease jobs whose inputs have not been fetched yet; fair between keys and users, as below, and at most
        ``share`` of one user's at a time. Of ``free`` slots a key leaves some to the others."""
        async with self._engine.begin() as db:
            return await claim.claim_for_intake(db, limit, share, free, self.claim_s)

    async def resolve(self, job: Job) -> chains.Sources:
        """Where its sources are to be had. Raises :class:`~deployments.faults.Fault`: ``source_failed``."""
        async with self._engine.connect() as db:
            return await chains.resolve(db, job)

    async def admit(self, lease: Lease, inputs: Mapping[str, StoredInput]) -> bool:
        """Intake is done: the job may run. False if the lease was lost (cancelled, expired)."""
        stored = {name: item.model_dump(mode="json") for name, item in inputs.items()}
        values = {"inputs": stored, "stage": Stage.QUEUED, "postponed": 0, **NO_LEASE}
        async with self._engine.begin() as db:
            statement = update(jobs).where(jobs.c.id == lease.job_id, jobs.c.lease_token == lease.token)
            done = cast("CursorResult[Any]", await db.execute(statement.values(**values))).rowcount == 1
            if not done:
                await discard_orphans(db, lease.job_id)
            await notify(db, "work")
        return done

    async def claim_to_run(self, deployment: str, window: int) -> Sequence[Claim]:
        """Lease jobs for the GPU, as many as keep at most ``window`` of the deployment in flight.

        Fair between keys, and between the users of a key; never more of a key's than may run: see ``claim.py``. The
        cost follows the window and the number of keys that wait, not the number of jobs or of users who do.
        """
        async with self._engine.begin() as db:
            return await claim.claim_to_run(db, deployment, window, self.claim_s)

    async def elsewhere(self, allowed: Collection[str], model: str, after: str, limit: int) -> Sequence[Job]:
        """Jobs of ``model`` that wait for other deployments than these, unclaimed; by id, those after ``after``. Where
        none wait no job is read."""
        async with self._engine.connect() as db:
            others = [name for name in await db.scalars(LINES, {"model": model}) if name not in allowed]
            if not others:
                return []
            waiting = (
                select(jobs)
                .where(
                    jobs.c.status == Status.QUEUED,
                    jobs.c.lease_token.is_(None),
                    jobs.c.model == model,
                    jobs.c.deployment.in_(others),
                    jobs.c.id > after,
                )
                .order_by(jobs.c.id)
                .limit(limit)
            )
            return readable((await db.execute(waiting)).mappings())

    async def move(self, job: Job, deployment: str) -> bool:
        """Into the line of another deployment, at once, as long as no replica works on it: nobody's fault and no
        attempt. ``job`` as it was read: one that was claimed since, or claimed again, stays. Whether it moved."""
        async with self._engine.begin() as db:
            # It changes two lines, as claims do.
            await claim.alone(db)
            there = (
                (jobs.c.id == job.id)
                & (jobs.c.status == Status.QUEUED)
                & jobs.c.lease_token.is_not_distinct_from(job.lease_token)
            )
            stage = job.stage if job.lease_token is None else Stage.QUEUED
            statement = update(jobs).where(there).values(assigned=deployment, stage=stage, **NO_LEASE)
            moved = cast("CursorResult[Any]", await db.execute(statement)).rowcount == 1
            if moved:
                await notify(db, "work")
        return moved

    async def refuse(self, job: Job, code: FailureCode, message: str) -> bool:
        """``queued → failed``: no replica will ever take it. ``job`` as for :meth:`move`. Whether it ended."""
        async with self._engine.begin() as db:
            found = await lock(db, job.id)
            if found is None or (found.status, found.lease_token) != (Status.QUEUED, job.lease_token):
                return False
            await self._ends.fail(db, found, code, message)
            return True

    async def renew(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Keep leases of jobs in intake or waiting on a Serve handle. Once started, the worker keeps its lease itself.

        Returns those that are lost: the job was taken back, has ended or is deleted.
        """
        async with self._engine.begin() as db:
            kept = await renew(db, leases, self.claim_s)
        return [lease for lease in leases if lease.token not in kept]

    async def release(self, lease: Lease) -> None:
        """Give a job back that was never started, e.g. since the handle broke before a replica had it."""
        async with self._engine.begin() as db:
            mine = (jobs.c.id == lease.job_id) & (jobs.c.lease_token == lease.token)
            unstarted = mine & (jobs.c.status == Status.QUEUED)
            again = in_seconds(AGAIN_S)
            await db.execute(update(jobs).where(unstarted).values(stage=Stage.QUEUED, not_before=again, **NO_LEASE))
            await notify(db, "work")

    async def postpone(self, lease: Lease, timings: Mapping[str, float] | None = None) -> None:
        """Give a job back since our own store stands in the way: nobody's fault and no attempt, but a longer wait each
        time. ``timings`` are those of a run that was under way."""
        async with self._engine.begin() as db:
            job = await held(db, lease)
            if job is None:
                await discard_orphans(db, lease.job_id)
            elif job.cancel_requested_at is not None:
                await self._ends.end(db, job, Status.CANCELLED, timings=sum_timings(job, timings or {}))
            else:
                wait = func.least(MAX_POSTPONED_S, func.power(2, jobs.c.postponed)) * (0.75 + func.random() / 2)
                values = {
                    "stage": Stage.STORAGE_UNAVAILABLE,
                    "postponed": func.least(jobs.c.postponed + 1, 30),
                    "not_before": in_seconds(wait),
                    "timings": sum_timings(job, timings or {}),
                }
                await requeue(db, job, values)

    # ---------------------------------------------------------------- reports of a worker

    async def start(self, report: Started) -> Verdict:
        """``queued → processing``. Repeating it, as after a lost answer, changes nothing more."""
        lease = report.lease
        async with self._engine.begin() as db:
            statement = self._renewal(lease, self._lease_s).where(
                jobs.c.status == Status.QUEUED, jobs.c.attempt == lease.attempt - 1
            )
            started = await db.execute(
                statement.values(
                    status=Status.PROCESSING,
                    stage=Stage.PREPARING,
                    postponed=0,
                    attempt=lease.attempt,
                    node=report.node,
                    started_at=func.coalesce(jobs.c.started_at, func.now()),
                ).returning(jobs)
            )
            row = started.mappings().one_or_none()
            if row is not None and lease.attempt == 1 and await owe(db, Job.from_row(row), JobEvent.STARTED):
                await notify(db, "work")
            return await verdict(db, lease)

    async def progress(self, report: Progress) -> Verdict:
        """Renew the lease and note how far the work is."""
        async with self._engine.begin() as db:
            percent = func.greatest(jobs.c.progress, report.percent)
            working = self._renewal(report.lease, self._lease_s).where(jobs.c.status == Status.PROCESSING)
            await db.execute(working.values(progress=percent, stage=report.stage))
            return await verdict(db, report.lease)

    async def complete(self, report: Outcome, output_key: str, poster_key: str | None = None) -> Verdict:
        """``processing → completed``. A cancel that comes after the last step loses: the video exists."""
        async with self._engine.begin() as db:
            job = await held(db, report.lease)
            if job is None or job.status is not Status.PROCESSING:
                await discard_orphans(db, report.lease.job_id)
                return Verdict.LEASE_LOST
            await self._ends.end(
                db,
                job,
                Status.COMPLETED,
                progress=100,
                output_key=output_key,
                poster_key=poster_key,
                media=None if report.media is None else report.media.model_dump(mode="json"),
                timings=sum_timings(job, report.timings),
                notes=report.notes,
            )
            return Verdict.GO_ON

    async def hold(self, report: Outcome) -> Verdict:
        """The video is made, but the store cannot be asked about it now. The worker may go; see :meth:`unverified`."""
        async with self._engine.begin() as db:
            job = await held(db, report.lease)
            if job is None or job.status is not Status.PROCESSING:
                await discard_orphans(db, report.lease.job_id)
                return Verdict.LEASE_LOST
            values = {
                "outcome": report.model_dump(mode="json"),
                "stage": Stage.STORAGE_UNAVAILABLE,
                # A token that the worker does not know: its death means nothing any more.
                "lease_token": _token(),
                "lease_expires_at": in_seconds(VERIFY_S),
            }
            await db.execute(update(jobs).where(jobs.c.id == job.id).values(values))
            return Verdict.GO_ON

    async def unverified(self, limit: int = 20) -> Sequence[Outcome]:
        """Reports of videos that are held, with leases under which they can be completed or failed now."""
        async with self._engine.connect() as db:
            # In any order, so that none which cannot be verified stands in the way of the others.
            kept = select(jobs).where(jobs.c.outcome.is_not(None)).order_by(func.random()).limit(limit)
            found = readable((await db.execute(kept)).mappings())
        reports = []
        for job in found:
            try:
                report = Outcome.model_validate(job.outcome)
            except ValidationError as error:
                # Another version's; the video is made again when its time is up.
                log.error("outcome_unreadable", job_id=job.id, error=str(error))
                continue
            mine = report.lease.model_copy(update={"token": job.lease_token})
            reports.append(report.model_copy(update={"lease": mine}))
        return reports

    async def fail(self, report: Failure) -> Verdict:
        """``processing → queued`` when another attempt is due, else ``→ failed``. Also ends a failed intake."""
        async with self._engine.begin() as db:
            job = await held(db, report.lease)
            if job is None:
                await discard_orphans(db, report.lease.job_id)
                return Verdict.LEASE_LOST
            stumble = Stumble(
                code=report.code,
                message=report.message,
                transient=report.transient,
                blameless=report.blameless,
                timings=report.timings,
            )
            await self._ends.retry_or_fail(db, job, stumble)
            return Verdict.GO_ON

    async def stopped(self, report: Stopped) -> Verdict:
        """The worker obeyed a cancel: ``processing → cancelled``."""
        async with self._engine.begin() as db:
            job = await held(db, report.lease)
            if job is None:
                await discard_orphans(db, report.lease.job_id)
                return Verdict.LEASE_LOST
            await self._ends.end(db, job, Status.CANCELLED, timings=sum_timings(job, report.timings))
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
                if job.outcome is not None:
                    message = (
                        f"The video was made, but could not be verified in the store for {VERIFY_S // 3600} hours."
                    )
                    stumble = Stumble(code=FailureCode.STORAGE_UNAVAILABLE, message=message)
                    await self._ends.retry_or_fail(db, job, stumble)
                elif job.status is Status.PROCESSING:
                    stumble = Stumble(code=FailureCode.WORKER_LOST, message="The GPU worker stopped reporting.")
                    await self._ends.retry_or_fail(db, job, stumble)
                else:
                    # Never started: not the job's fault and no attempt.
                    await db.execute(update(jobs).where(jobs.c.id == job.id).values(stage=Stage.QUEUED, **NO_LEASE))
            if rows:
                await notify(db, "work")
        return len(rows)

    async def expire_deadlines(self) -> int:
        """Fail a job whose next attempt did not start in time, or an upload nobody submitted. Returns how many, as
        above."""
        late = select(jobs).where(
            jobs.c.status.in_([Status.QUEUED, Status.UPLOADING]),
            jobs.c.completed_at.is_(None),
            jobs.c.expires_at < func.now(),
        )
        async with self._engine.begin() as db:
            rows = (await db.execute(late.limit(1).with_for_update(skip_locked=True))).mappings().all()
            for job in map(Job.from_row, rows):
                await self._ends.expire(db, job)
        return len(rows)

    async def settle(self) -> int:
        """Let those go on, or end, who waited for the videos of jobs that have ended: some of each. Returns how
        much was done: call again while it is not 0.

        Ends are one a time, as above. In turn, so that who waits for one job need not wait for the thousand that wait
        for another.
        """
        async with self._engine.connect() as db:
            ended = await chains.ended(db)
        done = 0
        for note in ended:
            async with self._engine.begin() as db:
                done += await chains.settle(db, note, self._ends)
        return done

    # ---------------------------------------------------------------- inside

    def _renewal(self, lease: Lease, seconds: float) -> Any:
        mine = (jobs.c.id == lease.job_id) & (jobs.c.lease_token == lease.token)
        return update(jobs).where(mine).values(lease_expires_at=in_seconds(seconds))


def _of(key_id: str | None) -> ColumnElement[bool]:
    return true() if key_id is None else jobs.c.key_id == key_id


async def _accept(
    db: AsyncConnection, new: NewJob, job_id: str | None, of_key: str | None, quota: Quota | None
) -> Job | None:
    if quota is not None:
        await quota.require(db, new, opened=job_id is not None)
    awaits = await chains.awaited(db, new, of_key)
    values = {"status": Status.QUEUED, "stage": Stage.QUEUED, **columns_of(new)}
    values["source_ids"] = sorted(set(chained(new.sources).values())) or None
    if awaits:
        values |= {"status": AWAITING, "stage": Stage.WAITING_FOR_SOURCE, "awaits": awaits}
    elif new.expires_after is not None:
        values["expires_at"] = in_seconds(new.expires_after)
    if job_id is None:
        statement: Any = insert(jobs).values(values)
    else:
        opened = (jobs.c.id == job_id) & (jobs.c.status == Status.UPLOADING) & _of(of_key)
        # Which it is, and whose, was said when it was opened. What is not said again stays as it was then.
        said = {"expires_at": None, **values}
        statement = update(jobs).where(opened).values({n: v for n, v in said.items() if n not in _OPENED_WITH})
    row = (await db.execute(statement.returning(jobs))).mappings().one_or_none()
    await notify(db, "work")
    return None if row is None else Job.from_row(row)


def _token() -> str:
    return secrets.token_hex(16)
