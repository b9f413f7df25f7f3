"""Bodies of requests and responses about jobs. The ``generate`` union is built from the model registry."""

from collections.abc import Mapping
from datetime import datetime
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    HttpUrl,
    WithJsonSchema,
    create_model,
)

from deployments.engine import ModelSpec
from deployments.registry import MODELS
from deployments.stage import Stage
from serve_app.api.body import WITHOUT_NUL, RequestBody, without_nul
from serve_app.api.examples import JOB_ID
from serve_app.api.labels import Metadata
from serve_app.api.source import UUID, Source, SourceOrJob
from serve_app.documentation import table
from serve_app.jobs.conditions import Condition, WaitCode
from serve_app.jobs.forecast import CostRange
from serve_app.jobs.job import Job, NewJob, Status, chained

#: Also a folder's name in the object store, so nothing but a UUID will do.
JobId = Annotated[
    str,
    Field(
        pattern=f"^{UUID}$",
        examples=[JOB_ID],
    ),
]

#: A text in a query string.
QueryText = Annotated[str, AfterValidator(without_nul), Field(json_schema_extra=WITHOUT_NUL)]


#: A model's name in a query. Checked by the handler, which says what models there are.
ModelName = Annotated[str, WithJsonSchema({"type": "string", "enum": [*MODELS], "examples": [*MODELS]})]


class GenerateOptions(RequestBody):
    """What every model's request may carry."""

    job_id: JobId | None = Field(None, description="A job opened by `presign/upload`, to use the files uploaded to it.")
    webhook_url: HttpUrl | None = Field(None, description="Told when the job has completed or failed (signed POST).")
    user_id: str | None = Field(
        None, min_length=1, max_length=200, description="Your user. Users share the GPUs fairly; also a list filter."
    )
    priority: int = Field(0, ge=-10, le=10, description="Higher runs first among the jobs of one user.")
    expires_after: float = Field(
        24 * 3600, gt=0, le=7 * 24 * 3600, description="Seconds within which the job has to start, else it fails."
    )
    #: Each model's request has its own limit of it.
    timeout_s: float | None = None
    metadata: Metadata | None = Field(
        None, description="Your own pairs of strings; the job carries them, and lists can be filtered by them."
    )


def _request_model(spec: ModelSpec) -> type[GenerateOptions]:
    """``GenerateOptions`` + the model's parameters + ``<input>_url`` for each input."""
    limit = (
        "Seconds that a run may take, else the job fails (`timed_out`) and is not retried. Waiting does not count. "
        f"Left out: {spec.timeout_s:g}, and such a failure is retried."
    )
    fields: dict[str, Any] = {
        "model": (Literal[spec.name], ...),
        "timeout_s": (float | None, Field(None, gt=0, le=spec.timeout_s, description=limit)),
    }
    for item in spec.inputs:
        kinds = " or ".join(item.kinds)
        text = (
            f"{item.description} An http(s) URL or a data URI; leave it out when you uploaded the {kinds} to `job_id`."
        )
        if item.optional:
            text += " `null` with nothing uploaded asks for a video without it."
        takes_videos = "video" in item.kinds
        if takes_videos:
            text += " Or `job:<id>`: the video of a job of yours, for which this one waits if it has not ended."
        source: Any = SourceOrJob if takes_videos else Source
        fields[f"{item.name}_url"] = (source | None, Field(None, description=text))
    created = create_model(f"{spec.name.title()}Request", __base__=(spec.params, GenerateOptions), **fields)
    created.__doc__ = spec.description
    uploaded: dict[str, Any] = {"required": ["job_id"], "properties": {"job_id": {"type": "string"}}}
    urls = [f"{item.name}_url" for item in spec.inputs]
    # Null says that an optional one is left out on purpose.
    needed = [f"{item.name}_url" for item in spec.inputs if not item.optional]
    linked: dict[str, Any] = {"required": urls, "properties": {url: {"type": "string"} for url in needed}}
    rules = spec.params.model_json_schema().get("allOf", [])
    created.model_config["json_schema_extra"] = {"allOf": [*rules, {"anyOf": [linked, uploaded]}]}
    created.model_rebuild(force=True)
    # Of both bases; create_model is typed for one.
    return created  # type: ignore[return-value]


REQUESTS: Mapping[str, type[GenerateOptions]] = {name: _request_model(spec) for name, spec in MODELS.items()}

GenerateRequest: Any = reduce(or_, REQUESTS.values())
if len(REQUESTS) > 1:
    GenerateRequest = Annotated[GenerateRequest, Field(discriminator="model")]


def new_job(request: GenerateOptions, uploads: Mapping[str, str], key_id: str, request_id: str) -> NewJob:
    """The job that a valid request asks for."""
    # A field of each request that _request_model made.
    name: str = request.model  # type: ignore[attr-defined]
    spec = MODELS[name]
    params = {field: getattr(request, field) for field in spec.params.model_fields}
    urls = {item.name: getattr(request, f"{item.name}_url") for item in spec.inputs}
    # Through the schema once more: plain JSON values, as the engine will read them.
    checked = spec.params.model_validate(params)
    return NewJob(
        model=name,
        params=checked.model_dump(mode="json"),
        effort=spec.effort(checked),
        variant=spec.variant(checked),
        size=spec.size(checked),
        sources={input_name: str(url) for input_name, url in urls.items() if url is not None},
        uploads=uploads,
        key_id=key_id,
        user_id=request.user_id,
        webhook_url=None if request.webhook_url is None else str(request.webhook_url),
        request_id=request_id,
        priority=request.priority,
        expires_after=request.expires_after,
        timeout_s=request.timeout_s,
        metadata=request.metadata or {},
    )


Eta = Annotated[
    float | None, Field(description="Seconds until the video is done, as far as that is known; absent when unknown.")
]
CostEstimate = Annotated[
    CostRange | None,
    Field(description="What it may cost, by present offers; absent where no machines are rented or prices known."),
]


class Created(BaseModel):
    """The job is on disk."""

    job_id: str
    model: str
    status: Status
    created_at: datetime
    eta_seconds: Eta = None
    cost_estimate_usd: CostEstimate = None


class EstimateView(BaseModel):
    """What a job would be up against if it were submitted now."""

    model: str
    jobs_ahead: int = Field(description="Jobs of this model that wait or run.")
    eta_seconds: Eta = None
    cost_estimate_usd: CostEstimate = None
    wait_code: str | None = Field(None, description="What would keep it from running, as in a job.")
    wait_reason: str | None = Field(None, description="The same in words.")


class JobView(BaseModel):
    """A job as clients see it."""

    job_id: str
    model: str | None = None
    status: Status
    progress: float = Field(description="0 to 100; never goes back.")
    stage: str = Field(description=f"What is happening.\n\n{table('stage')}")
    wait_code: str | None = Field(
        None, description=f"What keeps it from running besides the line.\n\n{table('wait_code')}"
    )
    wait_reason: str | None = Field(None, description="The same in words.")
    queue_position: int | None = Field(None, description="Jobs of this model ahead in the queue.")
    eta_seconds: float | None = Field(None, description="Estimate until the video is done; absent when unknown.")
    result_url: str | None = Field(None, description="A link to the mp4; absent until the job has completed.")
    poster_url: str | None = Field(
        None, description="The first frame, as WebP. Absent where there is none, as of a video that was made elsewhere."
    )
    error_message: str | None = Field(None, description="Why it failed, in words.")
    error_code: str | None = Field(
        None, description=f"Why it failed. ↻: after further attempts.\n\n{table('error_code')}"
    )
    attempt: int = Field(description="How many times a GPU has started on it.")
    user_id: str | None = None
    timeout_s: float | None = Field(None, description="Seconds that a run may take, where that was asked for.")
    metadata: Mapping[str, str] | None = Field(None, description="As you gave it.")
    retry_of: str | None = Field(None, description="The job that this one retries.")
    source_jobs: Mapping[str, str] | None = Field(
        None, description="The jobs whose videos it takes, by input; it waits for those that have not ended."
    )
    media: Mapping[str, Any] | None = Field(None, description="Size, frame rate and length of the finished video.")
    notes: Mapping[str, Any] | None = Field(
        None, description="E.g. the `seed` used, or `random_weights` when no checkpoint is configured."
    )
    created_at: datetime
    started_at: datetime | None = Field(None, description="When a GPU first started on it.")
    completed_at: datetime | None = Field(None, description="When it ended, whichever way.")
    cost_usd: float | None = Field(
        None,
        description="Dollars: its share of what its machines have cost. There once they have been given back; absent "
        "where none are rented.",
    )
    cost_estimate_usd: CostEstimate = None

    @classmethod
    def of(
        cls,
        job: Job,
        *,
        result_url: str | None,
        poster_url: str | None,
        position: int | None,
        eta: float | None,
        waits: Condition | None = None,
        cost_usd: float | None = None,
        estimate: CostRange | None = None,
    ) -> "JobView":
        stage = job.stage
        if job.cancel_requested_at and not job.status.terminal:
            stage = Stage.CANCELLING
        elif waits is not None and waits.code == WaitCode.STORAGE_UNAVAILABLE:
            stage = Stage.STORAGE_UNAVAILABLE
        return cls(
            job_id=job.id,
            model=job.model or None,
            status=job.status,
            progress=job.progress,
            stage=stage,
            wait_code=waits and waits.code,
            wait_reason=waits and waits.message,
            queue_position=position,
            eta_seconds=eta,
            result_url=result_url,
            poster_url=poster_url,
            # What a job that is tried again stumbled over is not how it ended.
            error_message=job.error_message if job.status is Status.FAILED else None,
            error_code=job.error_code if job.status is Status.FAILED else None,
            attempt=job.attempt,
            user_id=job.user_id,
            timeout_s=job.timeout_s,
            metadata=job.metadata,
            retry_of=job.retry_of,
            source_jobs=chained(job.sources) or None,
            media=job.media if isinstance(job.media, dict) else None,
            notes=job.notes or None,
            created_at=job.created_at,
            started_at=job.started_at,
            completed_at=job.completed_at,
            cost_usd=cost_usd,
            cost_estimate_usd=estimate,
        )


class JobPage(BaseModel):
    """Newest first. Ask for the next page with ``after=<last_id>``."""

    data: list[JobView]
    last_id: str | None = None
    has_more: bool
