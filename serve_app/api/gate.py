"""What stands before every route: who calls, how much they may send, how long it may take.

Pure ASGI, in front of FastAPI, which would read and parse a body before it asks for the key. Order of questions:

1. The key or secret, from the headers. A stranger's body is never read.
2. The size, from ``content-length``, and again while the body comes in.
3. The body, whole and within its time, before the handler runs, whatever the method: a slow sender holds a buffer and
   nothing else, and is not answered before he has asked.
4. The answer, within its time: a database that hangs is answered with 503.

Routes that read or write a stream say so with :func:`streams`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from re import Pattern
from typing import Any, TypeVar

import structlog
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.auth import admit_client, admit_worker, is_stranger
from serve_app.api.errors import PayloadTooLarge, RequestTimeout, Unavailable, VideoApiError
from serve_app.api.problems import answer
from serve_app.settings import Settings

log = structlog.get_logger()
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """Seconds, bytes and counts."""

    #: A request's body, and the time in which it has to be here.
    body_bytes: int = 64 * 1024
    body_s: float = 15.0
    #: From the whole request to the beginning of the answer.
    answer_s: float = 9.0
    #: A stream's sender has to send so much in each span of so long.
    pace_bytes: int = 64 * 1024
    pace_s: float = 30.0
    #: At a time: requests whose answer has not begun, of strangers and of all others each; and streams. More are told
    #: to come back.
    requests: int = 512
    streams: int = 256
    #: Of the streams, those that only GPU workers may have.
    kept_for_workers: int = 64


_Admit = Callable[[Scope, Settings], None]
#: By the path's beginning. What is not here is public; links to ``/files`` carry their permission themselves.
#: Nothing is below ``/v1/`` yet: closed in advance, since a route that is added must not be open by an oversight.
_ACCESS: tuple[tuple[str, _Admit], ...] = (("/api/", admit_client), ("/v1/", admit_client), ("/webhook/", admit_worker))
#: It has to be answered whatever else goes on: a head whose API does not is ended.
_ALWAYS = "/livez"
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_DECLARED = "__streams__"


@dataclass(frozen=True, kw_only=True)
class Party:
    """On whose behalf a stream is, as its path says."""

    name: str
    #: Streams that it may have at a time.
    most: int
    worker: bool = False


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What a route that streams allows."""

    #: Whose it is, by the request's path.
    party: Callable[[str], Party]
    #: Bytes of a request body.
    max_bytes: int
    #: Seconds for all of it; None for as long as it moves.
    seconds: float | None


def streams(*, party: Callable[[str], Party], max_bytes: int = 0, seconds: float | None = None) -> Callable[[F], F]:
    """Declare that a handler reads its request, or writes its answer, piece by piece."""

    def declare(handler: F) -> F:
        setattr(handler, _DECLARED, Streams(party=party, max_bytes=max_bytes, seconds=seconds))
        return handler

    return declare


class Gate:
    """``app`` with a gate before it. ``routers`` are asked which of their routes stream."""

    def __init__(
        self, app: ASGIApp, settings: Settings, routers: Iterable[APIRouter], limits: GateLimits | None = None
    ) -> None:
        self._app = app
        self._settings = settings
        self._limits = limits or GateLimits()
        self._routes: list[tuple[Pattern[str], set[str], Streams | None]] = [
            (route.path_regex, route.methods or set(), getattr(route.endpoint, _DECLARED, None))
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute)
        ]
        #: By whether they are of strangers.
        self._requests: Counter[bool] = Counter()
        self._open_streams: Counter[str] = Counter()
        #: Handlers that were given up and have not ended yet.
        self._abandoned: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _ALWAYS:
            await self._app(scope, receive, send)
            return
        try:
            for beginning, admit in _ACCESS:
                if scope["path"].startswith(beginning):
                    admit(scope, self._settings)
            known, declared = self._route(scope)
            if declared is None:
                # Where there is no route nobody reads a body: the server throws it away once there is an answer.
                body = await self._whole_body(scope, receive) if known else b""
                if body is not None:
                    await self._answer(scope, _Replayed(body, receive), send)
            else:
                await self._stream(scope, receive, send, declared)
        except VideoApiError as error:
            await answer(error, self._settings.base_url)(scope, receive, send)

    def _route(self, scope: Scope) -> tuple[bool, Streams | None]:
        """Whether there is one, and what it declares."""
        for path, methods, declared in self._routes:
            if scope["method"] in methods and path.match(scope["path"]):
                return True, declared
        return False, None

    async def _whole_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The request's body, empty where the method gives it no meaning; None if the client has left.

        Raises PayloadTooLarge or RequestTimeout.
        """
        meant = scope["method"] in _WITH_BODY
        too_large = PayloadTooLarge(f"The body is larger than the {self._limits.body_bytes / 1024:g} KiB allowed.")
        if _promised(scope) > self._limits.body_bytes:
            raise too_large
        body, size, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(self._limits.body_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    piece = message.get("body", b"")
                    body += piece if meant else b""
                    size += len(piece)
                    more = message.get("more_body", False)
                    if size > self._limits.body_bytes:
                        raise too_large
        except TimeoutError:
            raise RequestTimeout from None
        return bytes(body)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        stranger = is_stranger(scope)
        if self._requests[stranger] >= self._limits.requests:
            raise Unavailable("Too many requests at a time. Try again shortly.", headers={"retry-after": "1"})
        self._requests[stranger] += 1
        sender = _Sender(send)
        # Once begun, an answer costs a buffer; its reader may take his time.
        sender.begun.add_done_callback(lambda _: self._begun(stranger))
        handling = asyncio.create_task(self._handle(scope, receive, sender))
        handling.add_done_callback(self._handled)
        handling.add_done_callback(lambda _: sender.begin())
        try:
            await asyncio.wait(
                {handling, sender.begun}, timeout=self._limits.answer_s, return_when=asyncio.FIRST_COMPLETED
            )
            if handling.done() or sender.begun.done():
                # Once begun, an answer ends with its reader: the server cuts one who does not read.
                await handling
                return
        except asyncio.CancelledError:
            handling.cancel()
            raise
        # Not waited for: it may hang in something that cannot be cancelled, such as a connection to a stopped database.
        sender.close()
        self._abandoned.add(handling)
        handling.cancel()
        log.error("request_abandoned", path=scope["path"], seconds=self._limits.answer_s)
        raise Unavailable(headers={"retry-after": "5"})

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _begun(self, stranger: bool) -> None:
        self._requests[stranger] -= 1

    def _handled(self, handling: asyncio.Task[None]) -> None:
        if handling in self._abandoned:
            self._abandoned.discard(handling)
            if not handling.cancelled() and (error := handling.exception()):
                log.warning("abandoned_request_failed", error=type(error).__name__)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, declared: Streams) -> None:
        if _promised(scope) > declared.max_bytes:
            raise PayloadTooLarge
        party = declared.party(scope["path"])
        free = (
            self._limits.streams - self._open_streams.total() - (0 if party.worker else self._limits.kept_for_workers)
        )
        if free <= 0 or self._open_streams[party.name] >= party.most:
            raise Unavailable("Too many transfers at a time. Try again shortly.", headers={"retry-after": "5"})
        self._open_streams[party.name] += 1
        sender = _Sender(send)
        try:
            async with asyncio.timeout(declared.seconds) as deadline:
                await self._app(scope, _Paced(receive, declared.max_bytes, self._limits), sender)
        except TimeoutError:
            if not deadline.expired():
                raise
            # An answer that has begun can only be cut off, which the server does when it is left unfinished.
            if not sender.begun.done():
                raise RequestTimeout from None
        finally:
            self._open_streams[party.name] -= 1
            # Without those that have none.
            self._open_streams = +self._open_streams


def _promised(scope: Scope) -> int:
    """Bytes of the body by its header; 0 where that does not say."""
    given = Headers(scope=scope).get("content-length", "")
    return int(given[:20]) if given.isascii() and given.isdecimal() else 0


class _Replayed:
    """A body that is here already, then whatever the connection says."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._receive()


class _Paced:
    """A body that is passed on as it comes, as long as it keeps coming. Raises PayloadTooLarge or RequestTimeout."""

    def __init__(self, receive: Receive, max_bytes: int, limits: GateLimits) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._limits = limits
        self._total = self._in_window = 0
        #: None once the body has ended: then only the client's leaving is waited for.
        self._window_ends: float | None = asyncio.get_running_loop().time() + limits.pace_s

    async def __call__(self) -> Message:
        try:
            async with asyncio.timeout_at(self._window_ends):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._total += size
            self._in_window += size
            if self._total > self._max_bytes:
                raise PayloadTooLarge
            if not message.get("more_body", False):
                self._window_ends = None
            elif self._in_window >= self._limits.pace_bytes:
                self._window_ends, self._in_window = asyncio.get_running_loop().time() + self._limits.pace_s, 0
        return message


class _Sender:
    """Passes an answer on until it is closed."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._closed = False
        #: Done when the answer has begun, or when nothing will come any more.
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __call__(self, message: Message) -> None:
        if self._closed:
            return
        self.begin()
        await self._send(message)

    def begin(self) -> None:
        """There is something to send, or there will never be."""
        if not self.begun.done():
            self.begun.set_result(None)

    def close(self) -> None:
        """What comes after this is dropped."""
        self._closed = True
