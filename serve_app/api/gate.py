"""What stands before every route: who calls, how much they may send, how long it may take.

Pure ASGI, in front of FastAPI, which would read and parse a body before it asks for the key. Order of questions:

1. The key or secret, from the headers. A stranger's body is never read. Then how fast the key asks.
2. The size, from ``content-length``, and again while the body comes in.
3. The body, whole and within its time, before the handler runs, whatever the method: a slow sender holds a buffer and
   nothing else, and is not answered before he has asked. A large one, where the route takes such, is laid on disk
   (``api/spool.py``); there is room for so many bytes, and for so many of one key.
4. The answer, within its time: a database that hangs is answered with 503.

Routes that read or write a stream say so with :func:`streams`, those that tell as things go with :func:`live`, those
that take large bodies with :func:`large`.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from re import Pattern

import structlog
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.access.key_ring import KeyRing
from serve_app.access.rate import Rates, Standing
from serve_app.api.auth import admit_client, admit_worker, caller_of, is_stranger
from serve_app.api.errors import (
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    TooManyStreams,
    Unavailable,
    VideoApiError,
)
from serve_app.api.messages import Paced, Replayed, Sender, promised, telling
from serve_app.api.prefer import grant, wait_s
from serve_app.api.problems import answer
from serve_app.api.spool import Arrived, Spool, show
from serve_app.api.streaming import DECLARED, LARGEST, Live, Streams
from serve_app.settings import Settings

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """Seconds, bytes and counts."""

    #: A request's body, and the time in which it has to be here.
    body_bytes: int = 64 * 1024
    body_s: float = 15.0
    #: From the whole request to the beginning of the answer.
    answer_s: float = 9.0
    #: The time in which a large body has to be here, and bytes of all of them at a time. Its sender keeps to the pace
    #: below, and to one with which it is here in time.
    large_s: float = 300.0
    large_bytes: int = 512 * 1024**2
    #: As ``answer_s``, where the body was a large one: what is in it goes to the store first.
    large_answer_s: float = 30.0
    #: A stream's sender has to send so much in each span of so long.
    pace_bytes: int = 64 * 1024
    pace_s: float = 30.0
    #: At a time: requests whose answer has not begun, of strangers and of all others each; and streams. More are told
    #: to come back.
    requests: int = 512
    streams: int = 256
    #: Of the streams, those that only GPU workers may have.
    kept_for_workers: int = 64
    #: Answers that tell as things go, or are held until something happens: all of them, half of what is answered at a
    #: time with the requests above; and those of one key.
    live: int = 512
    live_of_key: int = 20
    #: Of the requests, and of the streams that clients may have, one key's share.
    key_share: float = 0.5


_Admit = Callable[[Scope, Settings, KeyRing], Awaitable[None]]
#: By the path's beginning. What is not here is public; links to ``/files`` carry their permission themselves.
_ACCESS: tuple[tuple[str, _Admit], ...] = (("/api/", admit_client), ("/v1/", admit_client), ("/webhook/", admit_worker))
#: It has to be answered whatever else goes on: a head whose API does not is ended.
_ALWAYS = "/livez"
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Gate:
    """``app`` with a gate before it. ``routers`` are asked which of their routes stream."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        ring: KeyRing,
        routers: Iterable[APIRouter],
        limits: GateLimits | None = None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._ring = ring
        self._rates = Rates()
        self._limits = limits or GateLimits()
        self._spool = Spool(settings.data_dir / "arriving", most=self._limits.large_bytes)
        #: With what each declares, and how large its bodies may be.
        self._routes: list[tuple[Pattern[str], set[str], Streams | Live | None, int]] = [
            (
                route.path_regex,
                route.methods or set(),
                getattr(route.endpoint, DECLARED, None),
                getattr(route.endpoint, LARGEST, self._limits.body_bytes),
            )
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute)
        ]
        #: By whether they are of strangers.
        self._requests: Counter[bool] = Counter()
        self._open_streams: Counter[str] = Counter()
        #: By key.
        self._live: Counter[str] = Counter()
        #: Of requests and streams, by key.
        self._requests_of: Counter[str] = Counter()
        self._streams_of: Counter[str] = Counter()
        #: Handlers that were given up and have not ended yet.
        self._abandoned: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _ALWAYS:
            await self._app(scope, receive, send)
            return
        try:
            for beginning, admit in _ACCESS:
                if scope["path"].startswith(beginning):
                    await admit(scope, self._settings, self._ring)
            standing = self._standing(scope)
            if standing is not None:
                send = telling(standing.headers, send)
                if not standing.allowed:
                    raise RateLimited(f"The key may ask {standing.limit} times a minute. Wait {standing.wait_s} s.")
            known, declared, largest = self._route(scope)
            if isinstance(declared, Streams):
                await self._stream(scope, receive, send, declared)
                return
            async with AsyncExitStack() as held:
                # Where there is no route nobody reads a body: the server throws it away once there is an answer.
                body = await self._whole_body(scope, receive, largest, held) if known else b""
                if body is not None:
                    show(scope, Arrived(body, self._spool, held.aclose))
                    await self._answer(scope, receive, send, declared, body)
        except VideoApiError as error:
            await answer(error, self._settings.base_url, scope["path"])(scope, receive, send)

    def _standing(self, scope: Scope) -> Standing | None:
        """Counts the request. None where nothing limits the key, or there is none."""
        caller = caller_of(scope)
        if caller is None or caller.limits.requests_per_minute is None:
            return None
        return self._rates.take(caller.key_id, caller.limits.requests_per_minute)

    def _route(self, scope: Scope) -> tuple[bool, Streams | Live | None, int]:
        """Whether there is one, what it declares, and bytes of its bodies."""
        for path, methods, declared, largest in self._routes:
            if scope["method"] in methods and path.match(scope["path"]):
                return True, declared, largest
        return False, None, 0

    async def _whole_body(
        self, scope: Scope, receive: Receive, largest: int, held: AsyncExitStack
    ) -> bytes | Path | None:
        """The request's body, empty where the method gives it no meaning; None if the client has left. A large one is
        in a file, which is there until ``held`` ends.

        Raises PayloadTooLarge, RequestTimeout, RateLimited or Unavailable.
        """
        meant = scope["method"] in _WITH_BODY
        allowed = f"{largest / 1000**2:g} MB" if largest > self._limits.body_bytes else f"{largest / 1024:g} KiB"
        too_large = PayloadTooLarge(f"The body is larger than the {allowed} allowed.")
        if promised(scope) > largest:
            raise too_large
        small = self._limits.body_bytes
        if promised(scope) > small:
            return await self._large_body(scope, receive, largest, held)
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
                    if size > largest:
                        raise too_large
                    if size > small:
                        break
        except TimeoutError:
            raise RequestTimeout from None
        if size <= small:
            return bytes(body)
        return await self._large_body(scope, Replayed(bytes(body), receive, more=more), largest, held)

    async def _large_body(self, scope: Scope, receive: Receive, largest: int, held: AsyncExitStack) -> Path | None:
        # Who does not say how much it is may send as much as anybody.
        size = promised(scope) or largest
        held.enter_context(self._spool.room(size, _key_of(scope)))
        # Room is kept for all of it from now on, so nobody may be slower than he has to be.
        pace_bytes = max(self._limits.pace_bytes, int(size * self._limits.pace_s / self._limits.large_s))
        paced = Paced(receive, largest, pace_bytes=pace_bytes, pace_s=self._limits.pace_s)
        try:
            async with asyncio.timeout(self._limits.large_s):
                return await held.enter_async_context(self._spool.body(paced))
        except TimeoutError:
            raise RequestTimeout from None

    def _live_place(self, scope: Scope, why: Live | None) -> tuple[str, int] | None:
        """The key for which a live place is to be held, and the seconds for which the answer may be; None: none is.

        Raises TooManyStreams.
        """
        held_s = wait_s(Headers(scope=scope).getlist("prefer")) if why is Live.WAIT else 0
        if why is not Live.STREAM and not held_s:
            return None
        key_id = _key_of(scope)
        if self._live.total() < self._limits.live and self._live[key_id] < self._limits.live_of_key:
            return key_id, held_s
        if why is Live.STREAM:
            raise TooManyStreams(headers={"retry-after": "5"})
        return None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, why: Live | None, body: bytes | Path) -> None:
        # A handler that takes large bodies knows where they are.
        receive = Replayed(body if isinstance(body, bytes) else b"", receive)
        answer_s = self._limits.answer_s if isinstance(body, bytes) else self._limits.large_answer_s
        stranger, key_id = is_stranger(scope), _key_of(scope)
        living, held_s = self._live_place(scope, why) or (None, 0)
        sender = Sender(send)
        if held_s:
            grant(scope, held_s)
        else:
            if self._requests[stranger] >= self._limits.requests:
                raise Unavailable("Too many requests at a time. Try again shortly.", headers={"retry-after": "1"})
            if key_id and self._requests_of[key_id] >= self._limits.requests * self._limits.key_share:
                raise RateLimited("Too many requests of this key at a time.", headers={"retry-after": "1"})
            self._requests[stranger] += 1
            self._requests_of[key_id] += 1
            # Once begun, an answer costs a buffer; its reader may take his time.
            sender.begun.add_done_callback(lambda _: self._begun(stranger, key_id))
        handling = asyncio.create_task(self._handle(scope, receive, sender))
        handling.add_done_callback(self._handled)
        handling.add_done_callback(lambda _: sender.begin())
        if living is not None:
            self._live[living] += 1
            handling.add_done_callback(lambda _: self._lived(living))
        try:
            await asyncio.wait({handling, sender.begun}, timeout=answer_s + held_s, return_when=asyncio.FIRST_COMPLETED)
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
        log.error("request_abandoned", path=scope["path"], seconds=answer_s + held_s)
        raise Unavailable(headers={"retry-after": "5"})

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _begun(self, stranger: bool, key_id: str) -> None:
        self._requests[stranger] -= 1
        self._requests_of[key_id] -= 1
        if not self._requests_of[key_id]:
            del self._requests_of[key_id]

    def _lived(self, key_id: str) -> None:
        self._live[key_id] -= 1
        # Without those that have none.
        self._live = +self._live

    def _handled(self, handling: asyncio.Task[None]) -> None:
        if handling in self._abandoned:
            self._abandoned.discard(handling)
            if not handling.cancelled() and (error := handling.exception()):
                log.warning("abandoned_request_failed", error=type(error).__name__)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, declared: Streams) -> None:
        if promised(scope) > declared.max_bytes:
            raise PayloadTooLarge
        party, key_id = declared.party(scope["path"]), _key_of(scope)
        name = f"{key_id}/{party.name}" if party.of_each_key else party.name
        most = self._limits.streams - (0 if party.worker else self._limits.kept_for_workers)
        free = most - self._open_streams.total()
        if free <= 0 or self._open_streams[name] >= party.most:
            raise Unavailable("Too many transfers at a time. Try again shortly.", headers={"retry-after": "5"})
        if key_id and self._streams_of[key_id] >= most * self._limits.key_share:
            raise RateLimited("Too many transfers of this key at a time.", headers={"retry-after": "5"})
        self._open_streams[name] += 1
        self._streams_of[key_id] += 1
        sender = Sender(send)
        try:
            async with asyncio.timeout(declared.seconds) as deadline:
                await self._app(
                    scope,
                    Paced(receive, declared.max_bytes, pace_bytes=self._limits.pace_bytes, pace_s=self._limits.pace_s),
                    sender,
                )
        except TimeoutError:
            if not deadline.expired():
                raise
            # An answer that has begun can only be cut off, which the server does when it is left unfinished.
            if not sender.begun.done():
                raise RequestTimeout from None
        finally:
            self._open_streams[name] -= 1
            self._streams_of[key_id] -= 1
            # Without those that have none.
            self._open_streams, self._streams_of = +self._open_streams, +self._streams_of


def _key_of(scope: Scope) -> str:
    """The key that has a share here; empty: the environment's own, a worker's or a stranger's, who have none."""
    caller = caller_of(scope)
    return "" if caller is None else caller.key_id
