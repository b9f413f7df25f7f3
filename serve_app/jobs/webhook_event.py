"""What webhook endpoints are told: the events, and their bodies as Standard Webhooks want them (``type``,
``timestamp``, ``data``; less than 20 kB).

A body is made when it is sent, and says how things were at its event.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.jobs.job import Job, Status


class JobEvent(StrEnum):
    """What an endpoint may ask to be told."""

    #: A GPU works on it for the first time.
    STARTED = "job.started"
    COMPLETED = "job.completed"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"


#: What an endpoint is told unless it asks for something else.
ENDS = (JobEvent.COMPLETED, JobEvent.FAILED, JobEvent.CANCELLED)
#: The event of a delivery that is about no job.
TEST = "test"
#: Of a body, which receivers take up to 20 kB.
METADATA_BYTES = 6_000

_OF_STATUS = {
    Status.COMPLETED: JobEvent.COMPLETED,
    Status.FAILED: JobEvent.FAILED,
    Status.CANCELLED: JobEvent.CANCELLED,
}


def event_of(end: Status) -> JobEvent:
    """The event of a job's end."""
    return _OF_STATUS[end]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class JobFacts(_Value):
    """The job, as it was at the event."""

    job_id: str
    model: str
    status: Status
    attempt: int = Field(description="How many times a GPU has started on it.")
    user_id: str | None = None
    metadata: Mapping[str, str] | None = Field(
        None, description=f"As the client gave it; absent where it would take more than {METADATA_BYTES} bytes."
    )
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None


class VideoFacts(JobFacts):
    """A job that has its video."""

    video_url: str | None = Field(None, description="A link to the mp4, good as long as that is kept, 7 days at most.")


class FaultFacts(JobFacts):
    """A job that has failed."""

    error: str | None = None
    error_code: str | None = Field(None, description="As in the job.")


class JobStarted(_Value):
    """A GPU has started on a job. Told once: further attempts are not."""

    type: Literal[JobEvent.STARTED] = JobEvent.STARTED
    timestamp: datetime
    data: JobFacts


class JobCompleted(_Value):
    """A job has its video."""

    type: Literal[JobEvent.COMPLETED] = JobEvent.COMPLETED
    timestamp: datetime
    data: VideoFacts


class JobFailed(_Value):
    """A job has ended without a video."""

    type: Literal[JobEvent.FAILED] = JobEvent.FAILED
    timestamp: datetime
    data: FaultFacts


class JobCancelled(_Value):
    """A job was cancelled."""

    type: Literal[JobEvent.CANCELLED] = JobEvent.CANCELLED
    timestamp: datetime
    data: JobFacts


class EndpointFacts(_Value):
    """Whom the test is for."""

    endpoint_id: str


class EndpointTested(_Value):
    """Somebody has asked for a test of the endpoint."""

    type: Literal["test"] = "test"
    timestamp: datetime
    data: EndpointFacts


EventBody = JobStarted | JobCompleted | JobFailed | JobCancelled


def job_event(event: JobEvent, job: Job, video_url: str | None) -> EventBody:
    """The body of an event of the job, however the job is by now."""
    facts = {name: getattr(job, name) for name in ("model", "attempt", "user_id", "created_at", "started_at")}
    facts |= {"job_id": job.id, "status": event.removeprefix("job.")}
    if job.metadata and len(json.dumps(dict(job.metadata))) <= METADATA_BYTES:
        facts["metadata"] = job.metadata
    happened = job.completed_at or datetime.now(UTC)
    match event:
        case JobEvent.STARTED:
            started = JobFacts.model_validate(facts | {"status": Status.PROCESSING, "attempt": 1})
            return JobStarted(timestamp=job.started_at or happened, data=started)
        case JobEvent.COMPLETED:
            video = VideoFacts.model_validate(facts | {"completed_at": happened, "video_url": video_url})
            return JobCompleted(timestamp=happened, data=video)
        case JobEvent.FAILED:
            fault = {"error": job.error_message, "error_code": job.error_code}
            return JobFailed(
                timestamp=happened, data=FaultFacts.model_validate(facts | fault | {"completed_at": happened})
            )
        case JobEvent.CANCELLED:
            return JobCancelled(timestamp=happened, data=JobFacts.model_validate(facts | {"completed_at": happened}))
