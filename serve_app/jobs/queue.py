"""How many jobs there are."""

from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine


class JobQueue:
    """The lines as operators see them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Jobs by model and status."""
        async with self._engine.connect() as db:
            rows = await db.execute(_COUNTS)
            counts: dict[str, dict[str, int]] = {}
            for model, status, number in rows:
                counts.setdefault(model, {})[status] = number
        return counts


#: The condition on ``jobs`` costs nothing and fails where the table is not there.
_COUNTS = text(
    """
    SELECT model, status, sum(n)::bigint FROM job_tally GROUP BY 1, 2
    HAVING sum(n) <> 0 AND NOT EXISTS (SELECT FROM jobs WHERE false)
    """
)
