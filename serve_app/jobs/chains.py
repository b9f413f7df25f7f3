"""Chains: jobs whose input is the video of another.

Such a job waits as ``awaiting``, of which no claim, no count of what waits for a GPU and no deadline knows. When its
source ends or is deleted, a trigger (migration 0017) notes how in ``ended_sources``, in that transaction; the
dispatcher works notes off, one waiting job in a transaction. So whoever ends a job locks no other, however long the
chain behind it is, and what has been noted is seen to by the next dispatcher.

A source is a job that was submitted before: so there are no circles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import delete, exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.failure_code import FailureCode
from deployments.faults import Fault
from deployments.stage import Stage
from serve_app.jobs.database import in_seconds
from serve_app.jobs.ending import Endings, notify
from serve_app.jobs.job import OF_JOB, Job, NewJob, Status, chained
from serve_app.jobs.tables import ended_sources, jobs

log = structlog.get_logger()

#: Notes that are looked at together.
NOTES = 20


class SourceUnknown(Exception):
    """There is no such job, or it is another key's."""

    def __init__(self, input_name: str) -> None:
        self.input_name = input_name
        super().__init__(input_name)


class SourceUnusable(Exception):
    """The job will never have a video, or nobody knows yet what it is to make. The message says which."""

    def __init__(self, input_name: str, message: str) -> None:
        self.input_name = input_name
        super().__init__(message)


@dataclass(frozen=True)
class Videos:
    """What a job takes of others, by input name."""

    #: In our store.
    keys: Mapping[str, str]
    #: Made elsewhere.
    urls: Mapping[str, str]


async def awaited(db: AsyncConnection, new: NewJob, of_key: str | None) -> Sequence[str]:
    """The sources of ``new`` that have not ended, which they can't until this transaction has. ``of_key``: only jobs of
    that key are there.

    Raises:
        SourceUnknown, SourceUnusable
    """
    wanted = chained(new.sources)
    if not wanted:
        return ()
    asked = select(jobs).where(jobs.c.id.in_(wanted.values())).order_by(jobs.c.id).with_for_update(read=True)
    found = {row["id"]: Job.from_row(row) for row in (await db.execute(asked)).mappings()}
    for name, job_id in wanted.items():
        source = found.get(job_id)
        if source is None or of_key not in (None, source.key_id):
            raise SourceUnknown(name)
        if source.status is Status.UPLOADING:
            raise SourceUnusable(name, f"Job {job_id} is not submitted yet. Call `generate` for it first.")
        if source.status in (Status.FAILED, Status.CANCELLED):
            reason = _reason(job_id, source.status, source.error_code, source.error_message)
            raise SourceUnusable(name, f"{reason} Retry that job first.")
    return sorted({job_id for job_id in wanted.values() if not found[job_id].status.terminal})


async def videos(db: AsyncConnection, job: Job) -> Videos:
    """Those of the jobs that are sources of ``job``, which all had one. Raises ``Fault`` (``source_failed``) if one is
    gone."""
    keys, urls = {}, {}
    for name, job_id in chained(job.sources).items():
        asked = select(jobs.c.output_key, jobs.c.result_url)
        made = (await db.execute(asked.where(jobs.c.id == job_id, jobs.c.status == Status.COMPLETED))).one_or_none()
        if made is None:
            raise Fault(FailureCode.SOURCE_FAILED, _reason(job_id, None, None, None)).of_input(name)
        if made.output_key is not None:
            keys[name] = made.output_key
        else:
            urls[name] = made.result_url
    return Videos(keys, urls)


async def sources_again(db: AsyncConnection, job: Job) -> Mapping[str, str]:
    """Where the inputs of ``job`` are to be had if it is made once more. For a source that has failed stands the last
    job that was made in its place; one that is gone is left out."""
    sources = dict(job.sources)
    for name, job_id in chained(job.sources).items():
        current = (await db.execute(_CURRENT, {"id": job_id, "key_id": job.key_id})).scalar_one_or_none()
        if current is None:
            del sources[name]
        else:
            sources[name] = f"{OF_JOB}{current}"
    return sources


async def ended(db: AsyncConnection) -> Sequence[int]:
    """Notes of jobs that have ended and are waited for; some of them, in any order, so that none waits behind one with
    many who wait."""
    return (await db.execute(select(ended_sources.c.id).order_by(func.random()).limit(NOTES))).scalars().all()


async def settle(db: AsyncConnection, note: int, ends: Endings) -> int:
    """Let one job go on, or end it, that waits for the job of the note; remove the note if there is none. Returns 0 if
    somebody else has the note."""
    mine = ended_sources.c.id == note
    noted = select(ended_sources).where(mine).with_for_update(skip_locked=True)
    source = (await db.execute(noted)).one_or_none()
    if source is None:
        return 0
    waits = jobs.c.awaits.contains([source.source_id])
    row = (await db.execute(select(jobs).where(waits).limit(1).with_for_update())).mappings().one_or_none()
    if row is None:
        # The one that was found may have ended while its lock was waited for: so it is asked anew.
        none_left = ~exists(select(jobs.c.id).where(waits))
        await db.execute(delete(ended_sources).where(mine, none_left))
        return 1
    job = Job.from_row(row)
    match source.status:
        case Status.COMPLETED:
            await _go_on(db, job, source.source_id)
        case Status.CANCELLED:
            await ends.end(db, job, Status.CANCELLED)
        case _:
            reason = _reason(source.source_id, source.status, source.error_code, source.error_message)
            await ends.fail(db, job, FailureCode.SOURCE_FAILED, reason)
    return 1


async def _go_on(db: AsyncConnection, job: Job, source_id: str) -> None:
    left = [each for each in job.awaits or () if each != source_id]
    values: dict[str, object] = {"awaits": left}
    if not left:
        # It has as long to start as any that comes now.
        expires_at = None if job.expires_after is None else in_seconds(job.expires_after)
        values = {"awaits": None, "status": Status.QUEUED, "stage": Stage.QUEUED, "expires_at": expires_at}
        log.info("source_ready", job_id=job.id, request_id=job.request_id, source=source_id)
        await notify(db, "work")
    await db.execute(update(jobs).where(jobs.c.id == job.id).values(values))


def _reason(job_id: str, status: str | None, code: str | None, message: str | None) -> str:
    """Of a job that has ended without a video, or (None) was deleted."""
    job = f"Job {job_id}, whose video it needs,"
    if status is None:
        return f"{job} was deleted. Make that video again, then this one."
    if status == Status.CANCELLED:
        return f"{job} was cancelled."
    return f"{job} failed with {code}: {(message or '').rstrip('.')}."


#: Of several that were made in place of one, the latest counts.
_CURRENT = text(
    """
    WITH RECURSIVE made AS (
        SELECT id, status, 0 AS n FROM (VALUES (CAST(:id AS text))) first (id) LEFT JOIN jobs USING (id)
         UNION ALL
        SELECT next.id, next.status, made.n + 1 FROM made
         CROSS JOIN LATERAL (
               SELECT id, status FROM jobs WHERE retry_of = made.id AND key_id = :key_id
                ORDER BY created_at DESC, id DESC LIMIT 1) next
         WHERE made.status IS NULL OR made.status IN ('failed', 'cancelled')
    )
    SELECT id FROM made WHERE status IS NOT NULL ORDER BY n DESC LIMIT 1
    """
)
