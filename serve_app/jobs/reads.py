"""A job as clients read it, with all that is told with it: one statement for all who ask at a time."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.batches import Batches
from serve_app.jobs.conditions import SAID, Condition, merged
from serve_app.jobs.job import Job, Status
from serve_app.jobs.pace import Lines
from serve_app.jobs.place import ahead_of


@dataclass(frozen=True)
class Seen:
    """A job, and what of other tables is told with it."""

    job: Job
    #: Jobs ahead of it; 0: it is next. None unless it waits.
    position: int | None
    #: Seconds until its video is there. None: not known, e.g. since no replica that could make it works.
    eta_s: float | None
    #: What stands in the way of jobs now, by subject; empty where it has ended.
    conditions: Mapping[str, Condition]
    #: Dollars; None while its machines are in use, or where none are rented.
    cost_usd: float | None


class JobReads:
    """Reads of single jobs. For one event loop."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._batches = Batches(engine.url.render_as_string(hide_password=False), _read)
        self.lines = Lines(engine)

    async def get(self, job_id: str, *, of_key: str | None = None) -> Seen | None:
        """None if there is none; with ``of_key``, none of that key. Raises psycopg.Error or TimeoutError."""
        found = await self._batches.ask(job_id)
        if found is None or of_key not in (None, found.job.key_id):
            return None
        job = found.job
        eta_s = None
        if found.position is not None:
            eta_s = (await self.lines.of(job.deployment)).until_turn_and_done(job, found.position)
        elif job.status is Status.PROCESSING:
            eta_s = (await self.lines.of(job.deployment)).until_done(job)
        return Seen(job, found.position, eta_s, found.conditions, found.cost_usd)

    async def several(self, ids: Sequence[str]) -> Sequence[Seen]:
        """Those that are there."""
        found = await asyncio.gather(*(self.get(job_id) for job_id in ids))
        return [seen for seen in found if seen is not None]

    async def aclose(self) -> None:
        await self._batches.aclose()


@dataclass(frozen=True)
class _Found:
    job: Job
    position: int | None
    conditions: Mapping[str, Condition]
    cost_usd: float | None


async def _read(connection: AsyncConnection, ids: Sequence[str]) -> Sequence[_Found | None]:
    cursor = connection.cursor(row_factory=dict_row)
    await cursor.execute(READ, {"ids": list(ids)})
    found = {row["id"]: _found(row) for row in await cursor.fetchall()}
    return [found.get(job_id) for job_id in ids]


def _found(row: Mapping[str, Any]) -> _Found:
    conditions = merged(row["conditions"] or ())
    return _Found(Job.from_row(row), row["position"], conditions, row["cost_usd"])


READ = f"""
    SELECT {", ".join(f"j.{name}" for name in Job.__dataclass_fields__)},
           CASE WHEN j.status = 'queued' THEN ({ahead_of()}) END AS position,
           CASE WHEN j.completed_at IS NULL THEN (
               SELECT jsonb_agg(jsonb_build_array(subject, code, message, running_jobs, of_launcher)) FROM ({SAID}) said
           ) END AS conditions,
           CASE WHEN j.completed_at IS NOT NULL AND j.attempt > 0 THEN (
               SELECT cost_usd FROM job_costs WHERE job_id = j.id) END AS cost_usd
      FROM jobs j WHERE j.id = ANY (%(ids)s::text[])
"""  # noqa: S608 - constants only
