"""The HTTP client for URLs that come from outside. It runs in a process of its own (``worker.py``)."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, Self

import certifi

from serve_app.disk import require_room
from serve_app.outbound.addresses import Network
from serve_app.outbound.base import OutboundError, PostReply
from serve_app.outbound.connection import Connector, Dial, Resolve, dial
from serve_app.outbound.exchange import Answer, Exchange
from serve_app.outbound.limits import DEFAULTS, Limits
from serve_app.outbound.resolver import Resolver
from serve_app.outbound.url import Url

_MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
#: Statuses of the 4xx range that a later try may not get.
_RETRYABLE = {408, 425, 429}
#: Bytes of a webhook's answer that are kept for the delivery log.
_KEPT_REPLY = 2048
#: Bytes gathered before a thread writes them.
_WRITE_BLOCK = 1024 * 1024


class SafeClient:
    """Fetches from and posts to public addresses, and those in ``allow_networks``. An ``Outbound``.

    Safe for concurrent use. Every request opens its own connection, so every request is checked.
    """

    def __init__(
        self,
        allow_networks: tuple[Network, ...] = (),
        limits: Limits = DEFAULTS,
        *,
        dns_servers: Sequence[str] = (),
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        dial: Dial = dial,
    ) -> None:
        """``dns_servers`` as ``host:port``, instead of the system's."""
        self._limits = limits
        self._resolver = Resolver(dns_servers, lookup_s=limits.lookup_s, queue_s=limits.queue_s)
        self._connector = Connector(
            allow_networks, resolve or self._resolver, limits.connect_s, tls or _trusted(), dial
        )

    async def download(self, url: str, path: Path, max_bytes: int, *, owner: str = "") -> int:
        """See :class:`~serve_app.outbound.base.Outbound`. Follows up to 5 redirects, each checked like the first."""
        target = Url.parse(url)
        async with _Clock(target, self._limits.total_s) as clock:
            for _ in range(_MAX_REDIRECTS + 1):
                async with self._open(target, owner, clock) as exchange:
                    await exchange.send("GET", {})
                    answer = await exchange.answer()
                    if answer.status not in _REDIRECTS or "location" not in answer.headers:
                        _require_ok(target, answer)
                        return await self._save(answer, exchange, clock, path, max_bytes)
                    target = Url.parse(answer.headers["location"], base=target)
        raise OutboundError(
            "rejected", f"{target.netloc} redirects more than {_MAX_REDIRECTS} times. Use the final link."
        )

    async def post(self, url: str, content: str, headers: Mapping[str, str], *, owner: str = "") -> PostReply:
        """See :class:`~serve_app.outbound.base.Outbound`."""
        target = Url.parse(url)
        async with _Clock(target, self._limits.post_s) as clock, self._open(target, owner, clock) as exchange:
            await exchange.send("POST", headers, content.encode())
            answer = await exchange.answer()
            # The status has decided. A body that drips, breaks off or never ends is the receiver's own affair.
            body = bytearray()
            try:
                async with asyncio.timeout(self._limits.reply_s):
                    async for piece in exchange.body():
                        body += piece
                        if len(body) >= _KEPT_REPLY:
                            break
            except (TimeoutError, OutboundError):
                pass
            text = bytes(body[:_KEPT_REPLY]).decode(errors="replace")
            return PostReply(answer.status, text, _seconds(answer.headers.get("retry-after", "")))

    async def aclose(self) -> None:
        """Give up on names that are being looked up."""
        await self._resolver.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @asynccontextmanager
    async def _open(self, target: Url, owner: str, clock: "_Clock") -> AsyncIterator[Exchange]:
        # A lookup has a limit of its own, and may first wait in our queue.
        with clock.stopped():
            addresses = await self._connector.find(target, owner)
        streams = await self._connector.connect(target, addresses)
        try:
            yield Exchange(target, streams, self._limits)
        finally:
            # At once: there is nothing more to say, and a polite end could be dragged out.
            streams[1].transport.abort()

    async def _save(self, answer: Answer, exchange: Exchange, clock: "_Clock", path: Path, max_bytes: int) -> int:
        """Stream the body to ``path``, counting: what a server says about the length is a hint, not a limit."""
        too_large = OutboundError(
            "too_large", f"The file is larger than the {max_bytes / 2**20:g} MiB allowed. Send a smaller one."
        )
        promised = answer.headers.get("content-length", "")
        expected = int(promised[:20]) if promised.isdecimal() else 0
        if expected > max_bytes:
            raise too_large
        require_room(path.parent, expected, self._limits.reserve)
        size, block = 0, bytearray()

        def append() -> None:
            require_room(path.parent, len(block), self._limits.reserve)
            file.write(block)
            block.clear()

        async def write() -> None:
            # Our disk is not on the source's time.
            with clock.stopped():
                await asyncio.to_thread(append)

        with _new_file(path) as file:
            async for piece in exchange.body():
                size += len(piece)
                if size > max_bytes:
                    raise too_large
                block += piece
                if len(block) >= _WRITE_BLOCK:
                    await write()
            await write()
        return size


class _Clock:
    """Limits the seconds that a server takes in all, less those for which it is stopped."""

    def __init__(self, target: Url, seconds: float) -> None:
        self._target = target
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            # The three that Python passes.
            await self._timeout.__aexit__(*error)  # type: ignore[arg-type]
        except TimeoutError as late:
            message = f"{self._target.netloc} took longer than {self._seconds:g} s in all. Use a faster server."
            raise OutboundError("unreachable", message, transient=True) from late

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time that passes in the block does not count."""
        now = asyncio.get_running_loop().time
        left = (self._timeout.when() or 0) - now()
        self._timeout.reschedule(None)
        try:
            yield
        finally:
            self._timeout.reschedule(now() + left)


def _seconds(retry_after: str) -> float | None:
    """A ``Retry-After``, which is a number of seconds or a date; None for anything else."""
    retry_after = retry_after.strip()
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        date = parsedate_to_datetime(retry_after)
        # One of an unknown zone is one of UTC.
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _trusted() -> ssl.SSLContext:
    """The operator may name a private authority by these variables; no other of the environment is looked at."""
    if os.environ.get("SSL_CERT_FILE"):
        return ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    if os.environ.get("SSL_CERT_DIR"):
        return ssl.create_default_context(capath=os.environ["SSL_CERT_DIR"])
    return ssl.create_default_context(cafile=certifi.where())


def _require_ok(target: Url, answer: Answer) -> None:
    status = answer.status
    if status == 200:
        return
    if status >= 500 or status in _RETRYABLE:
        raise OutboundError("unreachable", f"{target.netloc} answered {status}. Check that it is up.", transient=True)
    raise OutboundError(
        "rejected",
        f"{target.netloc} answered {status} instead of the file. Check that the link is right, still valid and needs "
        "no login.",
    )


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is gone again if the block fails."""
    try:
        with path.open("wb") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise
