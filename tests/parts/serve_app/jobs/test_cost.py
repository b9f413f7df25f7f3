"""What questions cost that are asked all the time: the same with many jobs, or users, as with few.

In pages of the database, which are the same on a busy machine and an idle one. ``COST_ROWS=1000000`` for more.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.registry import MODELS
from serve_app.jobs import retention, tally
from serve_app.jobs.claim import CLAIM_FOR_INTAKE, CLAIM_TO_RUN, COME_DUE, TAKE_TURNS
from serve_app.jobs.place import ahead_of
from serve_app.jobs.reads import JobReads
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import execute, fetch, jobs_of

LARGE = int(os.environ.get("COST_ROWS", "40000"))
# Each user has more that waits than a claim looks at.
SMALL = max(LARGE // 20, 5000)
USERS = 40


async def grow(engine: AsyncEngine, rows: int, start: int = 0) -> None:
    """Up to ``rows`` jobs: of ten nine have ended and one waits, half of those for intake."""
    await execute(
        engine,
        """
        INSERT INTO jobs (id, model, status, user_id, inputs, timings, output_key, error_code, completed_at, created_at)
        SELECT 'job ' || n, model, status, 'user ' || n / 10 % :users, CASE WHEN n / 10 % 4 > 1 THEN '{}'::jsonb END,
               '{"run": 2}', 'k', CASE status WHEN 'failed' THEN 'x' END,
               CASE WHEN status <> 'queued' THEN now() END, now() - make_interval(secs => n)
          FROM (SELECT n, (ARRAY['ltx2', 'wav2lip'])[1 + n / 10 % 2] AS model,
                       CASE WHEN n % 10 = 0 THEN 'queued' WHEN n % 3 = 0 THEN 'failed' ELSE 'completed' END AS status
                  FROM generate_series(:start, :rows - 1) n) kinds
        """,
        users=USERS,
        start=start,
        rows=rows,
    )
    for name in ("", *MODELS):
        async with engine.begin() as db:
            # And so were others, who have nothing to do now.
            gone = [f"/gone {n}" for n in range(start // 10, rows // 10)]
            await db.execute(TAKE_TURNS, {"queue": name, "owners": [*gone, *(f"/user {n}" for n in range(USERS))]})
    async with engine.connect() as db:
        apart = await db.execution_options(isolation_level="AUTOCOMMIT")
        for table in ("jobs", "turns"):
            await apart.execute(text(f"VACUUM ANALYZE {table}"))


async def pages(engine: AsyncEngine, query: TextClause, values: Mapping[str, Any]) -> int:
    """Pages that a query touches, after another run of it has warmed up what depends on that."""
    explained = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query.text}")
    if query._bindparams:
        explained = explained.bindparams(*(p for p in query._bindparams.values() if p.key in values))
    async with engine.connect() as db:
        for _ in range(2):
            found = (await db.execute(explained, dict(values))).scalar_one()
            await db.rollback()
    plan = (found if isinstance(found, list) else json.loads(found))[0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.fixture
async def questions(engine: AsyncEngine) -> Mapping[str, tuple[TextClause, dict]]:
    await grow(engine, SMALL)
    await execute(
        engine,
        "INSERT INTO jobs (id, model, status, user_id, inputs) VALUES ('new', 'ltx2', 'queued', 'newcomer', '{}')",
    )
    ended = await fetch(engine, "SELECT id FROM jobs WHERE status = 'completed' ORDER BY id LIMIT 200")
    return {
        "claim to run": (CLAIM_TO_RUN, {"deployment": "ltx2", "window": 13, "seconds": 30, "stage": ""}),
        "claim for intake": (CLAIM_FOR_INTAKE, {"limit": 8, "share": 4, "free": 32, "seconds": 30, "stage": ""}),
        "place": (text(f"SELECT ({ahead_of()}) FROM jobs j WHERE id = 'new'"), {}),
        "counts": (tally.COUNTS, {}),
        "lines": (tally.LINES, {"model": "ltx2"}),
        "retention": (
            retention._CHOOSE,
            {"completed_s": 1e6, "count": 1000, "failed_s": 1e6, "batch": 200, "lately": 50},
        ),
        "forgetting": (retention._FORGET, {"ids": [each["id"] for each in ended]}),
    }


async def test_cost_does_not_grow_with_the_number_of_jobs(
    engine: AsyncEngine, questions: Mapping[str, tuple[TextClause, dict]]
) -> None:
    small = {name: await pages(engine, *question) for name, question in questions.items()}
    await grow(engine, LARGE, start=SMALL)
    # As the dispatcher does every minute.
    await execute(engine, retention._ADD_UP.text)
    large = {name: await pages(engine, *question) for name, question in questions.items()}
    print({name: (small[name], large[name]) for name in small})
    for name in questions.keys() - {"retention", "forgetting"}:
        # An index may have become a level deeper, and of few lines all are read where of more each is looked up.
        assert large[name] < 1.5 * small[name] + 50, name
    assert large["counts"] < 20
    assert large["lines"] < 20
    # Of a batch of 200 rows each is found, locked, deleted and written down.
    assert large["retention"] + large["forgetting"] < 20 * 200


async def test_counts_agree_with_the_rows(engine: AsyncEngine, questions: object) -> None:
    await execute(engine, "DELETE FROM jobs WHERE id LIKE '%7'")
    await execute(engine, "UPDATE jobs SET model = 'wav2lip' WHERE id LIKE '%1'")
    rows = await fetch(engine, "SELECT model, status, count(*) AS n FROM jobs GROUP BY 1, 2")
    counted = await tally.counts(engine)
    assert {(row["model"], row["status"]): row["n"] for row in rows} == {
        (model, status): n for model, statuses in counted.items() for status, n in statuses.items()
    }


async def join(engine: AsyncEngine, start: int, users: int, keys: int) -> None:
    """Users ``start`` to ``users``, in this order, each with a job that waits to run and one whose inputs are fetched.
    Every other was served before, as the last but one of all; the rest never were. The keys have them in turn."""
    await execute(
        engine,
        """
        INSERT INTO turns (queue, owner) SELECT queue, n % CAST(:keys AS int) || '/user ' || n
          FROM generate_series(:start + 1, :users - 1, 2) n, unnest(ARRAY['', 'ltx2']) queue ORDER BY n
        """,
        start=start,
        users=users,
        keys=keys,
    )
    await execute(
        engine,
        """
        INSERT INTO jobs (id, model, status, key_id, user_id, inputs, created_at)
        SELECT kind || n, 'ltx2', 'queued', n % CAST(:keys AS int), 'user ' || n,
               CASE kind WHEN 'run ' THEN '{}'::jsonb END, now() + make_interval(secs => n)
          FROM generate_series(:start, :users - 1) n, unnest(ARRAY['run ', 'fetch ']) kind
        """,
        start=start,
        users=users,
        keys=keys,
    )
    async with engine.connect() as db:
        apart = await db.execution_options(isolation_level="AUTOCOMMIT")
        for table in ("jobs", "turns"):
            await apart.execute(text(f"VACUUM ANALYZE {table}"))


@pytest.mark.own_database
@pytest.mark.parametrize("keys", [1, 25])
async def test_cost_does_not_grow_with_the_number_of_users_who_wait(
    engine: AsyncEngine, store: JobStore, reads: JobReads, keys: int
) -> None:
    """A back end passes on what its users are called; whoever signs up often could stop every queue."""
    few, many = 50, 20_000
    await join(engine, 0, few, keys)
    questions = {
        "claim to run": (CLAIM_TO_RUN, {"deployment": "ltx2", "window": 13, "seconds": 30, "stage": ""}),
        "claim for intake": (CLAIM_FOR_INTAKE, {"limit": 8, "share": 4, "free": 32, "seconds": 30, "stage": ""}),
        "turns to forget": (retention._FORGET_TURNS, {"batch": 2000}),
        "nothing to come due": (COME_DUE, {"queue": "ltx2", "batch": 500}),
        **{
            f"place of {job_id}": (text(f"SELECT ({ahead_of(20)}) FROM jobs j WHERE id = :id"), {"id": job_id})
            for job_id in ("run 0", "run 48", "run 49", "fetch 49")
        },
    }
    small = {name: await pages(engine, *question) for name, question in questions.items()}
    # A session keeps the plans that it has made for few, until statistics change: for so many new lines in one
    # statement, as there is none in the service, it would read every job for each.
    await engine.dispose()
    await join(engine, few, many, keys)
    large = {name: await pages(engine, *question) for name, question in questions.items()}
    print({name: (small[name], large[name]) for name in small})
    for name in questions:
        # Indexes have become two levels deeper. One look at each user would be a hundred times as much.
        assert large[name] < 4 * small[name] + 50, name
    # And what is found is right: the keys in turn, of one newcomers first, then who was served longest ago.
    if keys == 1:
        seen = [await reads.get(f"run {n}") for n in (0, 8, 1998, 2002, 1)]
        assert [each.position for each in seen if each] == [0, 4, 999, 1000, 1000]
    claimed = jobs_of(await store.claim_to_run("ltx2", 13))
    if keys == 1:
        assert [job.id for job in claimed] == [f"run {2 * n}" for n in range(13)]
    else:
        assert len({job.key_id for job in claimed}) == 13


@pytest.mark.own_database
async def test_cost_follows_the_keys_that_wait_by_a_few_pages_each(engine: AsyncEngine, store: JobStore) -> None:
    """An operator makes tens of them, or hundreds."""
    touched = {}
    for keys in (10, 100):
        await execute(engine, "TRUNCATE jobs, turns CASCADE")
        await join(engine, 0, 4000, keys)
        claim = (CLAIM_TO_RUN, {"deployment": "ltx2", "window": 13, "seconds": 30, "stage": ""})
        place = (text(f"SELECT ({ahead_of(20)}) FROM jobs j WHERE id = 'run 3999'"), {})
        touched[keys] = (await pages(engine, *claim), await pages(engine, *place))
        await engine.dispose()
    print(touched)
    for few, many in zip(touched[10], touched[100], strict=True):
        assert many < few + 90 * 30


async def test_jobs_are_found_by_their_pairs(engine: AsyncEngine, store: JobStore) -> None:
    """Those that few jobs have by the index, in as many pages with many jobs as with few; and jobs without pairs are
    not in it."""
    await grow(engine, SMALL)
    pairs = "jsonb_build_object('shot', id, 'project', 'ours')"
    await execute(engine, f"UPDATE jobs SET metadata = {pairs} WHERE model = 'ltx2'")
    find = text(
        "SELECT * FROM jobs WHERE key_id = '' AND metadata @> CAST(:pairs AS jsonb)"
        " ORDER BY created_at DESC, id DESC LIMIT 21"
    )
    wanted = {"pairs": '{"shot": "job 1", "project": "ours"}'}

    async def cost() -> int:
        async with engine.connect() as db:
            await (await db.execution_options(isolation_level="AUTOCOMMIT")).execute(text("VACUUM ANALYZE jobs"))
        return await pages(engine, find, wanted)

    few = await cost()
    await grow(engine, LARGE, SMALL)
    assert await cost() <= few + 10
    (size,) = await fetch(engine, "SELECT pg_relation_size('jobs_metadata') AS before")
    await execute(engine, "UPDATE jobs SET stage = 'x' WHERE metadata IS NULL")
    assert await fetch(engine, "SELECT pg_relation_size('jobs_metadata') AS before") == [size]
    assert [job.id for job in await store.list(metadata={"shot": "job 1"}, of_key="")] == ["job 1"]
    assert await store.list(metadata={"shot": "job 1"}, of_key="key_b") == []
