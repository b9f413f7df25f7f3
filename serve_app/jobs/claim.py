"""Claims: whose job is next, for the GPUs and for intake.

Fair between users: a user's n-th job, those in flight counted, ranks behind everybody else's (n-1)-th. Within a rank
the user served longest ago is next; ``turns`` remembers. Without that, whoever came first would keep the odd slot for
ever: of 7 slots and 4 users, one user would hold one while the others hold two. Among the jobs of one user priority
decides, then age; those of their next jobs also decide between users of whom none was ever served.

A user may be served twice in one claim. His second job then ranks with the first of somebody who held one already, who
was served longer ago: hence ``held DESC`` before ``turn``.

Who waits and whose turn it is says an index of ``turns``, which triggers keep (migration 0005). For ``n`` jobs only the
first ``n`` users can matter of those who hold none, and those who hold some are few; a lateral join finds the best few
jobs of each. So the cost follows the window, not the number of jobs and not that of the users who wait.

The two statements are the same but for what counts as waiting and as in flight, and for what bounds them. They stand
here in full, so that they can be read, and pasted behind ``EXPLAIN``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.stage import Stage
from serve_app.jobs.job import Claim, Job

#: The queue of intake among those of the models.
INTAKE = ""
#: Users who are brought up to date at a time.
DUE_BATCH = 500


async def claim_to_run(db: AsyncConnection, model: str, window: int, seconds: float) -> Sequence[Claim]:
    """Lease jobs of ``model`` for so long, at most so many that ``window`` are in flight; the next first."""
    return await _claim(
        db, model, CLAIM_TO_RUN, {"model": model, "window": window, "seconds": seconds, "stage": Stage.WAITING_FOR_GPU}
    )


async def claim_for_intake(db: AsyncConnection, limit: int, share: int, seconds: float) -> Sequence[Claim]:
    """Lease ``limit`` jobs whose inputs have to be fetched, at most ``share`` of a user's in flight."""
    return await _claim(
        db,
        INTAKE,
        CLAIM_FOR_INTAKE,
        {"limit": limit, "share": share, "seconds": seconds, "stage": Stage.FETCHING},
    )


async def _claim(db: AsyncConnection, queue: str, statement: TextClause, values: Mapping[str, Any]) -> Sequence[Claim]:
    # Claims of one queue take turns, so that two dispatchers cannot overfill its window together; and all of a queue
    # write down whose turn it was.
    await db.execute(text("SELECT pg_advisory_xact_lock(hashtext('claim:' || :queue))"), {"queue": queue})
    await db.execute(COME_DUE, {"queue": queue, "batch": DUE_BATCH})
    claims = [Claim.of(Job.from_row(row)) for row in (await db.execute(statement, values)).mappings()]
    if claims:
        # Each user once, where their last job of this claim stands in it.
        served = list(dict.fromkeys(claim.job.user_id or "" for claim in reversed(claims)))
        await db.execute(TAKE_TURNS, {"queue": queue, "users": served[::-1]})
    return claims


#: Bring the lines up to date whose users had to wait until now. By the transaction's time, as the triggers do.
COME_DUE = text(
    """
    SELECT line_up(array_agg(queue), array_agg(user_id)) FROM (
        SELECT queue, user_id FROM turns
         WHERE queue = :queue AND later IS NOT NULL AND later <= transaction_timestamp()
         ORDER BY later LIMIT :batch
           FOR UPDATE SKIP LOCKED) due
    HAVING count(*) > 0
    """
)

#: Write down that these users were served, in this order.
TAKE_TURNS = text(
    """
    INSERT INTO turns (queue, user_id)
    SELECT :queue, served.id FROM unnest(CAST(:users AS text[])) WITH ORDINALITY served (id, n) ORDER BY served.n
    ON CONFLICT (queue, user_id) DO UPDATE SET turn = excluded.turn, served_at = now()
    """
)

CLAIM_TO_RUN = text(
    """
    WITH in_flight AS (
        SELECT coalesce(user_id, '') AS id, count(*) AS n
          FROM jobs
         WHERE lease_token IS NOT NULL AND model = :model AND inputs IS NOT NULL
         GROUP BY 1
    ),
    room AS (
        SELECT greatest(:window - (SELECT coalesce(sum(n), 0) FROM in_flight), 0)::int AS n
    ),
    -- 16 users beyond those who can matter: somebody else may have locked the jobs of some.
    users AS (
        (SELECT user_id AS id, turn, 0 AS held
           FROM turns
          WHERE queue = :model AND since IS NOT NULL AND user_id <> ALL (ARRAY(SELECT id FROM in_flight))
          ORDER BY turn, priority DESC, since
          LIMIT (SELECT CASE WHEN n > 0 THEN n + 16 ELSE 0 END FROM room))
        UNION ALL
        SELECT t.id, t.turn, f.n
          FROM in_flight f
         CROSS JOIN LATERAL (
               SELECT user_id AS id, turn
                 FROM turns
                WHERE queue = :model AND user_id = f.id AND since IS NOT NULL
                LIMIT 1) t
    ),
    best AS (
        SELECT w.id, u.held, u.turn,
               u.held + row_number() OVER of_user AS rank,
               first_value(w.priority) OVER of_user AS best_priority,
               first_value(w.created_at) OVER of_user AS oldest
          FROM users u
         CROSS JOIN LATERAL (
               SELECT id, priority, created_at
                 FROM jobs
                WHERE status = 'queued' AND lease_token IS NULL AND model = :model AND inputs IS NOT NULL
                  AND coalesce(user_id, '') = u.id AND not_before <= now()
                ORDER BY priority DESC, created_at
                LIMIT (SELECT n FROM room)) w
        WINDOW of_user AS (PARTITION BY u.id ORDER BY w.priority DESC, w.created_at)
    ),
    -- The array keeps the planner from joining by a scan of all that wait. What the snapshot saw is asked again: a row
    -- may have changed until its lock was taken.
    next AS (
        SELECT jobs.id, best.rank, best.held, best.turn, best.best_priority, best.oldest
          FROM jobs JOIN best ON best.id = jobs.id
         WHERE jobs.id = ANY (ARRAY(SELECT id FROM best)) AND jobs.status = 'queued' AND jobs.lease_token IS NULL
         ORDER BY best.rank, best.held DESC, best.turn, best.best_priority DESC, best.oldest
         LIMIT (SELECT n FROM room)
           FOR UPDATE OF jobs SKIP LOCKED
    ),
    placed AS (
        SELECT id, row_number() OVER (ORDER BY rank, held DESC, turn, best_priority DESC, oldest) AS place FROM next
    ),
    leased AS (
        UPDATE jobs
           SET lease_token = replace(gen_random_uuid()::text, '-', ''),
               lease_expires_at = now() + make_interval(secs => :seconds),
               stage = :stage
          FROM placed
         WHERE jobs.id = placed.id
        RETURNING jobs.*, placed.place
    )
    SELECT * FROM leased ORDER BY place
    """
)

CLAIM_FOR_INTAKE = text(
    """
    WITH in_flight AS (
        SELECT coalesce(user_id, '') AS id, count(*) AS n
          FROM jobs
         WHERE lease_token IS NOT NULL AND inputs IS NULL
         GROUP BY 1
    ),
    room AS (
        SELECT CAST(:limit AS int) AS n
    ),
    -- 16 users beyond those who can matter: somebody else may have locked the jobs of some.
    users AS (
        (SELECT user_id AS id, turn, 0 AS held
           FROM turns
          WHERE queue = '' AND since IS NOT NULL AND user_id <> ALL (ARRAY(SELECT id FROM in_flight))
          ORDER BY turn, priority DESC, since
          LIMIT (SELECT CASE WHEN n > 0 THEN n + 16 ELSE 0 END FROM room))
        UNION ALL
        SELECT t.id, t.turn, f.n
          FROM in_flight f
         CROSS JOIN LATERAL (
               SELECT user_id AS id, turn
                 FROM turns
                WHERE queue = '' AND user_id = f.id AND since IS NOT NULL
                LIMIT 1) t
    ),
    best AS (
        SELECT w.id, u.held, u.turn,
               u.held + row_number() OVER of_user AS rank,
               first_value(w.priority) OVER of_user AS best_priority,
               first_value(w.created_at) OVER of_user AS oldest
          FROM users u
         CROSS JOIN LATERAL (
               SELECT id, priority, created_at
                 FROM jobs
                WHERE status = 'queued' AND lease_token IS NULL AND inputs IS NULL
                  AND coalesce(user_id, '') = u.id AND not_before <= now()
                ORDER BY priority DESC, created_at
                LIMIT (SELECT n FROM room)) w
        WINDOW of_user AS (PARTITION BY u.id ORDER BY w.priority DESC, w.created_at)
    ),
    -- The array keeps the planner from joining by a scan of all that wait. What the snapshot saw is asked again: a row
    -- may have changed until its lock was taken.
    next AS (
        SELECT jobs.id, best.rank, best.held, best.turn, best.best_priority, best.oldest
          FROM jobs JOIN best ON best.id = jobs.id
         WHERE jobs.id = ANY (ARRAY(SELECT id FROM best)) AND jobs.status = 'queued' AND jobs.lease_token IS NULL
           AND best.rank <= :share
         ORDER BY best.rank, best.held DESC, best.turn, best.best_priority DESC, best.oldest
         LIMIT (SELECT n FROM room)
           FOR UPDATE OF jobs SKIP LOCKED
    ),
    placed AS (
        SELECT id, row_number() OVER (ORDER BY rank, held DESC, turn, best_priority DESC, oldest) AS place FROM next
    ),
    leased AS (
        UPDATE jobs
           SET lease_token = replace(gen_random_uuid()::text, '-', ''),
               lease_expires_at = now() + make_interval(secs => :seconds),
               stage = :stage
          FROM placed
         WHERE jobs.id = placed.id
        RETURNING jobs.*, placed.place
    )
    SELECT * FROM leased ORDER BY place
    """
)
