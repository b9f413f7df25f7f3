"""The queries that decide whose job is next, for the GPUs and for intake.

Fair between users: a user's n-th job, those in flight counted, ranks behind everybody else's (n-1)-th. Within a rank
the user served longest ago is next; ``turns`` remembers. Without that, whoever came first would keep the odd slot for
ever: of 7 slots and 4 users, one user would hold one while the others hold two. Among the jobs of one user priority
decides, then age; those of their next jobs also decide between users of whom none was ever served.

A user may be served twice in one claim. His second job then ranks with the first of somebody who held one already, who
was served longer ago: hence ``held DESC`` before ``turn``.

A loose index scan finds the users with waiting jobs, a lateral join the best few of each, and one sort orders those, so
the cost follows the number of waiting users and not the number of jobs.
"""

from sqlalchemy import text

#: The queue of intake among those of the models.
INTAKE = ""

#: CTE of the users (``''`` for none) who have a job that waits, where ``{of}`` says which jobs count.
WAITING_USERS = """
    users AS (
        (SELECT coalesce(user_id, '') AS id FROM jobs
          WHERE status = 'queued' AND lease_token IS NULL AND {of}
          ORDER BY coalesce(user_id, '') LIMIT 1)
        UNION ALL
        SELECT (SELECT coalesce(user_id, '') FROM jobs
                 WHERE status = 'queued' AND lease_token IS NULL AND {of} AND coalesce(user_id, '') > users.id
                 ORDER BY coalesce(user_id, '') LIMIT 1)
          FROM users WHERE users.id IS NOT NULL
    )"""

# The array keeps the planner from joining the best by a scan of all that wait, and the LIMIT of one from a scan of all
# turns. The last WHERE repeats what the snapshot saw: a row may have changed until its lock was taken.
_CLAIM = (
    "WITH RECURSIVE"  # noqa: S608 - constants only
    + WAITING_USERS
    + """,
    in_flight AS (
        SELECT coalesce(user_id, '') AS id, count(*) AS n FROM jobs
         WHERE lease_token IS NOT NULL AND {in_flight} GROUP BY 1
    ),
    room AS (SELECT {room} AS n),
    best AS (
        SELECT w.id, w.priority, w.created_at, coalesce(f.n, 0) AS held, coalesce(t.turn, 0) AS turn,
               coalesce(f.n, 0) + row_number() OVER mine AS rank,
               first_value(w.priority) OVER mine AS best_priority, first_value(w.created_at) OVER mine AS oldest
          FROM users u
          LEFT JOIN in_flight f ON f.id = u.id
          LEFT JOIN LATERAL (SELECT turn FROM turns WHERE queue = {queue} AND user_id = u.id LIMIT 1) t ON true
          CROSS JOIN LATERAL (
              SELECT id, priority, created_at FROM jobs
               WHERE status = 'queued' AND lease_token IS NULL AND {ready}
                 AND coalesce(user_id, '') = u.id AND not_before <= now()
               ORDER BY priority DESC, created_at LIMIT (SELECT n FROM room)
          ) w
         WHERE u.id IS NOT NULL
        WINDOW mine AS (PARTITION BY u.id ORDER BY w.priority DESC, w.created_at)
    )
    SELECT jobs.id FROM jobs JOIN best ON best.id = jobs.id
     WHERE jobs.id = ANY (ARRAY(SELECT id FROM best)) AND jobs.status = 'queued' AND jobs.lease_token IS NULL
       AND {within}
     ORDER BY best.rank, best.held DESC, best.turn, best.best_priority DESC, best.oldest
     LIMIT (SELECT n FROM room)
     FOR UPDATE OF jobs SKIP LOCKED
    """
)

#: Ids of jobs to run now: of ``:model``, at most so many that ``:window`` are in flight.
CLAIM_TO_RUN = text(
    _CLAIM.format(
        queue=":model",
        of="model = :model AND inputs IS NOT NULL",
        in_flight="model = :model AND inputs IS NOT NULL",
        room="greatest(:window - (SELECT coalesce(sum(n), 0) FROM in_flight), 0)::int",
        ready="model = :model AND inputs IS NOT NULL",
        within="TRUE",
    )
)

#: Ids of ``:limit`` jobs whose inputs have to be fetched, at most so many that ``:share`` of a user's are in flight.
CLAIM_FOR_INTAKE = text(
    _CLAIM.format(
        queue="''",
        of="inputs IS NULL",
        in_flight="inputs IS NULL",
        room="CAST(:limit AS int)",
        ready="inputs IS NULL",
        within="best.rank <= :share",
    )
)

#: Write down that these users were served, in this order.
TAKE_TURNS = text(
    """
    INSERT INTO turns (queue, user_id)
    SELECT :queue, served.id FROM unnest(CAST(:users AS text[])) WITH ORDINALITY served (id, n) ORDER BY served.n
    ON CONFLICT (queue, user_id) DO UPDATE SET turn = excluded.turn, served_at = now()
    """
)
