"""Migrations against the tables, and the exposition of counters."""

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
