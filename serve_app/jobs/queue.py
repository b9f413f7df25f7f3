"""How long the line is: counts, a job's position in it and when it may be done. Reads only."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Boolean, DateTime, Integer, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.job import Job, Status
from serve_app.jobs.pace import Paces

#: Positions beyond this are all reported as this: nobody needs them exact, and counting costs. Of intake's line, too,
#: only so many users of the key are looked at, so a position is a lower bound while more of them wait there.
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
        "key": job.key_id,
        "owner": job.owner,
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

#: Ahead are the claimed jobs, those of the own key, and those of other keys that rank before it by turns, as
#: ``claim.py`` ranks them; of a key that may not run as many, only those that it may. Of the own key those are ahead
#: that are better of the same user, and of other users those that rank before it. Each part stops counting at
#: ``:limit``. Of the other users only those are looked at who can be ahead: who holds something, the first in the
#: model's line, up to the user's own turn if this is his first job, and the first whose inputs are being fetched. Whom
#: a back-off keeps from being taken is nowhere.
_PLACE = text(
    """
    WITH RECURSIVE
    running AS (
        SELECT model, key_id, owner, status, priority, created_at FROM jobs
         WHERE lease_token IS NOT NULL AND inputs IS NOT NULL
    ),
    claimed AS (SELECT * FROM running WHERE model = :model),
    in_flight AS (SELECT owner AS id, key_id, count(*) AS n FROM claimed GROUP BY 1, 2),
    holding AS (
        SELECT key_id, count(*) FILTER (WHERE model = :model) AS here, count(*) AS total FROM running GROUP BY 1
    ),
    handed_over AS (
        SELECT count(*) AS n FROM claimed
         WHERE status = 'queued'
           AND (NOT :claimed OR priority > :priority OR (priority = :priority AND created_at < :created))
    ),
    own AS (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM jobs
             WHERE status = 'queued' AND lease_token IS NULL AND model = :model AND key_id = :key AND owner = :owner
               AND (priority > :priority OR (priority = :priority AND created_at < :created)) LIMIT :limit) mine
    ),
    me AS (
        SELECT own.n + coalesce(f.n, 0) + 1 AS rank, coalesce(f.n, 0) AS held, coalesce(t.turn, 0) AS turn,
               coalesce(t.priority, later.priority, :priority) AS priority,
               coalesce(t.since, later.since, :created) AS since
          FROM own
          LEFT JOIN in_flight f ON f.id = :owner
          LEFT JOIN turns t ON t.queue = :model AND t.owner = :owner
          LEFT JOIN turns later ON later.queue = '' AND later.owner = :owner
    ),
    users AS (
        (SELECT owner, 0 AS held, turn, priority, since FROM turns
          WHERE queue = :model AND key_id = :key AND since IS NOT NULL
            AND turn <= (SELECT CASE WHEN rank = 1 THEN turn ELSE 9223372036854775807 END FROM me)
            AND owner <> ALL (ARRAY(SELECT id FROM in_flight))
          ORDER BY turn, priority DESC, since LIMIT :limit + 1)
        UNION ALL
        SELECT f.id, f.n, coalesce(t.turn, 0), coalesce(t.priority, later.priority), coalesce(t.since, later.since)
          FROM in_flight f
          LEFT JOIN turns t ON t.queue = :model AND t.owner = f.id
          LEFT JOIN turns later ON later.queue = '' AND later.owner = f.id
         WHERE f.key_id = :key
        UNION ALL
        SELECT later.owner, 0, coalesce(t.turn, 0), later.priority, later.since
          FROM (SELECT owner, priority, since FROM turns
                 WHERE queue = '' AND key_id = :key AND since IS NOT NULL
                   AND owner <> ALL (ARRAY(SELECT id FROM in_flight))
                 ORDER BY turn, priority DESC, since LIMIT :limit + 1) later
          LEFT JOIN turns t ON t.queue = :model AND t.owner = later.owner
         WHERE t.since IS NULL
    ),
    of_key AS (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM me, users u
             CROSS JOIN LATERAL (
                   SELECT 1 FROM jobs
                    WHERE status = 'queued' AND lease_token IS NULL AND model = :model
                      AND key_id = :key AND owner = u.owner
                    LIMIT greatest(0, me.rank - u.held - CASE
                              WHEN (-u.held, u.turn, -u.priority, u.since)
                                 < (-me.held, me.turn, -me.priority, me.since) THEN 0 ELSE 1 END)) ahead
             WHERE u.owner <> :owner LIMIT :limit) turns
    ),
    -- With a job of the model to run, or any whose inputs are fetched.
    waiting AS (
        SELECT least(
                   (SELECT key_id FROM turns WHERE queue = :model AND since IS NOT NULL ORDER BY key_id LIMIT 1),
                   (SELECT key_id FROM turns WHERE queue = '' AND since IS NOT NULL ORDER BY key_id LIMIT 1)) AS id
        UNION ALL
        SELECT least(
                   (SELECT key_id FROM turns
                     WHERE queue = :model AND since IS NOT NULL AND key_id > waiting.id ORDER BY key_id LIMIT 1),
                   (SELECT key_id FROM turns
                     WHERE queue = '' AND since IS NOT NULL AND key_id > waiting.id ORDER BY key_id LIMIT 1))
          FROM waiting WHERE waiting.id IS NOT NULL
    ),
    keys AS (
        SELECT each.id, coalesce(here, 0) AS held, coalesce(last.turn, 0) AS turn,
               coalesce(next.priority, later.priority, :priority) AS priority,
               coalesce(next.since, later.since, :created) AS since, running_jobs - coalesce(total, 0) AS most
          FROM (SELECT id FROM waiting WHERE id <> :key UNION ALL SELECT :key) each
          LEFT JOIN holding ON holding.key_id = each.id
          LEFT JOIN api_keys ON api_keys.id = each.id
          LEFT JOIN LATERAL (
               SELECT turn FROM turns WHERE queue = :model AND key_id = each.id ORDER BY turn DESC LIMIT 1) last ON true
          LEFT JOIN LATERAL (
               SELECT priority, since FROM turns WHERE queue = :model AND key_id = each.id AND since IS NOT NULL
                ORDER BY turn, priority DESC, since LIMIT 1) next ON true
          LEFT JOIN LATERAL (
               SELECT priority, since FROM turns
                WHERE next.since IS NULL AND queue = '' AND key_id = each.id AND since IS NOT NULL
                ORDER BY turn, priority DESC, since LIMIT 1) later ON true
    ),
    others AS (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM keys k
             CROSS JOIN (SELECT keys.*, held + own.n + of_key.n + 1 AS rank FROM keys, own, of_key WHERE id = :key) mine
             CROSS JOIN LATERAL (
                   SELECT 1 FROM jobs
                    WHERE status = 'queued' AND lease_token IS NULL AND model = :model AND key_id = k.id
                    LIMIT greatest(0, least(k.most, mine.rank - k.held - CASE
                              WHEN (-k.held, k.turn, -k.priority, k.since)
                                 < (-mine.held, mine.turn, -mine.priority, mine.since) THEN 0 ELSE 1 END))) ahead
             WHERE k.id <> :key LIMIT :limit) turns
    )
    SELECT least(:limit, handed_over.n + CASE WHEN :claimed THEN 0 ELSE own.n + of_key.n + others.n END)
      FROM handed_over, own, of_key, others
    """
).bindparams(
    # ``-:priority``, comparisons and a row of its own do not tell PostgreSQL the types.
    bindparam("priority", type_=Integer),
    bindparam("claimed", type_=Boolean),
    bindparam("created", type_=DateTime(timezone=True)),
    bindparam("key", type_=Text),
)
