"""Connections that carry frames: a node's control connection, and every connection until its first frame is there."""

import asyncio
from collections.abc import Callable
from typing import cast

from cluster.mesh import sockets
from cluster.mesh.wire import Frame, FrameReader, Ping, Pong, WireError, encode

#: Unsent bytes that a control connection may have. It only ever carries a few hundred: more means that nobody reads.
_BACKLOG = 1 << 20


class PendingConnection(asyncio.Protocol):
    """Waits for a connection's first frame, then stops reading."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        #: The frame. Raises :class:`WireError` for something else, ConnectionError if the peer leaves.
        self.frame: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        #: Set when the connection is gone. While it isn't read from, nobody notices.
        self.gone = asyncio.Event()
        self._reader = FrameReader()
        self._awaits_answer = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._awaits_answer:
            self.abort()
            return
        if self.frame.done():
            self._reader.feed(data)
            return
        try:
            self._reader.feed(data)
            frame = self._reader.next()
        except WireError as error:
            self._fail(error)
            return
        if frame is not None:
            self.frame.set_result(frame)
            if self.transport is not None:
                self.transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()
        self._fail(error if isinstance(error, OSError) else ConnectionAbortedError())

    def read_on(self) -> None:
        """Notice if the peer leaves. It has to wait for its answer: if it sends anything before, it is cut off."""
        self._awaits_answer = True
        if self.transport is not None:
            self.transport.resume_reading()

    def answer(self, frame: Frame) -> None:
        """Send this frame and close."""
        if self.transport is not None:
            self.transport.write(encode(frame))
            self.transport.close()

    @property
    def is_closing(self) -> bool:
        """Closed, as far as this end is concerned."""
        return self.transport is not None and self.transport.is_closing()

    def unread(self) -> bytes:
        """What came after the frame."""
        return self._reader.unread()

    def abort(self) -> None:
        """Give up."""
        if self.transport is not None:
            self.transport.abort()

    def _fail(self, error: Exception) -> None:
        if not self.frame.done():
            self.frame.set_exception(error)
            # Nobody may be waiting any more.
            self.frame.exception()


class ControlConnection(asyncio.Protocol):
    """One end of a node's control connection. Answers pings by itself."""

    def __init__(self, on_frame: Callable[[Frame], None]) -> None:
        """``on_frame`` gets every other frame; it may raise :class:`WireError` for one that has no business here."""
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        #: Done when the connection is gone.
        self.lost: asyncio.Future[None] = loop.create_future()
        #: The loop's time when something last came in.
        self.last_heard = loop.time()
        self._on_frame = on_frame
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.last_heard = self._clock()
        sockets.tune(transport, always_read=True)

    def data_received(self, data: bytes) -> None:
        self.last_heard = self._clock()
        try:
            self._reader.feed(data)
            while (frame := self._reader.next()) is not None:
                if isinstance(frame, Ping):
                    self.send(Pong(frame.number))
                elif not isinstance(frame, Pong):
                    self._on_frame(frame)
        except WireError:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, frame: Frame) -> None:
        """Queue a frame. A peer that doesn't read is cut off."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > _BACKLOG:
            self.abort()
            return
        self._transport.write(encode(frame))

    def close(self, last: Frame | None = None) -> None:
        """End the connection in order, after saying ``last``."""
        if last is not None:
            self.send(last)
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()
