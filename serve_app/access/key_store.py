"""API keys in PostgreSQL. A key itself is shown once, when it is made; what is kept is its hash."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, func, insert, null, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from serve_app.access import api_key
from serve_app.access.caller import Caller, Limits, Scope
from serve_app.jobs.database import in_seconds
from serve_app.jobs.tables import api_keys

#: Told about every change, without a payload.
CHANNEL = "video_api_keys"
_LIMITS = tuple(Limits.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key, as its row was when read. Not the secret itself."""

    id: str
    name: str
    #: How the secret begins.
    hint: str
    scopes: frozenset[Scope]
    limits: Limits
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    #: To the minute.
    last_used_at: datetime | None
    #: Until when the secret from before it was rotated is good, too.
    previous_until: datetime | None

    @classmethod
    def from_row(cls, row: RowMapping) -> "Key":
        values = {name: row[name] for name in cls.__dataclass_fields__ if name not in ("scopes", "limits")}
        limits = _limits(*(row[name] for name in _LIMITS))
        return cls(**values, scopes=_scopes(" ".join(row["scopes"])), limits=limits)


@dataclass(frozen=True)
class Issued:
    """A key with its secret, for the one time that it is shown."""

    key: Key
    secret: str


@dataclass(frozen=True)
class Entry:
    """What a secret opens."""

    caller: Caller
    #: None: for ever, or until it is revoked.
    until: datetime | None


@dataclass(frozen=True)
class Snapshot:
    """Every secret that is good, by its hash."""

    entries: Mapping[str, Entry]
    #: When that was so, by the database's clock.
    at: datetime


class KeyStore:
    """Every method is one transaction. ``secret`` is what keys are hashed with."""

    def __init__(self, engine: AsyncEngine, secret: bytes) -> None:
        self._engine = engine
        self._secret = secret

    def hashed(self, shown: str) -> str:
        """What a key is known by here."""
        return api_key.hashed(shown, self._secret)

    async def create(
        self, name: str, scopes: Collection[Scope], limits: Limits, expires_in: float | None = None
    ) -> Issued:
        """``expires_in``: seconds from now."""
        made = api_key.make()
        values = {
            "id": f"key_{secrets.token_hex(8)}",
            "name": name,
            "hash": self.hashed(made),
            "hint": api_key.hint(made),
            "scopes": sorted(scopes),
            "expires_at": None if expires_in is None else in_seconds(expires_in),
            **{name: getattr(limits, name) for name in _LIMITS},
        }
        async with self._engine.begin() as db:
            row = (await db.execute(insert(api_keys).values(values).returning(api_keys))).mappings().one()
            await _tell(db)
        return Issued(Key.from_row(row), made)

    async def get(self, key_id: str) -> Key | None:
        async with self._engine.connect() as db:
            row = (await db.execute(select(api_keys).where(api_keys.c.id == key_id))).mappings().one_or_none()
        return None if row is None else Key.from_row(row)

    async def list(self, *, after: Key | None = None, limit: int = 100) -> Sequence[Key]:
        """Newest first, those after ``after``; also what was revoked or has expired."""
        query = select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(func.row(api_keys.c.created_at, api_keys.c.id) < func.row(after.created_at, after.id))
        async with self._engine.connect() as db:
            return [Key.from_row(row) for row in (await db.execute(query)).mappings()]

    async def revoke(self, key_id: str) -> Key | None:
        """It opens nothing from now on. None if there is no such key; one that was revoked stays as it is."""
        statement = update(api_keys).where(api_keys.c.id == key_id)
        values = {
            "revoked_at": func.coalesce(api_keys.c.revoked_at, func.now()),
            "previous_hash": None,
            "previous_until": None,
        }
        return await self._change(statement.values(values).returning(api_keys))

    async def rotate(self, key_id: str, overlap_s: float, expires_in: float | None = None) -> Issued | None:
        """Another secret for the same key; the last one stays good for ``overlap_s``, and none from before it. Jobs and
        limits are the key's and stay. With ``expires_in`` it expires so many seconds from now, else when it did.

        None if there is no such key that is good.
        """
        made = api_key.make()
        overlap = overlap_s > 0
        statement = update(api_keys).where(api_keys.c.id == key_id, _living())
        values: dict[str, Any] = {
            "hash": self.hashed(made),
            "hint": api_key.hint(made),
            "previous_hash": api_keys.c.hash if overlap else null(),
            "previous_until": in_seconds(overlap_s) if overlap else null(),
        }
        if expires_in is not None:
            values["expires_at"] = in_seconds(expires_in)
        key = await self._change(statement.values(values).returning(api_keys))
        return None if key is None else Issued(key, made)

    async def snapshot(self) -> Snapshot:
        """All keys that are good. One query, and no more work than it takes: there may be thousands, every few
        seconds."""
        async with self._engine.connect() as db:
            rows = (await db.execute(_SNAPSHOT)).all()
            at = rows[0].at if rows else (await db.execute(select(func.now()))).scalar_one()
        entries = {}
        for key_id, name, scopes, hashed, expires_at, previous_hash, previous_until, *limits, _ in rows:
            caller = Caller(key_id=key_id, name=name, scopes=_scopes(scopes), limits=_limits(*limits))
            entries[hashed] = Entry(caller, expires_at)
            if previous_hash is not None:
                ends = [moment for moment in (previous_until, expires_at) if moment is not None]
                entries[previous_hash] = Entry(caller, min(ends))
        return Snapshot(entries, at)

    async def note_use(self, key_ids: Collection[str]) -> None:
        """They were used a moment ago."""
        async with self._engine.begin() as db:
            used = update(api_keys).where(api_keys.c.id.in_(key_ids))
            await db.execute(used.values(last_used_at=func.now()))

    async def _change(self, statement: Any) -> Key | None:
        async with self._engine.begin() as db:
            row = (await db.execute(statement)).mappings().one_or_none()
            await _tell(db)
        return None if row is None else Key.from_row(row)


def _living() -> ColumnElement[bool]:
    unexpired = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > func.now())
    return api_keys.c.revoked_at.is_(None) & unexpired


_SNAPSHOT = select(
    api_keys.c.id,
    api_keys.c.name,
    func.array_to_string(api_keys.c.scopes, " "),
    api_keys.c.hash,
    api_keys.c.expires_at,
    api_keys.c.previous_hash,
    api_keys.c.previous_until,
    *(api_keys.c[name] for name in _LIMITS),
    func.now().label("at"),
).where(_living())


@lru_cache(100)
def _scopes(words: str) -> frozenset[Scope]:
    # A scope of a later version opens nothing here.
    return frozenset(scope for scope in Scope if scope in words.split())


@lru_cache(1000)
def _limits(*values: Any) -> Limits:
    return Limits(**dict(zip(_LIMITS, values, strict=True)))


async def _tell(db: AsyncConnection) -> None:
    await db.execute(select(func.pg_notify(CHANNEL, "")))
