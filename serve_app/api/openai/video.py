"""A job as OpenAI's clients see it."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, Field

from serve_app.api.schemas import Created
from serve_app.jobs.job import Job, Status

#: What was left to the model, until the video is there and tells.
AUTO = "auto"

VideoStatus = Literal["queued", "in_progress", "completed", "failed"]
#: The protocol knows no other end than these two. What waits for uploads is not shown.
_STATUSES: Mapping[Status, VideoStatus] = {
    Status.UPLOADING: "queued",
    Status.QUEUED: "queued",
    Status.PROCESSING: "in_progress",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "failed",
}


class VideoError(BaseModel):
    """Why there is no video."""

    code: str = Field(description="As `error_code` of a job; `cancelled` if that is what became of it.")
    message: str


class Video(BaseModel):
    """A job, in the protocol's words. Times are Unix seconds."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: VideoStatus
    progress: int = Field(description="0 to 100; never goes back.")
    created_at: int
    completed_at: int | None = Field(None, description="When it ended, whichever way.")
    expires_at: int | None = Field(None, description="When it is deleted, at the latest.")
    prompt: str | None = None
    seconds: str = Field(description="`auto` where the model decides, until it is made.")
    size: str = Field(description="Width x height; `auto` likewise.")
    remixed_from_video_id: None = None
    error: VideoError | None = None

    @classmethod
    def of(cls, job: Job, kept: timedelta) -> "Video":
        """As it is; ``kept`` is how long a finished video is."""
        expires = None
        if job.status is Status.COMPLETED and job.completed_at is not None:
            expires = job.completed_at + kept
        return cls(
            id=job.id,
            model=job.model,
            status=_STATUSES[job.status],
            progress=int(job.progress),
            created_at=int(job.created_at.timestamp()),
            completed_at=_seconds(job.completed_at),
            expires_at=_seconds(expires),
            error=_error(job),
            **_asked(job.params, job.media if isinstance(job.media, dict) else {}),
        )

    @classmethod
    def created(cls, created: Created, params: Mapping[str, Any]) -> "Video":
        """As it was when it was asked for, with these parameters."""
        return cls(
            id=created.job_id,
            model=created.model,
            status=_STATUSES[created.status],
            progress=0,
            created_at=int(created.created_at.timestamp()),
            **_asked(params, {}),
        )


class VideoPage(BaseModel):
    """Ask for the next page with ``after=<last_id>``."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """It is gone, and so is its record."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def _error(job: Job) -> VideoError | None:
    if job.status is Status.CANCELLED:
        return VideoError(code="cancelled", message="The video was cancelled.")
    if job.status is Status.FAILED:
        return VideoError(code=job.error_code or "internal_error", message=job.error_message or "")
    return None


def _asked(params: Mapping[str, Any], media: Mapping[str, Any]) -> dict[str, Any]:
    """Prompt, length and size: of what was made, else of what was asked for."""
    prompt = params.get("prompt")
    width, height = (media.get(side) or params.get(side) for side in ("width", "height"))
    seconds = params.get("duration")
    if seconds is None and media.get("frames") and media.get("fps"):
        # An older row may say anything, and one that can't be read must not cost its key the whole list.
        with suppress(ArithmeticError, TypeError, ValueError):
            seconds = round(float(media["frames"] / Fraction(media["fps"])), 2)
    return {
        "prompt": prompt if isinstance(prompt, str) else None,
        "seconds": AUTO if seconds is None else f"{seconds:g}",
        "size": f"{width}x{height}" if width and height else AUTO,
    }


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())
