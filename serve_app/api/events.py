"""``GET /api/v1/jobs/{job_id}/events``: a job as it goes, as server-sent events."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Response
from starlette.types import Receive, Scope, Send

from serve_app.access.caller import Caller
from serve_app.api.auth import Reader
from serve_app.api.errors import Forbidden, InvalidRequest, JobNotFound, TooManyStreams, Unauthorized, Unavailable
from serve_app.api.jobs import JobPath, view
from serve_app.api.prefer import cancelled, left
from serve_app.api.problems import documented
from serve_app.api.streaming import Live, live
from serve_app.jobs.feed import Feed, FeedEnded, Shown, Watch
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
    """A job as it goes. Ends with it, with the client, and with the service."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, job_id: str, caller: Caller, last_event_id: str | None) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._feed = feed
        self._job_id = job_id
        self._caller = caller
        self._last_event_id = last_event_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises JobNotFound, Unavailable."""
        telling = asyncio.ensure_future(self._tell(send))
        leaving = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancelled(telling, leaving)

    async def _tell(self, send: Send) -> None:
        async def tell(piece: bytes, *, last: bool = False) -> None:
            await send({"type": "http.response.body", "body": piece, "more_body": not last})

        began = False
        try:
            with self._feed.watch(self._job_id) as watch:
                # The look that all who come share also says whose job it is.
                shown = await watch.next()
                if shown is None or self._caller.sees not in (None, shown.key_id):
                    raise JobNotFound
                known = self._last_event_id == str(shown.version)
                status = 204 if known and shown.ended else self.status_code
                await send({"type": "http.response.start", "status": status, "headers": self.raw_headers})
                began = True
                if status == self.status_code:
                    await tell(b"retry: %d\n\n" % RETRY_MS)
                    if not known:
                        await tell(encode("snapshot", shown.body, shown.version))
                    await _follow(watch, shown, self._job_id, tell)
        except FeedEnded:
            if not began:
                raise Unavailable(headers={"retry-after": "1"}) from None
        await tell(b"", last=True)


async def _follow(watch: Watch, shown: Shown | None, job_id: str, tell: Callable[[bytes], Awaitable[None]]) -> None:
    """What comes after what was ``shown``, to the end."""
    clock = asyncio.get_running_loop().time
    ends = clock() + LASTS_S
    while shown is not None and not shown.ended and (remaining_s := ends - clock()) > 0:
        try:
            async with asyncio.timeout(min(HEARTBEAT_S, remaining_s)):
                shown = await watch.next()
        except TimeoutError:
            await tell(HEARTBEAT)
            continue
        if shown is not None and not shown.ended:
            await tell(encode("update", shown.body, shown.version))
    if shown is None:
        await tell(encode("deleted", json.dumps({"job_id": job_id})))
    elif shown.ended:
        await tell(encode("end", shown.body, shown.version))


def encode(kind: str, data: str, version: int | None = None) -> bytes:
    """One event. ``data`` is JSON, which has no line breaks."""
    number = "" if version is None else f"id: {version}\n"
    return f"{number}event: {kind}\ndata: {data}\n\n".encode()


#: One event: what OpenAPI 3.1 says of a stream, it says of each.
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
    summary="Follow a job",
    # FastAPI would look for it in the signature of the response.
    status_code=200,
    response_class=EventStream,
    responses={
        200: {
            "description": "Events: `snapshot`, `update`, `end`, `deleted`; the data of each is a `JobView`.",
            "content": {"text/event-stream": {"schema": _EVENT}},
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
    return EventStream(services.feed, job_id, caller, last_event_id)


async def look(services: Services, ids: Sequence[str]) -> Mapping[str, Shown]:
    """What the feed shows of jobs, by id; those that are not there are absent."""
    return {
        seen.job.id: Shown(
            key_id=seen.job.key_id,
            version=seen.job.version,
            body=(await view(seen, services)).model_dump_json(exclude_none=True),
            ended=seen.job.status.terminal,
            line=seen.job.model if seen.position is not None else None,
        )
        for seen in await services.watching.several(ids)
    }
