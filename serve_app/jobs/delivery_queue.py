"""The line of webhooks: how one gets in, and whose is next.

Fair between users, so that one whose receivers never answer delays nobody else's, and within a user between receivers:
what a user or a receiver has in flight counts, and each has at most a share of the slots.

The cost follows the number of users and receivers to whom something is due, not the number of rows: loose index scans
find them, as in ``claim.py``. A delivery that waits for its next attempt is in none of those indexes until its time.
"""

from typing import Any
from urllib.parse import urlsplit

import uuid_utils
from sqlalchemy import text

from serve_app.jobs.job import Job

#: Deliveries in flight of one user, and to one server: three tarpits leave room for the user's other receivers, three
#: such users for everybody else.
USER_SHARE = 16
HOST_SHARE = 4
#: Servers of one user that are looked at for a claim. One with more due than that at a time begins at random ones.
_HOSTS = 64
#: Rows that one statement brings from ``waiting`` to ``due``.
DUE_BATCH = 2000


def new_row(job: Job, url: str) -> dict[str, Any]:
    """The delivery of a job's end to ``url``."""
    return {
        "id": f"msg_{uuid_utils.uuid7().hex}",
        "job_id": job.id,
        "url": url,
        "owner": job.user_id or "",
        "host": urlsplit(url).hostname or "",
    }


#: What has waited long enough is due, and so is what a sender that has died had taken.
COME_DUE = text(
    """
    UPDATE deliveries SET state = 'due'
     WHERE id = ANY (ARRAY(
        SELECT id FROM deliveries
         WHERE state <> 'due' AND next_attempt_at IS NOT NULL AND next_attempt_at <= now()
         ORDER BY next_attempt_at LIMIT :batch
           FOR UPDATE SKIP LOCKED))
    """
)

_DUE = "state = 'due' AND next_attempt_at IS NOT NULL"
_IN_FLIGHT = "state = 'sending' AND next_attempt_at IS NOT NULL"

#: Ids of at most ``:room`` deliveries, best first. ``:start`` is where the round of a user's servers begins.
CLAIM = text(
    f"""
    WITH RECURSIVE owners AS (
        (SELECT owner AS id FROM deliveries WHERE {_DUE} ORDER BY owner LIMIT 1)
        UNION ALL
        SELECT (SELECT owner FROM deliveries WHERE {_DUE} AND owner > owners.id ORDER BY owner LIMIT 1)
          FROM owners WHERE owners.id IS NOT NULL
    ),
    sending AS (SELECT owner, host, count(*) AS n FROM deliveries WHERE {_IN_FLIGHT} GROUP BY owner, host),
    of_owner AS (SELECT owner, sum(n) AS n FROM sending GROUP BY owner),
    of_host AS (SELECT host, sum(n) AS n FROM sending GROUP BY host),
    -- The first of each server of each user, one after the other.
    best AS (
        SELECT w.id, o.id AS owner, h.host, w.next_attempt_at,
               coalesce(s.n, 0) + row_number() OVER (PARTITION BY o.id, h.host ORDER BY w.next_attempt_at) AS turn
          FROM owners o
          LEFT JOIN of_owner ON of_owner.owner = o.id
          CROSS JOIN LATERAL (
              WITH RECURSIVE later AS (
                  (SELECT host, 1 AS n FROM deliveries
                    WHERE {_DUE} AND owner = o.id AND host >= :start ORDER BY host LIMIT 1)
                  UNION ALL
                  SELECT (SELECT host FROM deliveries
                           WHERE {_DUE} AND owner = o.id AND host > later.host ORDER BY host LIMIT 1), n + 1
                    FROM later WHERE later.host IS NOT NULL AND n < {_HOSTS}
              ),
              sooner AS (
                  (SELECT host, 1 AS n FROM deliveries
                    WHERE {_DUE} AND owner = o.id AND host < :start ORDER BY host LIMIT 1)
                  UNION ALL
                  SELECT (SELECT host FROM deliveries
                           WHERE {_DUE} AND owner = o.id AND host > sooner.host AND host < :start
                           ORDER BY host LIMIT 1), n + 1
                    FROM sooner WHERE sooner.host IS NOT NULL AND n < {_HOSTS}
              )
              SELECT host FROM later WHERE host IS NOT NULL
              UNION ALL
              SELECT host FROM sooner WHERE host IS NOT NULL
          ) h
          LEFT JOIN sending s ON s.owner = o.id AND s.host = h.host
          CROSS JOIN LATERAL (
              SELECT id, next_attempt_at FROM deliveries
               WHERE {_DUE} AND owner = o.id AND host = h.host
               ORDER BY next_attempt_at LIMIT :host_share
          ) w
         WHERE o.id IS NOT NULL AND coalesce(of_owner.n, 0) < :user_share
    ),
    -- Users take turns at a server they have in common ...
    by_host AS (
        SELECT best.*, coalesce(of_host.n, 0)
                       + row_number() OVER (PARTITION BY best.host ORDER BY turn, next_attempt_at) AS host_turn
          FROM best LEFT JOIN of_host ON of_host.host = best.host
    ),
    -- ... and at the slots; servers take turns within a user.
    by_owner AS (
        SELECT by_host.*, coalesce(of_owner.n, 0)
                          + row_number() OVER (PARTITION BY by_host.owner ORDER BY turn, next_attempt_at) AS owner_turn
          FROM by_host LEFT JOIN of_owner ON of_owner.owner = by_host.owner
         WHERE host_turn <= :host_share
    )
    SELECT deliveries.id FROM deliveries JOIN by_owner ON by_owner.id = deliveries.id
     WHERE deliveries.id = ANY (ARRAY(SELECT id FROM by_owner)) AND deliveries.state = 'due'
       AND deliveries.next_attempt_at IS NOT NULL AND owner_turn <= :user_share
     ORDER BY owner_turn, by_owner.next_attempt_at
     LIMIT :room
       FOR UPDATE OF deliveries SKIP LOCKED
    """  # noqa: S608 - constants only
)
