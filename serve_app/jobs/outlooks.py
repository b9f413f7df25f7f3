"""What the launcher, who rents machines, says of each deployment: why it rents none, how long a start takes, prices.

A deployment without an outlook has no rented machines: it is all on this one, or on nodes that somebody joins by hand.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from serve_app.jobs.conditions import BELIEVED_S, Condition
from serve_app.jobs.database import in_seconds
from serve_app.jobs.tables import outlooks

#: Seconds after which there is no launcher that rents any more. Until then its prices and times hold: while a head
#: restarts, the fleet must not be taken for one that costs nothing.
FORGOTTEN_S = 3600


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """A row of ``outlooks``; its columns are described in ``tables.py``."""

    start_s: float
    usd_per_hour_low: float | None = None
    usd_per_hour_high: float | None = None
    start_usd: float | None = None
    credit_usd: float | None = None
    code: str | None = None
    message: str | None = None

    @property
    def condition(self) -> Condition | None:
        """Why no machine is rented."""
        return None if self.code is None or self.message is None else Condition(self.code, self.message)


class Outlooks:
    """The table. Every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def note(self, deployment: str, outlook: Outlook) -> None:
        """For the launcher, whose role may write it: at least every half of ``BELIEVED_S``."""
        row = insert(outlooks).values(deployment=deployment, seen_at=func.now(), **asdict(outlook))
        changed = {column.name: row.excluded[column.name] for column in outlooks.columns if not column.primary_key}
        async with self._engine.begin() as db:
            await db.execute(row.on_conflict_do_update(index_elements=["deployment"], set_=changed))

    async def current(self) -> Mapping[str, Outlook]:
        """By deployment. What stands in the way is not believed for as long as the rest."""
        async with self._engine.connect() as db:
            return await known(db)


async def known(db: AsyncConnection) -> Mapping[str, Outlook]:
    """See :meth:`Outlooks.current`."""
    return {
        row.deployment: Outlook(
            start_s=row.start_s,
            usd_per_hour_low=row.usd_per_hour_low,
            usd_per_hour_high=row.usd_per_hour_high,
            start_usd=row.start_usd,
            credit_usd=row.credit_usd,
            code=row.code if row.fresh else None,
            message=row.message if row.fresh else None,
        )
        for row in await db.execute(_KNOWN)
    }


_KNOWN = select(outlooks, (outlooks.c.seen_at > in_seconds(-BELIEVED_S)).label("fresh")).where(
    outlooks.c.seen_at > in_seconds(-FORGOTTEN_S)
)
