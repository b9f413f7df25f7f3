"""A request that comes again is answered as it was the first time, for a day.

The row of an ``Idempotency-Key`` is written in the transaction of what was asked for: whoever dies in between leaves
neither, and the next one who comes with the key does it. Only what was done is kept; an error leaves the key free.

Of those who come at the same time one inserts the row. The others wait for him, as PostgreSQL lets them do at the
primary key, and then read his answer. Only who has waited for :data:`PATIENCE_MS` is told that it is in flight.
"""

from dataclasses import dataclass

import psycopg
from sqlalchemy import text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs.tables import idempotency_keys

#: Seconds for which an answer is repeated.
KEPT_S = 24 * 3600
#: Milliseconds to wait for another request with the same key, which takes a few. Each who waits holds a connection.
PATIENCE_MS = 2000


class KeyReused(Exception):
    """The key came with another request before."""


class KeyInFlight(Exception):
    """Another request with the key is being worked on, and does not get done."""


@dataclass(frozen=True, kw_only=True)
class IdempotencyKey:
    """A key, and what came with it."""

    #: Of the API key that asks: clients do not share keys.
    key_id: str
    route: str
    value: str
    #: Of the request: see ``api/idempotency.py``.
    fingerprint: str


@dataclass(frozen=True)
class Answer:
    """What a request was answered with."""

    status: int
    #: JSON.
    body: str


async def find(db: AsyncConnection, key: IdempotencyKey) -> Answer | None:
    """What was answered to the same request before; None: it is new. Raises :class:`KeyReused`."""
    row = (await db.execute(_FIND, {**_named(key), "kept_s": KEPT_S})).one_or_none()
    if row is None:
        return None
    if row.fingerprint != key.fingerprint:
        raise KeyReused
    return Answer(row.status, row.body)


async def take(db: AsyncConnection, key: IdempotencyKey) -> Answer | None:
    """Begin what comes with the key: None, and :func:`keep` has to follow in this transaction; or the answer, if it was
    done before or meanwhile.

    Raises:
        KeyReused: it came with another request before.
        KeyInFlight: another transaction has it.
    """
    await db.execute(text("SELECT set_config('lock_timeout', :ms, true)"), {"ms": str(PATIENCE_MS)})
    try:
        values = {**_named(key), "fingerprint": key.fingerprint, "kept_s": KEPT_S}
        if (await db.execute(_TAKE, values)).first() is not None:
            # What follows waits for others as long as any transaction.
            await db.execute(text("SET LOCAL lock_timeout TO DEFAULT"))
            return None
    except OperationalError as error:
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise KeyInFlight from error
        raise
    # The conflict has locked the row: it is there, and whole.
    return await find(db, key)


async def keep(db: AsyncConnection, key: IdempotencyKey, answer: Answer) -> None:
    """Write down what is about to be answered."""
    mine = [idempotency_keys.c[name] == value for name, value in _named(key).items()]
    await db.execute(update(idempotency_keys).where(*mine).values(status=answer.status, body=answer.body))


def _named(key: IdempotencyKey) -> dict[str, str]:
    return {"key_id": key.key_id, "route": key.route, "value": key.value}


_FIND = text(
    """
    SELECT fingerprint, status, body FROM idempotency_keys
     WHERE key_id = :key_id AND route = :route AND value = :value
       AND created_at >= now() - make_interval(secs => :kept_s)
    """
)

#: A row that is over age, and not swept yet, is as good as none.
_TAKE = text(
    """
    INSERT INTO idempotency_keys (key_id, route, value, fingerprint)
    VALUES (:key_id, :route, :value, :fingerprint)
    ON CONFLICT (key_id, route, value) DO UPDATE
       SET fingerprint = excluded.fingerprint, status = NULL, body = NULL, created_at = now()
     WHERE idempotency_keys.created_at < now() - make_interval(secs => :kept_s)
    RETURNING value
    """
)

FORGET_ANSWERS = text(
    """
    DELETE FROM idempotency_keys WHERE (key_id, route, value) IN (
        SELECT key_id, route, value FROM idempotency_keys
         WHERE created_at < now() - make_interval(secs => :kept_s)
         ORDER BY created_at LIMIT :batch
           FOR UPDATE SKIP LOCKED)
    """
)
