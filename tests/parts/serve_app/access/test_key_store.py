"""Keys in PostgreSQL: what is kept, what a change leaves good."""

import asyncio
from datetime import timedelta
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.access.caller import Caller, Limits, Scope
from serve_app.access.key_store import CHANNEL, Issued, KeyStore
from serve_app.jobs.database import connect, listen
from tests.parts.serve_app.access.conftest import SECRET
from tests.parts.serve_app.jobs.samples import execute, fetch

READ = frozenset({Scope.READ})
ALL_LIMITS = Limits(requests_per_minute=60, running_jobs=2, queued_jobs=100, usd_per_day=5.5)


async def opened(keys: KeyStore, secret: str) -> Caller | None:
    """Whom the secret lets in."""
    found = await keys.snapshot()
    entry = found.entries.get(keys.hashed(secret))
    return None if entry is None or (entry.until is not None and entry.until <= found.at) else entry.caller


async def made(keys: KeyStore, **changes: object) -> Issued:
    values: dict = {"name": "ann", "scopes": READ, "limits": Limits()} | changes
    return await keys.create(**values)


async def test_the_table_does_not_have_the_secret(keys: KeyStore, engine: AsyncEngine) -> None:
    issued = await made(keys)
    (row,) = await fetch(engine, "SELECT * FROM api_keys")
    assert issued.secret not in str(row)
    assert issued.secret.removeprefix(row["hint"]) not in str(row)
    assert row["hint"] == issued.secret[:9]


async def test_another_secret_of_the_deployment_knows_none_of_the_keys(keys: KeyStore, engine: AsyncEngine) -> None:
    issued = await made(keys)
    assert await opened(keys, issued.secret) is not None
    assert await opened(KeyStore(engine, b"another"), issued.secret) is None


async def test_a_key_opens_what_it_was_made_for(keys: KeyStore) -> None:
    scopes = frozenset({Scope.READ, Scope.GENERATE})
    issued = await made(keys, scopes=scopes, limits=ALL_LIMITS)
    assert await opened(keys, issued.secret) == Caller(
        key_id=issued.key.id, name="ann", scopes=scopes, limits=ALL_LIMITS
    )
    assert issued.key.id.startswith("key_")
    # An owner is `<key>/<user>`.
    assert "/" not in issued.key.id


async def test_a_scope_of_a_later_version_opens_nothing(keys: KeyStore, engine: AsyncEngine) -> None:
    issued = await made(keys)
    await execute(engine, "UPDATE api_keys SET scopes = '{read,fly}'")
    caller = await opened(keys, issued.secret)
    assert caller is not None
    assert caller.scopes == READ


async def test_a_key_expires(keys: KeyStore, engine: AsyncEngine) -> None:
    issued = await made(keys, expires_in=3600)
    key = issued.key
    assert key.expires_at is not None
    assert key.expires_at - key.created_at == timedelta(hours=1)
    assert await opened(keys, issued.secret) is not None
    await execute(engine, "UPDATE api_keys SET expires_at = now()")
    assert await opened(keys, issued.secret) is None
    assert await keys.rotate(key.id, 0) is None


async def test_a_revoked_key_opens_nothing_and_stays_in_the_list(keys: KeyStore) -> None:
    issued = await made(keys)
    rotated = await keys.rotate(issued.key.id, overlap_s=3600)
    assert rotated is not None
    revoked = await keys.revoke(issued.key.id)
    assert revoked is not None
    for secret in (issued.secret, rotated.secret):
        assert await opened(keys, secret) is None
    assert await keys.rotate(issued.key.id, 0) is None
    again = await keys.revoke(issued.key.id)
    assert again == revoked
    assert await keys.list() == [revoked]


async def test_a_rotated_key_stays_the_same_key_with_another_secret(keys: KeyStore) -> None:
    issued = await made(keys, limits=ALL_LIMITS, expires_in=3600)
    rotated = await keys.rotate(issued.key.id, overlap_s=0)
    assert rotated is not None
    assert (rotated.key.id, rotated.key.limits) == (issued.key.id, ALL_LIMITS)
    assert rotated.key.expires_at == issued.key.expires_at
    assert await opened(keys, issued.secret) is None
    assert await opened(keys, rotated.secret) is not None


async def test_with_an_overlap_both_secrets_are_good_and_none_from_before(keys: KeyStore, engine: AsyncEngine) -> None:
    first = await made(keys)
    second = await keys.rotate(first.key.id, overlap_s=3600)
    assert second is not None
    assert await opened(keys, first.secret) == await opened(keys, second.secret) is not None
    third = await keys.rotate(first.key.id, overlap_s=3600, expires_in=60)
    assert third is not None
    good = [await opened(keys, issued.secret) is not None for issued in (first, second, third)]
    assert good == [False, True, True]
    # The secret before ends with the key.
    found = await keys.snapshot()
    assert {entry.until for entry in found.entries.values()} == {third.key.expires_at}
    await execute(engine, "UPDATE api_keys SET previous_until = now()")
    assert await opened(keys, second.secret) is None
    assert await opened(keys, third.secret) is not None


async def test_there_is_no_such_key(keys: KeyStore) -> None:
    assert await keys.get("key_none") is None
    assert await keys.revoke("key_none") is None
    assert await keys.rotate("key_none", 0) is None


async def test_keys_are_listed_by_pages(keys: KeyStore) -> None:
    names = ["a", "b", "c"]
    for name in names:
        await made(keys, name=name)
    first = await keys.list(limit=2)
    rest = await keys.list(after=first[-1], limit=2)
    assert [key.name for key in (*first, *rest)] == ["c", "b", "a"]


async def test_use_is_noted(keys: KeyStore) -> None:
    one, other = await made(keys), await made(keys)
    await keys.note_use({one.key.id})
    used = {key.id: key.last_used_at is not None for key in await keys.list()}
    assert used == {one.key.id: True, other.key.id: False}


@pytest.mark.parametrize("change", ["create", "revoke", "rotate"])
async def test_every_change_is_told(keys: KeyStore, database_url: str, change: str) -> None:
    issued = await made(keys)
    changes = listen(database_url, CHANNEL)
    assert await anext(changes) == ""
    if change == "create":
        await made(keys)
    elif change == "revoke":
        await keys.revoke(issued.key.id)
    else:
        await keys.rotate(issued.key.id, 0)
    # The test's own time limit is for one that is not.
    assert await anext(changes) == ""
    await changes.aclose()


class Life(RuleBasedStateMachine):
    """One key through any life. Expected: the last secret, and while its overlap lasts the one before it."""

    runner: ClassVar[asyncio.Runner]
    keys: ClassVar[KeyStore]
    engine: ClassVar[AsyncEngine]

    def __init__(self) -> None:
        super().__init__()
        issued = self.runner.run(made(self.keys))
        self.key_id = issued.key.id
        self.secrets = [issued.secret]
        self.good = {issued.secret}

    @rule(overlap_s=st.sampled_from([0, 3600]), expires_in=st.sampled_from([None, 7200]))
    def rotate(self, overlap_s: float, expires_in: float | None) -> None:
        issued = self.runner.run(self.keys.rotate(self.key_id, overlap_s, expires_in))
        assert (issued is not None) == bool(self.good)
        if issued is not None:
            self.good = {self.secrets[-1], issued.secret} if overlap_s else {issued.secret}
            self.secrets.append(issued.secret)

    @rule()
    def the_overlap_ends(self) -> None:
        self.runner.run(
            execute(self.engine, "UPDATE api_keys SET previous_until = now() WHERE previous_until IS NOT NULL")
        )
        self.good &= {self.secrets[-1]}

    @rule(revoked=st.booleans())
    def it_ends(self, revoked: bool) -> None:
        if revoked:
            self.runner.run(self.keys.revoke(self.key_id))
        else:
            self.runner.run(execute(self.engine, "UPDATE api_keys SET expires_at = now()"))
        self.good = set()

    @invariant()
    def what_is_good_opens_the_key_and_nothing_else_does(self) -> None:
        found = {secret: self.runner.run(opened(self.keys, secret)) for secret in self.secrets}
        assert {secret for secret, caller in found.items() if caller is not None} == self.good
        assert {caller.key_id for caller in found.values() if caller is not None} <= {self.key_id}

    def teardown(self) -> None:
        self.runner.run(execute(self.engine, "DELETE FROM api_keys"))


def test_any_life_of_a_key(database_url: str) -> None:
    with asyncio.Runner() as runner:
        Life.runner = runner
        Life.engine = connect(database_url)
        Life.keys = KeyStore(Life.engine, SECRET)
        try:
            run_state_machine_as_test(Life, settings=settings(max_examples=25, stateful_step_count=12, deadline=None))
        finally:
            runner.run(Life.engine.dispose())
