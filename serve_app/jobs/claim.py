"""Claims: whose job is next, for the GPUs and for intake.

Fair between keys: a key's n-th job, those in flight counted, ranks behind every other key's (n-1)-th, whatever users
they have. Within a rank the key served longest ago is next; ``turns`` remembers. Without that, whoever came first would
keep the odd slot for ever: of 7 slots and 4 keys, one key would hold one while the others hold two. And within a key
its users share in the same way. Among the jobs of one user priority decides, then age; those of their next jobs also
decide between users, and keys, of whom none was ever served.

A key may be served twice in one claim. Its second job then ranks with the first of one that held one already, which was
served longer ago: hence ``held DESC`` before ``turn``. It is the same for users.

Who waits and whose turn it is says an index of ``turns``, which triggers keep (migration 0011). Of the keys that wait,
which a loose index scan finds, only those matter that come first with their first job; of a key only so many jobs as
it would have if slots were filled up evenly (``level``); of its users who hold none only so many, and those who hold
some are few. So the cost follows the window and the number of keys, not the number of jobs and not that of the users
who wait. Where a key has less than an even share, or may not run as many, what is left goes to the others in another
round.

A key may have a limit of running jobs, over all deployments; what is beyond waits, as ``conditions.py`` tells.

The two statements are the same but for what counts as waiting and as in flight, and for what bounds them. They stand
here in full, so that they can be read, and pasted behind ``EXPLAIN``.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.stage import Stage
from serve_app.jobs.job import Claim, Job

#: The queue of intake among those of the deployments.
INTAKE = ""
#: Owners who are brought up to date at a time.
DUE_BATCH = 500
#: Advisory locks: of claims for the GPUs, and of those for intake, which new jobs take as well (``accepting.py``).
RUN_LOCK, INTAKE_LOCK = "claim:run", "claim:intake"


async def claim_to_run(db: AsyncConnection, deployment: str, window: int, seconds: float) -> Sequence[Claim]:
    """Lease jobs of ``deployment`` for so long, at most so many that ``window`` are in flight; the next first."""
    await alone(db)
    values = {"deployment": deployment, "window": window, "seconds": seconds, "stage": Stage.WAITING_FOR_GPU}
    claims: list[Claim] = []
    await _come_due(db, deployment)
    while True:
        found, room = await _round(db, deployment, CLAIM_TO_RUN, values)
        claims += found
        if not room:
            return claims


async def alone(db: AsyncConnection) -> None:
    """No claim for a GPU beside this transaction. One for all deployments, since a key's limit is for all."""
    await _lock(db, RUN_LOCK)


async def claim_for_intake(db: AsyncConnection, limit: int, share: int, free: int, seconds: float) -> Sequence[Claim]:
    """Lease ``limit`` jobs whose inputs have to be fetched, at most ``share`` of a user's in flight.

    ``free`` slots are free before. A key holds at most three times as many as it leaves: see ``fair.py``.
    """
    await _lock(db, INTAKE_LOCK)
    claims: list[Claim] = []
    await _come_due(db, INTAKE)
    while True:
        values = {
            "limit": limit - len(claims),
            "share": share,
            "free": free - len(claims),
            "seconds": seconds,
            "stage": Stage.FETCHING,
        }
        found, room = await _round(db, INTAKE, CLAIM_FOR_INTAKE, values)
        claims += found
        if not room:
            return claims


async def _lock(db: AsyncConnection, name: str) -> None:
    # Claims take turns, so that two dispatchers cannot overfill a window together, or a key's limit; and all write down
    # whose turn it was.
    await db.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})


async def _come_due(db: AsyncConnection, queue: str) -> None:
    await db.execute(COME_DUE, {"queue": queue, "batch": DUE_BATCH})


async def _round(
    db: AsyncConnection, queue: str, statement: TextClause, values: dict[str, Any]
) -> tuple[Sequence[Claim], int]:
    """What one statement finds, and the room that it leaves; none where nobody could use it."""
    rows = (await db.execute(statement, values)).mappings().all()
    if not rows:
        return (), 0
    claims = [Claim.of(Job.from_row(row)) for row in rows]
    # Each owner once, where their last job of this round stands in it.
    served = list(dict.fromkeys(claim.job.owner for claim in reversed(claims)))
    await db.execute(TAKE_TURNS, {"queue": queue, "owners": served[::-1]})
    return claims, rows[-1]["room"]


#: Bring the lines up to date whose owners had to wait until now. By the transaction's time, as the triggers do.
COME_DUE = text(
    """
    SELECT line_up(array_agg(queue), array_agg(owner)) FROM (
        SELECT queue, owner FROM turns
         WHERE queue = :queue AND later IS NOT NULL AND later <= transaction_timestamp()
         ORDER BY later LIMIT :batch
           FOR UPDATE SKIP LOCKED) due
    HAVING count(*) > 0
    """
)

#: Write down that these owners were served, in this order.
TAKE_TURNS = text(
    """
    INSERT INTO turns (queue, owner)
    SELECT :queue, served.id FROM unnest(CAST(:owners AS text[])) WITH ORDINALITY served (id, n) ORDER BY served.n
    ON CONFLICT (queue, owner) DO UPDATE SET turn = excluded.turn, served_at = now()
    """
)

CLAIM_TO_RUN = text(
    """
    WITH RECURSIVE running AS (
        SELECT deployment, key_id, owner, count(*) AS n
          FROM jobs
         WHERE lease_token IS NOT NULL AND inputs IS NOT NULL
         GROUP BY 1, 2, 3
    ),
    in_flight AS (
        SELECT key_id, owner, n FROM running WHERE deployment = :deployment
    ),
    holding AS (
        SELECT key_id, sum(n) FILTER (WHERE deployment = :deployment) AS here, sum(n) AS total FROM running GROUP BY 1
    ),
    room AS (
        SELECT greatest(:window - (SELECT coalesce(sum(n), 0) FROM in_flight), 0)::int AS n
    ),
    waiting AS (
        (SELECT key_id AS id FROM turns
          WHERE queue = :deployment AND since IS NOT NULL AND (SELECT n FROM room) > 0 ORDER BY key_id LIMIT 1)
        UNION ALL
        SELECT (SELECT key_id FROM turns
                 WHERE queue = :deployment AND since IS NOT NULL AND key_id > waiting.id ORDER BY key_id LIMIT 1)
          FROM waiting WHERE waiting.id IS NOT NULL
    ),
    -- 16 keys beyond those who can matter: somebody else may have locked the jobs of some.
    keys AS (
        SELECT waiting.id, coalesce(here, 0) AS held, last.turn, next.priority, next.since,
               running_jobs - coalesce(total, 0) AS most
          FROM waiting
          LEFT JOIN holding ON holding.key_id = waiting.id
          LEFT JOIN api_keys ON api_keys.id = waiting.id
         CROSS JOIN LATERAL (
               SELECT turn FROM turns WHERE queue = :deployment AND key_id = waiting.id ORDER BY turn DESC LIMIT 1) last
         CROSS JOIN LATERAL (
               SELECT priority, since FROM turns
                WHERE queue = :deployment AND key_id = waiting.id AND since IS NOT NULL
                ORDER BY turn, priority DESC, since LIMIT 1) next
         WHERE running_jobs IS NULL OR running_jobs > coalesce(total, 0)
         ORDER BY held, last.turn, next.priority DESC, next.since
         LIMIT (SELECT n + 16 FROM room)
    ),
    -- How many each key has when the room is filled, those first that hold least; and one more, again for the locks.
    level AS (
        SELECT 1 + min(ceil((room.n + lower.held) / lower.keys)) AS n
          FROM room,
               (SELECT sum(held) OVER least AS held, row_number() OVER least AS keys
                  FROM keys WINDOW least AS (ORDER BY held ROWS UNBOUNDED PRECEDING)) lower
    ),
    shares AS (
        SELECT keys.*, least(level.n - held, most)::int AS share FROM keys, level WHERE level.n > held
    ),
    best AS (
        SELECT job.id, k.held + job.number AS rank, k.held, k.turn, k.priority, k.since
          FROM shares k
         CROSS JOIN LATERAL (
               SELECT w.id, row_number() OVER (
                          ORDER BY u.held + w.number, u.held DESC, u.turn, u.priority DESC, u.since) AS number
                 FROM ((SELECT owner, 0 AS held, turn, priority, since
                          FROM turns
                         WHERE queue = :deployment AND key_id = k.id AND since IS NOT NULL
                           AND owner <> ALL (ARRAY(SELECT owner FROM in_flight))
                         ORDER BY turn, priority DESC, since
                         LIMIT k.share)
                       UNION ALL
                       SELECT f.owner, f.n, t.turn, t.priority, t.since
                         FROM in_flight f
                        CROSS JOIN LATERAL (
                              SELECT turn, priority, since FROM turns
                               WHERE queue = :deployment AND owner = f.owner AND since IS NOT NULL LIMIT 1) t
                        WHERE f.key_id = k.id) u
                CROSS JOIN LATERAL (
                      SELECT id, row_number() OVER (ORDER BY priority DESC, created_at) AS number
                        FROM jobs
                       WHERE status = 'queued' AND lease_token IS NULL AND deployment = :deployment
                         AND inputs IS NOT NULL AND owner = u.owner AND not_before <= now()
                       ORDER BY priority DESC, created_at
                       LIMIT k.share) w
                ORDER BY number
                LIMIT k.share) job
    ),
    -- The array keeps the planner from joining by a scan of all that wait. What the snapshot saw is asked again: a row
    -- may have changed until its lock was taken.
    next AS (
        SELECT jobs.id, best.rank, best.held, best.turn, best.priority, best.since
          FROM jobs JOIN best ON best.id = jobs.id
         WHERE jobs.id = ANY (ARRAY(SELECT id FROM best)) AND jobs.status = 'queued' AND jobs.lease_token IS NULL
         ORDER BY best.rank, best.held DESC, best.turn, best.priority DESC, best.since
         LIMIT (SELECT n FROM room)
           FOR UPDATE OF jobs SKIP LOCKED
    ),
    placed AS (
        SELECT id, row_number() OVER (ORDER BY rank, held DESC, turn, priority DESC, since) AS place FROM next
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
    SELECT leased.*, room.n - place AS room FROM leased, room ORDER BY place
    """
)

CLAIM_FOR_INTAKE = text(
    """
    WITH RECURSIVE in_flight AS (
        SELECT key_id, owner, count(*) AS n
          FROM jobs
         WHERE lease_token IS NOT NULL AND inputs IS NULL
         GROUP BY 1, 2
    ),
    holding AS (
        SELECT key_id, sum(n) AS here FROM in_flight GROUP BY 1
    ),
    room AS (
        SELECT CAST(:limit AS int) AS n
    ),
    waiting AS (
        (SELECT key_id AS id FROM turns
          WHERE queue = '' AND since IS NOT NULL AND (SELECT n FROM room) > 0 ORDER BY key_id LIMIT 1)
        UNION ALL
        SELECT (SELECT key_id FROM turns
                 WHERE queue = '' AND since IS NOT NULL AND key_id > waiting.id ORDER BY key_id LIMIT 1)
          FROM waiting WHERE waiting.id IS NOT NULL
    ),
    -- 16 keys beyond those who can matter: somebody else may have locked the jobs of some.
    keys AS (
        SELECT waiting.id, coalesce(here, 0) AS held, last.turn, next.priority, next.since
          FROM waiting
          LEFT JOIN holding ON holding.key_id = waiting.id
         CROSS JOIN LATERAL (
               SELECT turn FROM turns WHERE queue = '' AND key_id = waiting.id ORDER BY turn DESC LIMIT 1) last
         CROSS JOIN LATERAL (
               SELECT priority, since FROM turns
                WHERE queue = '' AND key_id = waiting.id AND since IS NOT NULL
                  AND owner <> ALL (ARRAY(SELECT owner FROM in_flight WHERE n >= :share))
                ORDER BY turn, priority DESC, since LIMIT 1) next
         ORDER BY held, last.turn, next.priority DESC, next.since
         LIMIT (SELECT n + 16 FROM room)
    ),
    -- How many each key has when the room is filled, those first that hold least; and one more, again for the locks.
    level AS (
        SELECT 1 + min(ceil((room.n + lower.held) / lower.keys)) AS n
          FROM room,
               (SELECT sum(held) OVER least AS held, row_number() OVER least AS keys
                  FROM keys WINDOW least AS (ORDER BY held ROWS UNBOUNDED PRECEDING)) lower
    ),
    shares AS (
        SELECT keys.*, (level.n - held)::int AS share FROM keys, level WHERE level.n > held
    ),
    best AS (
        SELECT job.id, k.held + job.number AS rank, k.held, k.turn, k.priority, k.since
          FROM shares k
         CROSS JOIN LATERAL (
               SELECT w.id, row_number() OVER (
                          ORDER BY u.held + w.number, u.held DESC, u.turn, u.priority DESC, u.since) AS number
                 FROM ((SELECT owner, 0 AS held, turn, priority, since
                          FROM turns
                         WHERE queue = '' AND key_id = k.id AND since IS NOT NULL
                           AND owner <> ALL (ARRAY(SELECT owner FROM in_flight))
                         ORDER BY turn, priority DESC, since
                         LIMIT k.share)
                       UNION ALL
                       SELECT f.owner, f.n, t.turn, t.priority, t.since
                         FROM in_flight f
                        CROSS JOIN LATERAL (
                              SELECT turn, priority, since FROM turns
                               WHERE queue = '' AND owner = f.owner AND since IS NOT NULL LIMIT 1) t
                        WHERE f.key_id = k.id) u
                CROSS JOIN LATERAL (
                      SELECT id, row_number() OVER (ORDER BY priority DESC, created_at) AS number
                        FROM jobs
                       WHERE status = 'queued' AND lease_token IS NULL AND inputs IS NULL
                         AND owner = u.owner AND not_before <= now()
                       ORDER BY priority DESC, created_at
                       LIMIT k.share) w
                WHERE u.held + w.number <= :share
                ORDER BY number
                LIMIT k.share) job
    ),
    -- By how many slots are left when those before have theirs.
    allowed AS (
        SELECT * FROM (
            SELECT best.*, row_number() OVER (ORDER BY rank, held DESC, turn, priority DESC, since) AS place FROM best
        ) b WHERE rank <= greatest(1, 3 * (:free - place))
    ),
    -- The array keeps the planner from joining by a scan of all that wait. What the snapshot saw is asked again: a row
    -- may have changed until its lock was taken.
    next AS (
        SELECT jobs.id, allowed.rank, allowed.held, allowed.turn, allowed.priority, allowed.since
          FROM jobs JOIN allowed ON allowed.id = jobs.id
         WHERE jobs.id = ANY (ARRAY(SELECT id FROM allowed)) AND jobs.status = 'queued' AND jobs.lease_token IS NULL
         ORDER BY allowed.rank, allowed.held DESC, allowed.turn, allowed.priority DESC, allowed.since
         LIMIT (SELECT n FROM room)
           FOR UPDATE OF jobs SKIP LOCKED
    ),
    placed AS (
        SELECT id, row_number() OVER (ORDER BY rank, held DESC, turn, priority DESC, since) AS place FROM next
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
    SELECT leased.*, room.n - place AS room FROM leased, room ORDER BY place
    """
)
