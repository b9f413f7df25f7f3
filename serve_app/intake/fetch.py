"""The one HTTP client for URLs that come from outside: inputs to fetch and webhooks to call.

Built on httpcore, the engine below httpx, because the check of addresses has to sit where it opens connections. What
httpx would add is mostly what must be off here: proxies and credentials from the environment, cookies, decompression,
redirects on its own.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import httpcore
import httpx

from serve_app.intake.addresses import Network
from serve_app.intake.errors import IntakeError
from serve_app.intake.network import ForbiddenAddress, GuardedBackend, Resolve, UnknownHost, system_resolve

_MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
#: Statuses of the 4xx range that a later try may not get.
_RETRYABLE = {408, 425, 429}
_MAX_URL = 8192
#: Bytes of a webhook's answer that are kept for the delivery log.
_KEPT_BODY = 2048
#: Bytes gathered before a thread writes them.
_WRITE_BLOCK = 1024 * 1024
_USER_AGENT = b"video-api"


@dataclass(frozen=True)
class Downloaded:
    """A file that was fetched."""

    #: Bytes.
    size: int


class PostReply(NamedTuple):
    """How a server answered a POST."""

    status: int
    #: The first 2048 bytes.
    body: bytes
    #: By lower-case name; of repeated headers the last.
    headers: Mapping[str, str]


class SafeClient:
    """Fetches from and posts to public addresses, and those in ``allow_networks``.

    Safe for concurrent use. Every request opens its own connection, so every request is checked.
    """

    def __init__(
        self,
        allow_networks: tuple[Network, ...] = (),
        connect_timeout_s: float = 5,
        read_timeout_s: float = 15,
        total_timeout_s: float = 300,
        *,
        resolve: Resolve = system_resolve,
        ssl_context: ssl.SSLContext | None = None,
        inner: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """``read_timeout_s`` is for each wait for bytes, ``total_timeout_s`` for a whole call, redirects included."""
        self._total_timeout_s = total_timeout_s
        self._timeouts = {
            "connect": connect_timeout_s,
            "read": read_timeout_s,
            "write": read_timeout_s,
            "pool": connect_timeout_s,
        }
        self._pool = httpcore.AsyncConnectionPool(
            # The operator may name a private authority by SSL_CERT_FILE; no other variable is looked at.
            ssl_context=ssl_context or httpx.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=GuardedBackend(allow_networks, resolve, inner),
        )

    async def download(self, url: str, path: Path, max_bytes: int) -> Downloaded:
        """Fetch ``url`` to ``path``, following up to 5 redirects, each of them checked like the first.

        Raises :class:`IntakeError`: ``source_unreachable``, ``source_rejected``, ``source_forbidden`` or
        ``input_too_large``; then no file is left.
        """
        target = _parse(url)
        async with _deadline(target, self._total_timeout_s):
            for _ in range(_MAX_REDIRECTS + 1):
                async with self._exchange("GET", target, {}, None) as response:
                    location = _redirect(response)
                    if location is None:
                        _require_ok(target, response)
                        return await _save(target, response, path, max_bytes)
                    target = _parse(location, base=target)
        raise IntakeError(
            "source_rejected", f"{_name(target)} redirects more than {_MAX_REDIRECTS} times. Use the final link."
        )

    async def post(self, url: str, content: bytes, headers: Mapping[str, str]) -> PostReply:
        """POST and return the answer, whatever its status. Redirects are answers like any other and not followed.

        Raises :class:`IntakeError`: ``source_unreachable``, ``source_rejected`` (not a URL) or ``source_forbidden``.
        """
        target = _parse(url)
        async with (
            _deadline(target, self._total_timeout_s),
            self._exchange("POST", target, headers, content) as response,
        ):
            body = b""
            with _translated(target):
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) >= _KEPT_BODY:
                        break
            return PostReply(response.status, body[:_KEPT_BODY], _headers(response))

    async def aclose(self) -> None:
        """Close what is still open."""
        await self._pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @asynccontextmanager
    async def _exchange(
        self, method: str, target: httpx.URL, headers: Mapping[str, str], content: bytes | None
    ) -> AsyncIterator[httpcore.Response]:
        """One request and its answer, the body unread."""
        fields = {
            b"host": target.netloc,
            b"user-agent": _USER_AGENT,
            b"accept": b"*/*",
            # What is stored is what was sent: nothing is decompressed, so nothing can explode.
            b"accept-encoding": b"identity",
        }
        fields |= {name.lower().encode("ascii"): value.encode("latin-1") for name, value in headers.items()}
        if content is not None:
            fields[b"content-length"] = str(len(content)).encode()
        address = httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
        request = httpcore.Request(
            method, address, headers=list(fields.items()), content=content, extensions={"timeout": self._timeouts}
        )
        with _translated(target):
            response = await self._pool.handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()


def _parse(location: str, base: httpx.URL | None = None) -> httpx.URL:
    """An absolute http(s) URL; ``location`` may be relative to ``base``."""
    try:
        if len(location) > _MAX_URL:
            raise httpx.InvalidURL("too long")
        url = httpx.URL(location) if base is None else base.join(location)
    except (httpx.InvalidURL, ValueError) as error:
        raise IntakeError("source_rejected", "This is not a valid URL. Give a full http or https link.") from error
    if url.scheme not in ("http", "https"):
        raise IntakeError("source_forbidden", f"{url.scheme or 'Relative'} links are not fetched. Use http or https.")
    if not url.raw_host:
        raise IntakeError("source_rejected", "The URL names no host. Give a full http or https link.")
    if url.userinfo:
        raise IntakeError(
            "source_rejected", "The URL holds a user name or password. Use a link that works without, e.g. presigned."
        )
    return url


def _name(target: httpx.URL) -> str:
    """The server, for messages. Without path and query: those may hold secrets."""
    return target.netloc.decode("ascii", "replace")


@contextmanager
def _translated(target: httpx.URL) -> Iterator[None]:
    """Turn what the network raises into :class:`IntakeError`.

    Messages say nothing about the address behind a name, so that they can't be used to map a private network.
    """
    server = _name(target)
    try:
        yield
    except ForbiddenAddress:
        raise IntakeError(
            "source_forbidden", f"{server} is not a public address. Use one that the internet can reach."
        ) from None
    except UnknownHost:
        raise IntakeError("source_unreachable", f"{server} does not exist. Check the link for typos.") from None
    except httpcore.TimeoutException as error:
        raise IntakeError(
            "source_unreachable", f"{server} did not answer in time. Check that it is up.", transient=True
        ) from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        if _is_about_certificate(error):
            raise IntakeError("source_rejected", f"{server} has no valid TLS certificate.") from error
        # Nobody there is a broken link, of which the client should hear at once; a connection that breaks off is not.
        raise IntakeError(
            "source_unreachable",
            f"The connection to {server} failed or broke off. Check that the link works.",
            transient=not isinstance(error, httpcore.ConnectError),
        ) from error


def _is_about_certificate(error: BaseException | None) -> bool:
    """Whether the handshake failed over the server's certificate; httpcore and anyio each wrap the reason."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


@asynccontextmanager
async def _deadline(target: httpx.URL, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise IntakeError(
            "source_unreachable", f"{_name(target)} took longer than {seconds:g} s in all.", transient=True
        ) from error


def _headers(response: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


def _redirect(response: httpcore.Response) -> str | None:
    return _headers(response).get("location") if response.status in _REDIRECTS else None


def _require_ok(target: httpx.URL, response: httpcore.Response) -> None:
    status = response.status
    if status == 200:
        return
    if status >= 500 or status in _RETRYABLE:
        raise IntakeError(
            "source_unreachable", f"{_name(target)} answered {status}. Check that it is up.", transient=True
        )
    raise IntakeError(
        "source_rejected",
        f"{_name(target)} answered {status} instead of the file. Check that the link is right, still valid and needs "
        "no login.",
    )


async def _save(target: httpx.URL, response: httpcore.Response, path: Path, max_bytes: int) -> Downloaded:
    """Stream the body to ``path``, counting: what a server says about the length is a hint, not a limit."""
    too_large = IntakeError(
        "input_too_large", f"The file is larger than the {max_bytes / 2**20:g} MiB allowed. Send a smaller one."
    )
    promised = _headers(response).get("content-length", "")
    if promised.isdecimal() and int(promised[:20]) > max_bytes:
        raise too_large
    size, block = 0, bytearray()
    with _new_file(path) as file:
        with _translated(target):
            async for chunk in response.aiter_stream():
                size += len(chunk)
                if size > max_bytes:
                    raise too_large
                block += chunk
                if len(block) >= _WRITE_BLOCK:
                    await asyncio.to_thread(file.write, bytes(block))
                    block.clear()
        await asyncio.to_thread(file.write, bytes(block))
    return Downloaded(size)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is gone again if the block fails."""
    try:
        with path.open("wb") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise
