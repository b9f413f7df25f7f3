"""How long a model's jobs take, learnt from its latest videos: a long clip from long ones, where there are any.

What is compared is seconds by effort (``ModelSpec.effort``), so that a shape which was never made yet is estimated as
well.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from statistics import fmean, median

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import SLOTS
from deployments.stage import Stage
from serve_app.jobs.job import Job, Status

#: Latest videos that are looked at, and seconds for which they are not looked up again.
LEARNT_FROM = 50
KEPT_S = 5.0
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
    """Of a model. The latest run comes first."""

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


class Paces:
    """When jobs may be done, by what is learnt from the database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        #: By model, with the database's clock at this process's.
        self._kept: dict[str, tuple[Pace, datetime, float]] = {}

    async def until_done(self, job: Job) -> float | None:
        """Seconds for a job that a replica has. None: not known, or it has none."""
        if job.status is not Status.PROCESSING or job.started_at is None:
            return None
        if job.stage in (Stage.PREPARING, Stage.WAITING_FOR_GPU):
            # Others of its replica may be before it.
            return await self.until_turn_and_done(job, 0)
        pace, now = await self._pace(job.model)
        elapsed_s = max((now - job.started_at).total_seconds(), 0.0)
        return pace.left_s(Working(job.effort, job.progress / 100, job.attempt, elapsed_s))

    async def until_turn_and_done(self, job: Job, ahead: int) -> float | None:
        """Seconds for one that waits, with so many waiting jobs ahead of it. None: nothing is known, or no replica
        works: how long a GPU takes to come is not known here."""
        pace, _ = await self._pace(job.model)
        own_s = pace.whole_s(job.effort)
        if own_s is None:
            return None
        asked = {"id": job.id, "model": job.model, "priority": job.priority, "created": job.created_at}
        before = job.started_at if job.status is Status.PROCESSING else None
        async with self._engine.connect() as db:
            working = [Working(*row) for row in await db.execute(_WORKING, {**asked, "before": before})]
            efforts = (await db.execute(_WAITING, {**asked, "limit": MOST_WAITING})).all() if ahead else []
        if not working and job.status is Status.QUEUED:
            return None
        # A replica holds up to SLOTS jobs, of which one computes.
        replicas = ceil(max(len(working), 1) / SLOTS)
        better = [effort for effort, is_better in efforts if is_better] or [effort for effort, _ in efforts]
        waiting_s = pace.gpu_s(fmean(better) if better else job.effort) or 0.0
        before_s = sum(pace.left_s(other) or 0.0 for other in working) + ahead * waiting_s
        return before_s / replicas + own_s

    async def _pace(self, model: str) -> tuple[Pace, datetime]:
        """And the time, by the database's clock."""
        kept = self._kept.get(model)
        if kept is None or time.monotonic() - kept[2] > KEPT_S:
            async with self._engine.connect() as db:
                rows = (await db.execute(_RUNS, {"model": model, "limit": LEARNT_FROM})).all()
            runs = [Run(row.effort, row.gpu_s, row.whole_s) for row in rows if row.effort is not None]
            kept = self._kept[model] = Pace(runs), rows[0].now, time.monotonic()
        return kept[0], kept[1] + timedelta(seconds=time.monotonic() - kept[2])


#: One row at least, with the time. Runs of jobs that had no fault: timings are summed over attempts.
_RUNS = text(
    """
    SELECT clock_timestamp() AS now, latest.*
      FROM (VALUES (1)) once
      LEFT JOIN LATERAL (
           SELECT effort, (timings->>'run')::float8 AS gpu_s,
                  (timings->>'run')::float8 + coalesce((timings->>'prepare')::float8, 0)
                      + coalesce((timings->>'publish')::float8, 0) AS whole_s
             FROM jobs
            WHERE status = 'completed' AND completed_at IS NOT NULL AND model = :model AND timings ? 'run'
              AND faults = 0 AND effort > 0
            ORDER BY completed_at DESC LIMIT :limit) latest ON true
    """
)

#: What replicas have besides this job; where one has it, only what they have had for longer.
_WORKING = text(
    """
    SELECT other.effort, other.progress / 100, other.attempt,
           greatest(extract(epoch FROM clock_timestamp() - other.started_at), 0)::float8
      FROM jobs other
     WHERE other.lease_token IS NOT NULL AND other.status = 'processing' AND other.model = :model AND other.id <> :id
       AND other.started_at < coalesce(CAST(:before AS timestamptz), 'infinity')
    """
)

#: What others that wait ask for, and whether each would be ahead if all were one user's.
_WAITING = text(
    """
    SELECT effort, priority > :priority OR (priority = :priority AND created_at < :created)
      FROM jobs
     WHERE status = 'queued' AND completed_at IS NULL AND model = :model AND id <> :id
     LIMIT :limit
    """
)
