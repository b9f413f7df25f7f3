"""How a node reaches the hub: TLS 1.3, and not a byte to anybody but the one that is pinned."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import TypeVar, cast

from cluster.mesh.flow import hand_over
from cluster.mesh.identity import client_context, is_pinned

P = TypeVar("P", bound=asyncio.Protocol)

#: Seconds for name, TCP and TLS together.
CONNECT_S = 5.0
#: Seconds that a closing connection may take to say so; cut afterwards.
SHUTDOWN_S = 5.0


class WrongHub(ConnectionError):
    """Somebody else answers at the hub's address. Nothing was sent."""


@dataclass(frozen=True)
class HubAddress:
    """Where the hub's single port is reached from outside, e.g. a TCP proxy's name."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "HubAddress":
        """Read ``HOST:PORT``. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not (host and colon and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("a hub's address is HOST:PORT")
        return cls(host.strip("[]"), int(port))


class Dialer:
    """Opens connections to one hub."""

    def __init__(self, address: HubAddress, fingerprint: bytes) -> None:
        self._address = address
        self._fingerprint = fingerprint
        self._context = client_context()
        #: IP address of the last connection that was made by name: flows needn't ask the resolver each time.
        self._known: tuple[str, int] | None = None

    async def connect(self, protocol: P, *, resolve: bool = False) -> P:
        """Connect ``protocol`` to the hub; ``resolve``: ask for the name's address again.

        Raises OSError (TimeoutError, ssl.SSLError, :class:`WrongHub` and the others among it).
        """
        known = None if resolve else self._known
        host, port = known or (self._address.host, self._address.port)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            transport, gate = await loop.create_connection(
                lambda: _Gate(self._fingerprint),
                host,
                port,
                ssl=self._context,
                # Sent in clear as SNI, and there has to be one.
                server_hostname="video-api-mesh",
                ssl_handshake_timeout=CONNECT_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        if not gate.open:
            transport.abort()
            raise WrongHub("the hub's certificate is not the pinned one")
        if known is None:
            self._known = transport.get_extra_info("peername")[:2]
        hand_over(transport, protocol)
        return protocol


class _Gate(asyncio.Protocol):
    """Looks at the certificate before anything is read."""

    def __init__(self, fingerprint: bytes) -> None:
        self._fingerprint = fingerprint
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        connection: ssl.SSLObject = transport.get_extra_info("ssl_object")
        cast("asyncio.Transport", transport).pause_reading()
        self.open = is_pinned(connection.getpeercert(binary_form=True), self._fingerprint)
