"""Webhook endpoints: where a key wants the events of its jobs told."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import uuid_utils
from sqlalchemy import ColumnElement, RowMapping, case, delete, func, insert, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from serve_app.jobs.database import in_seconds
from serve_app.jobs.tables import deliveries, webhook_endpoints

#: Endpoints of one key: each costs a row, and a request, for every event.
MOST_OF_A_KEY = 20
BY_OWNER = "Disabled by its owner."
GONE = "The receiver has answered 410 Gone."


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One row of ``webhook_endpoints`` as it was when read."""

    id: str
    key_id: str
    url: str
    events: Sequence[str]
    #: How often its secret was made; see ``SigningSecrets``.
    generation: int
    #: Until then the secret before is good, too.
    previous_until: datetime | None
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None

    @classmethod
    def from_row(cls, row: RowMapping) -> "Endpoint":
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


class Endpoints:
    """Every method is one transaction. ``of_key``: only if it is an endpoint of that key; None: of any."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, key_id: str, url: str, events: Sequence[str]) -> Endpoint | None:
        """None if the key has as many as it may."""
        count = select(func.count()).select_from(webhook_endpoints).where(webhook_endpoints.c.key_id == key_id)
        values = {"id": f"whe_{uuid_utils.uuid7().hex}", "key_id": key_id, "url": url, "events": list(events)}
        async with self._engine.begin() as db:
            # One at a time of a key, or two would both count one too few.
            await db.execute(text("SELECT pg_advisory_xact_lock(hashtext('endpoints of ' || :key))"), {"key": key_id})
            if (await db.execute(count)).scalar_one() >= MOST_OF_A_KEY:
                return None
            made = await db.execute(insert(webhook_endpoints).values(values).returning(webhook_endpoints))
            return Endpoint.from_row(made.mappings().one())

    async def get(self, endpoint_id: str, *, of_key: str | None = None) -> Endpoint | None:
        async with self._engine.connect() as db:
            found = (await db.execute(select(webhook_endpoints).where(_is(endpoint_id, of_key)))).mappings()
            row = found.one_or_none()
        return None if row is None else Endpoint.from_row(row)

    async def list(self, *, after: str | None = None, limit: int = 20, of_key: str | None = None) -> Sequence[Endpoint]:
        """Newest first, those that are older than ``after``."""
        query = select(webhook_endpoints).where(_of(of_key)).order_by(webhook_endpoints.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(webhook_endpoints.c.id < after)
        async with self._engine.connect() as db:
            return [Endpoint.from_row(row) for row in (await db.execute(query)).mappings()]

    async def change(
        self,
        endpoint_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        enabled: bool | None = None,
        of_key: str | None = None,
    ) -> Endpoint | None:
        """What is None stays. What is owed goes to the new URL; a disabled endpoint is owed nothing any more."""
        values: dict[str, Any] = {}
        if url is not None:
            values["url"] = url
        if events is not None:
            values["events"] = list(events)
        if enabled is not None:
            values |= {"disabled_at": None, "disabled_reason": None} if enabled else _disabled(BY_OWNER)
        # Its own name, so that a change of nothing is one, too.
        values = values or {"id": webhook_endpoints.c.id}
        async with self._engine.begin() as db:
            changed = update(webhook_endpoints).where(_is(endpoint_id, of_key)).values(values)
            row = (await db.execute(changed.returning(webhook_endpoints))).mappings().one_or_none()
            if row is None:
                return None
            if enabled is False:
                await _give_up(db, endpoint_id)
            elif url is not None:
                owed = deliveries.c.id.in_(_owed(endpoint_id))
                await db.execute(update(deliveries).where(owed).values(url=url, host=urlsplit(url).hostname or ""))
            return Endpoint.from_row(row)

    async def rotate(self, endpoint_id: str, overlap_s: float, *, of_key: str | None = None) -> Endpoint | None:
        """A new secret; the one before is good for so many seconds more, and that before it no longer."""
        values = {"generation": webhook_endpoints.c.generation + 1, "previous_until": in_seconds(overlap_s)}
        async with self._engine.begin() as db:
            changed = update(webhook_endpoints).where(_is(endpoint_id, of_key)).values(values)
            row = (await db.execute(changed.returning(webhook_endpoints))).mappings().one_or_none()
        return None if row is None else Endpoint.from_row(row)

    async def delete(self, endpoint_id: str, *, of_key: str | None = None) -> bool:
        """Forget it, and what was sent to it. False if there is none."""
        async with self._engine.begin() as db:
            gone = delete(webhook_endpoints).where(_is(endpoint_id, of_key)).returning(webhook_endpoints.c.id)
            return (await db.execute(gone)).first() is not None


async def disable_gone(db: AsyncConnection, endpoint_id: str, url: str) -> bool:
    """``url`` has said that nobody listens there any more. False if the endpoint has another by now, or is disabled."""
    asked = (webhook_endpoints.c.id == endpoint_id) & (webhook_endpoints.c.url == url)
    enabled = webhook_endpoints.c.disabled_at.is_(None)
    done = update(webhook_endpoints).where(asked & enabled).values(_disabled(GONE)).returning(webhook_endpoints.c.id)
    if (await db.execute(done)).first() is None:
        return False
    await _give_up(db, endpoint_id)
    return True


async def is_disabled(db: AsyncConnection, endpoint_id: str) -> bool:
    """Whether it is disabled, or no more. It stays as it is until the transaction ends."""
    enabled = webhook_endpoints.c.disabled_at.is_(None)
    found = select(webhook_endpoints.c.id).where(webhook_endpoints.c.id == endpoint_id, enabled)
    return (await db.execute(found.with_for_update(read=True))).first() is None


def _disabled(reason: str) -> dict[str, Any]:
    first = webhook_endpoints.c.disabled_at.is_(None)
    return {
        "disabled_at": func.coalesce(webhook_endpoints.c.disabled_at, func.now()),
        "disabled_reason": case((first, reason), else_=webhook_endpoints.c.disabled_reason),
    }


async def _give_up(db: AsyncConnection, endpoint_id: str) -> None:
    owed = deliveries.c.id.in_(_owed(endpoint_id))
    ended = {"state": "waiting", "next_attempt_at": None, "last_error": "Its endpoint was disabled."}
    await db.execute(update(deliveries).where(owed).values(ended))


def _owed(endpoint_id: str) -> Any:
    """Ids of what is owed to it, locked. What is being sent at the moment has its sender to say how it ends."""
    mine = deliveries.c.endpoint_id == endpoint_id
    owed = mine & deliveries.c.next_attempt_at.is_not(None) & (deliveries.c.state != "sending")
    return select(deliveries.c.id).where(owed).with_for_update(skip_locked=True)


def _of(key_id: str | None) -> ColumnElement[bool]:
    return true() if key_id is None else webhook_endpoints.c.key_id == key_id


def _is(endpoint_id: str, of_key: str | None) -> ColumnElement[bool]:
    return (webhook_endpoints.c.id == endpoint_id) & _of(of_key)
