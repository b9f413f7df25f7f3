"""Which nodes there are: slots, hashes of keys, revocations, traffic. In PostgreSQL.

A slot's life: *invited* (a token's hash, an expiry) → *joined* (a key's hash) → *revoked* → free again after a
quarantine, because Ray still takes the slot's address for the old node until its health checks have given up.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    bindparam,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cluster.mesh.counters import Total
from cluster.mesh.identity import HubIdentity, digest
from cluster.mesh.invitation import Invitation
from cluster.mesh.plan import SLOTS
from cluster.mesh.wire import Reason

#: Longer than Ray's health checks take to declare a silent node dead (measured: at most about 360 s).
QUARANTINE_S = 600.0

metadata = MetaData()

nodes = Table(
    "nodes",
    metadata,
    #: Slot 1 is the head's own.
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    #: SHA-256 of the node's key; null until it has joined.
    Column("key_hash", LargeBinary),
    #: SHA-256 of the token's secret. Kept after joining: a node whose answer was lost may ask again with its key.
    Column("token_hash", LargeBinary, nullable=False, unique=True),
    Column("token_expires_at", DateTime(timezone=True), nullable=False),
    Column("joined_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("last_seen_at", DateTime(timezone=True)),
    #: Bytes from and to the node since it joined.
    Column("bytes_in", BigInteger, nullable=False, server_default="0"),
    Column("bytes_out", BigInteger, nullable=False, server_default="0"),
    CheckConstraint(f"slot BETWEEN 2 AND {SLOTS}", name="nodes_slot_in_plan"),
    CheckConstraint("(key_hash IS NULL) = (joined_at IS NULL)", name="nodes_join_is_dated"),
)

#: Adds to the service's counters, within the caller's transaction.
CountWriter = Callable[[AsyncConnection, Mapping[Total, float]], Awaitable[None]]

#: One transaction at a time picks a slot, and nobody joins meanwhile. Not by an advisory lock: those are open to the
#: service's role, too.
_INVITING = text("LOCK TABLE nodes IN EXCLUSIVE MODE")


class NoFreeSlot(Exception):
    """All slots are taken or in quarantine."""


class JoinRefused(Exception):
    """The token doesn't let this key in."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name.lower())
        self.reason = reason


@dataclass(frozen=True)
class Node:
    """A slot's state."""

    slot: int
    name: str
    token_hash: bytes = field(repr=False)
    token_expires_at: datetime
    key_hash: bytes | None = field(default=None, repr=False)
    joined_at: datetime | None = None
    revoked_at: datetime | None = None
    last_seen_at: datetime | None = None
    #: From and to the node since it joined.
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def live(self) -> bool:
        """Joined and not revoked."""
        return self.key_hash is not None and self.revoked_at is None


@dataclass(frozen=True)
class Sighting:
    """What a hub has seen of a node since its last report."""

    slot: int
    #: Key of the node that was seen: the slot may have another by now.
    key_hash: bytes = field(repr=False)
    bytes_in: int
    bytes_out: int


class NodeRegistry(Protocol):
    """Where nodes are kept. All methods may raise the storage's own errors; the hub goes on with what it knows."""

    async def invite(self, name: str, secret_hash: bytes, ttl_s: float) -> int:
        """Take a free slot for whoever shows the secret within ``ttl_s``. Raises :class:`NoFreeSlot`."""
        ...

    async def redeem(self, secret_hash: bytes, key_hash: bytes, name: str) -> Node:
        """Bind a key to the token's slot, once; repeating it with the same key is fine. Raises :class:`JoinRefused`."""
        ...

    async def nodes(self) -> Sequence[Node]:
        """All slots that are not free, in order."""
        ...

    async def find(self, token_hash: bytes) -> Node | None:
        """Whoever was invited with that token, whatever has become of it; None once its slot is another's."""
        ...

    async def revoke(self, slot: int) -> bool:
        """End the invitation or the node in that slot. False if there is none or it has ended."""
        ...

    async def revoke_token(self, token_hash: bytes) -> bool:
        """The same for whoever was invited with that token, and never for whoever has got its slot afterwards."""
        ...

    async def report(self, sightings: Iterable[Sighting], counted: Mapping[Total, int]) -> None:
        """Add traffic, note that these nodes were there just now, and add to the hub's counters. All or nothing."""
        ...


async def invite(registry: NodeRegistry, hub: HubIdentity, name: str, ttl_s: float) -> tuple[int, Invitation]:
    """A slot and the token for it, good for one node and ``ttl_s`` seconds. Raises :class:`NoFreeSlot`."""
    invitation = hub.invitation()
    return await registry.invite(name, digest(invitation.secret), ttl_s), invitation


class PostgresRegistry:
    """The registry of a real head: table ``nodes``. Moments are by the database's clock."""

    def __init__(
        self, engine: AsyncEngine, quarantine_s: float = QUARANTINE_S, count: CountWriter | None = None
    ) -> None:
        """Without ``count`` traffic is noted by node, and nothing else of what is reported."""
        self._engine = engine
        self._count = count
        self._quarantine = timedelta(seconds=quarantine_s)

    async def invite(self, name: str, secret_hash: bytes, ttl_s: float) -> int:
        free = text(
            "SELECT min(s) FROM generate_series(2, :slots) AS s WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.slot = s"
            " AND NOT CASE WHEN n.revoked_at IS NULL THEN n.joined_at IS NULL AND n.token_expires_at <= now()"
            " ELSE n.joined_at IS NULL OR n.revoked_at + :quarantine <= now() END)"
        )
        async with self._engine.begin() as db:
            await db.execute(_INVITING)
            slot: int | None = (await db.execute(free, {"slots": SLOTS, "quarantine": self._quarantine})).scalar_one()
            if slot is None:
                raise NoFreeSlot
            fresh: dict[str, Any] = {
                "name": name,
                "token_hash": secret_hash,
                "token_expires_at": func.now() + timedelta(seconds=ttl_s),
                **dict.fromkeys(("key_hash", "joined_at", "revoked_at", "last_seen_at")),
                "bytes_in": 0,
                "bytes_out": 0,
            }
            row = insert(nodes).values(slot=slot, **fresh)
            await db.execute(row.on_conflict_do_update(index_elements=["slot"], set_=fresh))
        return slot

    async def redeem(self, secret_hash: bytes, key_hash: bytes, name: str) -> Node:
        async with self._engine.begin() as db:
            query = select(nodes, func.now().label("now")).where(nodes.c.token_hash == secret_hash).with_for_update()
            row = (await db.execute(query)).one_or_none()
            node = _node(row) if row is not None else None
            check_redeemable(node, key_hash, row.now if row is not None else None)
            assert node is not None
            if node.key_hash is not None:
                return node
            values: dict[str, Any] = {"key_hash": key_hash, "joined_at": func.now(), "name": name or node.name}
            joined = update(nodes).where(nodes.c.slot == node.slot).values(values).returning(nodes)
            return _node((await db.execute(joined)).one())

    async def nodes(self) -> Sequence[Node]:
        async with self._engine.connect() as db:
            return [_node(row) for row in await db.execute(select(nodes).order_by(nodes.c.slot))]

    async def find(self, token_hash: bytes) -> Node | None:
        async with self._engine.connect() as db:
            row = (await db.execute(select(nodes).where(nodes.c.token_hash == token_hash))).one_or_none()
        return None if row is None else _node(row)

    async def revoke(self, slot: int) -> bool:
        return await self._revoke(nodes.c.slot == slot)

    async def revoke_token(self, token_hash: bytes) -> bool:
        return await self._revoke(nodes.c.token_hash == token_hash)

    async def _revoke(self, which: ColumnElement[bool]) -> bool:
        query = update(nodes).where(which, nodes.c.revoked_at.is_(None)).values(revoked_at=func.now())
        async with self._engine.begin() as db:
            return (await db.execute(query)).rowcount == 1

    async def report(self, sightings: Iterable[Sighting], counted: Mapping[Total, int]) -> None:
        rows = [
            {"of_slot": seen.slot, "of_key": seen.key_hash, "more_in": seen.bytes_in, "more_out": seen.bytes_out}
            for seen in sightings
        ]
        query = (
            update(nodes)
            .where(nodes.c.slot == bindparam("of_slot"), nodes.c.key_hash == bindparam("of_key"))
            .values(
                last_seen_at=func.now(),
                bytes_in=nodes.c.bytes_in + bindparam("more_in"),
                bytes_out=nodes.c.bytes_out + bindparam("more_out"),
            )
        )
        async with self._engine.begin() as db:
            if rows:
                await db.execute(query, rows)
            if counted and self._count is not None:
                await self._count(db, counted)


def check_redeemable(node: Node | None, key_hash: bytes, now: datetime | None) -> None:
    """Whether the node that a token was made for may have this key. Raises :class:`JoinRefused`."""
    if node is None or now is None:
        raise JoinRefused(Reason.BAD_TOKEN)
    if node.revoked_at is not None:
        raise JoinRefused(Reason.REVOKED)
    if node.key_hash is None:
        if node.token_expires_at <= now:
            raise JoinRefused(Reason.TOKEN_EXPIRED)
    elif node.key_hash != key_hash:
        # Used up by another. Not said more exactly: whoever asks may have found the token.
        raise JoinRefused(Reason.BAD_TOKEN)


def _node(row: Any) -> Node:
    return Node(
        slot=row.slot,
        name=row.name,
        token_hash=row.token_hash,
        token_expires_at=row.token_expires_at,
        key_hash=row.key_hash,
        joined_at=row.joined_at,
        revoked_at=row.revoked_at,
        last_seen_at=row.last_seen_at,
        bytes_in=row.bytes_in,
        bytes_out=row.bytes_out,
    )
