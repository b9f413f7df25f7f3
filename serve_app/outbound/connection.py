"""TCP connections that can't be talked into our own network.

The check sits at the one place where a name becomes a connection: resolve once, judge every answer, connect to the
answer that was judged. Checking a URL first and fetching it later would resolve twice, and a hostile DNS server may
answer differently the second time (DNS rebinding).
"""

import asyncio
import errno
import ssl
from collections.abc import Awaitable, Callable, Sequence

from serve_app.outbound.addresses import Address, Network, is_allowed, is_open_port
from serve_app.outbound.base import OutboundError, OutboundUnavailable
from serve_app.outbound.resolver import LookupFailed, UnknownHost
from serve_app.outbound.url import Url

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
#: ``resolve(host, owner)``: all addresses of a host; raises what :class:`~serve_app.outbound.resolver.Resolver` does.
Resolve = Callable[[str, str], Awaitable[Sequence[Address]]]
#: ``dial(address, port, tls, server_name)``.
Dial = Callable[[str, int, ssl.SSLContext | None, str | None], Awaitable[Streams]]

#: Addresses of a name that are tried. One with thousands would make us knock at thousands of doors.
_MOST_ADDRESSES = 8
#: Bytes read at a time.
_BUFFER = 65_536
#: We have too little of something, e.g. file descriptors or ports.
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


async def dial(address: str, port: int, tls: ssl.SSLContext | None, server_name: str | None) -> Streams:
    """A connection to an IP address, with TLS if there is a context for it."""
    return await asyncio.open_connection(address, port, limit=_BUFFER, ssl=tls, server_hostname=server_name)


class Connector:
    """Finds, judges and dials servers. TLS verifies the name in the URL, whatever address it led to."""

    def __init__(
        self,
        allow_networks: tuple[Network, ...],
        resolve: Resolve,
        connect_s: float,
        tls: ssl.SSLContext,
        dial: Dial = dial,
    ) -> None:
        self._allow_networks = allow_networks
        self._resolve = resolve
        self._connect_s = connect_s
        self._tls = tls
        self._dial = dial

    async def find(self, url: Url, owner: str) -> list[Address]:
        """The addresses behind a URL, all of them judged.

        Raises:
            OutboundError: no addresses, or not such as we connect to. It says nothing about the address behind a name,
                so that it can't be used to map a private network.
            OutboundUnavailable: we could not ask.
        """
        try:
            addresses = await self._resolve(url.host, owner)
        except UnknownHost:
            raise OutboundError("unreachable", f"{url.netloc} does not exist. Check the link for typos.") from None
        except LookupFailed:
            message = (
                f"The name {url.host} could not be looked up: its name servers do not answer. Check that it is up."
            )
            raise OutboundError("unreachable", message, transient=True) from None
        # One bad answer condemns all: an honest host has no reason to mix public and private addresses.
        if not all(is_allowed(address, self._allow_networks) for address in addresses):
            message = f"{url.netloc} is not a public address. Use one that the internet can reach."
            raise OutboundError("forbidden", message)
        if not all(is_open_port(url.port, address, self._allow_networks) for address in addresses):
            message = f"{url.netloc} uses a closed port. Serve the file on port 80, 443, or any from 1024 up."
            raise OutboundError("forbidden", message)
        return list(addresses[:_MOST_ADDRESSES])

    async def connect(self, url: Url, addresses: Sequence[Address]) -> Streams:
        """Connect to one of the addresses, in order.

        Raises:
            OutboundError: ``unreachable``, or ``rejected`` for a bad certificate.
            OutboundUnavailable: this machine is out of something.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connect_s
        tls, name = (self._tls, url.host.rstrip(".")) if url.scheme == "https" else (None, None)
        failure: OSError | None = None
        for index, address in enumerate(addresses):
            # An equal share of what is left for each, so that a black hole doesn't cost the others their turn.
            share = max(0.001, deadline - loop.time()) / (len(addresses) - index)
            try:
                async with asyncio.timeout(share):
                    return await self._dial(str(address), url.port, tls, name)
            except ssl.SSLCertVerificationError as error:
                raise OutboundError("rejected", f"{url.netloc} has no valid TLS certificate.") from error
            except OSError as error:
                if error.errno in _OURS:
                    raise OutboundUnavailable(f"no connection can be made: {error.strerror}") from error
                failure = error
        if isinstance(failure, TimeoutError):
            message = f"{url.netloc} did not answer in time. Check that it is up."
            raise OutboundError("unreachable", message, transient=True) from failure
        # Nobody there is a broken link, of which the client should hear at once; a connection that breaks off is not.
        message = f"The connection to {url.netloc} failed. Check that the link works."
        raise OutboundError("unreachable", message) from failure
