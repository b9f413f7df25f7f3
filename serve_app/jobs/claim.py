"""The queries that decide whose job is next, for the GPUs and for intake.

Fair between users: a user's n-th job, those in flight counted, ranks behind everybody else's (n-1)-th. Within a rank
the user served longest ago is next; ``turns`` remembers. Without that, whoever came first would keep the odd slot for
ever: of 7 slots and 4 users, one user would hold one while the others hold two. Among the jobs of one user priority
decides, then age; those of their next jobs also decide between users of whom none was ever served.

A user may be served twice in one claim. His second job then ranks with the first of somebody who held one already, who
was served longer ago: hence ``held DESC`` before ``turn``.

Who waits and whose turn it is says an index of ``turns``, which triggers keep (migration 0005). For ``n`` jobs only the
first ``n`` users can matter of those who hold none, and those who hold some are few; a lateral join finds the best few
jobs of each. So the cost follows the window, not the number of jobs and not that of the users who wait.
"""

from sqlalchemy import text

#: The queue of intake among those of the models.
INTAKE = ""

#: Users who are looked at beyond those who can matter: somebody else may have locked the jobs of some.
_SPARE = 16

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
DUE_BATCH = 500

# The arrays keep the planner from joining by a scan of all that wait. The last WHERE repeats what the snapshot saw: a
# row may have changed until its lock was taken.
_CLAIM = """
    WITH in_flight AS (
        SELECT coalesce(user_id, '') AS id, count(*) AS n FROM jobs
         WHERE lease_token IS NOT NULL AND {in_flight} GROUP BY 1
    ),
    room AS (SELECT {room} AS n),
    users AS (
        (SELECT user_id AS id, turn, 0 AS held FROM turns
          WHERE queue = {queue} AND since IS NOT NULL AND user_id <> ALL (ARRAY(SELECT id FROM in_flight))
          ORDER BY turn, priority DESC, since LIMIT (SELECT CASE WHEN n > 0 THEN n + {spare} ELSE 0 END FROM room))
        UNION ALL
        SELECT t.id, t.turn, f.n FROM in_flight f CROSS JOIN LATERAL (
            SELECT user_id AS id, turn FROM turns
             WHERE queue = {queue} AND user_id = f.id AND since IS NOT NULL LIMIT 1) t
    ),
    best AS (
        SELECT w.id, w.priority, w.created_at, u.held, u.turn,
               u.held + row_number() OVER mine AS rank,
               first_value(w.priority) OVER mine AS best_priority, first_value(w.created_at) OVER mine AS oldest
          FROM users u
          CROSS JOIN LATERAL (
              SELECT id, priority, created_at FROM jobs
               WHERE status = 'queued' AND lease_token IS NULL AND {ready}
                 AND coalesce(user_id, '') = u.id AND not_before <= now()
               ORDER BY priority DESC, created_at LIMIT (SELECT n FROM room)
          ) w
        WINDOW mine AS (PARTITION BY u.id ORDER BY w.priority DESC, w.created_at)
    )
    SELECT jobs.id FROM jobs JOIN best ON best.id = jobs.id
     WHERE jobs.id = ANY (ARRAY(SELECT id FROM best)) AND jobs.status = 'queued' AND jobs.lease_token IS NULL
       AND {within}
     ORDER BY best.rank, best.held DESC, best.turn, best.best_priority DESC, best.oldest
     LIMIT (SELECT n FROM room)
     FOR UPDATE OF jobs SKIP LOCKED
    """

#: Ids of jobs to run now: of ``:model``, at most so many that ``:window`` are in flight.
CLAIM_TO_RUN = text(
    _CLAIM.format(
        queue=":model",
        in_flight="model = :model AND inputs IS NOT NULL",
        room="greatest(:window - (SELECT coalesce(sum(n), 0) FROM in_flight), 0)::int",
        ready="model = :model AND inputs IS NOT NULL",
        within="TRUE",
        spare=_SPARE,
    )
)

#: Ids of ``:limit`` jobs whose inputs have to be fetched, at most so many that ``:share`` of a user's are in flight.
CLAIM_FOR_INTAKE = text(
    _CLAIM.format(
        queue="''",
        in_flight="inputs IS NULL",
        room="CAST(:limit AS int)",
        ready="inputs IS NULL",
        within="best.rank <= :share",
        spare=_SPARE,
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
