"""Other slots' addresses on this machine: one listening socket per port that is forwarded."""

import asyncio
import socket
from collections.abc import Callable, Iterable

import structlog

from cluster.mesh.flow import Endpoint, PlainEndpoint
from cluster.mesh.plan import Slot
from cluster.mesh.sockets import hang_up
from cluster.mesh.tasks import log_failure
from cluster.mesh.transports import TcpTransport

log = structlog.get_logger()

_BACKLOG = 128


class Listeners:
    """Opens and closes them as slots come and go."""

    def __init__(
        self, on_flow: Callable[[Endpoint, Slot, int], None], address: Callable[[Slot], str] = lambda slot: slot.address
    ) -> None:
        """``on_flow`` is called with a new connection and the slot and port that it is for.

        ``address`` is where a slot is listened for. Only where several ends of one mesh share a network namespace, as
        in tests, must it be another than the slot's own.
        """
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._on_flow = on_flow
        self._open: dict[Slot, dict[int, socket.socket]] = {}
        self._lock = asyncio.Lock()
        #: Ports that were not to be had at the last attempt. Another program has them, or there are too many.
        self.missing = 0

    async def serve(self, slots: Iterable[Slot]) -> None:
        """Listen for exactly these slots. Ports that can't be had are left out and tried again at the next call."""
        async with self._lock:
            wanted = set(slots)
            for gone in self._open.keys() - wanted:
                self._close(self._open.pop(gone))
            missing = 0
            for slot in sorted(wanted, key=lambda slot: slot.number):
                servers = self._open.setdefault(slot, {})
                for port in slot.forwarded:
                    if port not in servers:
                        try:
                            servers[port] = self._listen(slot, port)
                        except OSError as error:
                            missing += 1
                            if missing == 1:
                                log.warning("mesh.not_listening", slot=slot.number, port=port, error=error.strerror)
                # A hundred slots are thousands of sockets: let flows through in between.
                await asyncio.sleep(0)
            self.missing = missing

    def close(self) -> None:
        """Close all. Flows go on."""
        for servers in self._open.values():
            self._close(servers)
        self._open.clear()

    def _listen(self, slot: Slot, port: int) -> socket.socket:
        server = socket.create_server((self._address(slot), port), backlog=_BACKLOG)
        server.setblocking(False)
        self._loop.add_reader(server, self._accept, server, slot, port)
        return server

    def _accept(self, server: socket.socket, slot: Slot, port: int) -> None:
        try:
            connection, _ = server.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            # The client has left.
            return
        except OSError as error:
            # Out of descriptors, say. The connection waits in the kernel: look again a little later, not at every
            # turn of the loop.
            log.error("mesh.accept_failed", error=error.strerror)
            self._loop.remove_reader(server)
            self._loop.call_later(0.1, self._accept_again, server, slot, port)
            return
        connection.setblocking(False)
        try:
            TcpTransport(connection, PlainEndpoint(lambda endpoint: self._on_flow(endpoint, slot, port)))
        except Exception as error:
            log_failure(error, slot=slot.number, port=port)
            hang_up(connection)

    def _accept_again(self, server: socket.socket, slot: Slot, port: int) -> None:
        if server.fileno() >= 0:
            self._loop.add_reader(server, self._accept, server, slot, port)

    def _close(self, servers: dict[int, socket.socket]) -> None:
        for server in servers.values():
            self._loop.remove_reader(server)
            server.close()
