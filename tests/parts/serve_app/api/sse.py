"""Event streams over a real HTTP server, since httpx's ASGI transport waits for the end of an answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from starlette.types import ASGIApp

from serve_app.api.server import HttpServer, ServerLimits
from serve_app.client import Event, EventParser


@dataclass
class Stream:
    """An answer whose body is read as it comes."""

    answer: httpx.Response
    _pieces: AsyncIterator[bytes]
    _parser: EventParser
    _events: list[Event]

    async def next(self) -> Event:
        """The next event, which has to come."""
        event = await self._next()
        assert event is not None, "the stream has ended"
        return event

    async def _next(self) -> Event | None:
        async with asyncio.timeout(20):
            while not self._events:
                try:
                    self._events += self._parser.feed(await anext(self._pieces))
                except StopAsyncIteration:
                    return None
        return self._events.pop(0)

    async def rest(self) -> list[Event]:
        """All that comes until it ends."""
        found = []
        while (event := await self._next()) is not None:
            found.append(event)
        return found


@asynccontextmanager
async def serving(app: ASGIApp, key: str, limits: ServerLimits | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of ``app`` behind the server of the ``api`` deployment."""
    server = HttpServer(app, "127.0.0.1", 0, limits)
    await server.start()
    headers = {"authorization": f"Bearer {key}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", headers=headers, timeout=20) as client:
            yield client
    finally:
        await server.stop()


@asynccontextmanager
async def streaming(client: httpx.AsyncClient, job_id: str, after: str | None = None) -> AsyncIterator[Stream]:
    headers = {} if after is None else {"last-event-id": after}
    async with client.stream("GET", f"/api/v1/jobs/{job_id}/events", headers=headers) as answer:
        yield Stream(answer, answer.aiter_bytes(), EventParser(), [])
