"""Migrations against the tables, and the exposition of counters."""

import asyncio
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry
from sqlalchemy import MetaData, create_engine, inspect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from cluster.fleet.tables import metadata as fleet_metadata
from cluster.mesh.counters import Counters
from cluster.mesh.registry import PostgresRegistry
from cluster.mesh.registry import metadata as nodes_metadata
from serve_app.jobs import database, metrics
from serve_app.jobs.database import migrate
from serve_app.jobs.store import JobStore
from serve_app.jobs.tables import metadata as jobs_metadata
from tests.parts.serve_app.jobs.samples import completed, execute, failure, running

#: Tables are described where they are used; there is one history of migrations for all of them.
metadata = MetaData()
for described in (jobs_metadata, nodes_metadata, fleet_metadata):
    for table in described.sorted_tables:
        table.to_metadata(metadata)


@pytest.fixture
def empty_database(postgres: str) -> str:
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute("DROP DATABASE IF EXISTS bare")
        db.execute("CREATE DATABASE bare TEMPLATE template0")
    return postgres.replace("postgresql://", "postgresql+psycopg://", 1).replace("/postgres?", "/bare?")


def config(url: str) -> Config:
    made = Config()
    made.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    made.attributes["url"] = url
    return made


def constraints(url: str) -> set[str]:
    """What ``compare_metadata`` does not look at: checks and the conditions of partial indexes."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as db:
        checks = db.exec_driver_sql(
            "SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'"
        )
        indexes = db.exec_driver_sql(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        )
        return {*checks.scalars(), *indexes.scalars()}


def test_migrations_make_exactly_the_tables(empty_database: str, postgres: str) -> None:
    migrate(empty_database)
    engine = create_engine(empty_database, poolclass=NullPool)
    with engine.connect() as db:
        assert compare_metadata(MigrationContext.configure(db), metadata) == []
    migrated = constraints(empty_database)
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute("DROP DATABASE IF EXISTS made")
        db.execute("CREATE DATABASE made TEMPLATE template0")
    made = empty_database.replace("/bare?", "/made?")
    metadata.create_all(create_engine(made, poolclass=NullPool))
    assert migrated == constraints(made)


def test_migrations_go_down_and_up_again(empty_database: str) -> None:
    script = config(empty_database)
    engine = create_engine(empty_database, poolclass=NullPool)
    for _ in range(2):
        command.upgrade(script, "head")
        assert set(inspect(engine).get_table_names()) == {*metadata.tables, "alembic_version"}
        command.downgrade(script, "base")
        assert inspect(engine).get_table_names() == ["alembic_version"]


def test_webhooks_that_are_owed_survive_0004(empty_database: str) -> None:
    script = config(empty_database)
    command.upgrade(script, "0002")
    url = empty_database.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            """
            INSERT INTO jobs (id, model, status, error_code, completed_at, user_id)
            SELECT n::text, 'ltx2', 'failed', 'expired', now(), CASE WHEN n = 1 THEN 'ann' END
              FROM generate_series(1, 3) n
            """
        )
        db.execute(
            """
            INSERT INTO deliveries (id, job_id, url, next_attempt_at) VALUES
                ('a', '1', 'https://Hooks.example:8443/x', now()), ('b', '2', 'http://b.example', now()),
                ('c', '3', 'http://c.example/', NULL)
            """
        )
        command.upgrade(script, "head")
        found = db.execute(
            "SELECT id, owner, host, state, next_attempt_at IS NULL FROM deliveries ORDER BY id"
        ).fetchall()
    assert found == [
        ("a", "/ann", "hooks.example", "waiting", False),
        ("b", "/", "b.example", "waiting", False),
        ("c", "/", "", "due", True),
    ]


def test_webhooks_that_are_owed_survive_0013(empty_database: str) -> None:
    """They are of their job's key, and of what has become of it; going back, those of endpoints are lost."""
    script = config(empty_database)
    command.upgrade(script, "0012")
    with psycopg.connect(empty_database.replace("+psycopg", ""), autocommit=True) as db:
        db.execute(
            """
            INSERT INTO jobs (id, model, status, error_code, output_key, completed_at, key_id) VALUES
                ('1', 'ltx2', 'failed', 'expired', NULL, now(), ''),
                ('2', 'ltx2', 'completed', NULL, 'k', now(), 'key_a')
            """
        )
        db.execute("INSERT INTO deliveries (id, job_id, url) VALUES ('a', '1', 'http://a/'), ('b', '2', 'http://b/')")
        command.upgrade(script, "head")
        question = "SELECT id, key_id, event, endpoint_id, attempts_before FROM deliveries ORDER BY id"
        assert db.execute(question).fetchall() == [
            ("a", "", "job.failed", None, 0),
            ("b", "key_a", "job.completed", None, 0),
        ]
        db.execute("INSERT INTO webhook_endpoints (id, key_id, url, events) VALUES ('whe', '', 'http://c/', '{}')")
        db.execute("INSERT INTO deliveries (id, endpoint_id, url) VALUES ('c', 'whe', 'http://c/')")
        command.downgrade(script, "0012")
        assert db.execute("SELECT id FROM deliveries ORDER BY id").fetchall() == [("a",), ("b",)]


def test_who_waits_is_in_line_since_0005(empty_database: str) -> None:
    script = config(empty_database)
    command.upgrade(script, "0004")
    with psycopg.connect(empty_database.replace("+psycopg", ""), autocommit=True) as db:
        db.execute(
            """
            INSERT INTO jobs (id, model, status, user_id, inputs, priority, not_before) VALUES
                ('1', 'ltx2', 'queued', 'ann', '{}', 1, now()), ('2', 'ltx2', 'queued', 'ann', NULL, 2, now()),
                ('3', 'wav2lip', 'queued', NULL, '{}', 3, now() + interval '1 hour')
            """
        )
        db.execute("INSERT INTO turns (queue, user_id, turn) VALUES ('ltx2', 'ann', 7), ('ltx2', 'bob', 8)")
        command.upgrade(script, "head")
        found = db.execute(
            "SELECT queue, owner, turn, priority, since IS NULL, later IS NULL FROM turns ORDER BY queue, owner"
        ).fetchall()
    assert found == [
        ("", "/ann", 0, 2, False, True),
        ("ltx2", "/ann", 7, 1, False, True),
        ("ltx2", "/bob", 8, None, True, True),
        ("wav2lip", "/", 0, None, True, False),
    ]


def test_who_waits_is_in_a_line_of_its_key_since_0011(empty_database: str) -> None:
    script = config(empty_database)
    command.upgrade(script, "0010")
    url = empty_database.replace("+psycopg", "")
    look = "SELECT queue, owner, key_id, turn, since IS NULL FROM turns ORDER BY queue, owner"
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            """
            INSERT INTO jobs (id, model, status, key_id, user_id, inputs, priority) VALUES
                ('1', 'ltx2', 'queued', '', 'ann', '{}', 0), ('2', 'ltx2', 'queued', 'key_1', 'ann', '{}', 1),
                ('3', 'ltx2', 'queued', 'key_1', NULL, NULL, 0), ('4', 'ltx2', 'queued', 'key_1', 'a/b', '{}', 0)
            """
        )
        db.execute("UPDATE turns SET turn = 7 WHERE queue = 'ltx2' AND user_id = 'ann'")
        db.execute("INSERT INTO deliveries (id, job_id, url, owner) VALUES ('d', '2', 'https://c.example/', 'ann')")
        command.upgrade(script, "0011")
        assert db.execute(look).fetchall() == [
            ("", "/", "", 0, True),
            ("", "key_1/", "key_1", 0, False),
            ("ltx2", "/a/b", "", 0, True),
            ("ltx2", "/ann", "", 7, False),
            ("ltx2", "key_1/a/b", "key_1", 0, False),
            ("ltx2", "key_1/ann", "key_1", 0, False),
        ]
        assert db.execute("SELECT owner FROM deliveries").fetchone() == ("key_1/ann",)
        command.upgrade(script, "head")
        assert asyncio.run(claimed(empty_database)) == ["2", "1", "4"]
        command.downgrade(script, "0010")
        # Whoever waits is in line again, and those who come are.
        db.execute("INSERT INTO jobs (id, model, status, user_id, inputs) VALUES ('5', 'ltx2', 'queued', 'ann', '{}')")
        found = db.execute("SELECT queue, user_id, since IS NULL FROM turns ORDER BY 1, 2").fetchall()
        assert found == [("", "", False), ("ltx2", "ann", False)]
        assert db.execute("SELECT owner FROM deliveries").fetchone() == ("ann",)


def test_jobs_go_on_in_the_lines_of_their_model_s_first_deployment_since_0016(empty_database: str) -> None:
    script = config(empty_database)
    command.upgrade(script, "0015")
    with psycopg.connect(empty_database.replace("+psycopg", ""), autocommit=True) as db:
        db.execute(
            """
            INSERT INTO jobs (id, model, status, user_id, inputs) VALUES
                ('1', 'ltx2', 'queued', 'ann', '{}'), ('2', 'ltx2', 'queued', 'bob', NULL),
                ('3', NULL, 'uploading', NULL, NULL)
            """
        )
        db.execute("INSERT INTO outlooks (model, start_s) VALUES ('ltx2', 300)")
        command.upgrade(script, "head")
        assert db.execute("SELECT id, deployment FROM jobs ORDER BY id").fetchall() == [
            ("1", "ltx2"),
            ("2", "ltx2"),
            ("3", None),
        ]
        assert db.execute("SELECT deployment, start_s FROM outlooks").fetchall() == [("ltx2", 300)]
        db.execute(
            "INSERT INTO jobs (id, model, assigned, status, user_id, inputs)"
            " VALUES ('4', 'ltx2', 'ltx2-40gb', 'queued', 'ann', '{}')"
        )
        lines = "SELECT queue, owner FROM turns WHERE since IS NOT NULL ORDER BY 1, 2"
        assert db.execute(lines).fetchall() == [("", "/bob"), ("ltx2", "/ann"), ("ltx2-40gb", "/ann")]
        tally = "SELECT deployment, sum(n) FROM job_tally WHERE status = 'queued' GROUP BY 1 ORDER BY 1"
        assert db.execute(tally).fetchall() == [("ltx2", 2), ("ltx2-40gb", 1)]
        command.downgrade(script, "0015")
        # What waited for another class waits for the model's only deployment; and so does who comes now.
        db.execute("INSERT INTO jobs (id, model, status, user_id, inputs) VALUES ('5', 'ltx2', 'queued', 'eve', '{}')")
        assert db.execute(lines).fetchall() == [("", "/bob"), ("ltx2", "/ann"), ("ltx2", "/eve")]
        assert db.execute("SELECT sum(n) FROM job_tally WHERE model = 'ltx2'").fetchone() == (4,)
        assert db.execute("SELECT model FROM outlooks").fetchall() == [("ltx2",)]
        command.upgrade(script, "head")
        assert asyncio.run(claimed(empty_database)) == ["1", "5", "4"]


async def claimed(url: str) -> list[str]:
    """Ids of the jobs that a claim for the GPUs finds."""
    engine = database.connect(url)
    try:
        return [claim.job.id for claim in await JobStore(engine).claim_to_run("ltx2", 10)]
    finally:
        await engine.dispose()


def test_there_is_one_newest_version() -> None:
    assert len(ScriptDirectory.from_config(config("")).get_heads()) == 1


def test_processes_that_start_together_may_all_migrate(empty_database: str) -> None:
    script = f"from serve_app.jobs.database import migrate; migrate({empty_database!r})"
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    engine = create_engine(empty_database, poolclass=NullPool)
    assert set(inspect(engine).get_table_names()) == {*metadata.tables, "alembic_version"}


@pytest.mark.parametrize(
    "change",
    [
        "status = 'sleeping'",
        "status = 'completed'",
        "status = 'failed', completed_at = now(), lease_token = NULL, lease_expires_at = NULL",
        "completed_at = now()",
        "lease_token = NULL, lease_expires_at = NULL",
        "lease_expires_at = NULL",
        "model = NULL",
    ],
)
async def test_the_database_itself_refuses_impossible_jobs(store: JobStore, engine: AsyncEngine, change: str) -> None:
    await running(store)
    with pytest.raises(IntegrityError, match="jobs_"):
        await execute(engine, f"UPDATE jobs SET {change}")


class _Families(Collector):
    def __init__(self, families: list) -> None:
        self._families = families

    def collect(self) -> list:
        return self._families


def exposed(families: list) -> dict:
    """What a scraper reads."""
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


async def test_counters_are_exact_and_readable(store: JobStore, engine: AsyncEngine) -> None:
    for _ in range(3):
        await completed(store)
    lease = await running(store)
    await store.fail(failure(lease, "out_of_memory", run=1.5))
    lease = await running(store)
    await store.fail(failure(lease, "no_face_found", transient=False, run=0.5))
    await store.delete(lease.job_id)
    async with engine.connect() as db:
        samples = exposed(list(await metrics.collect(db, {"ltx2": {"queued": 1}})))
    model = ("model", "ltx2")
    assert samples["video_jobs_total", ("code", ""), model, ("status", "completed")] == 3
    # The job is deleted, what happened is not undone.
    assert samples["video_jobs_total", ("code", "no_face_found"), model, ("status", "failed")] == 1
    assert samples["video_job_retries_total", ("code", "out_of_memory"), model] == 1
    assert samples["video_gpu_busy_seconds_total", model] == 3 * 2.0 + 0.5
    assert samples["video_queue_depth", model, ("status", "queued")] == 1
    bucket = "video_job_stage_seconds_bucket"
    assert samples[bucket, ("le", "1.0"), model, ("stage", "run")] == 0
    assert samples[bucket, ("le", "3.0"), model, ("stage", "run")] == 3
    assert samples[bucket, ("le", "+Inf"), model, ("stage", "run")] == 3
    assert samples["video_job_stage_seconds_sum", model, ("stage", "run")] == 6
    assert samples["video_job_wait_seconds_count", model] == 4


async def test_the_mesh_is_among_the_metrics(engine: AsyncEngine) -> None:
    registry = PostgresRegistry(engine, count=metrics.count)
    first = Counters()
    first.flows_total = 3
    first.refused["bad_key"] = 2
    await registry.report([], first.stats([]).totals())
    await registry.report([], {("video_mesh_bytes", "in"): 2**40})
    # Another head after a restart begins at nothing; the sum does not.
    await registry.report([], first.stats([]).totals())
    async with engine.connect() as db:
        samples = exposed(list(await metrics.collect(db, {})))
    assert samples["video_mesh_flows_total",] == 6
    assert samples["video_mesh_refused_total", ("reason", "bad_key")] == 4
    assert samples["video_mesh_bytes_total", ("direction", "in")] == 2**40
