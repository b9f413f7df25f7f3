"""Old jobs go, rows and media together.

The row goes first and leaves a note of its media in the same transaction; media go next, then the note. A crash in
between leaves work to do, never a row whose video is gone or a video that nobody knows.
"""

from dataclasses import dataclass

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.idempotency import FORGET_ANSWERS, KEPT_S
from serve_app.storage import keys
from serve_app.storage.base import Storage, StorageError

log = structlog.get_logger()

#: Whose number is counted: the owners of the latest so many completed jobs, since nobody else can have come to be over
#: it. Retention looks whenever a job ends; whom it misses then has his next job, or the age, to be found by.
LATELY = 50


@dataclass(frozen=True)
class RetentionPolicy:
    """The original service's numbers by default."""

    completed_hours: float = 24
    #: Completed jobs of a key's user beyond his newest so many go earlier: one's burst costs nobody else a video.
    completed_count: int = 1000
    #: Also cancelled jobs.
    failed_hours: float = 24 * 7


class Retention:
    """Deletes a batch per call; call again while it returns more than 0."""

    BATCH = 200

    def __init__(self, engine: AsyncEngine, storage: Storage, policy: RetentionPolicy) -> None:
        self._engine = engine
        self._storage = storage
        self._policy = policy

    async def forget_jobs(self) -> int:
        """Delete the rows that are over age. Returns how many."""
        values = {
            "completed_s": self._policy.completed_hours * 3600,
            "count": self._policy.completed_count,
            "failed_s": self._policy.failed_hours * 3600,
            "batch": self.BATCH,
            "lately": LATELY,
        }
        async with self._engine.begin() as db:
            chosen = (await db.execute(_CHOOSE, values)).scalars().all()
            # Nobody can begin to need them any more. Who did so after they were looked for is only seen now.
            return (await db.execute(_FORGET, {"ids": chosen})).rowcount if chosen else 0

    async def delete_media(self) -> int:
        """Delete the media of jobs that are gone. Returns how many jobs' media were deleted."""
        async with self._engine.connect() as db:
            # A note that version 0002 left means all of the id.
            query = text(
                "SELECT id, job_id, coalesce(nullif(folder, ''), job_id) FROM discarded_media ORDER BY id LIMIT :batch"
            )
            noted = (await db.execute(query, {"batch": self.BATCH})).all()
        deleted, failed = [], []
        for note, job_id, folder in noted:
            try:
                for prefix in keys.prefixes(folder):
                    await self._storage.delete_prefix(prefix)
                deleted.append(note)
            except StorageError as error:
                # The note stays for the next time, behind the others: the media of other jobs need not wait for it.
                failed.append(note)
                log.warning("media_not_deleted", job_id=job_id, error=error.message)
        async with self._engine.begin() as db:
            await db.execute(text("DELETE FROM discarded_media WHERE id = ANY(:ids)"), {"ids": deleted})
            await db.execute(text("UPDATE discarded_media SET id = DEFAULT WHERE id = ANY(:ids)"), {"ids": failed})
        return len(deleted)

    async def tidy(self) -> int:
        """Keep what only grows small: the tally of jobs, ids that were used, turns of owners who have not been back,
        answers that are not repeated any more, tests of webhook endpoints."""
        async with self._engine.begin() as db:
            await db.execute(_ADD_UP)
            await db.execute(_FORGET_IDS, {"batch": 10 * self.BATCH})
            await db.execute(_FORGET_TURNS, {"batch": 10 * self.BATCH})
            await db.execute(FORGET_ANSWERS, {"kept_s": KEPT_S, "batch": 10 * self.BATCH})
            await db.execute(_FORGET_TESTS, {"batch": 10 * self.BATCH})
        return 0


#: Two at once are harmless: what one has taken, the other does not see.
_ADD_UP = text(
    """
    WITH taken AS (DELETE FROM job_tally RETURNING model, deployment, status, n)
    INSERT INTO job_tally (model, deployment, status, n)
    SELECT model, deployment, status, sum(n) FROM taken GROUP BY 1, 2, 3 HAVING sum(n) <> 0
    """
)

#: A month: longer than any link to a job lives, and webhooks are retried.
_FORGET_IDS = text(
    """
    DELETE FROM used_ids WHERE id IN (
        SELECT id FROM used_ids WHERE forgotten_at < now() - interval '30 days' ORDER BY forgotten_at LIMIT :batch)
    """
)

#: Somebody who comes back after a day is as good as new: the first among those who hold as much. Who waits, stays.
_FORGET_TURNS = text(
    """
    DELETE FROM turns WHERE (queue, owner) IN (
        SELECT queue, owner FROM turns
         WHERE served_at < now() - interval '1 day' AND since IS NULL AND later IS NULL
         ORDER BY served_at LIMIT :batch
           FOR UPDATE SKIP LOCKED)
    """
)

#: Other deliveries go with their jobs.
_FORGET_TESTS = text(
    """
    DELETE FROM deliveries WHERE id IN (
        SELECT id FROM deliveries
         WHERE job_id IS NULL AND created_at < now() - interval '7 days' ORDER BY created_at LIMIT :batch
           FOR UPDATE SKIP LOCKED)
    """
)

_CHOOSE = text(
    """
    WITH owed AS NOT MATERIALIZED (SELECT job_id, attempts FROM deliveries WHERE next_attempt_at IS NOT NULL),
    owners AS (
        SELECT DISTINCT id FROM (
            SELECT owner AS id FROM jobs WHERE status = 'completed' AND completed_at IS NOT NULL
             ORDER BY completed_at DESC LIMIT :lately) latest
    ),
    -- Who takes a video of another job may wait for a second one meanwhile: none is gone before he has it.
    needed AS NOT MATERIALIZED (
        SELECT source_ids FROM jobs WHERE source_ids IS NOT NULL AND inputs IS NULL AND completed_at IS NULL
    ),
    old AS (
        -- Over age a job goes, whatever its receiver does: one that never answers can't keep media for days. Its
        -- webhook goes with it, but has been tried once.
        (SELECT id FROM jobs
          WHERE status = 'completed' AND completed_at < now() - make_interval(secs => :completed_s)
            AND NOT EXISTS (SELECT FROM owed WHERE owed.job_id = jobs.id AND owed.attempts = 0)
            AND NOT EXISTS (SELECT FROM needed WHERE needed.source_ids @> ARRAY[jobs.id])
          LIMIT :batch)
        UNION
        -- Over number only, it stays until its webhook is delivered or given up: a burst of jobs should not cost any.
        (SELECT over.id FROM owners
          CROSS JOIN LATERAL (
              SELECT completed_at FROM jobs
               WHERE status = 'completed' AND owner = owners.id AND completed_at IS NOT NULL
               ORDER BY completed_at DESC OFFSET :count - 1 LIMIT 1) edge
          CROSS JOIN LATERAL (
              SELECT id FROM jobs
               WHERE status = 'completed' AND owner = owners.id AND completed_at < edge.completed_at
                 AND NOT EXISTS (SELECT FROM owed WHERE owed.job_id = jobs.id)
                 AND NOT EXISTS (SELECT FROM needed WHERE needed.source_ids @> ARRAY[jobs.id])
               LIMIT :batch) over
          LIMIT :batch)
        UNION
        (SELECT id FROM jobs
          WHERE status IN ('failed', 'cancelled') AND completed_at < now() - make_interval(secs => :failed_s)
            AND NOT EXISTS (SELECT FROM owed WHERE owed.job_id = jobs.id AND owed.attempts = 0)
          LIMIT :batch)
    )
    -- Whoever makes a job locks its sources, several in the order of their ids: he is not waited for.
    SELECT id FROM jobs WHERE id IN (SELECT id FROM old) ORDER BY id FOR UPDATE SKIP LOCKED
    """
)

#: One that has no video is no source of anything.
_FORGET = text(
    """
    WITH needed AS NOT MATERIALIZED (
        SELECT source_ids FROM jobs WHERE source_ids IS NOT NULL AND inputs IS NULL AND completed_at IS NULL
    ),
    gone AS (
        DELETE FROM jobs WHERE id = ANY(:ids)
           AND (status <> 'completed' OR NOT EXISTS (SELECT FROM needed WHERE needed.source_ids @> ARRAY[jobs.id]))
        RETURNING id, CASE nonce WHEN '' THEN id ELSE id || '/' || nonce END AS folder
    ),
    used AS (INSERT INTO used_ids (id, folder) SELECT id, folder FROM gone ON CONFLICT DO NOTHING)
    INSERT INTO discarded_media (job_id, folder) SELECT id, folder FROM gone
    """
)
