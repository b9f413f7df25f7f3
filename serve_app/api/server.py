"""The HTTP server of the ``api`` deployment: uvicorn on the public port, made safe to stand there by itself.

Serve's own proxy is not in the way of a request. It reads bodies into a queue without bound and headers without limit;
and so does the replica behind its HAProxy mode. Here a connection that has not sent a whole request costs little and
not for long, one that does not read its answer is cut, and when there are too many the oldest idle one goes.
"""

import asyncio
import json
import logging
import resource
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: Seconds that requests in progress get when the server stops.
DRAIN_S = 10.0


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """Seconds, bytes and counts."""

    #: Connections at a time; fewer where the process may not have so many descriptors.
    connections: int = 4096
    #: A request's first line and headers.
    head_bytes: int = 32 * 1024
    headers: int = 100
    head_s: float = 10.0
    #: Requests that may wait behind the one in progress on a connection.
    pipelined: int = 16
    #: A connection may idle so long between two requests.
    keep_alive_s: int = 75
    #: A reader has to take what waits for it, 48 KiB and more, in so long.
    stalled_s: float = 30.0
    #: A body that nobody reads is thrown away for so long and so far, so that its sender gets to see the answer.
    linger_s: float = 2.0
    linger_bytes: int = 4 * 1024 * 1024


@dataclass(frozen=True)
class Refusal:
    """An answer of the server itself, to what the application never sees."""

    status: HTTPStatus
    code: str
    message: str
    #: What to do about it. Not in the answer: for the page that explains the code.
    remedy: str

    def answer(self, errors_url: str) -> bytes:
        """All of it. ``errors_url``: where codes are explained."""
        problem = {
            "type": f"{errors_url}/{self.code}",
            "title": self.status.phrase,
            "status": self.status,
            "detail": self.message,
            "code": self.code,
            "error": self.message,
        }
        body = json.dumps(problem).encode()
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "content-type: application/problem+json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


NOT_HTTP = Refusal(
    HTTPStatus.BAD_REQUEST,
    "invalid_request",
    "This is no valid HTTP request.",
    "Send HTTP/1.1, and look whether a proxy between changes it.",
)
HEAD_TOO_LARGE = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "headers_too_large",
    "The headers are too large.",
    "Send fewer or shorter headers; cookies mean nothing here.",
)
REFUSALS = (NOT_HTTP, HEAD_TOO_LARGE)


class Connections:
    """The connections of one server, and which could go if there are too many: those without a whole request."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        #: The one that has been silent for longest comes first.
        self._waiting: dict[GuardedProtocol, None] = {}

    def opened(self, connection: "GuardedProtocol") -> None:
        """A new one. If there are too many now, the one that has been silent for longest is cut."""
        self._open += 1
        self._waiting[connection] = None
        if self._open > self._most:
            next(iter(self._waiting)).abort()

    def waits(self, connection: "GuardedProtocol") -> None:
        """Something came, and it is no whole request yet; or an answer has been given."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = None

    def works(self, connection: "GuardedProtocol") -> None:
        """It has a request, which is being answered."""
        self._waiting.pop(connection, None)

    def closed(self, connection: "GuardedProtocol") -> None:
        self._open -= 1
        self._waiting.pop(connection, None)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. uvicorn's, with limits on what uvicorn has none for."""

    def __init__(self, limits: ServerLimits, among: Connections, errors_url: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._errors_url = errors_url
        self._limits = limits
        self._among = among
        self._in_head = True
        #: What came since the last that the application can use: of a head, of trailers, of a chunk's extensions.
        self._bare_bytes = 0
        #: Requests begun, pieces of bodies, ends of requests.
        self._events = 0
        #: Those that are not answered yet.
        self._cycles: list[RequestResponseCycle] = []
        #: Nothing more is answered: what comes is thrown away until the connection ends.
        self._lingers = False
        self._thrown_away = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    # As uvicorn has it: a server's transport can always be read and written.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._among.opened(self)
        self._set_timer(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._among.closed(self)
        self._set_timer(None)
        self._set_stall_timer(None)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        # uvicorn tells the last one only.
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            self._thrown_away += len(data)
            if self._thrown_away > self._limits.linger_bytes:
                self.abort()
            return
        if not self._works():
            self._among.waits(self)
        events = self._events
        super().data_received(data)
        self._bare_bytes = self._bare_bytes + len(data) if self._events == events else 0
        if self._bare_bytes > self._limits.head_bytes:
            if self._in_head:
                self._refuse(HEAD_TOO_LARGE)
            else:
                self._lingers = True
                self.abort()
        idle = self.cycle is None or self.cycle.response_complete
        if self._timer is None and self.timeout_keep_alive_task is None and idle:
            # Blank lines are no request, and have stopped the clock of an idle connection.
            self._set_timer(self._limits.keep_alive_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_stall_timer(self._limits.stalled_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._set_stall_timer(None)

    # What the parser tells

    def on_message_begin(self) -> None:
        self._in_head = True
        self._events += 1
        self._set_timer(self._limits.head_s)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here as well: nobody reads them, and there is no end to them.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._lingers:
            return
        if size > self._limits.head_bytes or len(self.headers) > self._limits.headers:
            self._refuse(HEAD_TOO_LARGE)
        elif len(self.pipeline) >= self._limits.pipelined:
            # One piece of what came in may hold thousands, and each costs a hundred times its bytes.
            self._lingers = True
            self.abort()
        else:
            self._set_timer(None)
            super().on_headers_complete()
            self._cycles = [cycle for cycle in (*self._cycles, self.cycle) if not cycle.response_complete]

    def on_body(self, body: bytes) -> None:
        self._events += 1
        if not self._lingers:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._events += 1
        if not self._lingers:
            super().on_message_complete()
            self._among.works(self)

    # What the server does

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # With requests in a row, ``cycle`` is the last of them and not the one whose answer is complete.
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        self._among.waits(self)
        if self.cycle.more_body:
            self._linger()

    def send_400_response(self, msg: str) -> None:
        if not self._lingers and not self.transport.is_closing():
            self._refuse(NOT_HTTP)

    def abort(self) -> None:
        """Cut it off, whatever is still to be sent."""
        self.transport.abort()

    def _works(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _refuse(self, refusal: Refusal) -> None:
        """Answer without the application, and end."""
        if self.cycle is not None and not self.cycle.response_complete:
            # In the middle of another request's answer there is no place for this one.
            self._lingers = True
            self.abort()
            return
        self.transport.write(refusal.answer(self._errors_url))
        self._linger()

    def _linger(self) -> None:
        """Say no more, and hear what still comes: closing with something unread would take the answer away."""
        self._lingers = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._set_timer(self._limits.linger_s)

    def _set_timer(self, seconds: float | None) -> None:
        """Cut the connection after so long; None: never."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.abort)

    def _set_stall_timer(self, seconds: float | None) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._stall_timer = None if seconds is None else self.loop.call_later(seconds, self.abort)


class _Server(uvicorn.Server):
    # uvicorn's is typed as the generator it is made of.
    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Leave signals to the process."""
        return nullcontext()


class HttpServer:
    """Serves an application on a port of its own, in the running event loop."""

    def __init__(
        self, app: ASGIApp, host: str, port: int, limits: ServerLimits | None = None, *, base_url: str = ""
    ) -> None:
        """Port 0 picks a free one, see :attr:`port`. ``base_url``: how clients reach it."""
        limits = limits or ServerLimits()
        self._socket = _listen(host, port)
        self.port = int(self._socket.getsockname()[1])
        # What it says of bad requests is for their senders.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        among = Connections(min(limits.connections, _raise_file_limit() // 2))
        protocol = partial(GuardedProtocol, limits, among, f"{base_url}/errors")
        self._server = _Server(
            uvicorn.Config(
                app,
                http=cast("type[asyncio.Protocol]", protocol),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # What a request says of its client is not believed: nothing here hangs on it.
                proxy_headers=False,
                timeout_keep_alive=limits.keep_alive_s,
                timeout_graceful_shutdown=int(DRAIN_S),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve; connections are taken from now on."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]))

    def check(self) -> None:
        """Raises if it has ended."""
        if self._serving is None or self._serving.done():
            raise RuntimeError("the HTTP server has ended")

    async def stop(self) -> None:
        """Take no more connections, let requests in progress end, close."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving})
        self._socket.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Several replicas on one machine share the port; and a new one can begin before the old one has ended.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}; set PORT to another") from error
    listening.listen(2048)
    listening.setblocking(False)
    return listening


def _raise_file_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
