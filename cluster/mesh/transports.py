"""TCP and TLS connections as asyncio transports, on the loop's ``add_reader`` and ``add_writer``.

Why not the loop's own: uvloop's read one connection up to 32 times before the next one has its turn, 8 MB of
somebody's bulk transfer in which nothing else moves. asyncio's don't, but keep a buffer of 256 KiB for each TLS
connection: 278 KiB a flow on the head instead of 20, and as much for a stranger at the door. Calls over 20 ms and
500 Mbit/s are as fast with them up to the 90th percentile (1.00 to 1.08 of ours), and take up to 1.3 of ours at the
99th. Measured by ``make bench-transports``; ``docs/decisions/0007`` has the table.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import cast
from weakref import WeakKeyDictionary

from cluster.mesh import sockets
from cluster.mesh.tasks import log_failure
from cluster.mesh.tls import MAX_RECORD, Bytes, Tls

#: Bytes that are read at a time, and so what another connection may have to wait for.
_CHUNK = 64 * 1024
#: Bytes that may wait for a peer that triggers TLS responses (key updates) without reading them. Far more than a flow
#: ever has there.
_MAX_UNREAD = 8 * 1024 * 1024
#: The kernel's state of a connection that is no more.
_TCP_CLOSE = 7
#: Seconds that a closing TLS connection gets to send what is buffered and to see the peer close; cut afterwards.
SHUTDOWN_S = 5.0

_buffers: "WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview]" = WeakKeyDictionary()


class TcpTransport(asyncio.Transport):
    """A TCP connection. Owns its socket. What it gives to the protocol is the protocol's to keep."""

    def __init__(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        """Begins to read at the loop's next turn. ``sock`` is connected and doesn't block."""
        super().__init__({"socket": sock})
        self._loop = asyncio.get_running_loop()
        self._buffer = _shared_buffer(self._loop)
        self._sock = sock
        self._protocol = protocol
        #: What the socket did not take yet.
        self._out = bytearray()
        self._high, self._low = 64 * 1024, 16 * 1024
        self._writing_paused = False
        self._reading = self._closing = self._lost = self._lost_told = self._eof_seen = self._eof_wanted = False
        protocol.connection_made(self)
        self.resume_reading()

    # asyncio.Transport

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """The newest protocol gets ``connection_lost``, even if the loss came first."""
        self._protocol = cast("asyncio.Protocol", protocol)
        if self._lost_told:
            self._loop.call_soon(self._protocol.connection_lost, None)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return len(self._out)

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def resume_reading(self) -> None:
        if not self._reading and not self._closing and not self._eof_seen:
            self._reading = True
            self._loop.add_reader(self._sock, self._guard, self._readable)

    def write(self, data: Bytes) -> None:
        if not self._closing and not self._eof_wanted and data:
            self._send(data)

    def write_eof(self) -> None:
        if not self._closing and not self._eof_wanted:
            self._eof_wanted = True
            if not self._out:
                self._shutdown_writing()

    def close(self) -> None:
        if self._closing:
            return
        self.pause_reading()
        self._closing = True
        if not self._out:
            self._flushed()

    def abort(self) -> None:
        self._lose(None)

    # The socket

    def _guard(self, step: Callable[[], None]) -> None:
        """Whatever is wrong with a protocol costs its own connection, and doesn't leave it open without an owner."""
        try:
            step()
        except Exception as error:
            log_failure(error, protocol=type(self._protocol).__name__)
            sockets.reset(self)

    def _readable(self) -> None:
        """The loop says that there is something."""
        try:
            count = self._sock.recv_into(self._buffer, _CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if count:
            if self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
                # Reset, with something left to read. uvloop reports that once, and this was it: register anew.
                self._loop.remove_reader(self._sock)
                self._loop.add_reader(self._sock, self._guard, self._readable)
            self._received(count)
            if count == _CHUNK:
                # Part of a bulk transfer. Where cores are few, the programs at its ends want one as well; unless it is
                # offered now, they take it for a whole slice, and every small call waits that long at every hop.
                os.sched_yield()
        else:
            self._peer_ended()

    def _received(self, count: int) -> None:
        """So many bytes lie at the buffer's beginning."""
        self._protocol.data_received(bytes(self._buffer[:count]))

    def _peer_ended(self) -> None:
        """The peer sends no more."""
        self._eof_seen = True
        self.pause_reading()
        if not self._protocol.eof_received():
            self.close()

    def _send(self, data: Bytes) -> None:
        """Send now what the socket takes, and the rest when it takes more."""
        if not self._out:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            self._loop.add_writer(self._sock, self._guard, self._writable)
        self._out += data
        if not self._writing_paused and len(self._out) > self._high:
            self._writing_paused = True
            self._protocol.pause_writing()

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        del self._out[:sent]
        if self._writing_paused and len(self._out) <= self._low:
            self._writing_paused = False
            self._protocol.resume_writing()
        if not self._out and not self._lost:
            self._loop.remove_writer(self._sock)
            if self._eof_wanted:
                self._shutdown_writing()
            if self._closing:
                self._flushed()

    def _flushed(self) -> None:
        """Closing, and everything is sent."""
        self._lose(None)

    def _shutdown_writing(self) -> None:
        # If it is gone, reading tells.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._reading = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._out.clear()
        self._sock.close()
        self._loop.call_soon(self._tell_lost, error)

    def _tell_lost(self, error: Exception | None) -> None:
        self._lost_told = True
        self._protocol.connection_lost(error)


class TlsTransport(TcpTransport):
    """A TLS connection after its handshake. Without half-close: an end of the stream is the end of the connection."""

    def __init__(self, sock: socket.socket, protocol: asyncio.Protocol, tls: Tls) -> None:
        self._tls = tls
        self._linger: asyncio.TimerHandle | None = None
        super().__init__(sock, protocol)
        if tls.incoming.pending:
            # Came right behind the handshake. Told at the loop's next turn, as always.
            self._loop.call_soon(self._guard, self._decrypt)

    def write(self, data: Bytes) -> None:
        if not self._closing and data:
            self._send(self._tls.encrypt(data))

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        """Parts are not empty; they go by one call."""
        if not self._closing:
            self._send(self._tls.encrypt(*list_of_data))

    def write_eof(self) -> None:
        """Not in TLS, see :meth:`can_write_eof`."""
        raise NotImplementedError

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """What is still buffered gets :data:`SHUTDOWN_S`."""
        if self._closing:
            return
        # Whatever still comes in is read and dropped: closing a socket with something unread resets the connection, and
        # the peer would lose what we sent last.
        self.resume_reading()
        self._closing = True
        self._linger = self._loop.call_later(SHUTDOWN_S, self._lose, None)
        self._send(self._tls.close_notify())
        if not self._out:
            self._flushed()

    def _received(self, count: int) -> None:
        if not self._closing:
            self._tls.incoming.write(self._buffer[:count])
            self._decrypt()

    def _decrypt(self) -> None:
        if self._closing:
            return
        try:
            data = self._tls.decrypt(self._buffer)
        except ssl.SSLError as error:
            self._send(self._tls.pending_output())
            self._lose(error)
            return
        if output := self._tls.pending_output():
            self._send(output)
            if len(self._out) > _MAX_UNREAD:
                self._lose(None)
                return
        if data:
            self._protocol.data_received(data)
        if self._tls.ended and not self._closing:
            self._protocol.eof_received()
            self.close()

    def _peer_ended(self) -> None:
        if not self._closing:
            self._protocol.eof_received()
        self._lose(None)

    def _flushed(self) -> None:
        # The peer closes in turn; then there is nothing left on the way.
        self._shutdown_writing()

    def _lose(self, error: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        super()._lose(error)


def _shared_buffer(loop: asyncio.AbstractEventLoop) -> memoryview:
    """Where all connections of a loop read to, one after the other. What TLS held back comes on top of a chunk."""
    if loop not in _buffers:
        _buffers[loop] = memoryview(bytearray(_CHUNK + 2 * MAX_RECORD))
    return _buffers[loop]


async def connect(host: str, port: int) -> socket.socket:
    """A TCP connection. Raises OSError."""
    loop = asyncio.get_running_loop()
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def handshake(sock: socket.socket, tls: Tls) -> None:
    """TLS's handshake over a connected socket. Raises ssl.SSLError, and OSError if the peer leaves."""
    loop = asyncio.get_running_loop()
    done = False
    while not done:
        try:
            done = tls.do_handshake()
        finally:
            # If it failed, this is the alert that says why.
            if output := tls.pending_output():
                await loop.sock_sendall(sock, output)
        if not done:
            received = await loop.sock_recv(sock, MAX_RECORD)
            if not received:
                raise ConnectionAbortedError("the peer left in the middle of TLS's handshake")
            tls.incoming.write(received)
