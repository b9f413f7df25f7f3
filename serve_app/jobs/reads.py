"""A job as clients read it, with all that belongs to it, by one statement for all who ask at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from serve_app.jobs.batches import Batches
from serve_app.jobs.job import Job


@dataclass(frozen=True)
class Seen:
    """A job, and what of other tables is told with it."""

    job: Job
    #: Dollars; None while its machines are in use, or where none are rented.
    cost_usd: float | None


class JobReads:
    """Reads of single jobs."""

    def __init__(self, url: str) -> None:
        self._batches: Batches[str, Seen | None] = Batches(url, _read)

    async def get(self, job_id: str, *, of_key: str | None = None) -> Seen | None:
        """None if there is none; with ``of_key``, none of that key."""
        seen = await self._batches.ask(job_id)
        return seen if seen is not None and of_key in (None, seen.job.key_id) else None

    async def aclose(self) -> None:
        await self._batches.aclose()


async def _read(connection: AsyncConnection, ids: Sequence[str]) -> Sequence[Seen | None]:
    cursor = connection.cursor(row_factory=dict_row)
    await cursor.execute(_READ, (list(ids),))
    found = {row["id"]: _seen(row) for row in await cursor.fetchall()}
    return [found.get(job_id) for job_id in ids]


def _seen(row: Mapping[str, Any]) -> Seen:
    return Seen(Job.from_row(row), row["cost_usd"])


_READ = f"""
    SELECT {", ".join(f"j.{name}" for name in Job.__dataclass_fields__)},
           CASE WHEN j.completed_at IS NOT NULL AND j.attempt > 0
                THEN (SELECT cost_usd FROM job_costs WHERE job_id = j.id) END AS cost_usd
      FROM jobs j WHERE j.id = ANY (%s::text[])
"""  # noqa: S608 - constants only
