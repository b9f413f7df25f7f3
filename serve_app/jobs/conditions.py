"""Why jobs wait, beyond the line itself: a model that does not load, a replica without a node, a store that refuses, a
key's limit.

The dispatcher writes what it sees, the launcher why it rents no machine; which keys are at their limit is counted. The
API reads, and so does the store when a deadline passes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter

from sqlalchemy import delete, func, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deployments.explained import Explained
from deployments.stage import Stage
from serve_app.jobs.job import Job, Status
from serve_app.jobs.tables import conditions


class WaitCode(Explained):
    """What keeps a job waiting, beyond its turn."""

    MODEL_UNAVAILABLE = (
        "model_unavailable",
        "Replicas of the model do not start, e.g. for want of its weights; tried again after 1, 2, 4 … 15 minutes, on"
        " rented machines after an hour.",
    )
    NO_NODE_FITS = "no_node_fits", "No machine has what a replica needs: `needs 2 CPUs, 1 free`."
    WEIGHTS_UNAVAILABLE = (
        "weights_unavailable",
        "The model's weights are not set, not mirrored or not to be had, so no machine is rented for it.",
    )
    CAP_REACHED = (
        "cap_reached",
        "Another machine would cost more, or be one more, than the operator's caps allow: by the hour, the day, the"
        " machine or the number. It goes on when there is room.",
    )
    NO_MACHINE = (
        "no_machine",
        "No machine can be rented at the moment: none that fits is on offer, the last ones failed, or the provider"
        " does not answer. It goes on by itself.",
    )
    NO_CREDIT = "no_credit", "The operator's account with the provider has no credit left for another machine."
    STORAGE_UNAVAILABLE = (
        "storage_unavailable",
        "Our disk is full or our bucket refuses; the job goes on by itself and loses no attempt.",
    )
    KEY_LIMIT = (
        "key_limit",
        "The API key has as many jobs running as it may have at a time; the job goes on by itself when one of them has"
        " ended.",
    )
    WAITING_FOR_SOURCE = (
        "waiting_for_source",
        "An input is the video of another job, which has not ended; the job goes on by itself, and its time to start"
        " begins then.",
    )
    RETRYING = "retrying", "What the attempt before ended with."


#: Without the operator nothing becomes of these: neither Serve nor the launcher need be asked.
HOPELESS = frozenset({WaitCode.MODEL_UNAVAILABLE, WaitCode.WEIGHTS_UNAVAILABLE})
#: The subject of what concerns the jobs of every deployment.
EVERY_MODEL = ""
#: Seconds after which what nobody has seen again is not believed any more.
BELIEVED_S = 120


def of_key(key_id: str) -> str:
    """The subject of what concerns the jobs of a key, of every deployment."""
    return f"key {key_id}"


@dataclass(frozen=True)
class Condition:
    """Something that keeps jobs from running."""

    code: str
    message: str


class Conditions:
    """The table. Every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def note(self, subject: str, condition: Condition) -> None:
        """It holds (still). ``subject`` is a deployment or :data:`EVERY_MODEL`."""
        row = insert(conditions).values(subject=subject, code=condition.code, message=condition.message)
        seen = {"code": row.excluded.code, "message": row.excluded.message, "seen_at": func.now()}
        async with self._engine.begin() as db:
            await db.execute(row.on_conflict_do_update(index_elements=["subject"], set_=seen))

    async def lift(self, subject: str) -> None:
        """It holds no longer."""
        async with self._engine.begin() as db:
            await db.execute(delete(conditions).where(conditions.c.subject == subject))

    async def current(self) -> Mapping[str, Condition]:
        """By subject."""
        async with self._engine.connect() as db:
            return await believed(db)


async def believed(db: AsyncConnection) -> Mapping[str, Condition]:
    """By subject: what was seen lately, by the dispatcher or by the launcher, and which keys are at their limit."""
    return merged(await db.execute(_SAID))


def merged(said: Iterable[tuple[str, str | None, str | None, int | None, bool]]) -> Mapping[str, Condition]:
    """By subject, of rows of :data:`SAID`. Of a node that is not there the launcher knows why."""
    found: dict[str, Condition] = {}
    for subject, code, message, limit, of_launcher in sorted(said, key=itemgetter(4)):
        if limit is not None:
            found[subject] = _at_limit(limit)
        elif not of_launcher or subject not in found or found[subject].code == WaitCode.NO_NODE_FITS:
            found[subject] = Condition(str(code), str(message))
    return found


def _at_limit(jobs: int) -> Condition:
    return Condition(
        WaitCode.KEY_LIMIT,
        f"The key may have {jobs} {'job' if jobs == 1 else 'jobs'} running at a time; the job goes on by itself when"
        " one of them has ended.",
    )


#: One query, since every look at a job asks it. Running is what was claimed for the GPU, as in ``claim.py``.
SAID = f"""
    SELECT subject, code, message, NULL::int AS running_jobs, false AS of_launcher
      FROM conditions WHERE seen_at > now() - make_interval(secs => {BELIEVED_S})
     UNION ALL
    SELECT deployment, code, message, NULL, true
      FROM outlooks WHERE code IS NOT NULL AND seen_at > now() - make_interval(secs => {BELIEVED_S})
     UNION ALL
    SELECT 'key ' || api_keys.id, NULL, NULL, running_jobs, false
      FROM api_keys
      LEFT JOIN (SELECT key_id, count(*) AS n FROM jobs
                  WHERE lease_token IS NOT NULL AND inputs IS NOT NULL GROUP BY 1) running
             ON running.key_id = api_keys.id
     WHERE running_jobs <= coalesce(n, 0)
"""  # noqa: S608 - constants only
_SAID = text(SAID)


def why_waiting(job: Job, current: Mapping[str, Condition]) -> Condition | None:
    """What keeps this job from running, besides those ahead of it; None if nothing does."""
    if job.status.terminal or job.status is Status.UPLOADING:
        return None
    if job.awaits is not None:
        noun = "job" if len(job.awaits) == 1 else "jobs"
        return Condition(WaitCode.WAITING_FOR_SOURCE, f"Waits for {noun} {' and '.join(job.awaits)}.")
    everywhere = current.get(EVERY_MODEL)
    if job.stage == Stage.STORAGE_UNAVAILABLE:
        return everywhere or Condition(
            WaitCode.STORAGE_UNAVAILABLE, "The object store refused; the job goes on by itself."
        )
    if job.status is Status.PROCESSING:
        return None
    if found := everywhere or current.get(job.deployment):
        return found
    if (limit := current.get(of_key(job.key_id))) and (job.lease_token is None or job.inputs is None):
        return limit
    if job.stage == Stage.RETRYING and job.fault_log:
        last = job.fault_log[-1]
        what = f"Attempt {last['attempt']}" if last["attempt"] else "Fetching its inputs"
        return Condition(WaitCode.RETRYING, f"{what} failed with {last['code']}: {last['message']}")
    return None
