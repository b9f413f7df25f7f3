"""How much work there is of each deployment, and how long a job of it takes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.classes import model_of
from deployments.registry import MODELS

#: Latest videos that a job's time is learnt from.
LEARNT_FROM = 50


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Of one deployment, at one moment."""

    #: Jobs that wait or run.
    backlog: int
    #: How many of them may run at a time, as the limits of their keys are: more machines would help nobody.
    at_once: int
    #: Seconds of the GPU that a job takes: the median of the latest on rented nodes, or what its spec expects.
    run_s: float
    #: The same for one whose effort is 1.
    unit_s: float


async def demands(engine: AsyncEngine, deployments: Collection[str]) -> Mapping[str, Demand]:
    """By deployment. A read of few rows."""
    async with engine.connect() as db:
        rows = (await db.execute(_DEMANDS, {"deployments": list(deployments), "latest": LEARNT_FROM})).all()
    found = {}
    for deployment, backlog, held_back, run_s, unit_s in rows:
        expected_s = MODELS[model_of(deployment)].expected_run_s
        found[deployment] = Demand(
            backlog=backlog,
            at_once=backlog - held_back,
            run_s=expected_s if run_s is None else run_s,
            unit_s=expected_s if unit_s is None else unit_s,
        )
    return found


_DEMANDS = text(
    """
    SELECT deployment,
           (SELECT coalesce(sum(n), 0)::bigint FROM job_tally
             WHERE job_tally.deployment = asked.deployment AND status IN ('queued', 'processing')),
           (SELECT coalesce(sum(greatest(waiting.n + coalesce(claimed.n, 0) - running_jobs, 0)), 0)::bigint
              FROM api_keys
              LEFT JOIN (SELECT deployment, key_id, count(*) AS n FROM jobs
                          WHERE lease_token IS NOT NULL GROUP BY 1, 2) claimed
                     ON claimed.deployment = asked.deployment AND claimed.key_id = api_keys.id
             CROSS JOIN LATERAL (
                   SELECT count(*) AS n FROM jobs
                    WHERE status = 'queued' AND lease_token IS NULL AND jobs.deployment = asked.deployment
                      AND key_id = api_keys.id) waiting
             WHERE running_jobs IS NOT NULL),
           learnt.run_s, learnt.unit_s
      FROM unnest(CAST(:deployments AS text[])) asked (deployment)
     CROSS JOIN LATERAL (
         SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY busy_s) AS run_s,
                percentile_cont(0.5) WITHIN GROUP (ORDER BY busy_s / nullif(effort, 0)) AS unit_s
           FROM (SELECT busy_s, effort FROM runs
                  WHERE runs.deployment = asked.deployment AND outcome = 'completed'
                  ORDER BY ended_at DESC LIMIT :latest) latest) learnt
    """
)
