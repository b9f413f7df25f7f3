"""TCP connections that can't be talked into our own network.

The check sits at the one place where a name becomes a connection: resolve once, judge every answer, connect to the
answer that was judged. Checking a URL first and fetching it later would resolve twice, and a hostile DNS server may
answer differently the second time (DNS rebinding).
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address

import httpcore

from serve_app.intake.addresses import Address, Network, is_allowed

#: ``resolve(host, port)``: all addresses of a host. OSError if there are none.
Resolve = Callable[[str, int], Awaitable[list[Address]]]


class ForbiddenAddress(Exception):
    """The host has an address that isn't public."""


class UnknownHost(Exception):
    """There is no such name."""


async def system_resolve(host: str, port: int) -> list[Address]:
    """Ask the system's resolver, which also understands odd spellings such as ``http://2130706433/``."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(answer[4][0]) for answer in answers]


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """httpcore's way to the network, with the check in it. TLS above it still verifies the original host name."""

    def __init__(
        self,
        allow_networks: tuple[Network, ...],
        resolve: Resolve = system_resolve,
        inner: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._allow_networks = allow_networks
        self._resolve = resolve
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect within ``timeout`` seconds, names included.

        Raises :class:`ForbiddenAddress`, :class:`UnknownHost` or httpcore's ``ConnectError`` and ``ConnectTimeout``.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        addresses = await self._addresses(host, port, timeout)
        failure: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for index, address in enumerate(addresses):
            # An equal share of what is left for each, so that a black hole doesn't cost the others their turn.
            share = None if deadline is None else max(0.001, deadline - loop.time()) / (len(addresses) - index)
            try:
                return await self._inner.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError("no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never: no URL means a socket of this machine."""
        raise ForbiddenAddress

    async def sleep(self, seconds: float) -> None:
        """Wait, as httpcore asks for between its own connection retries (which we don't enable)."""
        await asyncio.sleep(seconds)

    async def _addresses(self, host: str, port: int, seconds: float | None) -> list[Address]:
        try:
            async with asyncio.timeout(seconds):
                addresses = await self._resolve(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("name resolution timed out") from error
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise httpcore.ConnectError("name resolution failed") from error
            raise UnknownHost from error
        except UnicodeError as error:
            # The idna codec: an empty or overlong label.
            raise UnknownHost from error
        # One bad answer condemns all: an honest host has no reason to mix public and private addresses.
        if not all(is_allowed(address, self._allow_networks) for address in addresses):
            raise ForbiddenAddress
        return addresses
