"""Whose webhook is next, and what that costs: one user's tarpits delay nobody else's."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.deliveries import Deliveries
from serve_app.jobs.delivery_queue import CLAIM, HOST_SHARE, USER_SHARE
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore
from tests.fakes.outbound import FakeOutbound
from tests.parts.serve_app.jobs.samples import completed, execute, fetch

SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"


async def video_url(_: Job) -> str:
    return "https://v.example/a.mp4"


@pytest.fixture
def outbound() -> FakeOutbound:
    return FakeOutbound()


@pytest.fixture
def deliveries(engine: AsyncEngine, outbound: FakeOutbound) -> Deliveries:
    return Deliveries(engine, outbound, SECRET, video_url)


async def owe(engine: AsyncEngine, user: str, hosts: Sequence[str], *, key: str = "", age_s: float = 0) -> None:
    """Rows that are due, to these hosts in turn; the first is the oldest."""
    await execute(
        engine,
        """
        INSERT INTO jobs (id, model, status, stage, output_key, completed_at, key_id, user_id)
        SELECT :key || :user || ' ' || n, 'ltx2', 'completed', 'completed', 'k', now(), :key, :user
          FROM generate_series(1, CAST(:count AS int)) n
        ON CONFLICT DO NOTHING
        """,
        key=key,
        user=user,
        count=len(hosts),
    )
    await execute(
        engine,
        """
        INSERT INTO deliveries (id, job_id, url, owner, host, next_attempt_at)
        SELECT :key || :user || ' ' || host || ' ' || n, :key || :user || ' ' || n, 'http://' || host || '/',
               :key || '/' || :user, host,
               now() - make_interval(secs => :age_s) + make_interval(secs => n * 0.001)
          FROM unnest(CAST(:hosts AS text[])) WITH ORDINALITY AS h (host, n)
        """,
        key=key,
        user=user,
        hosts=list(hosts),
        age_s=age_s,
    )


async def claimed(deliveries: Deliveries, limit: int) -> Counter[tuple[str, str]]:
    """How many of each user and host."""
    taken = await deliveries.claim(limit)
    return Counter((due.job.user_id or "", due.url.split("/")[2]) for due in taken)


async def test_a_job_knows_whom_it_tells(store: JobStore, engine: AsyncEngine) -> None:
    await completed(store, "ann", key_id="key_1", webhook_url="https://Hooks.Example:8443/x?y")
    await completed(store, webhook_url="http://[2606:4700::1111]/x")
    rows = await fetch(engine, "SELECT owner, host, state FROM deliveries ORDER BY owner")
    assert [tuple(row.values()) for row in rows] == [
        ("/", "2606:4700::1111", "due"),
        ("key_1/ann", "hooks.example", "due"),
    ]


async def test_one_users_thousand_delay_nobody_elses(deliveries: Deliveries, engine: AsyncEngine) -> None:
    """All of them older, and to as many servers as there are."""
    await owe(engine, "ann", [f"{n}.tarpit" for n in range(1000)], age_s=3600)
    await owe(engine, "bob", ["bob.example"])
    first = await claimed(deliveries, 64)
    assert first["bob", "bob.example"] == 1
    assert first.total() == USER_SHARE + 1
    # While hers are in flight she gets no more, and he does at once.
    await owe(engine, "cleo", ["cleo.example"] * 2)
    assert await claimed(deliveries, 64) == {("cleo", "cleo.example"): 2}


async def test_a_tarpit_delays_no_other_receiver_of_its_user(deliveries: Deliveries, engine: AsyncEngine) -> None:
    """Where users are not told apart, this is all that stands between them."""
    await owe(engine, "", ["tarpit"] * 500, age_s=3600)
    await owe(engine, "", ["a.example", "b.example", "b.example"])
    assert await claimed(deliveries, 64) == {
        ("", "tarpit"): HOST_SHARE,
        ("", "a.example"): 1,
        ("", "b.example"): 2,
    }


async def test_a_receiver_is_not_called_by_everybody_at_once(deliveries: Deliveries, engine: AsyncEngine) -> None:
    """And users take turns at it, as at the operator's own, which hears of every job."""
    await owe(engine, "ann", ["shared"] * 10, age_s=60)
    await owe(engine, "bob", ["shared"] * 10)
    assert await claimed(deliveries, 64) == {("ann", "shared"): HOST_SHARE / 2, ("bob", "shared"): HOST_SHARE / 2}
    assert await claimed(deliveries, 64) == {}


async def test_users_take_turns_and_within_one_the_oldest_is_first(deliveries: Deliveries, engine: AsyncEngine) -> None:
    await owe(engine, "ann", ["a", "b", "c", "a"], age_s=60)
    await owe(engine, "bob", ["d"])
    assert {due.id for due in await deliveries.claim(3)} == {"ann a 1", "bob d 1", "ann b 2"}
    assert {due.id for due in await deliveries.claim(1)} == {"ann c 3"}
    assert {due.id for due in await deliveries.claim(3)} == {"ann a 4"}


async def test_more_receivers_than_are_looked_at_all_have_their_turn(
    deliveries: Deliveries, engine: AsyncEngine
) -> None:
    await owe(engine, "ann", [f"{n:04}.example" for n in range(300)])
    seen: set[str] = set()
    async with asyncio.timeout(60):
        while len(seen) < 300:
            taken = await deliveries.claim(64)
            seen |= {due.url for due in taken}
            await execute(
                engine, "UPDATE deliveries SET next_attempt_at = NULL WHERE id = ANY(:ids)", ids=[d.id for d in taken]
            )


async def test_a_key_of_many_users_leaves_slots_to_the_others(deliveries: Deliveries, engine: AsyncEngine) -> None:
    """However it calls them, and although all of theirs are older."""
    for n in range(30):
        await owe(engine, f"user {n}", [f"{n}.tarpit"] * 4, key="many", age_s=3600)
    assert len(await deliveries.claim(64, free=64)) == 48
    assert await deliveries.claim(16, free=16) == []
    await owe(engine, "ann", [f"{n}.example" for n in range(16)], key="key_1")
    assert {due.job.key_id for due in await deliveries.claim(16, free=16)} == {"key_1"}


async def test_keys_take_turns_and_within_one_its_users_do(deliveries: Deliveries, engine: AsyncEngine) -> None:
    for n in range(5):
        await owe(engine, f"{n}", [f"{n}.example"] * 2, key="many", age_s=60 - n)
    await owe(engine, "ann", ["a.example", "b.example"], key="key_1")
    await owe(engine, "bob", ["c.example"], key="key_2")
    order = []
    for _ in range(6):
        order += [f"{due.job.key_id} {due.job.user_id}" for due in await deliveries.claim(1)]
    assert order == ["many 0", "key_1 ann", "key_2 bob", "many 1", "key_1 ann", "many 2"]


async def test_keys_take_turns_at_a_server_they_have_in_common(deliveries: Deliveries, engine: AsyncEngine) -> None:
    for n in range(5):
        await owe(engine, f"{n}", ["shared"], key="many", age_s=60)
    await owe(engine, "ann", ["shared"] * 5, key="key_1")
    keys = Counter(due.job.key_id for due in await deliveries.claim(64))
    assert keys == {"many": HOST_SHARE / 2, "key_1": HOST_SHARE / 2}


async def test_more_users_of_a_key_than_are_looked_at_all_have_their_turn(
    deliveries: Deliveries, engine: AsyncEngine
) -> None:
    for n in range(100):
        await owe(engine, f"{n:03}", [f"{n}.example"], key="many")
    seen: set[str] = set()
    async with asyncio.timeout(60):
        while len(seen) < 100:
            taken = await deliveries.claim(64)
            seen |= {due.url for due in taken}
            await execute(
                engine, "UPDATE deliveries SET next_attempt_at = NULL WHERE id = ANY(:ids)", ids=[d.id for d in taken]
            )


async def test_two_claims_at_once_give_nobody_two_shares(deliveries: Deliveries, engine: AsyncEngine) -> None:
    await owe(engine, "ann", [f"{n}.example" for n in range(100)])
    found = await asyncio.gather(*(deliveries.claim(64) for _ in range(4)))
    ids = [due.id for taken in found for due in taken]
    assert len(ids) == len(set(ids)) == USER_SHARE


async def test_what_a_dead_sender_had_in_flight_comes_back_and_counts_no_more(
    deliveries: Deliveries, engine: AsyncEngine
) -> None:
    await owe(engine, "ann", [f"{n}.example" for n in range(USER_SHARE)])
    assert (await claimed(deliveries, 64)).total() == USER_SHARE
    await owe(engine, "ann", ["new.example"])
    assert await claimed(deliveries, 64) == {}
    await execute(engine, "UPDATE deliveries SET next_attempt_at = now() WHERE state = 'sending'")
    taken = await deliveries.claim(64)
    assert {due.attempts for due in taken} == {2, 1}
    assert len(taken) == USER_SHARE


async def test_what_is_our_fault_is_no_attempt(
    deliveries: Deliveries, store: JobStore, engine: AsyncEngine, outbound: FakeOutbound
) -> None:
    await completed(store, webhook_url="https://c.example/hook")
    outbound.unavailable = True
    (due,) = await deliveries.claim()
    await deliveries.send(due)
    (row,) = await fetch(
        engine,
        "SELECT state, attempts, last_error, extract(epoch FROM next_attempt_at - now())::float8 AS s FROM deliveries",
    )
    assert (row["state"], row["attempts"], row["last_error"]) == ("waiting", 0, None)
    assert 0 < row["s"] <= 5
    outbound.unavailable = False
    await execute(engine, "UPDATE deliveries SET next_attempt_at = now()")
    (due,) = await deliveries.claim()
    await deliveries.send(due)
    assert outbound.posted == [("https://c.example/hook", "/")]


async def test_a_job_of_another_version_is_told_of_and_holds_up_no_others(
    deliveries: Deliveries, store: JobStore, engine: AsyncEngine
) -> None:
    odd = await completed(store, webhook_url="https://c.example/hook")
    await completed(store, webhook_url="https://d.example/hook")
    await execute(engine, """UPDATE jobs SET inputs = '{"image": {"of": "another version"}}' WHERE id = :id""", id=odd)
    assert {due.url for due in await deliveries.claim()} == {"https://c.example/hook", "https://d.example/hook"}


# Cost


def nodes(plan: dict) -> list[dict]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


async def cost(engine: AsyncEngine) -> tuple[int, float]:
    """Blocks touched, and milliseconds, by one claim."""
    values = {"room": 8, "free": 64, "user_share": USER_SHARE, "host_share": HOST_SHARE, "start": "k0"}
    async with engine.begin() as db:
        found = (await db.execute(text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {CLAIM.text}"), values)).scalar_one()
        await db.rollback()
    plan = (found if isinstance(found, list) else json.loads(found))[0]
    assert not [node for node in nodes(plan["Plan"]) if node["Node Type"] == "Seq Scan" and "Relation Name" in node]
    return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"], plan["Execution Time"]


@pytest.mark.parametrize("distinct", [1, 50, 20_000])
async def test_the_cost_follows_the_users_and_not_the_rows(
    deliveries: Deliveries, engine: AsyncEngine, distinct: int
) -> None:
    """20 000 rows of one user that are due and 20 000 that wait, beside ten users with a few."""
    await owe(engine, "ann", ["a.example"])
    # All of one job: the rows that are claimed are those that matter.
    await execute(
        engine,
        """
        INSERT INTO deliveries (id, job_id, url, owner, host, state, next_attempt_at)
        SELECT state || n, 'ann 1', 'http://x/', CASE state WHEN 'due' THEN '/ann' ELSE '/zoe' END,
               n % CAST(:distinct AS int) || '.tarpit', state,
               now() + make_interval(secs => CASE state WHEN 'due' THEN -3600 ELSE 3600 END + n * 0.001)
          FROM generate_series(1, 20000) n, unnest(ARRAY['due', 'waiting']) state
        """,
        distinct=distinct,
    )
    for n in range(10):
        await owe(engine, f"user {n}", ["a.example", "b.example"])
    async with engine.connect() as db:
        await (await db.execution_options(isolation_level="AUTOCOMMIT")).execute(text("VACUUM ANALYZE deliveries"))
    blocks, took_ms = await cost(engine)
    print(f"\n{distinct} receivers: {blocks} blocks, {took_ms:.1f} ms")
    assert blocks < 3000
    assert len(await deliveries.claim(8)) == 8


async def test_the_cost_does_not_follow_the_number_of_users_of_a_key(
    deliveries: Deliveries, engine: AsyncEngine
) -> None:
    """Who invents users costs nobody else's webhooks their time."""
    await owe(engine, "ann", ["a.example"])
    await execute(
        engine,
        """
        INSERT INTO deliveries (id, job_id, url, owner, host, next_attempt_at)
        SELECT 'd' || n, 'ann 1', 'http://x/', 'many/' || md5(n::text), n % 7 || '.tarpit', now() - interval '1 hour'
          FROM generate_series(1, 20000) n
        """,
    )
    async with engine.connect() as db:
        await (await db.execution_options(isolation_level="AUTOCOMMIT")).execute(text("VACUUM ANALYZE deliveries"))
    blocks, took_ms = await cost(engine)
    print(f"\n20000 users: {blocks} blocks, {took_ms:.1f} ms")
    assert blocks < 3000
    assert "ann" in {due.job.user_id for due in await deliveries.claim(8)}
