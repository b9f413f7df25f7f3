"""What the hub hands out to nodes that have not joined yet, and the connection that it is sent on."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from cluster.mesh.wire import Content, Frame, encode

if TYPE_CHECKING:
    from cluster.mesh.registry import Node

#: Bytes that are read and sent at a time: all that a fetch holds in memory.
CHUNK_BYTES = 256 * 1024


class Depot(Protocol):
    """What there is to fetch."""

    async def open(self, node: "Node", name: str) -> Path | bytes | None:
        """A file, or what is made for that node; None if there is nothing of that name, which may be anything."""
        ...


class Outlet(asyncio.Protocol):
    """The hub's end of a connection that something is fetched on. Whoever fetches has nothing more to say."""

    def __init__(self, chunk_s: float, may_send: Callable[[int], bool]) -> None:
        """``chunk_s``: seconds that a chunk may take to be gone. ``may_send``: whether so many bytes more may go."""
        self._chunk_s = chunk_s
        self._may_send = may_send
        self._transport: asyncio.Transport | None = None
        self._taken, self._gone = asyncio.Event(), asyncio.Event()
        self._taken.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Paused until the last byte of a chunk is with the kernel.
        self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        self.abort()

    def pause_writing(self) -> None:
        self._taken.clear()

    def resume_writing(self) -> None:
        self._taken.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set()
        self._taken.set()

    def abort(self) -> None:
        """Give up."""
        if self._transport is not None:
            self._transport.abort()

    async def say(self, frame: Frame) -> None:
        """Send this frame and close. Raises TimeoutError if nobody reads it."""
        await self._write(encode(frame))
        await self._close()

    async def send(self, content: Path | bytes, offset: int) -> bool:
        """Send it from that byte on and close; False, with nothing said, if it is not that long.

        Raises TimeoutError if it is read too slowly, and OSError if it can't be read here or the peer has left.
        """
        if isinstance(content, bytes):
            if offset > len(content):
                return False
            await self._write(encode(Content(len(content) - offset)))
            for position in range(offset, len(content), CHUNK_BYTES):
                await self._write(content[position : position + CHUNK_BYTES])
        else:
            file = await asyncio.to_thread(content.open, "rb", 0)
            with file:
                left = os.fstat(file.fileno()).st_size - offset
                if left < 0:
                    return False
                file.seek(offset)
                await self._write(encode(Content(left)))
                while left:
                    chunk = await asyncio.to_thread(file.read, min(left, CHUNK_BYTES))
                    if not chunk:
                        raise OSError("the file has become shorter")
                    left -= len(chunk)
                    await self._write(chunk)
        await self._close()
        return True

    async def _write(self, data: bytes) -> None:
        if self._gone.is_set() or self._transport is None:
            raise ConnectionAbortedError
        if not self._may_send(len(data)):
            raise PermissionError("it may fetch no more")
        self._transport.write(data)
        async with asyncio.timeout(self._chunk_s):
            await self._taken.wait()

    async def _close(self) -> None:
        """In order: what the kernel still has arrives."""
        if self._transport is not None:
            self._transport.close()
        async with asyncio.timeout(self._chunk_s):
            await self._gone.wait()
