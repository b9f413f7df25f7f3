"""ASGI's messages on their way through the gate: bodies that come, answers that go."""

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from serve_app.api.errors import PayloadTooLarge, RequestTimeout


def telling(headers: Mapping[str, str], send: Send) -> Send:
    """``send``, with these headers on whatever the answer is."""
    told = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *told]}
        await send(message)

    return tell


def promised(scope: Scope) -> int:
    """Bytes of the body by its header; 0 where that does not say."""
    given = Headers(scope=scope).get("content-length", "")
    return int(given[:20]) if given.isascii() and given.isdecimal() else 0


class Replayed:
    """A body that is here already, or its beginning if there is ``more``, then whatever the connection says."""

    def __init__(self, body: bytes, receive: Receive, *, more: bool = False) -> None:
        self._body = body
        self._receive = receive
        self._more = more
        self._said = False

    async def __call__(self) -> Message:
        if self._said:
            return await self._receive()
        self._said = True
        return {"type": "http.request", "body": self._body, "more_body": self._more}


class Paced:
    """A body that is passed on as it comes, as long as it keeps coming. Raises PayloadTooLarge or RequestTimeout."""

    def __init__(self, receive: Receive, max_bytes: int, *, pace_bytes: int, pace_s: float) -> None:
        """So many bytes have to come in each span of so long."""
        self._receive = receive
        self._max_bytes = max_bytes
        self._pace_bytes = pace_bytes
        self._pace_s = pace_s
        self._total = self._in_window = 0
        #: None once the body has ended: then only the client's leaving is waited for.
        self._window_ends: float | None = asyncio.get_running_loop().time() + pace_s

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
            elif self._in_window >= self._pace_bytes:
                self._window_ends, self._in_window = asyncio.get_running_loop().time() + self._pace_s, 0
        return message


class Sender:
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
