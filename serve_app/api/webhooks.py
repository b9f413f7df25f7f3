"""Webhooks in both directions: workers outside the cluster report here; receivers get their secret here."""

from fastapi import APIRouter

from serve_app.api.auth import Reader, WorkerSecret
from serve_app.api.errors import (
    Forbidden,
    InvalidRequest,
    JobNotFound,
    PayloadTooLarge,
    RequestTimeout,
    Unauthorized,
    UnknownWorker,
)
from serve_app.api.problems import documented
from serve_app.api.schemas import Success, WebhookSecret, WorkerReport
from serve_app.services import ServicesOf

router = APIRouter(tags=["webhooks"])


@router.post(
    "/webhook/complete",
    operation_id="worker_report",
    summary="Report the end of a job",
    response_description="The report is taken.",
    dependencies=[WorkerSecret],
    responses=documented(UnknownWorker, JobNotFound, InvalidRequest, PayloadTooLarge, RequestTimeout),
)
async def worker_report(report: WorkerReport, services: ServicesOf) -> Success:
    """A worker outside the cluster ends a job. The job's own webhook is sent as for any other."""
    if report.status == "completed" and report.video_url is None:
        raise InvalidRequest("video_url: required when status is completed.", param="video_url")
    url = str(report.video_url) if report.status == "completed" else None
    job = await services.store.get(report.job_id)
    if job is None or job.model != report.model:
        raise JobNotFound
    await services.store.end_externally(report.job_id, video_url=url, error=report.error)
    return Success()


@router.get(
    "/api/v1/webhooks/secret",
    operation_id="webhook_secret",
    summary="Get the secret of `webhook_url`",
    response_description="The secret.",
    responses=documented(Unauthorized, Forbidden),
)
async def webhook_secret(caller: Reader, services: ServicesOf) -> WebhookSecret:
    """The secret that the `webhook_url` of this key's jobs is signed with. Endpoints have secrets of their own."""
    return WebhookSecret(secret=services.signing_secrets.of_key(caller.key_id))
