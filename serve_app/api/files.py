"""The local store's objects over HTTP. The signature in the URL is the permission; with a bucket these do not exist."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from serve_app.api.errors import (
    InvalidRequest,
    JobNotUploading,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    SignatureRejected,
)
from serve_app.api.gate import Party, streams
from serve_app.api.problems import documented
from serve_app.api.uploads import require_open
from serve_app.services import Services, ServicesOf
from serve_app.storage import keys
from serve_app.storage.base import InvalidKey, ObjectTooLarge
from serve_app.storage.local import LocalStorage, content_type_of
from serve_app.storage.signature import BadSignature, Expired, Grant

router = APIRouter(prefix="/files", tags=["media"])

#: Largest upload. Intake applies each model's own, smaller limit.
MAX_UPLOAD_BYTES = 2 * 1024**3
#: Transfers at a time: of one upload (a second one, for a client that lost its connection), and of one job.
MOST_OF_AN_UPLOAD = 2
MOST_OF_A_JOB = 8
#: An upload may take as long as its link lives.
UPLOAD_S = 3600.0


def _reader(path: str) -> Party:
    key = path.removeprefix(f"{router.prefix}/")
    owner = keys.owner(key)
    # Results are for clients, what intake has judged is for workers.
    return Party(name=owner[0] if owner else key, most=MOST_OF_A_JOB, worker=key.startswith("inputs/"))


def _writer(path: str) -> Party:
    key = path.removeprefix(f"{router.prefix}/")
    return Party(name=f"to {key}", most=MOST_OF_AN_UPLOAD, worker=key.startswith("outputs/"))


@router.get(
    "/{key:path}",
    operation_id="read_file",
    response_class=FileResponse,
    responses=documented(SignatureRejected, NotFound, InvalidRequest),
)
@streams(party=_reader)
async def read_file(key: str, request: Request, services: ServicesOf) -> FileResponse:
    """Read an object; understands `Range`."""
    grant, storage = _granted("GET", key, request, services)
    path = await storage.locate(key)
    if path is None:
        raise NotFound
    return FileResponse(path, media_type=content_type_of(key), filename=grant.filename)


@router.put(
    "/{key:path}",
    operation_id="write_file",
    status_code=200,
    responses=documented(SignatureRejected, JobNotUploading, PayloadTooLarge, RequestTimeout, InvalidRequest),
)
@streams(party=_writer, max_bytes=MAX_UPLOAD_BYTES, seconds=UPLOAD_S)
async def write_file(key: str, request: Request, services: ServicesOf) -> Response:
    """Write an object whole."""
    grant, storage = _granted("PUT", key, request, services)
    if request.headers.get("content-type") != grant.content_type:
        raise SignatureRejected(f"The content-type header must be {grant.content_type}.")
    await require_open(key, services.store)
    try:
        info = await storage.write(key, _body(request), MAX_UPLOAD_BYTES)
    except ObjectTooLarge as error:
        raise PayloadTooLarge(error.message) from error
    return Response(headers={"etag": f'"{info.md5}"'})


def _granted(method: str, key: str, request: Request, services: Services) -> tuple[Grant, LocalStorage]:
    storage = services.storage
    if not isinstance(storage, LocalStorage):
        raise NotFound
    try:
        return storage.verify(method, key, request.query_params), storage
    except (BadSignature, InvalidKey):
        raise SignatureRejected from None
    except Expired:
        raise SignatureRejected("The link has expired. Ask the API for a new one.") from None


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        yield chunk
