"""The line of webhooks: how one gets in, and whose is next.

Fair between keys, within a key between users, so that one whose receivers never answer delays nobody else's, and within
a user between receivers: what a key, a user or a receiver has in flight counts, and each has at most a share of the
slots; a key three times as many as it leaves free (``fair.py`` says why).

The cost follows the number of keys and, of each, some users and receivers to whom something is due, not the number of
rows: loose index scans find them, as in ``claim.py``. A delivery that waits for its next attempt is in none of those
indexes until its time.
"""

from typing import Any
from urllib.parse import urlsplit

import uuid_utils
from sqlalchemy import text

#: Deliveries in flight of one user, and to one server: three tarpits leave room for the user's other receivers, three
#: such users for everybody else of the key.
USER_SHARE = 16
HOST_SHARE = 4
#: Users of one key, and servers of one user, that are looked at for a claim. Of more to whom something is due at a time
#: it begins at random ones.
_USERS = 32
_HOSTS = 32
#: Rows that one statement brings from ``waiting`` to ``due``.
DUE_BATCH = 2000


def new_row(
    url: str, *, owner: str, key_id: str, event: str, endpoint_id: str | None = None, job_id: str | None = None
) -> dict[str, Any]:
    """The delivery of an event to ``url``, signed as ``key_id`` or the endpoint has it; without a job, of a test."""
    return {
        "id": f"msg_{uuid_utils.uuid7().hex}",
        "job_id": job_id,
        "endpoint_id": endpoint_id,
        "key_id": key_id,
        "event": event,
        "url": url,
        "owner": owner,
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

#: Of a delivery, as the index has it.
_KEY = "split_part(owner, '/', 1)"

#: Ids of at most ``:room`` deliveries, best first, where ``:free`` slots are free. ``:start`` is where the rounds of a
#: key's users and of a user's servers begin.
CLAIM = text(
    f"""
    WITH RECURSIVE keys AS (
        (SELECT {_KEY} AS id FROM deliveries WHERE {_DUE} ORDER BY {_KEY} LIMIT 1)
        UNION ALL
        SELECT (SELECT {_KEY} FROM deliveries WHERE {_DUE} AND {_KEY} > keys.id ORDER BY {_KEY} LIMIT 1)
          FROM keys WHERE keys.id IS NOT NULL
    ),
    owners AS (
        SELECT keys.id AS key, o.owner AS id
          FROM keys
          CROSS JOIN LATERAL (
              WITH RECURSIVE later AS (
                  (SELECT owner, 1 AS n FROM deliveries
                    WHERE {_DUE} AND {_KEY} = keys.id AND owner >= keys.id || '/' || :start ORDER BY owner LIMIT 1)
                  UNION ALL
                  SELECT (SELECT owner FROM deliveries
                           WHERE {_DUE} AND {_KEY} = keys.id AND owner > later.owner ORDER BY owner LIMIT 1), n + 1
                    FROM later WHERE later.owner IS NOT NULL AND n < {_USERS}
              ),
              sooner AS (
                  (SELECT owner, 1 AS n FROM deliveries
                    WHERE {_DUE} AND {_KEY} = keys.id AND owner < keys.id || '/' || :start ORDER BY owner LIMIT 1)
                  UNION ALL
                  SELECT (SELECT owner FROM deliveries
                           WHERE {_DUE} AND {_KEY} = keys.id AND owner > sooner.owner
                             AND owner < keys.id || '/' || :start ORDER BY owner LIMIT 1), n + 1
                    FROM sooner WHERE sooner.owner IS NOT NULL AND n < {_USERS}
              )
              SELECT owner FROM later WHERE owner IS NOT NULL
              UNION ALL
              SELECT owner FROM sooner WHERE owner IS NOT NULL
              LIMIT {_USERS}
          ) o
    ),
    sending AS (
        SELECT {_KEY} AS key, owner, host, count(*) AS n FROM deliveries WHERE {_IN_FLIGHT} GROUP BY 1, 2, 3
    ),
    of_key AS (SELECT key, sum(n) AS n FROM sending GROUP BY 1),
    of_owner AS (SELECT owner, sum(n) AS n FROM sending GROUP BY 1),
    of_host AS (SELECT host, sum(n) AS n FROM sending GROUP BY 1),
    of_key_at_host AS (SELECT key, host, sum(n) AS n FROM sending GROUP BY 1, 2),
    -- The first of each server of each user, one after the other.
    best AS (
        SELECT w.id, o.key, o.id AS owner, h.host, w.next_attempt_at,
               coalesce(s.n, 0) + row_number() OVER (PARTITION BY o.id, h.host ORDER BY w.next_attempt_at) AS turn
          FROM owners o
          LEFT JOIN of_owner ON of_owner.owner = o.id
          CROSS JOIN LATERAL (
              WITH RECURSIVE later AS (
                  (SELECT host, 1 AS n FROM deliveries
                    WHERE {_DUE} AND {_KEY} = o.key AND owner = o.id AND host >= :start ORDER BY host LIMIT 1)
                  UNION ALL
                  SELECT (SELECT host FROM deliveries
                           WHERE {_DUE} AND {_KEY} = o.key AND owner = o.id AND host > later.host
                           ORDER BY host LIMIT 1), n + 1
                    FROM later WHERE later.host IS NOT NULL AND n < {_HOSTS}
              ),
              sooner AS (
                  (SELECT host, 1 AS n FROM deliveries
                    WHERE {_DUE} AND {_KEY} = o.key AND owner = o.id AND host < :start ORDER BY host LIMIT 1)
                  UNION ALL
                  SELECT (SELECT host FROM deliveries
                           WHERE {_DUE} AND {_KEY} = o.key AND owner = o.id AND host > sooner.host AND host < :start
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
               WHERE {_DUE} AND {_KEY} = o.key AND owner = o.id AND host = h.host
               ORDER BY next_attempt_at LIMIT :host_share
          ) w
         WHERE coalesce(of_owner.n, 0) < :user_share
    ),
    -- Keys take turns at a server they have in common, and a key's users ...
    by_key_at_host AS (
        SELECT best.*, coalesce(of_key_at_host.n, 0)
                       + row_number() OVER (PARTITION BY key, host ORDER BY turn, next_attempt_at) AS key_turn
          FROM best LEFT JOIN of_key_at_host USING (key, host)
    ),
    by_host AS (
        SELECT by_key_at_host.*, coalesce(of_host.n, 0)
                                 + row_number() OVER (PARTITION BY host ORDER BY key_turn, next_attempt_at) AS host_turn
          FROM by_key_at_host LEFT JOIN of_host USING (host)
    ),
    -- ... and at the slots; servers take turns within a user.
    by_owner AS (
        SELECT by_host.id, by_host.key, owner, next_attempt_at,
               coalesce(of_owner.n, 0)
               + row_number() OVER (PARTITION BY owner ORDER BY turn, next_attempt_at) AS owner_turn
          FROM by_host LEFT JOIN of_owner USING (owner)
         WHERE host_turn <= :host_share
    ),
    by_key AS (
        SELECT by_owner.*, coalesce(of_key.n, 0)
                           + row_number() OVER (PARTITION BY key ORDER BY owner_turn, next_attempt_at) AS key_turn
          FROM by_owner LEFT JOIN of_key USING (key)
         WHERE owner_turn <= :user_share
    ),
    placed AS (
        SELECT by_key.*, row_number() OVER (ORDER BY key_turn, next_attempt_at) AS place FROM by_key
    )
    SELECT deliveries.id FROM deliveries JOIN placed ON placed.id = deliveries.id
     WHERE deliveries.id = ANY (ARRAY(SELECT id FROM placed)) AND deliveries.state = 'due'
       AND deliveries.next_attempt_at IS NOT NULL AND key_turn <= greatest(1, 3 * (:free - place))
     ORDER BY key_turn, placed.next_attempt_at
     LIMIT :room
       FOR UPDATE OF deliveries SKIP LOCKED
    """  # noqa: S608 - constants only
)
