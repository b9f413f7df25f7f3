"""The local store's objects over HTTP. The signature in the URL is the permission; with a bucket these do not exist."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse
from starlette.datastructures import MutableHeaders
from starlette.types import Receive, Scope, Send

from serve_app.api import ranges
from serve_app.api.errors import (
    InvalidRequest,
    JobNotUploading,
    NotFound,
    PayloadTooLarge,
    RangeNotSatisfiable,
    RequestTimeout,
    SignatureRejected,
)
from serve_app.api.problems import documented
from serve_app.api.streaming import Party, streams
from serve_app.api.uploads import require_open
from serve_app.services import Services, ServicesOf
from serve_app.storage import keys
from serve_app.storage.base import InvalidKey, ObjectTooLarge
from serve_app.storage.headers import attachment, caching
from serve_app.storage.local import LocalStorage, content_type_of
from serve_app.storage.signature import BadSignature, Expired, Grant

router = APIRouter(prefix="/files", tags=["media"])

#: Largest upload. Intake applies each model's own, smaller limit.
MAX_UPLOAD_BYTES = 2 * 1024**3
#: Transfers at a time: of one upload (a second one, for a client that lost its connection), and of one job.
MOST_OF_AN_UPLOAD = 2
MOST_OF_A_JOB = 8
#: What a request says of the parts that it wants.
_OF_PARTS = (b"range", b"if-range")
_BYTES: Mapping[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
#: An upload may take as long as its link lives.
UPLOAD_S = 3600.0

FileKey = Annotated[
    str,
    Path(
        description="Only by links that the API hands out: their query is part of them, and not to be made by hand.",
    ),
]


def _reader(path: str) -> Party:
    key = path.removeprefix(f"{router.prefix}/")
    owner = keys.owner(key)
    # Results are for clients, what intake has judged is for workers.
    return Party(name=owner[0] if owner else key, most=MOST_OF_A_JOB, worker=key.startswith("inputs/"))


def _writer(path: str) -> Party:
    key = path.removeprefix(f"{router.prefix}/")
    return Party(name=f"to {key}", most=MOST_OF_AN_UPLOAD, worker=key.startswith("outputs/"))


class _Parts(FileResponse):
    """A file, or those parts of it. Which, has been decided: what the request says of that is not looked at again."""

    def __init__(self, parts: Sequence[tuple[int, int]] | None, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(raw=[(name, value) for name, value in scope["headers"] if name not in _OF_PARTS])
        if self._parts is not None:
            headers["range"] = f"bytes={','.join(f'{first}-{last}' for first, last in self._parts)}"
        await super().__call__({**scope, "headers": headers.raw}, receive, send)


@router.get(
    "/{key:path}",
    operation_id="read_file",
    summary="Read a file",
    response_class=FileResponse,
    responses={
        200: {"description": "The file.", "content": _BYTES},
        206: {"description": "The parts that `Range` names.", "content": _BYTES},
        304: {"description": "`If-None-Match` or `If-Modified-Since` say that you have it."},
        **documented(SignatureRejected, NotFound, InvalidRequest, RangeNotSatisfiable),
    },
)
@streams(party=_reader)
async def read_file(key: FileKey, request: Request, services: ServicesOf) -> Response:
    """Read an object. Understands `Range`, `If-Range`, `If-None-Match` and `If-Modified-Since`."""
    return await _file(key, request, services)


@router.head(
    "/{key:path}",
    operation_id="stat_file",
    summary="Look at a file",
    response_description="What reading would answer, without the file.",
    response_class=Response,
    responses={
        304: {"description": "`If-None-Match` or `If-Modified-Since` say that you have it."},
        **documented(SignatureRejected, NotFound, InvalidRequest),
    },
)
@streams(party=_reader)
async def stat_file(key: FileKey, request: Request, services: ServicesOf) -> Response:
    """What reading would answer, without the file. A link to read does for this, too."""
    return await _file(key, request, services)


async def _file(key: str, request: Request, services: Services) -> Response:
    grant, storage = _granted(request.method, key, request, services)
    return await served(key, request, storage, life_s=grant.expires - int(time.time()), filename=grant.filename)


async def served(key: str, request: Request, storage: LocalStorage, *, life_s: int, filename: str | None) -> Response:
    """The object, or what of it the request asks for. Whoever asks may do so for ``life_s`` seconds; with ``filename``
    a browser saves it. Raises NotFound or RangeNotSatisfiable."""
    found = await storage.locate(key)
    if found is None:
        raise NotFound
    path, facts = found
    modified = datetime.fromtimestamp(int(facts.st_mtime), UTC)
    # A file is replaced and never changed, so nothing that changes keeps its tag.
    etag = f'"{facts.st_size:x}-{facts.st_mtime_ns:x}"'
    headers = {
        "etag": etag,
        "last-modified": format_datetime(modified, usegmt=True),
        "cache-control": caching(key, life_s),
        "content-disposition": "inline" if filename is None else attachment(filename),
        "x-content-type-options": "nosniff",
        "accept-ranges": "bytes",
    }
    asked = request.headers
    if ranges.is_known(etag, modified, asked.get("if-none-match"), asked.get("if-modified-since")):
        return Response(status_code=304, headers=headers)
    wanted = None
    if request.method == "GET" and "range" in asked and not ranges.has_changed(etag, modified, asked.get("if-range")):
        wanted = ranges.parts(asked["range"], facts.st_size)
    if wanted is not None and not wanted:
        raise RangeNotSatisfiable(headers={"content-range": f"bytes */{facts.st_size}"})
    return _Parts(wanted, path, media_type=content_type_of(key), headers=headers, stat_result=facts)


@router.put(
    "/{key:path}",
    operation_id="write_file",
    summary="Upload a file",
    response_description="It is stored. `ETag` is the MD5 of it.",
    # It has no body.
    response_class=Response,
    status_code=200,
    responses=documented(SignatureRejected, NotFound, JobNotUploading, PayloadTooLarge, RequestTimeout, InvalidRequest),
)
@streams(party=_writer, max_bytes=MAX_UPLOAD_BYTES, seconds=UPLOAD_S)
async def write_file(key: FileKey, request: Request, services: ServicesOf) -> Response:
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
