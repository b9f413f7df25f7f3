"""How long a deployment's jobs take, learnt from its latest videos: a long clip from long ones, where there are any.

What is compared is seconds by effort (``ModelSpec.effort``), so that a shape which was never made yet is estimated as
well.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from math import ceil
from statistics import median

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import SLOTS
from deployments.stage import Stage
from serve_app.jobs.job import Job, Status

#: Latest videos that are looked at, and seconds for which they are not looked up again; the same of what works and
#: waits: however many ask, the line is looked at once a second.
LEARNT_FROM = 50
KEPT_S = 5.0
LINE_KEPT_S = 1.0
#: Runs whose efforts differ by no more than this factor are of one shape.
SAME_SHAPE = 1.25
#: Waiting jobs that are looked at for what the others ask for.
MOST_WAITING = 1000
#: The part of the work after which its own pace says something.
TELLING = 0.05


@dataclass(frozen=True)
class Run:
    """One that made a video."""

    effort: float
    #: Seconds of the GPU; and from its inputs to the stored video.
    gpu_s: float
    whole_s: float


@dataclass(frozen=True)
class Working:
    """A job that a replica has."""

    effort: float
    #: 0 to 1.
    done: float
    attempt: int
    #: Since its first attempt began.
    elapsed_s: float


@dataclass(frozen=True)
class Pace:
    """Of a deployment. The latest run comes first."""

    runs: Sequence[Run]

    def gpu_s(self, effort: float) -> float | None:
        """Seconds for which a job of this effort keeps others from the GPU. None: nothing is known."""
        return _scaled(effort, [(run.effort, run.gpu_s) for run in self.runs])

    def whole_s(self, effort: float) -> float | None:
        """Seconds until its video is there, once it is its turn."""
        return _scaled(effort, [(run.effort, run.whole_s) for run in self.runs])

    def left_s(self, job: Working) -> float | None:
        """Seconds until its video is there: at first as others took, and the further it is, by its own pace."""
        learnt_s, left = self.whole_s(job.effort), 1 - job.done
        if job.attempt > 1:
            # How far this attempt is, nobody knows: progress never goes back.
            return learnt_s
        if job.done < TELLING:
            return None if learnt_s is None else left * learnt_s
        own_s = job.elapsed_s / job.done
        return left * (own_s if learnt_s is None else left * learnt_s + job.done * own_s)


def _scaled(effort: float, runs: Sequence[tuple[float, float]]) -> float | None:
    alike = [seconds / of for of, seconds in runs if max(of, effort) <= SAME_SHAPE * min(of, effort)]
    by_effort = alike or [seconds / of for of, seconds in runs]
    return median(by_effort) * effort if by_effort else None


@dataclass(frozen=True)
class Line:
    """What is known of a deployment's jobs at a moment. Estimates are in seconds; None: not known."""

    pace: Pace
    #: By the database's clock, and by this process's.
    now: datetime
    read_at: float
    #: What replicas have, by job, with when its first attempt began.
    working: Mapping[str, tuple[datetime, Working]]
    #: What would be in front if all that wait were one user's, and how much each and those before it ask for.
    ranks: Sequence[tuple[int, datetime]]
    efforts: Sequence[float]

    def until_done(self, job: Job) -> float | None:
        """For a job that a replica has, else None."""
        if job.status is not Status.PROCESSING or job.started_at is None:
            return None
        if job.stage in (Stage.PREPARING, Stage.WAITING_FOR_GPU):
            # Others of its replica may be before it.
            mine = job.started_at
            before = [other for job_id, (since, other) in self.working.items() if job_id != job.id and since < mine]
            return self._until(job.effort, before, waiting_s=0.0)
        now = self.now + timedelta(seconds=time.monotonic() - self.read_at)
        elapsed_s = max((now - job.started_at).total_seconds(), 0.0)
        return self.pace.left_s(Working(job.effort, job.progress / 100, job.attempt, elapsed_s))

    def until_turn_and_done(self, job: Job, ahead: int) -> float | None:
        """For one that waits, with so many waiting jobs ahead of it. None as well while no replica works: how long a
        GPU takes to come is not known here."""
        before = [other for job_id, (_, other) in self.working.items() if job_id != job.id]
        if not before:
            return None
        better = bisect_left(self.ranks, _rank(job.priority, job.created_at)) or len(self.efforts)
        asked = self.efforts[better - 1] / better if self.efforts else job.effort
        return self._until(job.effort, before, ahead * (self.pace.gpu_s(asked) or 0.0))

    def until_one_more(self, effort: float) -> float | None:
        """For one that would come now. None as above."""
        if not self.working:
            return None
        mean = self.efforts[-1] / len(self.efforts) if self.efforts else effort
        waiting_s = len(self.efforts) * (self.pace.gpu_s(mean) or 0.0)
        return self._until(effort, [other for _, other in self.working.values()], waiting_s)

    def _until(self, effort: float, working: Sequence[Working], waiting_s: float) -> float | None:
        own_s = self.pace.whole_s(effort)
        if own_s is None:
            return None
        before_s = waiting_s + sum(self.pace.left_s(other) or 0.0 for other in working)
        # A replica holds up to SLOTS jobs, of which one computes.
        return before_s / ceil(max(len(working), 1) / SLOTS) + own_s


def _rank(priority: int, created_at: datetime) -> tuple[int, datetime]:
    return -priority, created_at


class Lines:
    """The lines of deployments, each looked at once for all who ask within a second."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._lines: dict[str, Line] = {}
        #: The latest runs by deployment, with the moment they were looked up.
        self._paces: dict[str, tuple[Pace, float]] = {}
        self._looking = asyncio.Lock()

    async def of(self, deployment: str) -> Line:
        """What is known of the deployment now."""
        async with self._looking:
            line = self._lines.get(deployment)
            if line is None or time.monotonic() - line.read_at >= LINE_KEPT_S:
                line = self._lines[deployment] = await self._look(deployment)
            return line

    async def _look(self, deployment: str) -> Line:
        async with self._engine.connect() as db:
            pace, learnt_at = self._paces.get(deployment, (None, 0.0))
            if pace is None or time.monotonic() - learnt_at >= KEPT_S:
                rows = await db.execute(_RUNS, {"deployment": deployment, "limit": LEARNT_FROM})
                pace = Pace([Run(*row) for row in rows])
                self._paces[deployment] = pace, time.monotonic()
            now = (await db.execute(_NOW)).scalar_one()
            working = {
                row[0]: (row[1], Working(*row[2:])) for row in await db.execute(_WORKING, {"deployment": deployment})
            }
            waiting = (await db.execute(_WAITING, {"deployment": deployment, "limit": MOST_WAITING})).all()
        ranked = sorted((_rank(row.priority, row.created_at), row.effort) for row in waiting)
        return Line(
            pace=pace,
            now=now,
            read_at=time.monotonic(),
            working=working,
            ranks=[rank for rank, _ in ranked],
            efforts=list(accumulate(effort for _, effort in ranked)),
        )


_NOW = text("SELECT clock_timestamp()")

#: Runs of jobs that had no fault: timings are summed over attempts.
_RUNS = text(
    """
    SELECT effort, (timings->>'run')::float8 AS gpu_s,
           (timings->>'run')::float8 + coalesce((timings->>'prepare')::float8, 0)
               + coalesce((timings->>'publish')::float8, 0) AS whole_s
      FROM jobs
     WHERE status = 'completed' AND completed_at IS NOT NULL AND deployment = :deployment AND timings ? 'run'
       AND faults = 0 AND effort > 0
     ORDER BY completed_at DESC LIMIT :limit
    """
)

#: What replicas have.
_WORKING = text(
    """
    SELECT id, started_at, effort, progress / 100, attempt,
           greatest(extract(epoch FROM clock_timestamp() - started_at), 0)::float8
      FROM jobs
     WHERE lease_token IS NOT NULL AND status = 'processing' AND deployment = :deployment AND started_at IS NOT NULL
    """
)

#: What those that wait ask for.
_WAITING = text(
    """
    SELECT priority, created_at, effort FROM jobs
     WHERE status = 'queued' AND completed_at IS NULL AND deployment = :deployment
     LIMIT :limit
    """
)
