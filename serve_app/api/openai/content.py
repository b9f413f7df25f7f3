"""``GET /v1/videos/{video_id}/content``: the finished video, or its first frame."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from serve_app.api.auth import Reader
from serve_app.api.errors import (
    Forbidden,
    InternalError,
    InvalidRequest,
    JobNotFound,
    NotFound,
    NotSupported,
    RangeNotSatisfiable,
    Unauthorized,
    Unavailable,
)
from serve_app.api.files import MOST_OF_A_JOB, served
from serve_app.api.openai.error import SHAPE
from serve_app.api.openai.videos import VideoPath, video_of
from serve_app.api.problems import documented
from serve_app.api.streaming import Party, streams
from serve_app.jobs.job import Job, Status
from serve_app.services import ServicesOf
from serve_app.storage.local import LocalStorage

router = APIRouter(prefix="/v1/videos", tags=["openai"], responses=documented(InternalError, Unavailable, shape=SHAPE))

#: Seconds that a link into the bucket lives, and that an answer may be kept by who got it.
_LIFE_S = 3600
_BYTES: Mapping[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def _reader(path: str) -> Party:
    # Whose job it is, is asked later: whoever else knows the id takes none of its owner's places.
    return Party(name=path.split("/")[3], most=MOST_OF_A_JOB, of_each_key=True)


@router.get(
    "/{video_id}/content",
    operation_id="download_openai_video",
    summary="OpenAI: download a video",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": {"video/mp4": _BYTES, "image/webp": _BYTES}},
        206: {"description": "The parts that `Range` names.", "content": {"video/mp4": _BYTES, "image/webp": _BYTES}},
        302: {"description": "It is in the bucket, under this link."},
        304: {"description": "`If-None-Match` or `If-Modified-Since` say that you have it."},
        **documented(Unauthorized, Forbidden, JobNotFound, NotFound, RangeNotSatisfiable, InvalidRequest, shape=SHAPE),
    },
)
@streams(party=_reader)
async def download_video(
    video_id: VideoPath,
    caller: Reader,
    services: ServicesOf,
    request: Request,
    variant: Annotated[
        Literal["video", "thumbnail", "spritesheet"],
        Query(
            description="`thumbnail` is the first frame, as WebP. There are no sprite sheets.",
            json_schema_extra={"enum": ["video", "thumbnail"]},
        ),
    ] = "video",
) -> Response:
    """The finished video. Understands `Range`, `If-Range`, `If-None-Match` and `If-Modified-Since`."""
    if variant == "spritesheet":
        raise NotSupported("There are no sprite sheets here: ask for the video or its thumbnail.")
    job = (await video_of(video_id, caller, services)).job
    key = _key(job, variant)
    if key is None:
        # A worker outside of the cluster has it.
        assert job.result_url is not None
        return _elsewhere(job.result_url)
    filename = f"{job.id}.{'mp4' if variant == 'video' else 'webp'}"
    if isinstance(services.storage, LocalStorage):
        return await served(key, request, services.storage, life_s=_LIFE_S, filename=filename)
    return _elsewhere(
        services.storage.public_url(key) or await services.storage.presign_get(key, _LIFE_S, filename=filename)
    )


def _key(job: Job, variant: str) -> str | None:
    """Where it is in the store; None: elsewhere. Raises NotFound where there is none."""
    if job.status is not Status.COMPLETED:
        raise NotFound(f"The video is not there: it is {job.status}.")
    if variant == "video":
        return job.output_key
    if job.poster_key is None:
        raise NotFound("This video has no thumbnail.")
    return job.poster_key


def _elsewhere(url: str) -> Response:
    # The link is the permission: whoever keeps this answer would keep that.
    return RedirectResponse(url, 302, headers={"cache-control": "no-store"})
