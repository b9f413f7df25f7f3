"""``/v1/videos``: ask for a video, look, list, cancel, delete."""

from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator

from serve_app.access.caller import Caller
from serve_app.api.auth import Maker, Reader
from serve_app.api.errors import (
    Forbidden,
    InternalError,
    InvalidRequest,
    JobNotFinished,
    JobNotFound,
    Unauthorized,
    Unavailable,
    UnknownCursor,
)
from serve_app.api.jobs import possible
from serve_app.api.openai.error import SHAPE
from serve_app.api.openai.video import DeletedVideo, Video, VideoPage
from serve_app.api.problems import documented
from serve_app.api.schemas import QueryText
from serve_app.jobs.job import Job, Status
from serve_app.jobs.reads import Seen
from serve_app.services import Services, ServicesOf

router = APIRouter(prefix="/v1/videos", tags=["openai"], responses=documented(InternalError, Unavailable, shape=SHAPE))

#: When to ask again, in milliseconds.
POLL_AFTER = "openai-poll-after-ms"
_POLL_S = (0.5, 5.0)
#: Stock clients wait by the first interval that they are told: so they come late by this part of it all at most.
_POLL_SHARE = 8

_ID = {"video_id": "$response.body#/id"}
#: OpenAPI links of an answer that is a video.
TO_THE_VIDEO: dict[str, Any] = {
    name: {"operationId": f"{operation}_openai_video", "parameters": _ID}
    for name, operation in (("retrieve", "get"), ("download", "download"), ("cancel", "cancel"), ("delete", "delete"))
}
_TO_THE_NEXT_PAGE = {"next": {"operationId": "list_openai_videos", "parameters": {"after": "$response.body#/last_id"}}}


VideoPath = Annotated[str, Path(description="The `id` of a video: its `job_id`."), AfterValidator(possible)]


async def video_of(video_id: str, caller: Caller, services: Services) -> Seen:
    """A job that was submitted. Raises JobNotFound."""
    seen = await services.reads.get(video_id, of_key=caller.sees)
    if seen is None or seen.job.status is Status.UPLOADING:
        raise JobNotFound
    return seen


def shown(job: Job, services: Services) -> Video:
    """As its client sees it."""
    return Video.of(job, timedelta(hours=services.settings.completed_retention_hours))


def poll_after(eta_s: float | None) -> dict[str, str]:
    """The header that says when to ask for a video that will be there in so many seconds, as far as is known."""
    least, most = _POLL_S
    wait_s = 1.0 if eta_s is None else min(max(eta_s / _POLL_SHARE, least), most)
    return {POLL_AFTER: str(round(wait_s * 1000))}


@router.get(
    "/{video_id}",
    operation_id="get_openai_video",
    summary="OpenAI: look at a video",
    response_description="The video as it is now.",
    responses={
        200: {"links": TO_THE_VIDEO},
        **documented(Unauthorized, Forbidden, JobNotFound, InvalidRequest, shape=SHAPE),
    },
)
async def retrieve_video(video_id: VideoPath, caller: Reader, services: ServicesOf, response: Response) -> Video:
    """How a video is doing. `openai-poll-after-ms` says when to ask again."""
    seen = await video_of(video_id, caller, services)
    if not seen.job.status.terminal:
        response.headers.update(poll_after(seen.eta_s))
    return shown(seen.job, services)


@router.get(
    "",
    operation_id="list_openai_videos",
    summary="OpenAI: list videos",
    response_description="A page of videos.",
    responses={
        200: {"links": _TO_THE_NEXT_PAGE},
        **documented(Unauthorized, Forbidden, UnknownCursor, InvalidRequest, shape=SHAPE),
    },
)
async def list_videos(
    caller: Reader,
    services: ServicesOf,
    after: Annotated[QueryText | None, Query(description="`last_id` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most entries of a page.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="By `created_at`.")] = "desc",
) -> VideoPage:
    """Videos, also those that were asked for by `generate`."""
    position = None
    if after is not None:
        last = await services.store.get(after, of_key=caller.sees)
        if last is None or last.status is Status.UPLOADING:
            raise UnknownCursor(param="after")
        position = (last.created_at, last.id)
    found = await services.store.list(
        after=position, limit=limit + 1, of_key=caller.sees, submitted=True, oldest_first=order == "asc"
    )
    data = [shown(job, services) for job in found[:limit]]
    return VideoPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


@router.post(
    "/{video_id}/cancel",
    operation_id="cancel_openai_video",
    summary="OpenAI: cancel a video",
    response_description="The video as it is now.",
    responses={
        200: {"links": TO_THE_VIDEO},
        **documented(Unauthorized, Forbidden, JobNotFound, InvalidRequest, shape=SHAPE),
    },
)
async def cancel_video(video_id: VideoPath, caller: Maker, services: ServicesOf) -> Video:
    """Cancel a video; one that is being made stops at its next step, and is `failed` then with the code `cancelled`.
    Of one that has ended nothing changes. Not of OpenAI's protocol."""
    await video_of(video_id, caller, services)
    job = await services.store.cancel(video_id, of_key=caller.sees)
    if job is None:
        raise JobNotFound
    return shown(job, services)


@router.delete(
    "/{video_id}",
    operation_id="delete_openai_video",
    summary="OpenAI: delete a video",
    response_description="It is gone, and so are its media.",
    responses=documented(Unauthorized, Forbidden, JobNotFound, JobNotFinished, InvalidRequest, shape=SHAPE),
)
async def delete_video(video_id: VideoPath, caller: Maker, services: ServicesOf) -> DeletedVideo:
    """Delete the record and the media, of one that waits as well. One that is being made has to be cancelled first."""
    await video_of(video_id, caller, services)
    job = await services.store.delete(video_id, of_key=caller.sees)
    if job is None:
        raise JobNotFound
    if job.status is Status.PROCESSING:
        raise JobNotFinished(f"The video is being made. Cancel it first: POST /v1/videos/{video_id}/cancel.")
    return DeletedVideo(id=video_id)
