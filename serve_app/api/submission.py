"""From a wish to a job on disk, and the answer that says so: of ``generate``, and of a retry."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import structlog

from serve_app.access.caller import Caller
from serve_app.api.errors import JobNotUploading, VideoApiError
from serve_app.api.estimate import foreseen
from serve_app.api.idempotency import REPLAYED, answer_once
from serve_app.api.inputs import discard
from serve_app.api.limits import quota_of, told
from serve_app.api.schemas import Created
from serve_app.jobs.forecast import CostRange
from serve_app.jobs.idempotency import Answer, IdempotencyKey, KeyInFlight, KeyReused
from serve_app.jobs.job import Job, NewJob
from serve_app.jobs.quota import Quota
from serve_app.services import Services

log = structlog.get_logger()


async def accept(
    prepare: Callable[[], Awaitable[NewJob]],
    caller: Caller,
    services: Services,
    *,
    job_id: str | None = None,
    once: IdempotencyKey | None,
) -> tuple[Created, Mapping[str, str]]:
    """Submit what ``prepare`` makes, into the job ``job_id`` if it was opened before; with ``once``, for all requests
    with that key together. With it the headers that say whether it is the answer to a request before."""
    if once is None:
        new, created, quota = await _weighed(prepare, caller, services)
        async with _discarded(new, services):
            with told():
                job = await services.store.submit(new, job_id, of_key=caller.sees, quota=quota)
            if job is None:
                # It was there when the uploads were looked for.
                raise JobNotUploading(param="job_id")
        return created(job), {}

    async def submit() -> tuple[Job | None, Answer]:
        new, created, quota = await _weighed(prepare, caller, services)

        def answer(job: Job) -> Answer:
            return Answer(201, created(job).model_dump_json(exclude_none=True))

        async with _discarded(new, services):
            with told():
                found = await services.store.submit_once(once, answer, new, job_id, of_key=caller.sees, quota=quota)
            if found is None:
                raise JobNotUploading(param="job_id")
        if found[0] is None:
            # Another one was faster: what was stored for this one is nobody's.
            await discard(new, services.storage)
        return found

    answer, replayed = await answer_once(once, services.store, submit)
    return Created.model_validate_json(answer.body), {REPLAYED: "true"} if replayed else {}


@asynccontextmanager
async def _discarded(new: NewJob, services: Services) -> AsyncIterator[None]:
    """What was stored for a job that is refused is nobody's. After any other error the job may be there."""
    try:
        yield
    except (VideoApiError, KeyInFlight, KeyReused):
        await discard(new, services.storage)
        raise


async def _weighed(
    prepare: Callable[[], Awaitable[NewJob]], caller: Caller, services: Services
) -> tuple[NewJob, Callable[[Job], Created], Quota | None]:
    """The job to be, what to say once it is, and what its key may have."""
    new = await prepare()
    try:
        # Before: once the job is on disk, nothing may come between it and the answer.
        eta, cost = await foreseen(new.deployment or new.model, new.effort, services)
        return new, partial(_created, eta, cost), await quota_of(caller, services)
    except BaseException:
        await discard(new, services.storage)
        raise


def _created(eta: float | None, cost: CostRange | None, job: Job) -> Created:
    log.info("accepted", job_id=job.id, model=job.model)
    return Created(
        job_id=job.id,
        model=job.model,
        status=job.status,
        created_at=job.created_at,
        # How long the job takes for whose video it waits, nobody has asked.
        eta_seconds=None if job.awaits else eta,
        cost_estimate_usd=cost,
    )
