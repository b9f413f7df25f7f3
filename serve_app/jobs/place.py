"""How many jobs are ahead of one that waits, as SQL about a row ``j`` of ``jobs``."""

#: Positions beyond this are all reported as this: nobody needs them exact, and counting costs. Of intake's line, too,
#: only so many users of the key are looked at, so a position is a lower bound while more of them wait there.
MAX_POSITION = 1000


def ahead_of(limit: int = MAX_POSITION) -> str:
    """A query of one number, 0 for the job that is next."""
    return _AHEAD.format(limit=limit)


#: Ahead are the claimed jobs, those of the own key, and those of other keys that rank before it by turns, as
#: ``claim.py`` ranks them; of a key that may not run as many, only those that it may. Of the own key those are ahead
#: that are better of the same user, and of other users those that rank before it. Each part stops counting at
#: ``limit``. Of the other users only those are looked at who can be ahead: who holds something, the first in the
#: deployment's line, up to the user's own turn if this is his first job, and the first whose inputs are being fetched.
#: Whom a back-off keeps from being taken is nowhere.
_AHEAD = """
    WITH RECURSIVE
    running AS (
        SELECT deployment, key_id, owner, status, priority, created_at FROM jobs
         WHERE lease_token IS NOT NULL AND inputs IS NOT NULL
    ),
    claimed AS (SELECT * FROM running WHERE deployment = j.deployment),
    in_flight AS (SELECT owner AS id, key_id, count(*) AS n FROM claimed GROUP BY 1, 2),
    holding AS (
        SELECT key_id, count(*) FILTER (WHERE deployment = j.deployment) AS here, count(*) AS total
          FROM running GROUP BY 1
    ),
    handed_over AS (
        SELECT count(*) AS n FROM claimed
         WHERE status = 'queued'
           AND (j.lease_token IS NULL OR j.inputs IS NULL OR priority > j.priority
                OR (priority = j.priority AND created_at < j.created_at))
    ),
    own AS (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM jobs
             WHERE status = 'queued' AND lease_token IS NULL AND deployment = j.deployment AND key_id = j.key_id
               AND owner = j.owner
               AND (priority > j.priority OR (priority = j.priority AND created_at < j.created_at)) LIMIT {limit}) mine
    ),
    me AS (
        SELECT own.n + coalesce(f.n, 0) + 1 AS rank, coalesce(f.n, 0) AS held, coalesce(t.turn, 0) AS turn,
               coalesce(t.priority, later.priority, j.priority) AS priority,
               coalesce(t.since, later.since, j.created_at) AS since
          FROM own
          LEFT JOIN in_flight f ON f.id = j.owner
          LEFT JOIN turns t ON t.queue = j.deployment AND t.owner = j.owner
          LEFT JOIN turns later ON later.queue = '' AND later.owner = j.owner
    ),
    users AS (
        (SELECT owner, 0 AS held, turn, priority, since FROM turns
          WHERE queue = j.deployment AND key_id = j.key_id AND since IS NOT NULL
            AND turn <= (SELECT CASE WHEN rank = 1 THEN turn ELSE 9223372036854775807 END FROM me)
            AND owner <> ALL (ARRAY(SELECT id FROM in_flight))
          ORDER BY turn, priority DESC, since LIMIT {limit} + 1)
        UNION ALL
        SELECT f.id, f.n, coalesce(t.turn, 0), coalesce(t.priority, later.priority), coalesce(t.since, later.since)
          FROM in_flight f
          LEFT JOIN turns t ON t.queue = j.deployment AND t.owner = f.id
          LEFT JOIN turns later ON later.queue = '' AND later.owner = f.id
         WHERE f.key_id = j.key_id
        UNION ALL
        SELECT later.owner, 0, coalesce(t.turn, 0), later.priority, later.since
          FROM (SELECT owner, priority, since FROM turns
                 WHERE queue = '' AND key_id = j.key_id AND since IS NOT NULL
                   AND owner <> ALL (ARRAY(SELECT id FROM in_flight))
                 ORDER BY turn, priority DESC, since LIMIT {limit} + 1) later
          LEFT JOIN turns t ON t.queue = j.deployment AND t.owner = later.owner
         WHERE t.since IS NULL
    ),
    of_key AS (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM me, users u
             CROSS JOIN LATERAL (
                   SELECT 1 FROM jobs
                    WHERE status = 'queued' AND lease_token IS NULL AND deployment = j.deployment
                      AND key_id = j.key_id AND owner = u.owner
                    LIMIT greatest(0, me.rank - u.held - CASE
                              WHEN (-u.held, u.turn, -u.priority, u.since)
                                 < (-me.held, me.turn, -me.priority, me.since) THEN 0 ELSE 1 END)) ahead
             WHERE u.owner <> j.owner LIMIT {limit}) turns
    ),
    -- With a job of the deployment to run, or any whose inputs are fetched.
    waiting AS (
        SELECT least(
                   (SELECT key_id FROM turns WHERE queue = j.deployment AND since IS NOT NULL ORDER BY key_id LIMIT 1),
                   (SELECT key_id FROM turns WHERE queue = '' AND since IS NOT NULL ORDER BY key_id LIMIT 1)) AS id
        UNION ALL
        SELECT least(
                   (SELECT key_id FROM turns
                     WHERE queue = j.deployment AND since IS NOT NULL AND key_id > waiting.id ORDER BY key_id LIMIT 1),
                   (SELECT key_id FROM turns
                     WHERE queue = '' AND since IS NOT NULL AND key_id > waiting.id ORDER BY key_id LIMIT 1))
          FROM waiting WHERE waiting.id IS NOT NULL
    ),
    keys AS (
        SELECT each.id, coalesce(here, 0) AS held, coalesce(last.turn, 0) AS turn,
               coalesce(next.priority, later.priority, j.priority) AS priority,
               coalesce(next.since, later.since, j.created_at) AS since, running_jobs - coalesce(total, 0) AS most
          FROM (SELECT id FROM waiting WHERE id <> j.key_id UNION ALL SELECT j.key_id) each
          LEFT JOIN holding ON holding.key_id = each.id
          LEFT JOIN api_keys ON api_keys.id = each.id
          LEFT JOIN LATERAL (
               SELECT turn FROM turns
                WHERE queue = j.deployment AND key_id = each.id ORDER BY turn DESC LIMIT 1) last ON true
          LEFT JOIN LATERAL (
               SELECT priority, since FROM turns WHERE queue = j.deployment AND key_id = each.id AND since IS NOT NULL
                ORDER BY turn, priority DESC, since LIMIT 1) next ON true
          LEFT JOIN LATERAL (
               SELECT priority, since FROM turns
                WHERE next.since IS NULL AND queue = '' AND key_id = each.id AND since IS NOT NULL
                ORDER BY turn, priority DESC, since LIMIT 1) later ON true
    ),
    others AS (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM keys k
             CROSS JOIN (
                   SELECT keys.*, held + own.n + of_key.n + 1 AS rank FROM keys, own, of_key WHERE id = j.key_id) mine
             CROSS JOIN LATERAL (
                   SELECT 1 FROM jobs
                    WHERE status = 'queued' AND lease_token IS NULL AND deployment = j.deployment AND key_id = k.id
                    LIMIT greatest(0, least(k.most, mine.rank - k.held - CASE
                              WHEN (-k.held, k.turn, -k.priority, k.since)
                                 < (-mine.held, mine.turn, -mine.priority, mine.since) THEN 0 ELSE 1 END))) ahead
             WHERE k.id <> j.key_id LIMIT {limit}) turns
    )
    SELECT least({limit}, handed_over.n + CASE WHEN j.lease_token IS NOT NULL AND j.inputs IS NOT NULL THEN 0
                                               ELSE own.n + of_key.n + others.n END)
      FROM handed_over, own, of_key, others
"""
