"""How long a model's jobs take, learnt from its latest videos: a long clip from long ones, where there are any.

What is compared is seconds by effort (``ModelSpec.effort``), so that a shape which was never made yet is estimated as
well.
"""

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from math import ceil
from statistics import median
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import SLOTS
from deployments.stage import Stage
from serve_app.jobs.job import Job, Status

#: Latest videos that are looked at.
LEARNT_FROM = 50
#: Seconds for which they, and the work at hand, are not looked up again.
LEARNT_S = 5.0
AT_HAND_S = 1.0
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
        #: By model, with when that was.
        self._hands: dict[str, tuple[_Hand, float]] = {}

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
        hand = await self._at_hand(job.model, pace)
        # What replicas have besides this job; where one has it, only what they have had for longer.
        mine = job.started_at if job.status is Status.PROCESSING else None
        working = [
            left_s
            for other, (since, left_s) in hand.working.items()
            if other != job.id and (mine is None or since < mine)
        ]
        if not working and job.status is Status.QUEUED:
            return None
        # A replica holds up to SLOTS jobs, of which one computes.
        replicas = ceil(max(len(working), 1) / SLOTS)
        waiting_s = pace.gpu_s(hand.mean_before(job) or job.effort) or 0.0
        return (sum(working) + ahead * waiting_s) / replicas + own_s

    async def _at_hand(self, model: str, pace: Pace) -> "_Hand":
        kept = self._hands.get(model)
        if kept is None or time.monotonic() - kept[1] > AT_HAND_S:
            async with self._engine.connect() as db:
                rows = (await db.execute(_AT_HAND, {"model": model, "limit": MOST_WAITING})).all()
            kept = self._hands[model] = _Hand(rows, pace), time.monotonic()
        return kept[0]

    async def _pace(self, model: str) -> tuple[Pace, datetime]:
        """And the time, by the database's clock."""
        kept = self._kept.get(model)
        if kept is None or time.monotonic() - kept[2] > LEARNT_S:
            async with self._engine.connect() as db:
                rows = (await db.execute(_RUNS, {"model": model, "limit": LEARNT_FROM})).all()
            runs = [Run(row.effort, row.gpu_s, row.whole_s) for row in rows if row.effort is not None]
            kept = self._kept[model] = Pace(runs), rows[0].now, time.monotonic()
        return kept[0], kept[1] + timedelta(seconds=time.monotonic() - kept[2])


class _Hand:
    """The work at hand of a model."""

    def __init__(self, rows: Sequence[Any], pace: Pace) -> None:
        #: Of each job that a replica has: since when, and the seconds that are left.
        self.working = {
            row.id: (row.started_at, pace.left_s(Working(row.effort, row.done, row.attempt, row.elapsed_s)) or 0.0)
            for row in rows
            if row.started_at is not None
        }
        line = sorted((-row.priority, row.created_at, row.effort) for row in rows if row.started_at is None)
        self._places = [place[:2] for place in line]
        #: Of the first so many.
        self._efforts = list(accumulate((effort for *_, effort in line), initial=0.0))

    def mean_before(self, job: Job) -> float | None:
        """Mean effort of those that would be ahead of a job if all were one user's; of all, if none would. None: none
        waits."""
        before = bisect_left(self._places, (-job.priority, job.created_at)) or len(self._places)
        return self._efforts[before] / before if before else None


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

#: What replicas have, and what waits. ``started_at`` says which: a job that is tried again has one, too, and waits.
_AT_HAND = text(
    """
    (SELECT id, effort, priority, created_at, progress / 100 AS done, attempt, started_at,
            greatest(extract(epoch FROM clock_timestamp() - started_at), 0)::float8 AS elapsed_s
       FROM jobs
      WHERE lease_token IS NOT NULL AND status = 'processing' AND model = :model)
    UNION ALL
    (SELECT id, effort, priority, created_at, 0, 0, NULL, 0
       FROM jobs
      WHERE status = 'queued' AND completed_at IS NULL AND model = :model
      LIMIT :limit)
    """
)
