"""The hub's public port: from a TCP connection to its first frame, with a deadline and a bound on everything.

A connection says who it is and what for in its first frame. Until it has been admitted it is a stranger: it costs
little and not for long, whatever it does. Three stages, each with a limit on how many are in it:

- **Silent**: a socket and nothing else, until TLS's first message is there. An honest node sends it whole and at once,
  however far away it is, so a flood of connections that send nothing, or a byte, pushes out its own kind.
- **Ready**: waits for the costly part of TLS, which is begun for a few at each turn of the loop: under a flood of
  handshakes those that were admitted go on meanwhile.
- **Pending**: within TLS, the first frame, or the answer to it. A stranger who has been refused stays here until it is
  gone.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network

import structlog

from cluster.mesh import counters, sockets
from cluster.mesh.control import PendingConnection
from cluster.mesh.counters import Counters
from cluster.mesh.evicting_set import EvictingSet
from cluster.mesh.tasks import Tasks
from cluster.mesh.tls import Tls
from cluster.mesh.transports import TlsTransport, handshake
from cluster.mesh.wire import Frame, WireError

log = structlog.get_logger()

#: Handshakes that have come in and wait to be taken from the kernel.
_BACKLOG = 1024
#: Connections that are taken from the kernel, and handshakes that are begun, at one turn of the loop.
_ACCEPTED, _BEGUN = 64, 4
#: TLS's first message: the byte it begins with, the bytes up to and with its length, and what is enough in any case.
_HANDSHAKE, _HEADER_BYTES, _ENOUGH = 22, 5, 4096
#: Seconds after which an incomplete first message is looked at again; twice as long each time.
_AGAIN_S = 0.01


@dataclass(frozen=True, eq=False)
class _Stranger:
    """A connection whose first message is not there, or not whole, or has not been read."""

    connection: socket.socket = field(repr=False)
    source: str
    #: The loop's time by which it must be let in.
    until: float


class Acceptor:
    """Accepts connections and passes them on with their first frame."""

    def __init__(
        self,
        context: ssl.SSLContext,
        counts: Counters,
        tasks: Tasks,
        admit: Callable[[PendingConnection, Frame], Awaitable[bool]],
        *,
        handshake_s: float,
        silent: int,
        pending: int,
    ) -> None:
        """``admit`` takes a connection over; False or :class:`WireError` turn it away. ``handshake_s`` is for TLS, the
        first frame and ``admit`` together; ``silent`` and ``pending`` bound how many connections are in these stages,
        half of that from one source."""
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._counters = counts
        self._tasks = tasks
        self._admit = admit
        self._handshake_s = handshake_s
        self._silent: EvictingSet[_Stranger] = EvictingSet(silent)
        self._deadlines: dict[_Stranger, asyncio.TimerHandle] = {}
        self._ready: deque[_Stranger] = deque()
        self._pending: EvictingSet[asyncio.Task[None]] = EvictingSet(pending)
        self._server: socket.socket | None = None

    def listen(self, host: str, port: int) -> int:
        """Listen; the port, of use if 0 was asked for. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._server.setblocking(False)
        self._loop.add_reader(self._server, self._accept, self._server)
        return int(self._server.getsockname()[1])

    async def close(self) -> None:
        """Stop listening and turn away whoever has not come in yet."""
        if self._server is not None:
            self._loop.remove_reader(self._server)
            self._server.close()
            self._server = None
        for stranger in self._silent.members():
            self._dismiss(stranger)
        doomed = self._pending.members()
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)

    # Silent

    def _accept(self, server: socket.socket) -> None:
        for _ in range(_ACCEPTED):
            try:
                connection, address = server.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors, say. They come back as connections end: look again a little later, not at every
                # turn of the loop.
                log.error("mesh.accept_failed", error=error.strerror)
                self._loop.remove_reader(server)
                self._loop.call_later(0.1, self._accept_again, server)
                return
            connection.setblocking(False)
            stranger = _Stranger(connection, _source(address[0]), self._loop.time() + self._handshake_s)
            self._deadlines[stranger] = self._loop.call_at(stranger.until, self._dismiss, stranger, counters.SLOW)
            crowded_out = self._silent.add(stranger, stranger.source)
            if crowded_out is not None:
                self._dismiss(crowded_out, counters.CROWDED)
            self._peek(stranger)

    def _accept_again(self, server: socket.socket) -> None:
        if server.fileno() >= 0:
            self._loop.add_reader(server, self._accept, server)

    def _dismiss(self, stranger: _Stranger, reason: str | None = None) -> None:
        """Close it, with a reset."""
        self._forget(stranger)
        if reason is not None:
            self._counters.refused[reason] += 1
        self._loop.remove_reader(stranger.connection)
        sockets.hang_up(stranger.connection)

    def _forget(self, stranger: _Stranger) -> None:
        self._silent.remove(stranger)
        self._deadlines.pop(stranger).cancel()

    # Ready

    def _on_byte(self, stranger: _Stranger) -> None:
        """It sends something, or has left."""
        self._loop.remove_reader(stranger.connection)
        self._peek(stranger)

    def _peek(self, stranger: _Stranger, again_s: float = _AGAIN_S) -> None:
        """Whether its first message is whole. All of it stays in the kernel."""
        if stranger not in self._silent:
            return
        try:
            received = stranger.connection.recv(_ENOUGH, socket.MSG_PEEK)
        except BlockingIOError:
            self._loop.add_reader(stranger.connection, self._on_byte, stranger)
            return
        except OSError:
            received = b""
        if not received:
            self._dismiss(stranger, counters.LEFT)
        elif received[0] != _HANDSHAKE:
            self._dismiss(stranger, counters.NOT_TLS)
        elif len(received) < min(_HEADER_BYTES + int.from_bytes(received[3:_HEADER_BYTES].ljust(2, b"\xff")), _ENOUGH):
            self._loop.call_later(again_s, self._peek, stranger, 2 * again_s)
        else:
            if not self._ready:
                self._loop.call_soon(self._begin_handshakes)
            self._ready.append(stranger)

    def _begin_handshakes(self) -> None:
        begun = 0
        while self._ready and begun < _BEGUN:
            stranger = self._ready.popleft()
            # Else it has been dismissed meanwhile.
            if stranger in self._silent:
                self._begin_handshake(stranger)
                begun += 1
        if self._ready:
            self._loop.call_soon(self._begin_handshakes)

    # Pending

    def _begin_handshake(self, stranger: _Stranger) -> None:
        self._forget(stranger)
        task = self._tasks.serve(self._receive(stranger), stranger.connection.close)
        task.add_done_callback(self._pending.remove)
        crowded_out = self._pending.add(task, stranger.source)
        if crowded_out is not None:
            self._counters.refused[counters.CROWDED] += 1
            crowded_out.cancel()

    async def _receive(self, stranger: _Stranger) -> None:
        pending = PendingConnection()
        admitted = answered = False
        try:
            async with asyncio.timeout_at(stranger.until):
                tls = Tls(self._context, server_side=True)
                await handshake(stranger.connection, tls)
                TlsTransport(stranger.connection, pending, tls)
                frame = await pending.frame
                admitted = await self._admit(pending, frame)
                if not admitted and pending.is_closing:
                    # It has been told why, and gets the time that is left to hear it.
                    answered = True
                    await pending.gone.wait()
        except TimeoutError:
            self._counters.refused[counters.SLOW] += not answered
        except WireError:
            self._counters.refused[counters.MALFORMED] += 1
        except ssl.SSLError:
            self._counters.refused[counters.NOT_TLS] += 1
        except OSError:
            self._counters.refused[counters.LEFT] += 1
        finally:
            if not admitted:
                pending.abort()
                # If TLS's handshake failed, there is no transport yet.
                stranger.connection.close()


def _source(address: str) -> str:
    """What counts as one source: an IPv4 address; of IPv6 the network (/64) that one customer is given."""
    if ":" not in address:
        return address
    return str(IPv6Network((int(IPv6Address(address.partition("%")[0])) >> 64 << 64, 64)))
