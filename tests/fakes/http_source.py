"""A real HTTP server on 127.0.0.1 whose answers a test writes byte by byte, so that it can misbehave in any way."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    #: By lower-case name.
    headers: dict[str, str]
    body: bytes


#: Writes a whole answer, status line included. The connection is closed afterwards.
Answer = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


def reply(status: int, body: bytes = b"", **headers: str) -> Answer:
    """An honest answer."""

    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()

    return answer


def raw(data: bytes) -> Answer:
    """These bytes, then the end of the connection."""

    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return answer


def endless(head: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Answer:
    """A body that never ends, without a length."""

    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    return answer


def stalled(data: bytes = b"") -> Answer:
    """These bytes, then silence for as long as the client stays."""

    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.Event().wait()

    return answer


@dataclass
class HttpSource:
    """``async with HttpSource({"/a": reply(200, b"hello")}) as source: ... source.url("/a")``"""

    routes: dict[str, Answer]
    tls: ssl.SSLContext | None = None
    #: What any other path gets.
    otherwise: Answer = field(default_factory=lambda: reply(404))
    seen: list[Seen] = field(default_factory=list)
    port: int = 0
    #: Listens here as well, for other networks.
    socket: Path | None = None

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """Absolute URL of a path."""
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"

    async def __aenter__(self) -> Self:
        self._handlers: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self._beside = None if self.socket is None else await asyncio.start_unix_server(self._accept, self.socket)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        if self._beside is not None:
            self._beside.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.create_task(self._serve(reader, writer))
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip().split("\r\n")
            method, target, _ = first.split(" ")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            seen = Seen(method, target, headers, body)
            self.seen.append(seen)
            await self.routes.get(target.split("?")[0], self.otherwise)(seen, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            # The client hung up, which is what some tests are about.
            pass
        finally:
            writer.close()
