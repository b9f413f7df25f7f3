"""How long the line is: counts, a job's position in it and when it may be done. Reads only."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Boolean, DateTime, Integer, bindparam, text
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.job import Job, Status
from serve_app.jobs.pace import Paces

#: Positions beyond this are all reported as this: nobody needs them exact, and counting costs. Of intake's line, too,
#: only so many users are looked at, so a position is a lower bound while more of them wait there.
MAX_POSITION = 1000


@dataclass(frozen=True)
class Place:
    """Where a queued job stands; 0 means next."""

    position: int
    eta_seconds: float | None


class JobQueue:
    """The line as clients and operators see it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._paces = Paces(engine)

    async def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Jobs by model and status."""
        async with self._engine.connect() as db:
            rows = await db.execute(_COUNTS)
            counts: dict[str, dict[str, int]] = {}
            for model, status, number in rows:
                counts.setdefault(model, {})[status] = number
        return counts

    async def place(self, job: Job) -> Place | None:
        """None unless the job waits.

        The estimate goes by the latest videos of the model and the replicas at work (``pace.py``). While none works
        there is no estimate: how long a GPU takes to come is not known here.
        """
        if job.status is not Status.QUEUED:
            return None
        async with self._engine.connect() as db:
            position = (await db.execute(_PLACE, _place_parameters(job))).scalar_one()
        return Place(position, await self._paces.until_turn_and_done(job, position))

    async def until_done(self, job: Job) -> float | None:
        """Seconds until the video of a job is there that a replica has. None: not known, or it has none."""
        return await self._paces.until_done(job)


def _place_parameters(job: Job) -> dict[str, object]:
    return {
        "model": job.model,
        "user": job.user_id or "",
        "priority": job.priority,
        "created": job.created_at,
        "limit": MAX_POSITION,
        # Chosen already, so only others that were chosen can be ahead.
        "claimed": job.lease_token is not None and job.inputs is not None,
    }


#: The condition on ``jobs`` costs nothing and fails where the table is not there.
_COUNTS = text(
    """
    SELECT model, status, sum(n)::bigint FROM job_tally GROUP BY 1, 2
    HAVING sum(n) <> 0 AND NOT EXISTS (SELECT FROM jobs WHERE false)
    """
)

#: Ahead are the claimed jobs, the user's own better ones, and of other users those that rank before it by turns, as
#: ``claim.py`` ranks them. Each part stops counting at ``:limit``. Of others only those are looked at who can be ahead:
#: who holds something, the first in the model's line, up to the user's own turn if this is his first job, and the first
#: whose inputs are being fetched. Whom a back-off keeps from being taken is nowhere.
_PLACE = text(
    """
    WITH
    claimed AS (
        SELECT coalesce(user_id, '') AS id, status, priority, created_at FROM jobs
         WHERE lease_token IS NOT NULL AND model = :model AND inputs IS NOT NULL
    ),
    in_flight AS (SELECT id, count(*) AS n FROM claimed GROUP BY id),
    handed_over AS (
        SELECT count(*) AS n FROM claimed
         WHERE status = 'queued'
           AND (NOT :claimed OR priority > :priority OR (priority = :priority AND created_at < :created))
    ),
    own AS (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM jobs
             WHERE status = 'queued' AND lease_token IS NULL AND model = :model AND coalesce(user_id, '') = :user
               AND (priority > :priority OR (priority = :priority AND created_at < :created)) LIMIT :limit) mine
    ),
    me AS (
        SELECT own.n + held.n + 1 AS rank, held.n AS held,
               coalesce((SELECT turn FROM turns WHERE queue = :model AND user_id = :user), 0) AS turn,
               coalesce(next.priority, :priority) AS best_priority, coalesce(next.created_at, :created) AS oldest
          FROM own
         CROSS JOIN (SELECT coalesce((SELECT n FROM in_flight WHERE id = :user), 0) AS n) held
          LEFT JOIN (
               SELECT priority, created_at FROM jobs
                WHERE status = 'queued' AND lease_token IS NULL AND model = :model AND coalesce(user_id, '') = :user
                ORDER BY priority DESC, created_at LIMIT 1) next ON true
    ),
    users AS (
        SELECT id FROM in_flight
        UNION
        (SELECT user_id FROM turns
          WHERE queue = :model AND since IS NOT NULL
            AND turn <= (SELECT CASE WHEN rank = 1 THEN turn ELSE 9223372036854775807 END FROM me)
          ORDER BY turn, priority DESC, since LIMIT :limit + 1)
        UNION
        (SELECT user_id FROM turns
          WHERE queue = '' AND since IS NOT NULL ORDER BY turn, priority DESC, since LIMIT :limit + 1)
    ),
    others AS (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM me, users u
              LEFT JOIN in_flight f ON f.id = u.id
              LEFT JOIN LATERAL (SELECT turn FROM turns WHERE queue = :model AND user_id = u.id LIMIT 1) t ON true
              CROSS JOIN LATERAL (
                  SELECT coalesce(f.n, 0) + row_number() OVER line AS rank,
                         first_value(priority) OVER line AS best_priority, first_value(created_at) OVER line AS oldest
                    FROM (SELECT priority, created_at FROM jobs
                           WHERE status = 'queued' AND lease_token IS NULL AND model = :model
                             AND coalesce(user_id, '') = u.id
                           ORDER BY priority DESC, created_at LIMIT (SELECT rank FROM me)) first
                  WINDOW line AS (ORDER BY priority DESC, created_at)
              ) w
             WHERE u.id <> :user
               AND (w.rank, -coalesce(f.n, 0), coalesce(t.turn, 0), -w.best_priority, w.oldest)
                 < (me.rank, -me.held, me.turn, -me.best_priority, me.oldest)
             LIMIT :limit) turns
    )
    SELECT least(:limit, handed_over.n + CASE WHEN :claimed THEN 0 ELSE own.n + others.n END)
      FROM handed_over, own, others
    """
).bindparams(
    # ``-:priority`` and comparisons alone do not tell PostgreSQL the types.
    bindparam("priority", type_=Integer),
    bindparam("claimed", type_=Boolean),
    bindparam("created", type_=DateTime(timezone=True)),
)
