"""What machines have cost and what came of it, from the launcher's books and the runs of jobs. Pure, but for one read.

A node's cost is shared by the models that had its GPU in proportion to the seconds; what a node costs on which nothing
has run yet is nobody's.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

By = Literal["model", "node", "day"]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """On a node, on one day (UTC)."""

    node: str
    node_type: str
    day: date
    usd: float
    #: Of that, before it could work.
    start_usd: float
    #: Seconds that it was rented.
    rented_s: float


@dataclass(frozen=True, kw_only=True)
class Done:
    """Of a model on a node, on one day: by the end of the run."""

    node: str
    day: date
    model: str
    jobs: frozenset[str]
    videos: int
    #: Of the GPU.
    busy_s: float


@dataclass(kw_only=True)
class Line:
    """A row of the bill. Amounts are dollars."""

    jobs: set[str] = field(default_factory=set)
    videos: int = 0
    usd: float = 0.0
    start_usd: float = 0.0
    rented_s: float = 0.0
    busy_s: float = 0.0

    def add(self, spent: Spent, share: float = 1.0) -> None:
        self.usd += spent.usd * share
        self.start_usd += spent.start_usd * share
        self.rented_s += spent.rented_s * share

    def did(self, done: Done) -> None:
        self.jobs |= done.jobs
        self.videos += done.videos
        self.busy_s += done.busy_s

    @property
    def usd_per_video(self) -> float | None:
        return self.usd / self.videos if self.videos else None

    @property
    def utilisation(self) -> float | None:
        """Of the rented seconds, in how many the GPU had a job."""
        return self.busy_s / self.rented_s if self.rented_s else None

    @property
    def start_share(self) -> float | None:
        return self.start_usd / self.usd if self.usd else None


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What was spent and what was made for it, by model, by node or by day."""

    #: In the order of their names.
    lines: dict[str, Line]
    total: Line
    #: Of the total, what no job can be charged with.
    unattributed_usd: float


def bill(spent: Sequence[Spent], done: Iterable[Done], by: By) -> Bill:
    """What was done on nodes that nobody has rented is no part of it."""
    rented = {each.node for each in spent}
    done = [each for each in done if each.node in rented]
    total = Line()
    busy: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    lines: dict[str, Line] = defaultdict(Line)
    for each in done:
        total.did(each)
        busy[each.node][each.model] += each.busy_s
        lines[_DONE[by](each)].did(each)
    unattributed = 0.0
    for cost in spent:
        total.add(cost)
        shares = busy[cost.node]
        whole = sum(shares.values())
        if not whole:
            unattributed += cost.usd
        if by != "model":
            lines[_SPENT[by](cost)].add(cost)
        elif whole:
            for model, seconds in shares.items():
                lines[model].add(cost, seconds / whole)
    return Bill(lines=dict(sorted(lines.items())), total=total, unattributed_usd=unattributed)


_DONE: dict[By, Callable[[Done], str]] = {
    "model": lambda each: each.model,
    "node": lambda each: each.node,
    "day": lambda each: each.day.isoformat(),
}
_SPENT: dict[By, Callable[[Spent], str]] = {
    "node": lambda each: each.node,
    "day": lambda each: each.day.isoformat(),
}


async def read(engine: AsyncEngine, since: datetime) -> tuple[Sequence[Spent], Sequence[Done]]:
    """What began to be spent, and what ended, then or later. For the owner of the tables."""
    async with engine.connect() as db:
        spent = [Spent(**row._mapping) for row in await db.execute(_SPENT_SINCE, {"since": since})]
        done = [
            Done(**{**row._mapping, "jobs": frozenset(row.jobs)})
            for row in await db.execute(_DONE_SINCE, {"since": since})
        ]
    return spent, done


#: As in the view ``node_bills``: a machine that never came to work is a node of its own.
_SPENT_SINCE = text(
    """
    SELECT CASE WHEN worked_at IS NULL THEN rentals.label ELSE rentals.slot_id END AS node,
           max(node_costs.node_type) AS node_type,
           (node_costs.begun_at AT TIME ZONE 'UTC')::date AS day,
           sum(gpu_usd + storage_usd + bandwidth_usd) AS usd,
           coalesce(sum(gpu_usd + storage_usd + bandwidth_usd)
                    FILTER (WHERE node_costs.state NOT IN ('idle', 'busy', 'ending', 'ended')), 0) AS start_usd,
           sum(extract(epoch FROM node_costs.until - node_costs.begun_at))::double precision AS rented_s
      FROM node_costs JOIN rentals USING (label)
     WHERE node_costs.begun_at >= :since
     GROUP BY 1, 3 ORDER BY 3, 1
    """
)
_DONE_SINCE = text(
    """
    SELECT node, (ended_at AT TIME ZONE 'UTC')::date AS day, model, array_agg(DISTINCT job_id) AS jobs,
           count(*) FILTER (WHERE outcome = 'completed') AS videos, sum(busy_s) AS busy_s
      FROM runs WHERE ended_at >= :since
     GROUP BY node, 2, model ORDER BY 2, 1
    """
)
