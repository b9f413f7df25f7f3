"""The hub's public port: from a TCP connection to the first frame, with a deadline and a bound.

A connection says who it is and what for in its first frame. Until then it costs little and not for long: TLS and the
frame have a deadline, and when too many wait the oldest goes, since an honest one is through in a few round trips.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable

import structlog

from cluster.mesh import counters
from cluster.mesh.control import Opening
from cluster.mesh.counters import Counters
from cluster.mesh.stream import TlsStream
from cluster.mesh.tls import Tls
from cluster.mesh.wire import Frame, WireError

log = structlog.get_logger()

_BACKLOG = 1024


class Door:
    """Accepts connections and passes them on with their first frame."""

    def __init__(
        self,
        context: ssl.SSLContext,
        counts: Counters,
        enter: Callable[[Opening, Frame], bool],
        *,
        handshake_s: float,
        pending: int,
    ) -> None:
        """``enter`` takes a connection over; False or :class:`WireError` turn it away. ``handshake_s`` is for TLS and
        the first frame together; ``pending`` bounds how many connections are within it."""
        self._context = context
        self._counters = counts
        self._enter = enter
        self._handshake_s = handshake_s
        self._most = pending
        #: Connections without a first frame, oldest first.
        self._pending: dict[asyncio.Task[None], None] = {}
        self._server: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def open(self, host: str, port: int) -> int:
        """Listen; the port, of use if 0 was asked for. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self._server.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(self._server))
        return int(self._server.getsockname()[1])

    @property
    def is_empty(self) -> bool:
        """Nobody is waiting to be let in."""
        return not self._pending

    async def close(self) -> None:
        """Stop listening and turn away whoever has not come in yet."""
        doomed = [*self._pending]
        if self._accepting is not None:
            doomed.append(self._accepting)
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(server)
            except OSError as error:
                # Out of descriptors, say. They come back as connections end.
                log.error("mesh.accept_failed", error=error.strerror)
                await asyncio.sleep(0.1)
                continue
            task = asyncio.create_task(self._admit(connection))
            self._pending[task] = None
            task.add_done_callback(lambda done: self._pending.pop(done, None))
            if len(self._pending) > self._most:
                oldest = next(iter(self._pending))
                del self._pending[oldest]
                self._counters.refused[counters.CROWDED] += 1
                oldest.cancel()

    async def _admit(self, connection: socket.socket) -> None:
        opening = Opening()
        admitted = False
        try:
            async with asyncio.timeout(self._handshake_s):
                tls = Tls(self._context, server_side=True)
                await tls.shake(connection)
                TlsStream(connection, opening, tls)
                frame = await opening.frame
            admitted = self._enter(opening, frame)
        except TimeoutError:
            self._counters.refused[counters.SLOW] += 1
        except WireError:
            self._counters.refused[counters.MALFORMED] += 1
        except ssl.SSLError:
            self._counters.refused[counters.NOT_TLS] += 1
        except OSError:
            self._counters.refused[counters.LEFT] += 1
        finally:
            if not admitted:
                opening.abort()
                # If TLS's handshake failed, there is no transport yet.
                connection.close()
