"""What webhook endpoints are sent, in the schema's section ``webhooks``. Nothing here is called."""

from typing import Annotated, Any

from fastapi import APIRouter, Header

from serve_app.jobs.deliveries import RETRY_SCHEDULE_S
from serve_app.jobs.webhook_event import EndpointTested, JobCancelled, JobCompleted, JobFailed, JobStarted

router = APIRouter(tags=["webhooks"])

_DAYS = round(sum(RETRY_SCHEDULE_S) / (24 * 3600))
_AGAIN = (
    f"It is sent again, up to {len(RETRY_SCHEDULE_S)} times in about {_DAYS} days; later where `Retry-After` says so."
)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    "2XX": {"description": "It is delivered, whatever the body."},
    "410": {"description": "Nobody listens there any more: the endpoint is disabled."},
    "default": {"description": _AGAIN},
}
WebhookId = Annotated[str, Header(description="The same over all attempts, so that you can tell what you had already.")]
WebhookTimestamp = Annotated[str, Header(description="Unix time of this attempt, in seconds.")]
WebhookSignature = Annotated[
    str,
    Header(description="`v1,…`, as Standard Webhooks say; two, with a space between, while a secret is rotated."),
]


@router.post(
    "job.started",
    operation_id="on_job_started",
    summary="A job has started",
    response_description="It is delivered.",
    responses=_ANSWERS,
    status_code=204,
)
async def on_job_started(
    body: JobStarted,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """A GPU has started on a job. Told once: further attempts are not."""


@router.post(
    "job.completed",
    operation_id="on_job_completed",
    summary="A job has completed",
    response_description="It is delivered.",
    responses=_ANSWERS,
    status_code=204,
)
async def on_job_completed(
    body: JobCompleted,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """A job has its video."""


@router.post(
    "job.failed",
    operation_id="on_job_failed",
    summary="A job has failed",
    response_description="It is delivered.",
    responses=_ANSWERS,
    status_code=204,
)
async def on_job_failed(
    body: JobFailed,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """A job has ended without a video."""


@router.post(
    "job.cancelled",
    operation_id="on_job_cancelled",
    summary="A job was cancelled",
    response_description="It is delivered.",
    responses=_ANSWERS,
    status_code=204,
)
async def on_job_cancelled(
    body: JobCancelled,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """A job was cancelled."""


@router.post(
    "test",
    operation_id="on_test",
    summary="A test",
    response_description="It is delivered.",
    responses=_ANSWERS,
    status_code=204,
)
async def on_test(
    body: EndpointTested,
    webhook_id: WebhookId,
    webhook_timestamp: WebhookTimestamp,
    webhook_signature: WebhookSignature,
) -> None:
    """Somebody has asked for a test of the endpoint."""
