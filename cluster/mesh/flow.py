"""Flows: two connections whose bytes go across, each way at the pace of its slower end.

A program's connection is a :class:`PlainEndpoint`, a data connection a :class:`FramedEndpoint`;
:class:`InProcessEndpoint` is an end without a connection. All are protocols on their transports and have no tasks:
a chunk costs one callback. Each of a flow's two directions ends by itself, as TCP's do; for END and DONE
see ``pieces``.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

from cluster.mesh import sockets
from cluster.mesh.pieces import DONE, END, MAX_PIECE, PIECE, PieceReader
from cluster.mesh.wire import WireError

#: Bytes in a connection's write buffer at which its peer's reading stops, and below which it goes on.
_HIGH, _LOW = 512 * 1024, 128 * 1024
#: Bytes kept of a connection that has no peer yet. More stay in the kernel.
_EARLY = 64 * 1024
#: Up to this size copying is cheaper than a TLS record of its own for the length before it.
_SMALL = 16 * 1024


class Endpoint(asyncio.Protocol, ABC):
    """One end of a flow: a connection, and a peer that its bytes go to."""

    def __init__(self, on_connected: Callable[["Endpoint"], None] | None = None) -> None:
        """``on_connected`` is called once connected."""
        self.transport: asyncio.Transport | None = None
        #: Called once when the connection is gone.
        self.on_lost: Callable[[Endpoint], None] | None = None
        self.lost = False
        #: Bytes from and to the network, framing included.
        self.received = self.sent = 0
        self.path = sockets.PathMonitor()
        self._on_connected = on_connected
        self._peer: Endpoint | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._early_eof = False
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(_HIGH, _LOW)
        sockets.tune(transport)
        if self._on_connected is not None:
            self._on_connected(self)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self._peer is not None:
            self._deliver(self._peer, data)
            return
        self._early.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > _EARLY:
            self._set_paused(True)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._peer is not None:
            self._peer._set_paused(True)

    def resume_writing(self) -> None:
        if self._peer is not None:
            self._peer._set_paused(False)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        peer, self._peer = self._peer, None
        self._early.clear()
        if peer is not None:
            self._leave(peer)
        if self.on_lost is not None:
            self.on_lost(self)

    def abort(self) -> None:
        """Cut the connection, and with it the flow."""
        if self.transport is not None and not self.lost:
            self.transport.abort()

    def write(self, data: bytes | memoryview) -> None:
        """Put bytes on this connection as they are."""
        if self.transport is not None and not self.transport.is_closing():
            self.sent += len(data)
            self.transport.write(data)

    @abstractmethod
    def send(self, data: bytes | memoryview) -> None:
        """Put a piece of the flow on this connection."""

    @abstractmethod
    def finish(self) -> None:
        """The flow has no more for this connection."""

    @abstractmethod
    def _deliver(self, peer: "Endpoint", data: bytes) -> None:
        """Give what came in to the peer."""

    @abstractmethod
    def _leave(self, peer: "Endpoint") -> None:
        """This connection is gone; the peer's still stands: cut that as well, unless the flow is complete."""

    def _set_peer(self, peer: "Endpoint") -> None:
        self._peer = peer

    def _flush_early(self) -> None:
        """Give the peer what came before there was one."""
        early, self._early = self._early, []
        self._set_paused(False)
        for data in early:
            if self._peer is not None:
                self._deliver(self._peer, data)
        if self._early_eof and self._peer is not None:
            self._peer.finish()

    def _set_paused(self, paused: bool) -> None:
        if paused == self._paused or self.transport is None or self.transport.is_closing():
            return
        self._paused = paused
        if paused:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


class PlainEndpoint(Endpoint):
    """A program's connection on this machine."""

    def __init__(self, on_connected: Callable[[Endpoint], None] | None = None) -> None:
        super().__init__(on_connected)
        self._got_end = self._sent_end = False

    def eof_received(self) -> bool:
        """Stays open for the other direction."""
        self._got_end = True
        if self._peer is None:
            self._early_eof = True
        else:
            self._peer.finish()
            self._close_if_done()
        return True

    def send(self, data: bytes | memoryview) -> None:
        self.write(data)

    def finish(self) -> None:
        self._sent_end = True
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write_eof()
            self._close_if_done()

    def abort(self) -> None:
        """Cut the connection; the program sees a reset."""
        if self.transport is not None and not self.lost:
            sockets.reset(self.transport)

    def _deliver(self, peer: Endpoint, data: bytes) -> None:
        peer.send(data)

    def _leave(self, peer: Endpoint) -> None:
        if self._got_end and self._sent_end:
            # It may have stopped reading because of us, and its own end is still to be read.
            peer._set_paused(False)
        else:
            peer.abort()

    def _close_if_done(self) -> None:
        if self._got_end and self._sent_end and self.transport is not None:
            # Flushes first, however long the reader takes.
            self.transport.close()


class FramedEndpoint(Endpoint):
    """A data connection."""

    def __init__(self, on_connected: Callable[[Endpoint], None] | None = None) -> None:
        super().__init__(on_connected)
        self._reader = PieceReader(self._data, self._end, self._done)
        self._got_end = self._sent_end = self._confirmed = False

    def send(self, data: bytes | memoryview) -> None:
        if len(data) <= _SMALL:
            self.write(PIECE.pack(len(data)) + data)
            return
        for start in range(0, len(data), MAX_PIECE):
            piece = data if len(data) <= MAX_PIECE else memoryview(data)[start : start + MAX_PIECE]
            if self.transport is not None and not self.transport.is_closing():
                self.sent += PIECE.size + len(piece)
                self.transport.writelines((PIECE.pack(len(piece)), piece))

    def finish(self) -> None:
        self._sent_end = True
        self.write(END)

    def _deliver(self, peer: Endpoint, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except WireError:
            self.abort()

    def _leave(self, peer: Endpoint) -> None:
        if not (self._got_end and self._sent_end):
            peer.abort()

    def _data(self, piece: bytes | memoryview) -> None:
        if self._peer is not None:
            self._peer.send(piece)

    def _end(self) -> None:
        self._got_end = True
        if self._peer is not None:
            self._peer.finish()
        self.write(DONE)
        self._close_if_done()

    def _done(self) -> None:
        if not self._sent_end:
            raise WireError("DONE without an END")
        self._confirmed = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        # A closing TLS transport gives what is still buffered only some seconds. Once DONE has answered our END, that
        # is four bytes at most; without this, a slow reader would lose the tail.
        if self._got_end and self._confirmed and self.transport is not None:
            self.transport.close()


class InProcessEndpoint(PlainEndpoint):
    """An end of a flow in this process, with no connection: sends one text and gets another."""

    def __init__(self, text: bytes = b"") -> None:
        super().__init__()
        #: All that the other end sends, once it has ended. Raises ConnectionResetError if the flow is cut.
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._reply = bytearray()
        if text:
            self.data_received(text)
        self.eof_received()

    def write(self, data: bytes | memoryview) -> None:
        self._reply += data
        if len(self._reply) > _EARLY and self._peer is not None:
            self._peer.abort()

    def finish(self) -> None:
        super().finish()
        if not self.reply.done():
            self.reply.set_result(bytes(self._reply))

    def abort(self) -> None:
        if not self.reply.done():
            self.reply.set_exception(ConnectionResetError("the flow was cut"))
            # Nobody may be waiting.
            self.reply.exception()


def splice(one: Endpoint, other: Endpoint) -> None:
    """Make a flow of two connections. If one is gone already, the other is cut."""
    if one.lost or other.lost:
        one.abort()
        other.abort()
        return
    try:
        one._set_peer(other)
        other._set_peer(one)
        one._flush_early()
        other._flush_early()
    except BaseException:
        one.abort()
        other.abort()
        raise


def switch_protocol(transport: asyncio.Transport, protocol: asyncio.Protocol, unread: bytes = b"") -> None:
    """Give a transport whose reading is paused to its next protocol; ``unread`` is what the last one did not use."""
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    # Takes effect at the loop's next turn, so what was read first still comes first.
    transport.resume_reading()
    if unread:
        protocol.data_received(unread)
