"""A server that takes connections and says nothing, as one that was stopped in the middle of its work."""

import asyncio
from typing import Self


class Hole:
    """``async with`` it."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._ends = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._swallow, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._ends.set()
        self._server.close()

    async def _swallow(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._ends.wait()
        writer.close()
