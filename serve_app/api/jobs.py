"""Jobs: look, list, cancel, delete."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AfterValidator

from deployments.registry import MODELS
from serve_app.api.auth import Maker, Reader
from serve_app.api.errors import Forbidden, InvalidRequest, JobNotFinished, JobNotFound, Unauthorized
from serve_app.api.gate import Live, live
from serve_app.api.links import TO_THE_NEXT_PAGE
from serve_app.api.prefer import WaitGranted, applied, held
from serve_app.api.problems import documented
from serve_app.api.schemas import JobPage, JobView, ModelName, QueryText
from serve_app.jobs.conditions import Condition, why_waiting
from serve_app.jobs.costs import costs_of
from serve_app.jobs.forecast import Forecast, forecasts
from serve_app.jobs.job import Job, Status
from serve_app.services import Services, ServicesOf

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])


def _possible(job_id: str) -> str:
    # PostgreSQL would refuse to look for it.
    if "\0" in job_id:
        raise JobNotFound
    return job_id


JobPath = Annotated[str, Path(description="The `job_id` that `generate` answered with."), AfterValidator(_possible)]


async def view(job: Job, services: Services) -> JobView:
    return (await views([job], services))[0]


async def views(found: Sequence[Job], services: Services) -> Sequence[JobView]:
    """As clients see them, each with its place in the line."""
    costs = await costs_of(services.engine, found)
    estimates = await forecasts(services.engine, {job.model for job in found if job.id not in costs})
    # Nothing else can wait.
    waiting = any(not job.status.terminal for job in found)
    current = await services.conditions.current() if waiting else {}
    return [await _view(job, services, costs.get(job.id), estimates.get(job.model), current) for job in found]


async def _view(
    job: Job, services: Services, cost: float | None, forecast: Forecast | None, current: Mapping[str, Condition]
) -> JobView:
    place = await services.queue.place(job)
    found = None if cost is not None else forecast
    eta = await services.queue.until_done(job) if place is None else place.eta_seconds
    if place is not None and eta is None and found is not None:
        # None works on it yet: machines have to start.
        eta = found.eta_s(job.effort, place.position, await services.capacity(job.model))
    return JobView.of(
        job,
        result_url=await services.result_url(job),
        poster_url=await services.poster_url(job),
        position=None if place is None else place.position,
        eta=eta,
        waits=why_waiting(job, current),
        cost_usd=cost,
        estimate=None if found is None else found.cost_usd(job.effort),
    )


@router.get(
    "/{job_id}",
    operation_id="get_job",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, JobNotFound, InvalidRequest),
)
@live(Live.WAIT)
async def get_job(
    job_id: JobPath,
    caller: Reader,
    services: ServicesOf,
    wait_s: WaitGranted,
    request: Request,
    response: Response,
    model: str | None = None,
) -> JobView:
    """How a job is doing. With `model`, only if it is a job of that model."""
    job = await services.store.get(job_id, of_key=caller.sees)
    if job is None or (model is not None and job.model != model):
        raise JobNotFound
    if wait_s:
        response.headers.update(applied(wait_s))
        job = await held(job, wait_s, request.receive, services)
        if job is None:
            raise JobNotFound
    return await view(job, services)


@router.get(
    "",
    operation_id="list_jobs",
    response_model_exclude_none=True,
    responses={200: {"links": TO_THE_NEXT_PAGE}, **documented(Unauthorized, Forbidden, JobNotFound, InvalidRequest)},
)
async def list_jobs(
    caller: Reader,
    services: ServicesOf,
    status: Status | None = None,
    model: ModelName | None = None,
    user_id: QueryText | None = None,
    after: Annotated[QueryText | None, Query(description="`last_id` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
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
        status=status, model=model, user_id=user_id, after=position, limit=limit + 1, of_key=caller.sees
    )
    current = await services.conditions.current()
    costs = await costs_of(services.engine, found)
    estimates = await forecasts(services.engine, {job.model for job in found})
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
                estimates[job.model].cost_usd(job.effort) if job.model in estimates and job.id not in costs else None
            ),
        )
        for job in found[:limit]
    ]
    return JobPage(data=data, last_id=data[-1].job_id if data else None, has_more=len(found) > limit)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, JobNotFound, InvalidRequest),
)
async def cancel_job(job_id: JobPath, caller: Maker, services: ServicesOf) -> JobView:
    """Cancel a job; one that is running stops at its next step. Cancelling a job that has ended changes nothing."""
    job = await services.store.cancel(job_id, of_key=caller.sees)
    if job is None:
        raise JobNotFound
    return await view(job, services)


@router.delete(
    "/{job_id}",
    operation_id="delete_job",
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
