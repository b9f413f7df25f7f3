"""Chains: jobs whose input is the video of another.

Such a job waits as ``awaiting``, of which no claim, no count of what waits for a GPU and no deadline knows. When its
source ends or is deleted, a trigger (migration 0017) notes how in ``ended_sources``, in that transaction; the
dispatcher works notes off, an end in a transaction. So whoever ends a job locks no other, however long the
chain behind it is, and what has been noted is seen to by the next dispatcher.

A source is a job that was submitted before: so there are no circles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import delete, exists, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.failure_code import FailureCode
from deployments.faults import Fault
from serve_app.jobs.ending import Endings, notify
from serve_app.jobs.job import OF_JOB, Job, NewJob, Status, chained
from serve_app.jobs.tables import ended_sources, jobs

log = structlog.get_logger()

#: Notes that are looked at together, each of another key; and jobs that go on together.
NOTES = 20
BATCH = 100


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
class Sources:
    """Where the inputs of a job are to be had that are no uploads, by name; each is in one of the two."""

    #: Those of the client, and of videos that were made elsewhere.
    urls: Mapping[str, str]
    #: Keys in our store of other jobs' videos.
    videos: Mapping[str, str]


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
    if of_key is not None:
        # Nobody locks another's.
        asked = asked.where(jobs.c.key_id == of_key)
    found = {row["id"]: Job.from_row(row) for row in (await db.execute(asked)).mappings()}
    for name, job_id in wanted.items():
        source = found.get(job_id)
        if source is None:
            raise SourceUnknown(name)
        if source.status is Status.UPLOADING:
            raise SourceUnusable(name, f"Job {job_id} is not submitted yet. Call `generate` for it first.")
        if source.status in (Status.FAILED, Status.CANCELLED):
            reason = _reason(job_id, source.status, source.error_code, source.error_message)
            raise SourceUnusable(name, f"{reason} Retry that job first.")
    return sorted({job_id for job_id in wanted.values() if not found[job_id].status.terminal})


async def resolve(db: AsyncConnection, job: Job) -> Sources:
    """The sources of ``job``, of which all have had a video. Raises ``Fault`` (``source_failed``) if one is gone."""
    videos, urls = {}, dict(job.sources)
    for name, job_id in chained(job.sources).items():
        asked = select(jobs.c.output_key, jobs.c.result_url)
        made = (await db.execute(asked.where(jobs.c.id == job_id, jobs.c.status == Status.COMPLETED))).one_or_none()
        if made is None:
            raise Fault(FailureCode.SOURCE_FAILED, _reason(job_id, None, None, None)).of_input(name)
        if made.output_key is not None:
            videos[name] = made.output_key
            del urls[name]
        else:
            urls[name] = made.result_url
    return Sources(urls, videos)


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
    """Notes of jobs that have ended and are waited for: the first of each key, of some keys at random. So nobody waits
    for what another key has ended, and none behind one with many who wait."""
    return (await db.execute(_FIRST_NOTES, {"notes": NOTES})).scalars().all()


async def settle(db: AsyncConnection, note: int, ends: Endings) -> int:
    """Let some go on, or end one, that wait for the job of the note; remove the note if there is none. Returns 0 if
    somebody else has the note."""
    mine = ended_sources.c.id == note
    noted = select(ended_sources).where(mine).with_for_update(skip_locked=True)
    source = (await db.execute(noted)).one_or_none()
    if source is None:
        return 0
    waits = jobs.c.awaits.contains([source.source_id])
    if source.status == Status.COMPLETED:
        given = {"source": source.source_id, "batch": BATCH}
        went_on = (await db.execute(_GO_ON, given)).all()
        for job_id, request_id in went_on:
            log.info("source_ready", job_id=job_id, request_id=request_id, source=source.source_id)
        await notify(db, "work")
        found = len(went_on) > 0
    else:
        row = (await db.execute(select(jobs).where(waits).limit(1).with_for_update())).mappings().one_or_none()
        found = row is not None
        if row is not None and source.status == Status.CANCELLED:
            await ends.end(db, Job.from_row(row), Status.CANCELLED)
        elif row is not None:
            reason = _reason(source.source_id, source.status, source.error_code, source.error_message)
            await ends.fail(db, Job.from_row(row), FailureCode.SOURCE_FAILED, reason)
    if not found:
        # Those that were found may have ended while their locks were waited for: so it is asked anew.
        none_left = ~exists(select(jobs.c.id).where(waits))
        await db.execute(delete(ended_sources).where(mine, none_left))
    # If it is still there, the others of its key come first.
    await db.execute(_TO_THE_END, {"note": note})
    return 1


def _reason(job_id: str, status: str | None, code: str | None, message: str | None) -> str:
    """Of a job that has ended without a video, or (None) was deleted."""
    job = f"Job {job_id}, whose video it needs,"
    if status is None:
        return f"{job} was deleted. Make that video again, then this one."
    if status == Status.CANCELLED:
        return f"{job} was cancelled."
    return f"{job} failed with {code}: {(message or '').rstrip('.')}."


#: Of one owner, so that one line alone is locked; and in the order of ids, as ``awaited`` locks. Who waits for another
#: as well goes on waiting. It has as long to start as any job that comes now.
_GO_ON = text(
    """
    WITH chosen AS (
        SELECT id FROM jobs
         WHERE awaits @> ARRAY[CAST(:source AS text)]
           AND owner = (SELECT owner FROM jobs WHERE awaits @> ARRAY[CAST(:source AS text)] LIMIT 1)
         ORDER BY id LIMIT :batch
           FOR UPDATE
    )
    UPDATE jobs
       SET awaits = nullif(array_remove(awaits, CAST(:source AS text)), '{}'),
           status = CASE cardinality(awaits) WHEN 1 THEN 'queued' ELSE status END,
           stage = CASE cardinality(awaits) WHEN 1 THEN 'queued' ELSE stage END,
           expires_at = CASE cardinality(awaits) WHEN 1 THEN now() + make_interval(secs => expires_after) END
      FROM chosen WHERE jobs.id = chosen.id
    RETURNING jobs.id, jobs.request_id
    """
)

#: Each step goes to the next key by the index: however many notes a key has, only one of them is read.
_FIRST_NOTES = text(
    """
    WITH RECURSIVE keys AS (
        (SELECT key_id FROM ended_sources ORDER BY key_id LIMIT 1)
         UNION ALL
        SELECT (SELECT key_id FROM ended_sources WHERE key_id > keys.key_id ORDER BY key_id LIMIT 1)
          FROM keys WHERE key_id IS NOT NULL
    )
    SELECT first.id FROM keys
     CROSS JOIN LATERAL (SELECT id FROM ended_sources WHERE key_id = keys.key_id ORDER BY id LIMIT 1) first
     ORDER BY random() LIMIT :notes
    """
)

_TO_THE_END = text("UPDATE ended_sources SET id = DEFAULT WHERE id = :note")

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
