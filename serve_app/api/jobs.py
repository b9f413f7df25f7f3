"""Jobs: look, list, cancel, delete."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AfterValidator

from deployments.registry import MODELS
from serve_app.access.caller import Caller
from serve_app.api.auth import Maker, Reader
from serve_app.api.errors import (
    BudgetReached,
    Forbidden,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    InputsGone,
    InvalidRequest,
    JobNotFailed,
    JobNotFinished,
    JobNotFound,
    QueueFull,
    RecipeUnavailable,
    RequestTooLarge,
    SourceUnusable,
    Unauthorized,
)
from serve_app.api.examples import JOB_ID, JOBS
from serve_app.api.idempotency import IdempotencyKeyOf, keyed
from serve_app.api.labels import PARAMETER, MetadataWanted
from serve_app.api.limits import require_place
from serve_app.api.links import TO_THE_JOB, TO_THE_NEXT_PAGE, job_path
from serve_app.api.placing import placed
from serve_app.api.prefer import WaitGranted, applied, held
from serve_app.api.problems import documented
from serve_app.api.request_id import current_request_id
from serve_app.api.retries import again, with_inputs
from serve_app.api.schemas import Created, JobPage, JobView, ModelName, QueryText
from serve_app.api.streaming import Live, live
from serve_app.api.submission import accept
from serve_app.jobs.conditions import why_waiting
from serve_app.jobs.costs import costs_of
from serve_app.jobs.job import NewJob, Status
from serve_app.jobs.reads import Seen
from serve_app.services import Services, ServicesOf

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])


def possible(job_id: str) -> str:
    """An id that may be a job's. Raises JobNotFound."""
    # PostgreSQL would refuse to look for it.
    if "\0" in job_id:
        raise JobNotFound
    return job_id


JobPath = Annotated[
    str,
    Path(description="The `job_id` that `generate` answered with.", examples=[JOB_ID]),
    AfterValidator(possible),
]


async def view(seen: Seen, services: Services) -> JobView:
    """As its client sees it."""
    job = seen.job
    forecast = None if seen.cost_usd is not None else await services.forecasts.of(job.deployment)
    eta_s = seen.eta_s
    if seen.position is not None and eta_s is None and forecast is not None:
        # None works on it yet: machines have to start.
        eta_s = forecast.eta_s(job.effort, seen.position, await services.capacity(job.deployment))
    return JobView.of(
        job,
        result_url=await services.result_url(job),
        poster_url=await services.poster_url(job),
        position=seen.position,
        eta=eta_s,
        waits=why_waiting(job, seen.conditions),
        cost_usd=seen.cost_usd,
        estimate=None if forecast is None else forecast.cost_usd(job.effort),
    )


async def read(job_id: str, caller: Caller, services: Services) -> Response | None:
    """The answer of :func:`get_job` where nothing is asked beside it. None: there is no such job of the caller's."""
    seen = await services.reads.get(job_id, of_key=caller.sees)
    if seen is None:
        return None
    return Response((await view(seen, services)).model_dump_json(exclude_none=True), media_type="application/json")


@router.get(
    "/{job_id}",
    operation_id="get_job",
    summary="Look at a job",
    response_description="The job as it is now.",
    response_model_exclude_none=True,
    responses={
        200: {"content": {"application/json": {"examples": JOBS}}},
        **documented(Unauthorized, Forbidden, JobNotFound, InvalidRequest),
    },
)
@live(Live.WAIT)
async def get_job(
    job_id: JobPath,
    caller: Reader,
    services: ServicesOf,
    wait_s: WaitGranted,
    request: Request,
    response: Response,
    model: Annotated[str | None, Query(description="The model that it has to be a job of.")] = None,
) -> JobView:
    """How a job is doing. With `model`, only if it is a job of that model."""
    seen = await services.reads.get(job_id, of_key=caller.sees)
    if seen is None or (model is not None and seen.job.model != model):
        raise JobNotFound
    if wait_s:
        response.headers.update(applied(wait_s))
        seen = await held(seen.job, wait_s, request.receive, services)
        if seen is None:
            raise JobNotFound
    return await view(seen, services)


@router.get(
    "",
    operation_id="list_jobs",
    summary="List jobs",
    response_description="A page of jobs, newest first.",
    response_model_exclude_none=True,
    responses={200: {"links": TO_THE_NEXT_PAGE}, **documented(Unauthorized, Forbidden, JobNotFound, InvalidRequest)},
    openapi_extra={"parameters": [PARAMETER]},
)
async def list_jobs(
    caller: Reader,
    services: ServicesOf,
    metadata: MetadataWanted,
    status: Annotated[Status | None, Query(description="Only those that are so.")] = None,
    model: Annotated[ModelName | None, Query(description="Only those of this model.")] = None,
    user_id: Annotated[
        QueryText | None, Query(description="Only those of this user of yours.", examples=["ann"])
    ] = None,
    after: Annotated[QueryText | None, Query(description="`last_id` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most entries of a page.")] = 20,
) -> JobPage:
    """Jobs, newest first."""
    if model is not None and model not in MODELS:
        raise InvalidRequest(f"model: unknown; there are {', '.join(MODELS)}.", param="model")
    position = None
    if after is not None:
        last = await services.store.get(after, of_key=caller.sees)
        if last is None:
            raise JobNotFound("after: no such job. Start again from the first page.", param="after")
        position = (last.created_at, last.id)
    found = await services.store.list(
        status=status,
        model=model,
        user_id=user_id,
        metadata=metadata,
        after=position,
        limit=limit + 1,
        of_key=caller.sees,
    )
    current = await services.conditions.current()
    costs = await costs_of(services.engine, found)
    estimates = {name: await services.forecasts.of(name) for name in {job.deployment for job in found}}
    # A page of positions in the queue would cost a count per row; a single job has it.
    data = [
        JobView.of(
            job,
            result_url=await services.result_url(job),
            poster_url=await services.poster_url(job),
            position=None,
            eta=None,
            waits=why_waiting(job, current),
            cost_usd=costs.get(job.id),
            estimate=(
                forecast.cost_usd(job.effort)
                if (forecast := estimates[job.deployment]) is not None and job.id not in costs
                else None
            ),
        )
        for job in found[:limit]
    ]
    return JobPage(data=data, last_id=data[-1].job_id if data else None, has_more=len(found) > limit)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    summary="Cancel a job",
    response_description="The job as it is now.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, JobNotFound, InvalidRequest),
)
async def cancel_job(job_id: JobPath, caller: Maker, services: ServicesOf) -> JobView:
    """Cancel a job; one that is running stops at its next step. Cancelling a job that has ended changes nothing."""
    job = await services.store.cancel(job_id, of_key=caller.sees)
    seen = None if job is None else await services.reads.get(job_id)
    if seen is None:
        raise JobNotFound
    return await view(seen, services)


@router.post(
    "/{job_id}/retry",
    status_code=201,
    operation_id="retry_job",
    summary="Retry a job",
    response_description="The new job is on disk.",
    response_model_exclude_none=True,
    responses={
        201: {"links": TO_THE_JOB},
        **documented(
            Unauthorized,
            Forbidden,
            JobNotFound,
            JobNotFailed,
            InputsGone,
            SourceUnusable,
            IdempotencyInFlight,
            InvalidRequest,
            RequestTooLarge,
            RecipeUnavailable,
            IdempotencyKeyReused,
            QueueFull,
            BudgetReached,
        ),
    },
)
async def retry_job(
    job_id: JobPath, caller: Maker, services: ServicesOf, key: IdempotencyKeyOf, response: Response
) -> Created:
    """Ask once more for what a failed or cancelled job was to make: a new job, with the same parameters, options and
    inputs. It has `retry_of`, and needs nothing of the old one, which may be deleted. Where its source was a job that
    has failed, retry that one first: its latest retry takes its place."""

    async def prepare() -> NewJob:
        job = await services.store.get(job_id, of_key=caller.sees)
        if job is None:
            raise JobNotFound
        new = await placed(again(job, current_request_id()), services)
        await require_place(new, caller, services)
        async with services.copies.hold(new.owner):
            return await with_inputs(new, job, await services.store.sources_again(job), services.storage)

    created, replayed = await accept(prepare, caller, services, once=keyed(key, caller, "retry", {"job_id": job_id}))
    response.headers.update({"location": job_path(created.job_id), **replayed})
    return created


@router.delete(
    "/{job_id}",
    operation_id="delete_job",
    summary="Delete a job",
    response_description="It is gone, and so are its media.",
    status_code=204,
    responses=documented(Unauthorized, Forbidden, JobNotFound, JobNotFinished, InvalidRequest),
)
async def delete_job(job_id: JobPath, caller: Maker, services: ServicesOf) -> Response:
    """Delete the record and the media. A running job has to be cancelled first."""
    job = await services.store.delete(job_id, of_key=caller.sees)
    if job is None:
        raise JobNotFound
    if job.status is Status.PROCESSING:
        raise JobNotFinished
    return Response(status_code=204)
