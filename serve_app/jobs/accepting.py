"""New jobs go on disk here: all that come at a time by one statement, in one commit."""

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from deployments.stage import Stage
from serve_app.jobs.claim import INTAKE_LOCK
from serve_app.jobs.database import CHANNEL
from serve_app.jobs.job import Job, NewJob, Status


def columns_of(new: NewJob) -> dict[str, Any]:
    """What is said of a job when it comes, by column of ``jobs``."""
    return {
        "id": new.id,
        "nonce": new.nonce,
        "model": new.model,
        "assigned": new.deployment or None,
        "params": dict(new.params),
        "effort": new.effort,
        "sources": dict(new.sources),
        "uploads": dict(new.uploads),
        "key_id": new.key_id,
        "user_id": new.user_id,
        "webhook_url": new.webhook_url,
        "request_id": new.request_id,
        "priority": new.priority,
        "expires_after": new.expires_after,
        "timeout_s": new.timeout_s,
        "metadata": dict(new.metadata) or None,
        "retry_of": new.retry_of,
    }


async def accept(connection: AsyncConnection, arrivals: Sequence[NewJob]) -> Sequence[Job]:
    """The jobs, in the order of their arrivals, once they are on disk. May be said twice: their ids are made before."""
    rows = [columns_of(new) for new in arrivals]
    cursor = connection.cursor(row_factory=dict_row)
    await cursor.execute(ACCEPT, {"rows": Jsonb(rows), "channel": CHANNEL})
    found = {row["id"]: Job.from_row(row) for row in await cursor.fetchall()}
    if missing := [new.id for new in arrivals if new.id not in found]:
        # The first saying has committed while the second waited for it, which did not see it.
        await cursor.execute(_THERE, {"ids": missing})
        found |= {row["id"]: Job.from_row(row) for row in await cursor.fetchall()}
    return [found[new.id] for new in arrivals]


_GIVEN = tuple(columns_of(NewJob(model="", params={})))
_JOB = ", ".join(Job.__dataclass_fields__)

#: Arrivals join the lines of several owners at once, as claims for intake leave them, in another order: so not at the
#: same time. The last part finds those that are there already, since the answer to the first saying was lost.
ACCEPT = f"""
    WITH arrived AS (
        SELECT * FROM jsonb_populate_recordset(NULL::jobs, %(rows)s)
    ),
    accepted AS (
        INSERT INTO jobs ({", ".join(_GIVEN)}, status, stage, expires_at)
        SELECT {", ".join(_GIVEN)}, '{Status.QUEUED}', '{Stage.QUEUED}', now() + make_interval(secs => expires_after)
          FROM arrived CROSS JOIN (SELECT pg_advisory_xact_lock_shared(hashtext('{INTAKE_LOCK}'))) no_claim
            ON CONFLICT DO NOTHING
        RETURNING *
    )
    SELECT {_JOB}, pg_notify(%(channel)s, 'work') FROM accepted
     UNION ALL
    SELECT {_JOB}, NULL FROM jobs WHERE id = ANY (ARRAY(SELECT id FROM arrived))
"""  # noqa: S608 - constants only

_THERE = f"SELECT {_JOB} FROM jobs WHERE id = ANY (%(ids)s::text[])"  # noqa: S608 - constants only
