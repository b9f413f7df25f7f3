"""New jobs go on disk here: all that come at a time by one statement, in one commit."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uuid_utils
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from deployments.stage import Stage
from serve_app.jobs.database import CHANNEL
from serve_app.jobs.job import Job, NewJob, Status


def new_id() -> str:
    """Of a job; later ones sort behind earlier ones."""
    return str(uuid_utils.uuid7())


def new_nonce() -> str:
    """Part of every key of a job's media."""
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Arrival:
    """A job on its way to the disk. Its id is made before, so that saying it twice makes it once."""

    new: NewJob
    id: str = field(default_factory=new_id)
    nonce: str = field(default_factory=new_nonce)


def columns_of(new: NewJob) -> dict[str, Any]:
    """What the client has said, by column of ``jobs``."""
    return {
        "model": new.model,
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
    }


async def accept(connection: AsyncConnection, arrivals: Sequence[Arrival]) -> Sequence[Job]:
    """The jobs, in the order of their arrivals, once they are on disk. May be said twice."""
    rows = [{"id": each.id, "nonce": each.nonce, **columns_of(each.new)} for each in arrivals]
    cursor = connection.cursor(row_factory=dict_row)
    await cursor.execute(ACCEPT, {"rows": Jsonb(rows), "channel": CHANNEL})
    found = {row["id"]: Job.from_row(row) for row in await cursor.fetchall()}
    return [found[each.id] for each in arrivals]


_GIVEN = ("id", "nonce", *columns_of(NewJob(model="", params={})))
_JOB = ", ".join(Job.__dataclass_fields__)

#: The last part finds those that are there already, since the answer to the first saying was lost.
ACCEPT = f"""
    WITH arrived AS (
        SELECT * FROM jsonb_populate_recordset(NULL::jobs, %(rows)s)
    ),
    accepted AS (
        INSERT INTO jobs ({", ".join(_GIVEN)}, status, stage, expires_at)
        SELECT {", ".join(_GIVEN)}, '{Status.QUEUED}', '{Stage.QUEUED}', now() + make_interval(secs => expires_after)
          FROM arrived
            ON CONFLICT DO NOTHING
        RETURNING *
    )
    SELECT {_JOB}, pg_notify(%(channel)s, 'work') FROM accepted
     UNION ALL
    SELECT {_JOB}, NULL FROM jobs WHERE id = ANY (ARRAY(SELECT id FROM arrived))
"""  # noqa: S608 - constants only
