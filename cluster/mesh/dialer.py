"""How a node reaches the hub: TLS 1.3, and not a byte to anybody but the one that is pinned."""

import asyncio
from dataclasses import dataclass
from typing import TypeVar

from cluster.mesh.invitation import HUB_NAME, client_context, is_pinned
from cluster.mesh.tls import Tls
from cluster.mesh.transports import TlsTransport, connect, handshake

P = TypeVar("P", bound=asyncio.Protocol)

#: Seconds for name, TCP and TLS together.
CONNECT_S = 5.0


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
        if resolve:
            self._known = None
        async with asyncio.timeout(CONNECT_S):
            sock = await connect(*(self._known or (self._address.host, self._address.port)))
            try:
                # A name is sent in clear as SNI, and there has to be one.
                tls = Tls(self._context, server_side=False, server_hostname=HUB_NAME)
                await handshake(sock, tls)
                if not is_pinned(tls.certificate(), self._fingerprint):
                    raise WrongHub("the hub's certificate is not the pinned one")
                self._known = self._known or sock.getpeername()[:2]
            except BaseException:
                sock.close()
                raise
        TlsTransport(sock, protocol, tls)
        return protocol
