"""Both registries keep the same promises."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from cluster.mesh.plan import SLOTS
from cluster.mesh.registry import (
    JoinRefused,
    NodeRegistry,
    NoFreeSlot,
    PostgresRegistry,
    Sighting,
    metadata,
)
from cluster.mesh.wire import Reason
from tests.parts.cluster.mesh.memory_registry import MemoryRegistry

TOKENS = [number.to_bytes(32, "big") for number in range(SLOTS + 1)]
KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture(params=["memory", "postgres"])
async def registries(
    request: pytest.FixtureRequest, engine: AsyncEngine
) -> AsyncIterator[tuple[NodeRegistry, NodeRegistry]]:
    """One registry whose slots are never free again, and one on the same nodes without any quarantine."""
    if request.param == "memory":
        registry, hasty = MemoryRegistry(), MemoryRegistry(quarantine_s=0)
        hasty._nodes = registry._nodes
        yield registry, hasty
        return
    yield PostgresRegistry(engine), PostgresRegistry(engine, quarantine_s=0)


Registries = tuple[NodeRegistry, NodeRegistry]


async def reason_of(registry: NodeRegistry, token: bytes, key: bytes) -> Reason:
    with pytest.raises(JoinRefused) as error:
        await registry.redeem(token, key, "")
    return error.value.reason


async def test_what_is_open_to_every_role_keeps_nobody_from_inviting(engine: AsyncEngine) -> None:
    async with engine.begin() as db:
        # Once it was the key of the lock.
        await db.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": 0x6D657368})
        async with asyncio.timeout(5):
            assert await PostgresRegistry(engine).invite("first", TOKENS[0], 60) == 2


async def test_invite_join_and_ask_again(registries: Registries) -> None:
    registry, _ = registries
    assert await registry.invite("first", TOKENS[0], 60) == 2
    (node,) = await registry.nodes()
    assert (node.name, node.live, node.key_hash) == ("first", False, None)
    joined = await registry.redeem(TOKENS[0], KEY, "its own name")
    assert (joined.slot, joined.name, joined.live, joined.key_hash) == (2, "its own name", True, KEY)
    assert joined.joined_at is not None
    # The answer was lost: the same key may ask again, even later than the token was good for; another may not.
    assert (await registry.redeem(TOKENS[0], KEY, "")).joined_at == joined.joined_at
    assert await reason_of(registry, TOKENS[0], OTHER) is Reason.BAD_TOKEN
    assert await reason_of(registry, TOKENS[1], KEY) is Reason.BAD_TOKEN
    assert await registry.nodes() == [joined]


async def test_expired_token(registries: Registries) -> None:
    registry, _ = registries
    await registry.invite("x", TOKENS[0], -1)
    assert await reason_of(registry, TOKENS[0], KEY) is Reason.TOKEN_EXPIRED
    # Nobody ever had the slot, so it needs no quarantine, and its old token opens nothing.
    assert await registry.invite("y", TOKENS[1], 60) == 2
    assert await reason_of(registry, TOKENS[0], KEY) is Reason.BAD_TOKEN


async def test_revoked_slot_waits_in_quarantine(registries: Registries) -> None:
    registry, hasty = registries
    for number in (0, 1):
        await registry.invite("x", TOKENS[number], 60)
        await registry.redeem(TOKENS[number], KEY, "")
    assert await registry.revoke(2)
    assert not await registry.revoke(2)
    assert not await registry.revoke(77)
    assert await reason_of(registry, TOKENS[0], KEY) is Reason.REVOKED
    assert [node.live for node in await registry.nodes()] == [False, True]
    assert await registry.invite("y", TOKENS[2], 60) == 4
    await hasty.report([Sighting(2, KEY, 5, 6)], {})
    assert await hasty.invite("z", TOKENS[3], 60) == 2
    (node, *_) = await hasty.nodes()
    assert (node.name, node.key_hash, node.revoked_at, node.last_seen_at, node.bytes_in) == ("z", None, None, None, 0)
    assert await reason_of(hasty, TOKENS[0], KEY) is Reason.BAD_TOKEN


async def test_withdrawn_invitation_is_free_at_once(registries: Registries) -> None:
    registry, _ = registries
    await registry.invite("x", TOKENS[0], 60)
    assert await registry.revoke(2)
    assert await reason_of(registry, TOKENS[0], KEY) is Reason.REVOKED
    assert await registry.invite("y", TOKENS[1], 60) == 2


async def test_traffic_adds_up_and_belongs_to_a_key(registries: Registries) -> None:
    registry, _ = registries
    await registry.invite("x", TOKENS[0], 60)
    await registry.redeem(TOKENS[0], KEY, "")
    await registry.report([], {})
    await registry.report([Sighting(2, KEY, 10, 1), Sighting(99, KEY, 1, 1)], {})
    await registry.report([Sighting(2, KEY, 2**40, 2), Sighting(2, OTHER, 1000, 1000)], {})
    (node,) = await registry.nodes()
    assert (node.bytes_in, node.bytes_out) == (2**40 + 10, 3)
    assert node.last_seen_at is not None
    assert KEY.hex() not in repr(node)
    assert repr(KEY) not in repr(node)


async def test_all_slots_at_once_and_no_more(registries: Registries) -> None:
    registry, _ = registries
    # So many at a time as the database has connections for us.
    turns = asyncio.Semaphore(10)

    async def invite(token: bytes) -> int:
        async with turns:
            return await registry.invite("x", token, 60)

    invited = await asyncio.gather(*(invite(token) for token in TOKENS[: SLOTS - 1]))
    assert sorted(invited) == list(range(2, SLOTS + 1))
    with pytest.raises(NoFreeSlot):
        await registry.invite("x", TOKENS[-1], 60)


async def test_one_token_and_two_nodes_at_once(registries: Registries) -> None:
    registry, _ = registries
    await registry.invite("x", TOKENS[0], 60)
    results = await asyncio.gather(
        *(registry.redeem(TOKENS[0], key, "") for key in (KEY, OTHER)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["JoinRefused", "Node"]


async def test_migrations_make_the_table(engine: AsyncEngine) -> None:
    def differences(db: Connection) -> list[object]:
        context = MigrationContext.configure(
            db, opts={"include_name": lambda name, kind, _: kind != "table" or name == "nodes"}
        )
        return list(compare_metadata(context, metadata))

    async with engine.connect() as db:
        assert await db.run_sync(differences) == []


async def test_whoever_was_invited_is_found_and_revoked_by_its_token(registries: Registries) -> None:
    registry, hasty = registries
    await registry.invite("x", TOKENS[0], 60)
    await registry.redeem(TOKENS[0], KEY, "")
    found = await registry.find(TOKENS[0])
    assert found is not None
    assert (found.slot, found.key_hash) == (2, KEY)
    assert await registry.find(TOKENS[1]) is None
    assert await registry.revoke_token(TOKENS[0])
    assert not await registry.revoke_token(TOKENS[0])
    assert not await registry.revoke_token(TOKENS[1])
    # The slot is another's: that one stays.
    assert await hasty.invite("y", TOKENS[1], 60) == 2
    assert not await registry.revoke_token(TOKENS[0])
    assert await registry.find(TOKENS[0]) is None
    found = await registry.find(TOKENS[1])
    assert found is not None
    assert found.revoked_at is None
