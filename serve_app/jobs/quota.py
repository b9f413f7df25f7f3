"""What a key may have waiting and may spend.

Asked in the transaction that makes the job, while nobody else asks for the same key: no two requests pass on the same
free place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from serve_app.jobs.job import AWAITING, NewJob, Status
from serve_app.jobs.tables import jobs, key_spending

#: Jobs that a key without a limit may have open for uploads at a time. They cost no GPU, but rows.
MOST_UPLOADS = 1000
_WAITING = (Status.QUEUED, Status.UPLOADING, AWAITING)


class NoPlace(Exception):
    """As many jobs of the key wait, or are open for uploads, as it may have."""


class NoBudget(Exception):
    """The jobs of the key have cost what they may, or would with this one."""


@dataclass(frozen=True, kw_only=True)
class Quota:
    """Of one key. None: as much as there is."""

    key_id: str
    #: Jobs that wait, with those that are open for uploads.
    queued_jobs: int | None = None
    usd_per_day: float | None = None
    #: Dollars that a job whose effort is 1 is expected to cost, by model. Where none are rented, models are absent.
    unit_usd: Mapping[str, float] = field(default_factory=dict)

    @property
    def limits_jobs(self) -> bool:
        """Whether there is anything to :meth:`require`."""
        return self.queued_jobs is not None or self.usd_per_day is not None

    async def require(self, db: AsyncConnection, new: NewJob, *, opened: bool) -> None:
        """Let ``new`` in; ``opened``: it has its place since it was opened for uploads. Raises NoPlace or NoBudget."""
        if not self.limits_jobs:
            return
        await self._alone(db)
        if self.queued_jobs is not None and not opened:
            await self._require_place(db, _WAITING, self.queued_jobs)
        if self.usd_per_day is not None:
            expected = await _unfinished(db, self.key_id)
            name = new.deployment or new.model
            expected[name] = expected.get(name, 0) + new.effort
            to_come = sum(self.unit_usd.get(name, 0) * effort for name, effort in expected.items())
            if await _spent(db, self.key_id) + to_come > self.usd_per_day:
                raise NoBudget

    async def require_upload(self, db: AsyncConnection, job_id: str | None) -> None:
        """Let a job be opened for uploads, if it is not there already. Raises NoPlace."""
        if job_id is not None and (await db.execute(select(jobs.c.id).where(jobs.c.id == job_id))).first():
            return
        await self._alone(db)
        await self._require_place(db, (Status.UPLOADING,), MOST_UPLOADS)
        if self.queued_jobs is not None:
            await self._require_place(db, _WAITING, self.queued_jobs)

    async def _alone(self, db: AsyncConnection) -> None:
        await db.execute(text("SELECT pg_advisory_xact_lock(hashtext('quota'), hashtext(:key))"), {"key": self.key_id})

    async def _require_place(self, db: AsyncConnection, statuses: Sequence[str], most: int) -> None:
        some = select(jobs.c.id).where(_open(self.key_id), jobs.c.status.in_(statuses)).limit(most).subquery()
        if (await db.execute(select(func.count()).select_from(some))).scalar_one() >= most:
            raise NoPlace


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a key uses at this moment."""

    running: int
    queued: int
    #: Dollars of the last 24 hours, by the books so far.
    usd: float


async def use_of(engine: AsyncEngine, key_id: str) -> Use:
    """Of a key with an id: what the environment's own costs is in no book of its own."""
    counted = select(jobs.c.status, func.count().label("n")).where(_open(key_id)).group_by(jobs.c.status)
    async with engine.connect() as db:
        counts = {row.status: row.n for row in await db.execute(counted)}
        usd = await _spent(db, key_id)
    waiting = sum(counts.get(status, 0) for status in _WAITING)
    return Use(running=counts.get(Status.PROCESSING, 0), queued=waiting, usd=usd)


async def _unfinished(db: AsyncConnection, key_id: str) -> dict[str, float]:
    """Effort by deployment, of jobs that were submitted and have not ended."""
    submitted = _open(key_id) & jobs.c.model.is_not(None)
    summed = select(jobs.c.deployment, func.sum(jobs.c.effort).label("effort")).where(submitted)
    return {row.deployment: row.effort for row in await db.execute(summed.group_by(jobs.c.deployment))}


async def _spent(db: AsyncConnection, key_id: str) -> float:
    found = (await db.execute(select(key_spending.c.usd).where(key_spending.c.key_id == key_id))).scalar_one_or_none()
    return found or 0.0


def _open(key_id: str) -> ColumnElement[bool]:
    # As the index has it.
    return (jobs.c.key_id == key_id) & (jobs.c.key_id != "") & jobs.c.completed_at.is_(None)
