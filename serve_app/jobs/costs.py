"""What jobs have cost, once the books of their nodes are closed."""

from collections.abc import Collection, Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.job import Job
from serve_app.jobs.tables import job_costs


async def costs_of(engine: AsyncEngine, jobs: Collection[Job]) -> Mapping[str, float]:
    """Dollars by job; those that have not ended, or ran on nothing that is rented, are absent. One query."""
    ended = [job.id for job in jobs if job.status.terminal]
    if not ended:
        return {}
    query = select(job_costs.c.job_id, job_costs.c.cost_usd).where(job_costs.c.job_id.in_(ended))
    async with engine.connect() as db:
        return {row.job_id: row.cost_usd for row in await db.execute(query)}
