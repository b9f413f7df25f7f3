"""``POST /v1/videos``: JSON or a form becomes a job like any other."""

from fastapi import APIRouter, Request, Response

from serve_app.api.attached import stored
from serve_app.api.auth import Maker
from serve_app.api.errors import (
    BudgetReached,
    Forbidden,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    PayloadTooLarge,
    QueueFull,
    RecipeUnavailable,
    RequestTimeout,
    RequestTooLarge,
    Unauthorized,
    Unavailable,
)
from serve_app.api.idempotency import IdempotencyKeyOf, keyed
from serve_app.api.limits import require_place
from serve_app.api.openai.error import SHAPE
from serve_app.api.openai.request import read, request_body
from serve_app.api.openai.video import Video
from serve_app.api.openai.videos import TO_THE_VIDEO, poll_after
from serve_app.api.placing import placed
from serve_app.api.problems import documented
from serve_app.api.request_id import current_request_id
from serve_app.api.schemas import new_job
from serve_app.api.streaming import MAX_BYTES, large
from serve_app.api.submission import accept
from serve_app.jobs.job import NewJob
from serve_app.services import ServicesOf

router = APIRouter(prefix="/v1/videos", tags=["openai"], responses=documented(InternalError, Unavailable, shape=SHAPE))


@router.post(
    "",
    operation_id="create_openai_video",
    summary="OpenAI: ask for a video",
    response_description="The video, which is to be made.",
    openapi_extra={"requestBody": request_body()},
    responses={
        200: {"links": TO_THE_VIDEO},
        **documented(
            Unauthorized,
            Forbidden,
            ModelNotFound,
            InvalidRequest,
            IdempotencyKeyReused,
            IdempotencyInFlight,
            PayloadTooLarge,
            RequestTimeout,
            RequestTooLarge,
            RecipeUnavailable,
            QueueFull,
            BudgetReached,
            shape=SHAPE,
        ),
    },
)
@large(max_bytes=MAX_BYTES)
async def create_video(
    request: Request, caller: Maker, services: ServicesOf, key: IdempotencyKeyOf, response: Response
) -> Video:
    """Ask for a video of a prompt, and of a picture if there is one. Beside the fields of the protocol it takes those
    of `generate` that the protocol has no word for, such as `negative_prompt`, `seed` or `webhook_url`."""
    async with read(request) as wished:
        new = new_job(wished.request, {}, caller.key_id, current_request_id())

        async def prepare() -> NewJob:
            there = await placed(new, services)
            if wished.files:
                await require_place(there, caller, services)
            return await stored(there, wished.files, services)

        once = keyed(key, caller, "videos", wished.asked)
        created, replayed = await accept(prepare, caller, services, once=once)
    location = f"{router.prefix}/{created.job_id}"
    response.headers.update({"location": location, **replayed, **poll_after(created.eta_seconds)})
    return Video.created(created, new.params)
