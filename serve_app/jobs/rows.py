"""Jobs as the store reads them inside a transaction: by id, under their lock, by lease."""

from collections.abc import Iterable, Sequence, Set

import structlog
from sqlalchemy import RowMapping, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.contract import Lease, Verdict
from serve_app.jobs.job import Job, Status
from serve_app.jobs.tables import jobs

log = structlog.get_logger()


def readable(rows: Iterable[RowMapping]) -> Sequence[Job]:
    """The jobs of a page. One that this version cannot read, e.g. since a newer one wrote it, hides no other."""
    found = []
    for row in rows:
        try:
            found.append(Job.from_row(row))
        except (ValueError, TypeError) as error:
            log.error("job_unreadable", job_id=row["id"], error=str(error))
    return found


async def get(db: AsyncConnection, job_id: str) -> Job:
    """The job, which is there."""
    return Job.from_row((await db.execute(select(jobs).where(jobs.c.id == job_id))).mappings().one())


async def lock(db: AsyncConnection, job_id: str) -> Job | None:
    """The job, locked, if there is one."""
    row = (await db.execute(select(jobs).where(jobs.c.id == job_id).with_for_update())).mappings().one_or_none()
    return None if row is None else Job.from_row(row)


async def held(db: AsyncConnection, lease: Lease) -> Job | None:
    """The job, locked, if the lease on it still holds."""
    mine = select(jobs).where(jobs.c.id == lease.job_id, jobs.c.lease_token == lease.token)
    row = (await db.execute(mine.with_for_update())).mappings().one_or_none()
    return None if row is None else Job.from_row(row)


async def renew(db: AsyncConnection, leases: Sequence[Lease], seconds: float) -> Set[str]:
    """Keep those leases for so long that still hold and whose jobs no worker has started. The tokens of all that
    hold."""
    given = {"ids": [lease.job_id for lease in leases], "tokens": [lease.token for lease in leases]}
    return set((await db.execute(_RENEW, {**given, "seconds": seconds})).scalars())


_RENEW = text(
    """
    WITH given AS (
        SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:tokens AS text[])) given (id, token)
    ),
    renewed AS (
        UPDATE jobs SET lease_expires_at = now() + make_interval(secs => :seconds)
          FROM given
         WHERE jobs.id = given.id AND jobs.lease_token = given.token AND jobs.status = 'queued'
    )
    SELECT token FROM jobs JOIN given ON jobs.id = given.id AND jobs.lease_token = given.token
    """
)


async def verdict(db: AsyncConnection, lease: Lease) -> Verdict:
    """What a worker with this lease should do."""
    job = await held(db, lease)
    if job is None or job.status is not Status.PROCESSING:
        return Verdict.LEASE_LOST
    return Verdict.GO_ON if job.cancel_requested_at is None else Verdict.CANCELLED


async def discard_orphans(db: AsyncConnection, job_id: str) -> None:
    """What a worker stored after its job was deleted goes as well: the first note may have been worked off by then."""
    gone = text(
        "INSERT INTO discarded_media (job_id, folder) SELECT id, folder FROM used_ids WHERE id = :id"
        " AND NOT EXISTS (SELECT FROM jobs WHERE id = :id)"
    )
    await db.execute(gone, {"id": job_id})
