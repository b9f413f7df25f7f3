"""What the launcher reads of runs, which whoever has the service's role may write as it likes."""

from datetime import UTC, datetime, timedelta

import psycopg
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from cluster.head.attendance import Run
from serve_app.cli.renting import Service
from serve_app.settings import Settings

_ROWS = """
INSERT INTO runs (job_id, attempt, started_at, model, node, effort, ended_at, busy_s)
SELECT kind || n, 1, CAST(begun AS timestamptz), 'ltx2', 'slot', 1, CAST(until AS timestamptz),
       CASE WHEN until IS NOT NULL THEN 1 END
  FROM (VALUES ('past', '-infinity', NULL), ('never', '-infinity', 'infinity'), ('tomorrow', 'infinity', NULL),
               ('endless', '2026-01-01', 'infinity')) odd (kind, begun, until), generate_series(1, 2) n
"""


async def test_runs_that_nobody_made_cost_the_launcher_neither_its_memory_nor_its_sight(
    engine: AsyncEngine, database_url: str
) -> None:
    now = datetime.now(UTC)
    begun = now - timedelta(minutes=1)
    with psycopg.connect(database_url.replace("+psycopg", "", 1)) as db:
        db.execute(_ROWS)
        true = (
            "INSERT INTO runs (job_id, attempt, started_at, model, node, effort) VALUES ('true', 1, %s, 'x', 'slot', 1)"
        )
        db.execute(true, (begun,))
    service = Service(Settings(secret_key=SecretStr("s" * 32)), {})
    since = now - timedelta(days=1)
    assert await service.runs(engine, {"slot"}, since) == [Run(node="slot", begun_at=begun)]
    with psycopg.connect(database_url.replace("+psycopg", "", 1)) as db:
        db.execute(
            "INSERT INTO runs (job_id, attempt, started_at, model, node, effort)"
            " SELECT 'made up', n, %s, 'x', 'slot', 1 FROM generate_series(1, 5000) n",
            (begun - timedelta(hours=1),),
        )
    found = await service.runs(engine, {"slot"}, since)
    assert len(found) == 1000
    assert Run(node="slot", begun_at=begun) in found
