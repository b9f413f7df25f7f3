"""How many jobs there are."""

from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine


async def counts(engine: AsyncEngine) -> Mapping[str, Mapping[str, int]]:
    """Jobs by model and status."""
    found: dict[str, dict[str, int]] = {}
    async with engine.connect() as db:
        for model, status, number in await db.execute(COUNTS):
            found.setdefault(model, {})[status] = number
    return found


#: Deployments of a model for which jobs wait, claimed ones too.
LINES = text("SELECT deployment FROM job_tally WHERE model = :model AND status = 'queued' GROUP BY 1 HAVING sum(n) > 0")

#: The condition on ``jobs`` costs nothing and fails where the table is not there.
COUNTS = text(
    """
    SELECT model, status, sum(n)::bigint FROM job_tally GROUP BY 1, 2
    HAVING sum(n) <> 0 AND NOT EXISTS (SELECT FROM jobs WHERE false)
    """
)
