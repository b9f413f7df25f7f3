"""The other slots' addresses on this machine: one listening socket per port that can be forwarded."""

import asyncio
import socket
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from cluster.mesh.flow import Plain, Side
from cluster.mesh.plan import Slot

log = structlog.get_logger()

_BACKLOG = 128


class Listeners:
    """Opens and closes them as slots come and go."""

    def __init__(
        self, on_flow: Callable[[Side, Slot, int], None], address: Callable[[Slot], str] = lambda slot: slot.address
    ) -> None:
        """``on_flow`` is called with a new connection and the slot and port that it is for.

        ``address`` is where a slot is listened for. Only where several ends of one mesh share a network namespace, as
        in tests, must it be another than the slot's own.
        """
        self._address = address
        self._on_flow = on_flow
        self._open: dict[Slot, dict[int, asyncio.Server]] = {}
        self._lock = asyncio.Lock()
        #: Ports that were not to be had at the last attempt. Another program has them, or there are too many.
        self.missing = 0

    async def serve(self, slots: Iterable[Slot]) -> None:
        """Listen for exactly these slots. Ports that can't be had are left out and tried again at the next call."""
        async with self._lock:
            wanted = set(slots)
            for gone in self._open.keys() - wanted:
                _close(self._open.pop(gone))
            missing = 0
            for slot in sorted(wanted, key=lambda slot: slot.number):
                servers = self._open.setdefault(slot, {})
                for port in slot.forwarded:
                    if port not in servers:
                        try:
                            servers[port] = await self._listen(slot, port)
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
            _close(servers)
        self._open.clear()

    def _made(self, slot: Slot, port: int, side: Side) -> None:
        self._on_flow(side, slot, port)

    async def _listen(self, slot: Slot, port: int) -> asyncio.Server:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind((self._address(slot), port))
            made = partial(self._made, slot, port)
            return await asyncio.get_running_loop().create_server(lambda: Plain(made), sock=sock, backlog=_BACKLOG)
        except BaseException:
            sock.close()
            raise


def _close(servers: dict[int, asyncio.Server]) -> None:
    for server in servers.values():
        server.close()
