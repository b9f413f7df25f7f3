"""Keys share the GPUs and intake, whatever users they have, and run no more jobs than they may."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import api_key, ended, execute, fetch, jobs_of
from tests.parts.serve_app.jobs.turns import Owner, take_turns_of_keys


async def posted(engine: AsyncEngine, key: str, users: int, each: int, *, model: str = "ltx2") -> None:
    """Jobs of the key's users that wait for a GPU, posted user after user."""
    await execute(
        engine,
        """
        INSERT INTO jobs (id, model, status, key_id, user_id, inputs, created_at)
        SELECT :model || ' ' || :key || ' ' || u || ' ' || n, :model, 'queued', :key, 'user ' || u, '{}',
               now() + make_interval(secs => u * 1000 + n)
          FROM generate_series(1, CAST(:users AS int)) u, generate_series(1, CAST(:each AS int)) n
        """,
        key=key,
        users=users,
        each=each,
        model=model,
    )


async def keys_of_claim(store: JobStore, window: int, model: str = "ltx2") -> list[str]:
    return [job.key_id for job in jobs_of(await store.claim_to_run(model, window))]


async def held(engine: AsyncEngine) -> Mapping[str, int]:
    """Jobs of each key that run."""
    rows = await fetch(engine, "SELECT key_id, count(*) AS n FROM jobs WHERE lease_token IS NOT NULL GROUP BY 1")
    return {row["key_id"]: row["n"] for row in rows}


# -------------------------------------------------------------------- the rule

LINES = st.dictionaries(
    st.tuples(st.sampled_from(["", "a", "b", "c"]), st.sampled_from([None, "ann", "bob"])),
    st.integers(0, 6),
    max_size=9,
)


@given(
    lines=LINES,
    holding=LINES,
    most=st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 3)),
    room=st.integers(0, 9),
)
def test_nobody_is_given_more_while_another_waits_with_less(
    lines: Mapping[Owner, int], holding: Mapping[Owner, int], most: Mapping[str, int], room: int
) -> None:
    """Of the rule, as ``turns.py`` has it; that the database keeps to it, the store's state machine proves."""
    jobs = {owner: [(owner, n) for n in range(count)] for owner, count in lines.items()}
    chosen = take_turns_of_keys(jobs, holding, {}, room, lambda job: (job[1],), most)
    waits = {owner: count - sum(job[0] == owner for job in chosen) for owner, count in lines.items()}
    keys = Counter(owner[0] for owner, _ in chosen)
    assert all(keys[key] <= limit for key, limit in most.items())
    owners = Counter(owner for owner, _ in chosen)
    of_key = Counter[str]()
    for owner, count in holding.items():
        of_key[owner[0]] += count
    of_key.update(keys)
    for (key, user), count in waits.items():
        if count and most.get(key, room + 1) > keys[key]:
            # With enough that waits, what keys are given makes them differ by one at most.
            assert all(of_key[other] <= of_key[key] + 1 for other in keys)
            assert len(chosen) == room
        if count:
            mine = holding.get((key, user), 0) + owners[key, user]
            assert all(holding.get(it, 0) + owners[it] <= mine + 1 for it in owners if it[0] == key)


# -------------------------------------------------------------------- GPUs


async def test_inventing_users_gets_a_key_no_more(store: JobStore, engine: AsyncEngine) -> None:
    await posted(engine, "many", users=50, each=2)
    await posted(engine, "one", users=1, each=50)
    assert await keys_of_claim(store, 6) == ["many", "one"] * 3
    users = await fetch(
        engine, "SELECT count(DISTINCT user_id) AS n FROM jobs WHERE lease_token <> '' AND key_id = 'many'"
    )
    assert users == [{"n": 3}]


async def test_users_who_were_never_served_do_not_hide_another_keys_only_one(
    store: JobStore, engine: AsyncEngine
) -> None:
    await posted(engine, "many", users=300, each=1)
    await posted(engine, "one", users=1, each=5)
    order = []
    for _ in range(6):
        (job,) = jobs_of(await store.claim_to_run("ltx2", 1))
        order.append(job.key_id)
        await ended(engine, job.id)
    assert order == ["many", "one"] * 3


@pytest.mark.parametrize(("window", "keys"), [(1, 2), (2, 3), (7, 4), (16, 5), (3, 20)])
async def test_keys_hold_and_get_the_same(store: JobStore, engine: AsyncEngine, window: int, keys: int) -> None:
    chance = random.Random(window)
    for key in range(keys):
        # The later a key, the more users it has.
        await posted(engine, f"key_{key}", users=key + 1, each=40 // (key + 1) + 1)
    starts = Counter(dict.fromkeys((f"key_{key}" for key in range(keys)), 0))
    running: list[str] = []
    for _ in range(12):
        for job in jobs_of(await store.claim_to_run("ltx2", window)):
            starts[job.key_id] += 1
            running.append(job.id)
        holds = [(await held(engine)).get(key, 0) for key in starts]
        assert max(holds) - min(holds) <= 1
        for _ in range(chance.randrange(1, window + 1)):
            await ended(engine, running.pop(chance.randrange(len(running))))


async def test_a_key_that_comes_later_catches_up_in_slots(store: JobStore, engine: AsyncEngine) -> None:
    await posted(engine, "first", users=3, each=10)
    running = [job.id for job in jobs_of(await store.claim_to_run("ltx2", 6))]
    await posted(engine, "second", users=1, each=10)
    order = []
    for job_id in running:
        await ended(engine, job_id)
        order += await keys_of_claim(store, 6)
    assert order == ["second"] * 3 + ["first"] * 3


async def test_what_a_key_has_no_jobs_for_goes_to_the_others(store: JobStore, engine: AsyncEngine) -> None:
    await posted(engine, "little", users=1, each=1)
    await posted(engine, "much", users=2, each=10)
    assert Counter(await keys_of_claim(store, 12)) == {"little": 1, "much": 11}


# -------------------------------------------------------------------- limits


async def test_a_key_runs_as_many_jobs_as_it_may(store: JobStore, engine: AsyncEngine) -> None:
    await api_key(engine, "key_1", running_jobs=2)
    await api_key(engine, "key_2")
    await posted(engine, "key_1", users=3, each=2)
    await posted(engine, "key_2", users=1, each=4)
    claimed = jobs_of(await store.claim_to_run("ltx2", 20))
    assert Counter(job.key_id for job in claimed) == {"key_1": 2, "key_2": 4}
    assert await keys_of_claim(store, 20) == []
    await ended(engine, next(job.id for job in claimed if job.key_id == "key_1"))
    assert await keys_of_claim(store, 20) == ["key_1"]
    await execute(engine, "UPDATE api_keys SET running_jobs = NULL")
    assert await keys_of_claim(store, 20) == ["key_1"] * 3


async def test_a_lower_limit_stops_nothing_that_runs(store: JobStore, engine: AsyncEngine) -> None:
    await api_key(engine, "key_1", running_jobs=3)
    await posted(engine, "key_1", users=1, each=5)
    first, *_ = jobs_of(await store.claim_to_run("ltx2", 20))
    await execute(engine, "UPDATE api_keys SET running_jobs = 1")
    assert await keys_of_claim(store, 20) == []
    await ended(engine, first.id)
    assert await keys_of_claim(store, 20) == []
    assert await held(engine) == {"key_1": 2}


@pytest.mark.parametrize("rounds", range(3))
async def test_a_limit_is_over_all_models_and_however_many_claim_at_once(
    store: JobStore, engine: AsyncEngine, rounds: int
) -> None:
    await api_key(engine, "key_1", running_jobs=3)
    for model in ("ltx2", "wav2lip"):
        await posted(engine, "key_1", users=2, each=5, model=model)
    found = await asyncio.gather(*(store.claim_to_run(model, 8) for model in ("ltx2", "wav2lip") for _ in range(3)))
    assert sum(map(len, found)) == 3
    assert await held(engine) == {"key_1": 3}


# -------------------------------------------------------------------- intake


async def to_take_in(engine: AsyncEngine, keys: Sequence[str], users: int) -> None:
    for key in keys:
        await posted(engine, key, users=users, each=4)
    await execute(engine, "UPDATE jobs SET inputs = NULL WHERE lease_token IS NULL")


async def test_a_key_of_many_users_leaves_slots_of_intake_to_the_others(store: JobStore, engine: AsyncEngine) -> None:
    await to_take_in(engine, ["many"], users=40)
    assert len(jobs_of(await store.claim_for_intake(32, 4, free=32))) == 24
    assert jobs_of(await store.claim_for_intake(8, 2, free=8)) == []
    await to_take_in(engine, ["one"], users=1)
    assert [job.key_id for job in jobs_of(await store.claim_for_intake(8, 2, free=8))] == ["one"] * 2


async def test_who_has_his_share_of_intake_keeps_no_other_key_from_the_rest(
    store: JobStore, engine: AsyncEngine
) -> None:
    await to_take_in(engine, ["one"], users=1)
    assert len(jobs_of(await store.claim_for_intake(8, 2))) == 2
    await to_take_in(engine, ["many"], users=10)
    assert [job.key_id for job in jobs_of(await store.claim_for_intake(20, 2))] == ["many"] * 20
    await execute(engine, "UPDATE jobs SET user_id = 'other' WHERE key_id = 'many' AND lease_token IS NULL")
    # 'one' holds least and may have no more.
    assert [job.key_id for job in jobs_of(await store.claim_for_intake(3, 2))] == ["many"] * 2
