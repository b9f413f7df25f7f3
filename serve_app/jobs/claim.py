"""The query that decides whose job is next."""

from sqlalchemy import text

#: Ids of the jobs to run now, for ``:model`` with at most ``:window`` in flight.
#:
#: A loose index scan finds the users with waiting jobs, a lateral join the best few of each, and one sort orders those:
#: by rank within the user (jobs in flight count), then priority, then age. So the cost follows the number of waiting
#: users; the array keeps the planner from joining the best by a scan of all that wait. The last WHERE repeats what the
#: snapshot saw: a row may have changed until its lock was taken.
FAIR_CLAIM = text(
    """
    WITH RECURSIVE users AS (
        (SELECT coalesce(user_id, '') AS id FROM jobs
          WHERE status = 'queued' AND lease_token IS NULL AND model = :model
          ORDER BY coalesce(user_id, '') LIMIT 1)
        UNION ALL
        SELECT (SELECT coalesce(j.user_id, '') FROM jobs j
                 WHERE j.status = 'queued' AND j.lease_token IS NULL AND j.model = :model
                   AND coalesce(j.user_id, '') > users.id
                 ORDER BY coalesce(j.user_id, '') LIMIT 1)
          FROM users WHERE users.id IS NOT NULL
    ),
    in_flight AS (
        SELECT coalesce(user_id, '') AS id, count(*) AS n FROM jobs
         WHERE lease_token IS NOT NULL AND model = :model AND inputs IS NOT NULL GROUP BY 1
    ),
    room AS (SELECT greatest(:window - coalesce(sum(n), 0), 0)::int AS n FROM in_flight),
    best AS (
        SELECT w.id, w.priority, w.created_at,
               coalesce(f.n, 0) + row_number() OVER (PARTITION BY u.id ORDER BY w.priority DESC, w.created_at) AS rank
          FROM users u
          LEFT JOIN in_flight f ON f.id = u.id
          CROSS JOIN LATERAL (
              SELECT id, priority, created_at FROM jobs
               WHERE status = 'queued' AND lease_token IS NULL AND model = :model
                 AND coalesce(user_id, '') = u.id AND inputs IS NOT NULL AND not_before <= now()
               ORDER BY priority DESC, created_at LIMIT (SELECT n FROM room)
          ) w
         WHERE u.id IS NOT NULL
    )
    SELECT jobs.id FROM jobs JOIN best ON best.id = jobs.id
     WHERE jobs.id = ANY (ARRAY(SELECT id FROM best)) AND jobs.status = 'queued' AND jobs.lease_token IS NULL
     ORDER BY best.rank, best.priority DESC, best.created_at
     LIMIT (SELECT n FROM room)
     FOR UPDATE OF jobs SKIP LOCKED
    """
)
