"""How much work there is of each model, and how long a job of it takes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.registry import MODELS

#: Latest videos that a job's time is learnt from.
LEARNT_FROM = 50


@dataclass(frozen=True, kw_only=True)
class Demand:
    #: Jobs that wait or run.
    backlog: int
    #: How many of them may run at a time, as the limits of their keys are: more machines would help nobody.
    at_once: int
    #: Seconds of the GPU that a job takes: the median of the latest on rented nodes, or what its spec expects.
    run_s: float
    #: The same for one whose effort is 1.
    unit_s: float


async def demands(engine: AsyncEngine, models: Collection[str]) -> Mapping[str, Demand]:
    """By model. A read of few rows."""
    async with engine.connect() as db:
        rows = (await db.execute(_DEMANDS, {"models": list(models), "latest": LEARNT_FROM})).all()
    found = {}
    for model, backlog, held_back, run_s, unit_s in rows:
        expected_s = MODELS[model].expected_run_s
        found[model] = Demand(
            backlog=backlog,
            at_once=backlog - held_back,
            run_s=expected_s if run_s is None else run_s,
            unit_s=expected_s if unit_s is None else unit_s,
        )
    return found


_DEMANDS = text(
    """
    SELECT model,
           (SELECT coalesce(sum(n), 0)::bigint FROM job_tally
             WHERE job_tally.model = asked.model AND status IN ('queued', 'processing')),
           (SELECT coalesce(sum(greatest(waiting.n + coalesce(claimed.n, 0) - running_jobs, 0)), 0)::bigint
              FROM api_keys
              LEFT JOIN (SELECT model, key_id, count(*) AS n FROM jobs
                          WHERE lease_token IS NOT NULL GROUP BY 1, 2) claimed
                     ON claimed.model = asked.model AND claimed.key_id = api_keys.id
             CROSS JOIN LATERAL (
                   SELECT count(*) AS n FROM jobs
                    WHERE status = 'queued' AND lease_token IS NULL AND jobs.model = asked.model
                      AND key_id = api_keys.id) waiting
             WHERE running_jobs IS NOT NULL),
           learnt.run_s, learnt.unit_s
      FROM unnest(CAST(:models AS text[])) asked (model)
     CROSS JOIN LATERAL (
         SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY busy_s) AS run_s,
                percentile_cont(0.5) WITHIN GROUP (ORDER BY busy_s / nullif(effort, 0)) AS unit_s
           FROM (SELECT busy_s, effort FROM runs
                  WHERE runs.model = asked.model AND outcome = 'completed'
                  ORDER BY ended_at DESC LIMIT :latest) latest) learnt
    """
)
