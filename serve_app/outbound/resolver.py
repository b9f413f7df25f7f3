"""Names to addresses without a thread per question.

``getaddrinfo`` of the C library blocks a thread for as long as a name server is silent, and there are only a few: names
whose servers never answer would hold up everybody's. c-ares waits in one thread for all, and reads ``/etc/hosts`` and
``/etc/resolv.conf`` (search domains included) as the C library does.
"""

import asyncio
import contextlib
import secrets
import socket
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import cached_property
from ipaddress import IPv4Address, ip_address

import aiodns
from aiodns import error as ares

from serve_app.fair import FairSlots
from serve_app.outbound.addresses import Address
from serve_app.outbound.base import OutboundUnavailable

#: Names being looked up at a time, and how many of them for one owner. Each costs a few packets.
_SLOTS, _SHARE = 64, 16
#: c-ares waits 2 s for a server of which it knows nothing. Later it goes by that server's usual time, but at least
#: 250 ms, doubled with each try: four tries are 3.75 s then, two would give up after 0.75 s on a name that takes 1 s.
_FIRST_WAIT_S, _TRIES = 2, 4
#: For so many seconds the next who ask for a name that failed are told so at once. Less than the wait before a second
#: attempt plus a lookup: that one should ask again.
_REMEMBERED_S = 2
_MOST_REMEMBERED = 10_000
#: Our own name server gets this long to say anything at all when it was silent about some name.
_SIGN_OF_LIFE_S = 2

_NO_SUCH_NAME = {ares.ARES_ENOTFOUND, ares.ARES_ENODATA, ares.ARES_EBADNAME}
#: The name server's answers to the question, other than addresses.
_ANSWERS = _NO_SUCH_NAME | {
    ares.ARES_EFORMERR,
    ares.ARES_ESERVFAIL,
    ares.ARES_ENOTIMP,
    ares.ARES_EREFUSED,
    ares.ARES_EBADRESP,
}


class UnknownHost(Exception):
    """There is no such name, or it has no address."""


class LookupFailed(Exception):
    """The name server could not find out, or nobody answered it in time."""


class Resolver:
    """``await resolver(host, owner)``: all addresses of a host. For one event loop."""

    def __init__(self, servers: Sequence[str] = (), *, lookup_s: float = 5, queue_s: float = 10) -> None:
        """``servers`` as ``host:port``, instead of those in ``/etc/resolv.conf``."""
        self._servers = servers
        self._lookup_s = lookup_s
        self._queue_s = queue_s
        self._slots = FairSlots(_SLOTS, _SHARE)
        #: Questions under way; who asks the same joins.
        self._asked: dict[str, asyncio.Task[list[Address]]] = {}
        #: Until when, by the loop's clock, and why.
        self._failed: OrderedDict[str, tuple[float, type[Exception]]] = OrderedDict()

    async def __call__(self, host: str, owner: str) -> list[Address]:
        """Ask for ``host`` on behalf of ``owner``.

        Raises:
            UnknownHost, LookupFailed: the name's fault.
            OutboundUnavailable: too many are asking, or our own name server is down.
        """
        literal = _literal(host)
        if literal is not None:
            return [literal]
        until, reason = self._failed.get(host, (0.0, UnknownHost))
        if until > asyncio.get_running_loop().time():
            raise reason
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._queue_s):
                    await stack.enter_async_context(self._slots.hold(owner))
            except TimeoutError as error:
                raise OutboundUnavailable("too many names are being looked up") from error
            # Not before: who joined a question that waits in somebody else's line would wait in that line.
            question = self._asked.get(host)
            if question is None:
                question = self._asked[host] = asyncio.create_task(self._ask(host))
                question.add_done_callback(lambda done: self._answered(host, done))
            return await asyncio.shield(question)

    async def aclose(self) -> None:
        """Give up on all questions."""
        for question in self._asked.values():
            question.cancel()
        if "_dns" in self.__dict__:
            await self._dns.close()

    @cached_property
    def _dns(self) -> aiodns.DNSResolver:
        return aiodns.DNSResolver(self._servers or None, timeout=_FIRST_WAIT_S, tries=_TRIES)

    async def _ask(self, host: str) -> list[Address]:
        try:
            async with asyncio.timeout(self._lookup_s):
                found = await self._dns.getaddrinfo(host, type=socket.SOCK_STREAM)
            return [ip_address(node.addr[0].decode()) for node in found.nodes]
        except TimeoutError:
            code = ares.ARES_ETIMEOUT
        except ares.DNSError as error:
            code = error.args[0]
        if code not in _ANSWERS and not await self._has_name_server():
            raise OutboundUnavailable("our name server does not answer")
        raise UnknownHost if code in _NO_SUCH_NAME else LookupFailed

    async def _has_name_server(self) -> bool:
        """Whether our own name server says anything, even no. A name that can't be known already, by nobody's cache."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SIGN_OF_LIFE_S):
                try:
                    await self._dns.query_dns(f"{secrets.token_hex(8)}.invalid", "A")
                except ares.DNSError as error:
                    return error.args[0] in _ANSWERS
                return True
        return False

    def _answered(self, host: str, question: asyncio.Task[list[Address]]) -> None:
        del self._asked[host]
        error = None if question.cancelled() else question.exception()
        if isinstance(error, UnknownHost | LookupFailed):
            self._failed[host] = (asyncio.get_running_loop().time() + _REMEMBERED_S, type(error))
            self._failed.move_to_end(host)
            while len(self._failed) > _MOST_REMEMBERED:
                self._failed.popitem(last=False)


def _literal(host: str) -> Address | None:
    """The address that ``host`` is, in any spelling that the C library takes, e.g. ``2130706433`` or ``0x7f.1``."""
    with contextlib.suppress(ValueError):
        return ip_address(host)
    with contextlib.suppress(OSError):
        return IPv4Address(socket.inet_aton(host))
    return None
