"""``POST /webhook/complete``: a worker outside the cluster reports the end of a job."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, HttpUrl

from serve_app.api.auth import WorkerSecret
from serve_app.api.body import RequestBody
from serve_app.api.errors import InvalidRequest, JobNotFound, PayloadTooLarge, RequestTimeout, UnknownWorker
from serve_app.api.problems import documented
from serve_app.services import ServicesOf

router = APIRouter(tags=["webhooks"])


class WorkerReport(RequestBody):
    """What a worker outside the cluster says about a job."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"status": {"const": "failed"}}},
                {"required": ["video_url"], "properties": {"video_url": {"type": "string"}}},
            ]
        }
    )

    job_id: str
    model: str
    status: Literal["completed", "failed"]
    video_url: HttpUrl | None = None
    error: str | None = Field(None, max_length=2000)


class Success(BaseModel):
    success: Literal[True] = True


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
