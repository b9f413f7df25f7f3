"""How long the line is: counts, a job's position in it and when it may be done. Reads only."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.job import Job, Status

#: Positions beyond this are all reported as this: nobody needs them exact, and counting costs.
MAX_POSITION = 1000


@dataclass(frozen=True)
class Place:
    """Where a queued job stands; 0 means next."""

    position: int
    eta_seconds: float | None


class JobQueue:
    """The line as clients and operators see it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Jobs by model and status."""
        async with self._engine.connect() as db:
            rows = await db.execute(
                text("SELECT model, status, count(*) FROM jobs WHERE model IS NOT NULL GROUP BY 1, 2")
            )
            counts: dict[str, dict[str, int]] = {}
            for model, status, number in rows:
                counts.setdefault(model, {})[status] = number
        return counts

    async def place(self, job: Job) -> Place | None:
        """None unless the job waits.

        The estimate goes by the last 20 videos of the model and the replicas at work. While none works there is no
        estimate: how long a GPU takes to come is not known here.
        """
        if job.status is not Status.QUEUED:
            return None
        async with self._engine.connect() as db:
            position, seconds, workers = (await db.execute(_PLACE, _place_parameters(job))).one()
        eta = (position + 1) * float(seconds) / workers if seconds is not None and workers else None
        return Place(position, eta)


def _place_parameters(job: Job) -> dict[str, object]:
    return {"model": job.model, "priority": job.priority, "created": job.created_at, "limit": MAX_POSITION}


_PLACE = text(
    """
    SELECT (SELECT count(*) FROM (
               SELECT 1 FROM jobs WHERE status = 'queued' AND model = :model
                  AND (priority > :priority OR (priority = :priority AND created_at < :created)) LIMIT :limit) ahead),
           (SELECT avg(seconds) FROM (
               SELECT (timings->>'run')::float8 AS seconds FROM jobs
                WHERE status = 'completed' AND model = :model AND timings ? 'run'
                ORDER BY completed_at DESC LIMIT 20) recent),
           (SELECT count(*) FROM jobs WHERE status = 'processing' AND model = :model)
    """
)
