"""``GET /api/v1/estimate``: when a video would be done, and what it would cost."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from deployments.registry import MODELS
from serve_app.api.auth import Reader
from serve_app.api.errors import Forbidden, InvalidRequest, RecipeUnavailable, RequestTooLarge, Unauthorized
from serve_app.api.placing import placed
from serve_app.api.problems import documented
from serve_app.api.schemas import EstimateView, ModelName
from serve_app.jobs import tally
from serve_app.jobs.conditions import EVERY_MODEL, of_key
from serve_app.jobs.forecast import CostRange
from serve_app.jobs.job import NewJob
from serve_app.services import Services, ServicesOf

router = APIRouter(prefix="/api/v1", tags=["generate"])


@router.get(
    "/estimate",
    operation_id="estimate",
    summary="Estimate what a video takes",
    response_description="What a job would be up against; what is not known is absent.",
    response_model_exclude_none=True,
    responses=documented(Unauthorized, Forbidden, InvalidRequest, RequestTooLarge, RecipeUnavailable),
)
async def estimate(
    request: Request,
    caller: Reader,
    services: ServicesOf,
    model: Annotated[ModelName, Query(description="See `GET /api/v1/models`.")],
) -> EstimateView:
    """What a job would cost and how long it would take if it were submitted now. Nothing is submitted.

    Parameters of `generate` may be given in the query, e.g. `?model=ltx2&duration=10&recipe=quality`; those that are
    not have their defaults.
    """
    if model not in MODELS:
        raise InvalidRequest(f"model: unknown; there are {', '.join(MODELS)}.", param="model")
    spec = MODELS[model]
    given = {name: value for name, value in request.query_params.items() if name != "model"}
    try:
        params = spec.params.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(
            [{**fault, "loc": ("query", *fault["loc"])} for fault in error.errors()]
        ) from error
    waiting = (await tally.counts(services.engine)).get(model, {})
    asked = NewJob(model=model, params={}, variant=spec.variant(params), size=spec.size(params))
    deployment = (await placed(asked, services)).deployment or model
    current = await services.conditions.current()
    condition = current.get(EVERY_MODEL) or current.get(deployment) or current.get(of_key(caller.key_id))
    eta, cost = await foreseen(deployment, spec.effort(params), services)
    return EstimateView(
        model=model,
        jobs_ahead=waiting.get("queued", 0) + waiting.get("processing", 0),
        eta_seconds=eta,
        cost_estimate_usd=cost,
        wait_code=condition and condition.code,
        wait_reason=condition and condition.message,
    )


async def foreseen(deployment: str, effort: float, services: Services) -> tuple[float | None, CostRange | None]:
    """Seconds and dollars for one more job of a deployment; None: not known."""
    eta_s = (await services.reads.lines.of(deployment)).until_one_more(effort)
    found = await services.forecasts.of(deployment)
    if found is None:
        return eta_s, None
    if eta_s is None:
        # None works on it yet: machines have to start.
        eta_s = found.eta_s(effort, found.demand.backlog, await services.capacity(deployment))
    return eta_s, found.cost_usd(effort)
