"""``GET /api/v1/jobs/{job_id}/events``: a job as it goes, as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Response
from starlette.types import Receive, Scope, Send

from serve_app.api.auth import Reader
from serve_app.api.errors import Forbidden, InvalidRequest, JobNotFound, TooManyStreams, Unauthorized
from serve_app.api.gate import Live, live
from serve_app.api.jobs import JobPath, views
from serve_app.api.prefer import cancelled, left
from serve_app.api.problems import documented
from serve_app.jobs.feed import Feed, FeedEnded, Shown
from serve_app.jobs.job import Job, Status
from serve_app.services import Services, ServicesOf

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

#: Seconds of silence after which a comment is sent: proxies cut what is silent, and only by sending does one notice
#: that a client's machine is gone.
HEARTBEAT_S = 15.0
#: A stream is ended after so many seconds, and its client comes again: with a key that is still good.
LASTS_S = 600.0
#: Milliseconds until a client comes again.
RETRY_MS = 2000
HEARTBEAT = b":\n\n"
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(Response):
    """Sends what ``pieces`` yields, until that ends or the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancelled(sending, leaving)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Closed at once and not some time later: it holds the place of one who watches.
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


#: One event, as OpenAPI 3.2 has it.
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["snapshot", "update", "end", "deleted"]},
        "retry": {"type": "integer"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobView"},
        },
    },
}


@router.get(
    "/{job_id}/events",
    operation_id="watch_job",
    # FastAPI would look for it in the signature of the response.
    status_code=200,
    response_class=EventStream,
    responses={
        200: {
            "description": "Events: `snapshot`, `update`, `end`, `deleted`; the data of each is a `JobView`.",
            "content": {"text/event-stream": {"itemSchema": _EVENT, "schema": {"type": "array", "items": _EVENT}}},
        },
        204: {"description": "The job has ended, and `Last-Event-ID` says that you know how."},
        **documented(Unauthorized, Forbidden, JobNotFound, InvalidRequest, TooManyStreams),
    },
)
@live(Live.STREAM)
async def watch_job(
    job_id: JobPath,
    caller: Reader,
    services: ServicesOf,
    last_event_id: Annotated[
        str | None, Header(description="The `id` of the last event that you have: only what came after it is sent.")
    ] = None,
) -> Response:
    """How a job is doing, as it goes (`text/event-stream`), until it has ended.

    The first event, `snapshot`, is the whole job; `update` follows with each change, `end` with the last one, or
    `deleted`. After that, or after ten minutes, the stream is closed.
    """
    job = await services.store.get(job_id, of_key=caller.sees)
    if job is None:
        raise JobNotFound
    known = last_event_id == str(job.version)
    if known and job.status.terminal:
        return Response(status_code=204, headers=_HEADERS)
    return EventStream(_events(services.feed, job, known))


async def look(services: Services, ids: Sequence[str]) -> Mapping[str, Shown]:
    """What the feed shows of jobs. One query for all of them, and one more for the place of each that waits."""
    found = await services.store.several(ids)
    return {
        job.id: Shown(
            version=job.version,
            body=seen.model_dump_json(exclude_none=True),
            ended=job.status.terminal,
            line=job.model if job.status is Status.QUEUED else None,
        )
        for job, seen in zip(found, await views(found, services), strict=True)
    }


def encode(kind: str, data: str, version: int | None = None) -> bytes:
    """One event. ``data`` is JSON, which has no line breaks."""
    number = "" if version is None else f"id: {version}\n"
    return f"{number}event: {kind}\ndata: {data}\n\n".encode()


async def _events(feed: Feed, job: Job, known: bool) -> AsyncGenerator[bytes, None]:
    """``known``: the client has this version of the job."""
    yield b"retry: %d\n\n" % RETRY_MS
    clock = asyncio.get_running_loop().time
    ends, first = clock() + LASTS_S, True
    try:
        with feed.watch(job.id, job.version) as watch:
            while (remaining_s := ends - clock()) > 0:
                try:
                    async with asyncio.timeout(min(HEARTBEAT_S, remaining_s)):
                        shown = await watch.next()
                except TimeoutError:
                    yield HEARTBEAT
                    continue
                if shown is None:
                    yield encode("deleted", json.dumps({"job_id": job.id}))
                    return
                if first and not known:
                    yield encode("snapshot", shown.body, shown.version)
                elif not shown.ended and not (first and shown.version == job.version):
                    yield encode("update", shown.body, shown.version)
                first = False
                if shown.ended:
                    yield encode("end", shown.body, shown.version)
                    return
    except FeedEnded:
        return
