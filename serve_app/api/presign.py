"""Presigned URLs: media never pass through the API when there is a bucket."""

from fastapi import APIRouter

from serve_app.api.auth import Maker, Reader
from serve_app.api.errors import (
    Forbidden,
    InvalidRequest,
    JobIdUsed,
    JobNotFound,
    JobNotUploading,
    NotFound,
    PayloadTooLarge,
    QueueFull,
    RequestTimeout,
    Unauthorized,
)
from serve_app.api.jobs import JobPath
from serve_app.api.limits import quota_of, told
from serve_app.api.links import TO_THE_JOB
from serve_app.api.media_schemas import DownloadTicket, UploadRequest, UploadTicket
from serve_app.api.problems import documented
from serve_app.api.uploads import default_content_type
from serve_app.jobs.job import Status
from serve_app.services import ServicesOf
from serve_app.storage import keys

router = APIRouter(prefix="/api/v1/presign", tags=["media"])

UPLOAD_LINK_S = 3600
DOWNLOAD_LINK_S = 24 * 3600


@router.post(
    "/upload",
    operation_id="presign_upload",
    summary="Get a link for an upload",
    response_description="Where to PUT the file, and the job that it is for.",
    responses={
        200: {"links": TO_THE_JOB},
        **documented(
            Unauthorized,
            Forbidden,
            InvalidRequest,
            JobNotUploading,
            JobIdUsed,
            PayloadTooLarge,
            RequestTimeout,
            QueueFull,
        ),
    },
)
async def presign_upload(request: UploadRequest, caller: Maker, services: ServicesOf) -> UploadTicket:
    """Get a URL to PUT an input file to. Then call `generate` with the `job_id` instead of a URL."""
    content_type = default_content_type(request.input_type) if request.content_type is None else request.content_type
    if not content_type.startswith(f"{request.input_type}/"):
        raise InvalidRequest(f"content_type: must be {request.input_type}/…", param="content_type")
    quota = await quota_of(caller, services)
    with told():
        job = await services.store.open_upload(request.job_id, key_id=caller.key_id, quota=quota)
    if job is None:
        raise JobIdUsed(param="job_id")
    if job.status is not Status.UPLOADING:
        raise JobNotUploading(param="job_id")
    key = keys.upload(job.folder, request.input_type)
    return UploadTicket(
        job_id=job.id,
        upload_url=await services.storage.presign_put(key, UPLOAD_LINK_S, content_type, request.size),
        content_type=content_type,
        expires_in=UPLOAD_LINK_S,
        key=key,
    )


@router.get(
    "/download/{job_id}",
    operation_id="presign_download",
    summary="Get a link to a video",
    response_description="The link.",
    responses=documented(Unauthorized, Forbidden, JobNotFound, NotFound, InvalidRequest),
)
async def presign_download(job_id: JobPath, caller: Reader, services: ServicesOf) -> DownloadTicket:
    """Get a link to the mp4 that works for a day."""
    job = await services.store.get(job_id, of_key=caller.sees)
    if job is None:
        raise JobNotFound
    if job.status is not Status.COMPLETED:
        raise NotFound(f"The job has no video: it is {job.status}.")
    if job.output_key is None:
        assert job.result_url is not None
        return DownloadTicket(download_url=job.result_url, expires_in=DOWNLOAD_LINK_S)
    url = await services.storage.presign_get(job.output_key, DOWNLOAD_LINK_S, filename=f"{job.id}.mp4")
    return DownloadTicket(download_url=url, expires_in=DOWNLOAD_LINK_S)
