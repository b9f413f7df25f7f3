"""``POST /api/v1/generate``."""

from collections.abc import Collection, Mapping, Sequence
from math import ceil

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from deployments.engine import InputSpec
from deployments.registry import MODELS
from serve_app.access.caller import Caller
from serve_app.api import wish
from serve_app.api.attached import stored
from serve_app.api.auth import Maker
from serve_app.api.errors import (
    BudgetReached,
    Forbidden,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    InvalidRequest,
    JobNotFound,
    JobNotUploading,
    PayloadTooLarge,
    QueueFull,
    RecipeUnavailable,
    RequestTimeout,
    RequestTooLarge,
    SourceUnusable,
    Unauthorized,
    UploadMissing,
)
from serve_app.api.idempotency import IdempotencyKeyOf, keyed
from serve_app.api.jobs import view
from serve_app.api.limits import require_place
from serve_app.api.links import TO_THE_JOB, job_path
from serve_app.api.placing import placed
from serve_app.api.prefer import WaitGranted, applied, held
from serve_app.api.problems import documented
from serve_app.api.request_id import current_request_id
from serve_app.api.schemas import Created, GenerateOptions, JobView, new_job
from serve_app.api.streaming import MAX_BYTES, Live, large, live
from serve_app.api.submission import accept
from serve_app.jobs.job import Job, NewJob, Status
from serve_app.services import Services, ServicesOf
from serve_app.storage import keys

router = APIRouter(prefix="/api/v1", tags=["generate"])

#: Most seconds after which a client is told to ask for its new job.
MAX_RETRY_S = 30


async def create(body: bytes, caller: Caller, services: Services) -> Response | None:
    """The answer of :func:`generate` where no input is uploaded and nothing is asked beside it. None: it is not so, or
    the body is not valid."""
    try:
        request: GenerateOptions = wish.BODY.validate_json(body)
    except ValidationError:
        return None
    if request.job_id is not None or not all(_settled(request, item) for item in _inputs(request)):
        return None

    async def prepare() -> NewJob:
        return await placed(new_job(request, {}, caller.key_id, current_request_id()), services)

    response = Response(status_code=201, media_type="application/json")
    created, _ = await accept(prepare, caller, services, once=None)
    response.headers["location"] = job_path(created.job_id)
    response.headers["retry-after"] = _again(created)
    response.body = created.model_dump_json(exclude_none=True).encode()
    response.headers["content-length"] = str(len(response.body))
    return response


def _again(created: Created) -> str:
    """Seconds after which to ask for the job: a client may do so at any time, and need not."""
    return str(ceil(min(max(created.eta_seconds or 1, 1), MAX_RETRY_S)))


@router.post(
    "/generate",
    status_code=201,
    operation_id="generate",
    summary="Ask for a video",
    response_description="The job is on disk. After `Prefer: wait`, the job as it is then.",
    openapi_extra={"requestBody": wish.REQUEST_BODY},
    response_model_exclude_none=True,
    responses={
        201: {"links": TO_THE_JOB},
        **documented(
            Unauthorized,
            Forbidden,
            InvalidRequest,
            UploadMissing,
            IdempotencyKeyReused,
            JobNotFound,
            JobNotUploading,
            SourceUnusable,
            IdempotencyInFlight,
            PayloadTooLarge,
            RequestTimeout,
            RequestTooLarge,
            RecipeUnavailable,
            QueueFull,
            BudgetReached,
        ),
    },
)
@live(Live.WAIT)
@large(max_bytes=MAX_BYTES)
async def generate(
    caller: Maker,
    services: ServicesOf,
    wait_s: WaitGranted,
    key: IdempotencyKeyOf,
    connection: Request,
    response: Response,
    # In this order: a JobView has all that a Created has, and some clients take the first of the two that fits.
) -> JobView | Created:
    """Ask for a video. The answer means that the job is on disk and will end in exactly one final state.

    Small files may come along, in a form or as data URIs in the JSON: 14 MB a request. With `Prefer: wait=n` the
    answer is the job as it is when it has ended, or after n seconds.
    """
    async with wish.read(connection) as wished:
        request, files = wished.request, wished.files

        async def prepare() -> NewJob:
            opened = await _opened(request, caller, services)
            uploads = await _uploads(request, files, opened, services)
            new = await placed(new_job(request, uploads, caller.key_id, current_request_id()), services)
            if files:
                await require_place(new, caller, services, opened=opened is not None)
            return await stored(new, files, services, None if opened is None else opened.folder)

        once = keyed(key, caller, "generate", wished.asked)
        created, replayed = await accept(prepare, caller, services, job_id=request.job_id, once=once)
    response.headers.update({"location": job_path(created.job_id), **replayed})
    if wait_s:
        response.headers.update(applied(wait_s))
        # A repetition waits as well, unless the job was deleted meanwhile.
        job = await services.store.get(created.job_id)
        waited_for = None if job is None else await held(job, wait_s, connection.receive, services)
        if waited_for is not None:
            return await view(waited_for, services)
    else:
        response.headers["retry-after"] = _again(created)
    return created


def _inputs(request: GenerateOptions) -> Sequence[InputSpec]:
    # ``model`` is a field of each member of the union, and not of what they have in common.
    return MODELS[request.model].inputs  # type: ignore[attr-defined]


def _settled(request: GenerateOptions, item: InputSpec) -> bool:
    """Whether the body says all about this input: where it is, or by null that the video is made without it."""
    field = f"{item.name}_url"
    return getattr(request, field) is not None or (item.optional and field in request.model_fields_set)


async def _opened(request: GenerateOptions, caller: Caller, services: Services) -> Job | None:
    """The job that was opened for uploads before, if it is named."""
    if request.job_id is None:
        return None
    job = await services.store.get(request.job_id, of_key=caller.sees)
    if job is None:
        raise JobNotFound("Job not found: job_id must come from presign/upload.", param="job_id")
    if job.status is not Status.UPLOADING:
        raise JobNotUploading(param="job_id")
    return job


async def _uploads(
    request: GenerateOptions, files: Collection[str], job: Job | None, services: Services
) -> Mapping[str, str]:
    """Storage key of each input that was uploaded to ``job`` before. Every input has to come in some way, among
    ``files`` too, or be left out on purpose where it is optional. What was uploaded is used all the same: many clients
    send null for what they don't set."""
    uploads = {}
    inputs = _inputs(request)
    for item in inputs:
        field = f"{item.name}_url"
        if item.name in files or getattr(request, field) is not None:
            continue
        if job is not None and (key := await _uploaded(job, item, inputs, services)):
            uploads[item.name] = key
        elif not _settled(request, item):
            hint = " Send null for a video without it." if item.optional else ""
            if job is None:
                asked = f"required, unless the file comes along ({item.name}) or was uploaded (presign/upload)."
                raise InvalidRequest(f"{field}: {asked}{hint}", param=field)
            kinds = " or ".join(item.kinds)
            raise UploadMissing(f"{field}: no {kinds} was uploaded to this job yet.{hint}", param=field)
    return uploads


async def _uploaded(job: Job, item: InputSpec, inputs: Sequence[InputSpec], services: Services) -> str | None:
    """Storage key of what was uploaded for this input; None: nothing yet."""
    # A kind that another input is named after is meant for that one.
    for kind in (kind for kind in item.kinds if kind not in {other.name for other in inputs if other != item}):
        key = keys.upload(job.folder, kind)
        if await services.storage.stat(key) is not None:
            return key
    return None
