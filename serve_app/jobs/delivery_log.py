"""What was sent to whom, and what they answered; and what is sent again, or as a test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, RowMapping, delete, func, insert, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from serve_app.jobs.delivery_queue import new_row
from serve_app.jobs.ending import notify
from serve_app.jobs.endpoints import Endpoint
from serve_app.jobs.tables import deliveries, delivery_attempts, webhook_endpoints
from serve_app.jobs.webhook_event import TEST

#: Of a delivery, the latest attempts that are kept; a schedule has ten. And of an endpoint, the latest tests.
KEPT = 20


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One request, and what became of it."""

    n: int
    at: datetime
    #: None: there was no answer.
    status: int | None
    #: None: it was taken.
    error: str | None
    #: What the receiver answered: its beginning.
    answer: str
    took_ms: int


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One row of ``deliveries`` with its attempts, the first first."""

    id: str
    event: str
    job_id: str | None
    endpoint_id: str | None
    url: str
    state: str
    next_attempt_at: datetime | None
    delivered_at: datetime | None
    #: What stood in the way at last.
    last_error: str | None
    created_at: datetime
    log: Sequence[Attempt] = field(default=())


class EndpointDisabled(Exception):
    """Nothing is sent to an endpoint while it is disabled."""


class DeliveryLog:
    """Every method is one transaction. ``of_key``: only deliveries of that key; None: of any."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list(
        self,
        *,
        job_id: str | None = None,
        endpoint_id: str | None = None,
        after: str | None = None,
        limit: int = 20,
        of_key: str | None = None,
    ) -> Sequence[Delivery]:
        """Newest first, those that are older than ``after``."""
        query = select(deliveries).where(_of(of_key)).order_by(deliveries.c.id.desc()).limit(limit)
        for column, value in ((deliveries.c.job_id, job_id), (deliveries.c.endpoint_id, endpoint_id)):
            if value is not None:
                query = query.where(column == value)
        if after is not None:
            query = query.where(deliveries.c.id < after)
        async with self._engine.connect() as db:
            return await _with_attempts(db, (await db.execute(query)).mappings().all())

    async def get(self, delivery_id: str, *, of_key: str | None = None) -> Delivery | None:
        async with self._engine.connect() as db:
            return await _one(db, delivery_id, of_key)

    async def redeliver(self, delivery_id: str, *, of_key: str | None = None) -> Delivery | None:
        """Send it once more, now and by the whole schedule. What is being sent at the moment is left to that.

        Raises:
            EndpointDisabled: its endpoint is.
        """
        async with self._engine.begin() as db:
            # Its endpoint first and with a lock, so that it is not disabled meanwhile.
            of = select(deliveries.c.endpoint_id).where(deliveries.c.id == delivery_id, _of(of_key)).scalar_subquery()
            asked = select(webhook_endpoints.c.url, webhook_endpoints.c.disabled_at).where(webhook_endpoints.c.id == of)
            endpoint = (await db.execute(asked.with_for_update(read=True))).one_or_none()
            if endpoint is not None and endpoint.disabled_at is not None:
                raise EndpointDisabled
            idle = (deliveries.c.state != "sending") | deliveries.c.next_attempt_at.is_(None)
            again = {
                "state": "due",
                "next_attempt_at": func.now(),
                "attempts_before": deliveries.c.attempts,
                "delivered_at": None,
            }
            if endpoint is not None:
                again |= {"url": endpoint.url, "host": urlsplit(endpoint.url).hostname or ""}
            await db.execute(update(deliveries).where(deliveries.c.id == delivery_id, _of(of_key), idle).values(again))
            await notify(db, "work")
            return await _one(db, delivery_id, of_key)

    async def test(self, endpoint_id: str, *, of_key: str | None = None) -> Delivery | None:
        """Send the endpoint an event that is about no job. None if there is no such endpoint of the key.

        Raises:
            EndpointDisabled: it is.
        """
        async with self._engine.begin() as db:
            asked = select(webhook_endpoints).where(webhook_endpoints.c.id == endpoint_id).with_for_update(read=True)
            row = (await db.execute(asked)).mappings().one_or_none()
            if row is None or of_key not in (None, row["key_id"]):
                return None
            endpoint = Endpoint.from_row(row)
            if endpoint.disabled_at is not None:
                raise EndpointDisabled
            values = new_row(
                endpoint.url,
                owner=f"{endpoint.key_id}/",
                key_id=endpoint.key_id,
                event=TEST,
                endpoint_id=endpoint.id,
            )
            await db.execute(insert(deliveries).values(values))
            tests = (deliveries.c.endpoint_id == endpoint.id) & deliveries.c.job_id.is_(None)
            newest = select(deliveries.c.id).where(tests).order_by(deliveries.c.id.desc()).limit(KEPT)
            await db.execute(delete(deliveries).where(tests, deliveries.c.id.not_in(newest)))
            await notify(db, "work")
            return await _one(db, values["id"], None)


async def note_attempt(db: AsyncConnection, delivery_id: str, attempt: Attempt) -> None:
    """Nothing happens if the delivery is gone, with its job for example."""
    values = {name: getattr(attempt, name) for name in Attempt.__dataclass_fields__}
    await db.execute(_NOTE, {"id": delivery_id, **values})
    old = (delivery_attempts.c.delivery_id == delivery_id) & (delivery_attempts.c.n <= attempt.n - KEPT)
    await db.execute(delete(delivery_attempts).where(old))


_NOTE = text(
    """
    INSERT INTO delivery_attempts (delivery_id, n, at, status, error, answer, took_ms)
    SELECT id, :n, :at, CAST(:status AS int), CAST(:error AS text), :answer, :took_ms FROM deliveries WHERE id = :id
       FOR KEY SHARE
    ON CONFLICT DO NOTHING
    """
)


async def _one(db: AsyncConnection, delivery_id: str, of_key: str | None) -> Delivery | None:
    query = select(deliveries).where(deliveries.c.id == delivery_id, _of(of_key))
    found = await _with_attempts(db, (await db.execute(query)).mappings().all())
    return found[0] if found else None


async def _with_attempts(db: AsyncConnection, rows: Sequence[RowMapping]) -> Sequence[Delivery]:
    query = select(delivery_attempts).where(delivery_attempts.c.delivery_id.in_([row["id"] for row in rows]))
    by_delivery: dict[str, list[Attempt]] = {}
    if rows:
        for row in (await db.execute(query.order_by(delivery_attempts.c.n))).mappings():
            by_delivery.setdefault(row["delivery_id"], []).append(Attempt(**_fields(row, Attempt)))
    return [Delivery(**_fields(row, Delivery), log=by_delivery.get(row["id"], ())) for row in rows]


def _fields(row: RowMapping, kind: type[Attempt] | type[Delivery]) -> Mapping[str, Any]:
    return {name: row[name] for name in kind.__dataclass_fields__ if name in row}


def _of(key_id: str | None) -> ColumnElement[bool]:
    return true() if key_id is None else deliveries.c.key_id == key_id
