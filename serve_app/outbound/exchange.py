"""One request and its answer over HTTP/1.1.

Built on h11, the protocol engine below httpx, because the limits have to sit between its events: a server that cuts its
body into single bytes makes an event of each, and one that repeats ``100 Continue`` never comes to its answer. What a
client library would add is mostly what must be off here: proxies and credentials from the environment, cookies,
decompression, connections that are used again unjudged.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import h11

from serve_app.outbound.base import OutboundError
from serve_app.outbound.connection import Streams
from serve_app.outbound.limits import Limits
from serve_app.outbound.url import Url

_USER_AGENT = "video-api"
_READ = 65_536
#: Pieces after which it is looked at how small they are, and steps after which it is looked at how fast.
_STRETCH = 100


@dataclass(frozen=True)
class Answer:
    """The head of a response."""

    status: int
    #: By lower-case name; of repeated headers the last.
    headers: Mapping[str, str]


class Exchange:
    """Use it once: ``send``, ``answer``, ``body``.

    All raise :class:`OutboundError`: ``unreachable`` when the server is silent, slow or breaks off, ``rejected`` when
    it plays games.
    """

    def __init__(self, url: Url, streams: Streams, limits: Limits) -> None:
        self._url = url
        self._reader, self._writer = streams
        self._limits = limits
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=limits.most_head)
        self._steps, self._stretch_began = 0, 0.0

    async def send(self, method: str, headers: Mapping[str, str], content: bytes | None = None) -> None:
        """Send the request."""
        fields = {
            "host": self._url.netloc,
            "user-agent": _USER_AGENT,
            "accept": "*/*",
            # What is stored is what was sent: nothing is decompressed, so nothing can explode.
            "accept-encoding": "identity",
            "connection": "close",
        }
        fields |= {name.lower(): value for name, value in headers.items()}
        if content is not None:
            fields["content-length"] = str(len(content))
        request = h11.Request(method=method, target=self._url.target, headers=list(fields.items()))
        events = [request, *([h11.Data(data=content)] if content else []), h11.EndOfMessage()]
        data = b"".join(self._http.send(event) or b"" for event in events)
        with self._translated():
            self._writer.write(data)
            async with asyncio.timeout(self._limits.read_s):
                await self._writer.drain()

    async def answer(self) -> Answer:
        """Read up to the end of the head."""
        informational = 0
        with self._translated():
            async with asyncio.timeout(self._limits.head_s):
                while not isinstance(event := self._next(), h11.Response):
                    if event is None:
                        await self._read()
                        continue
                    informational += 1
                    if informational > self._limits.most_informational:
                        raise self._refusal("answers again and again that it is about to answer")
        return Answer(event.status_code, {name.decode("ascii"): _text(value) for name, value in event.headers})

    async def body(self) -> AsyncIterator[bytes]:
        """The body, piece by piece, to its end."""
        limits = self._limits
        size = pieces = window = 0
        waited = 0.0
        while True:
            with self._translated():
                event = self._next()
            if isinstance(event, h11.EndOfMessage):
                return
            if waited >= limits.window_s:
                if window < limits.window_bytes:
                    raise self._slow()
                window, waited = 0, 0.0
            if event is None:
                with self._translated():
                    waited += await self._read()
            if not isinstance(event, h11.Data):
                continue
            size += len(event.data)
            window += len(event.data)
            pieces += 1
            if pieces % _STRETCH == 0 and size < pieces * limits.least_piece:
                raise self._refusal("sends its file in pieces of a few bytes")
            await self._step()
            yield bytes(event.data)

    def _next(self) -> h11.Event | None:
        """What has come in, None if more has to."""
        event = self._http.next_event()
        if isinstance(event, h11.Event):
            return event
        if event is h11.NEED_DATA:
            return None
        raise h11.RemoteProtocolError("the server has changed the protocol")

    async def _read(self) -> float:
        """Wait for more; how many seconds that took."""
        await self._step()
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout(self._limits.read_s):
            data = await self._reader.read(_READ)
        self._http.receive_data(data)
        return asyncio.get_running_loop().time() - begun

    async def _step(self) -> None:
        """Before each read and each piece: a server that makes many of them has to wait, and others have their turn."""
        self._steps += 1
        if self._steps % _STRETCH == 0:
            now = asyncio.get_running_loop().time
            await asyncio.sleep(max(0, self._stretch_began + _STRETCH / self._limits.steps_per_s - now()))
            self._stretch_began = now()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        server = self._url.netloc
        try:
            yield
        except TimeoutError as error:
            message = f"{server} did not answer in time. Check that it is up."
            raise OutboundError("unreachable", message, transient=True) from error
        except (OSError, h11.RemoteProtocolError) as error:
            message = f"The connection to {server} broke off. Check that the link works."
            raise OutboundError("unreachable", message, transient=True) from error

    def _slow(self) -> OutboundError:
        rate = self._limits.window_bytes / self._limits.window_s / 1000
        message = f"{self._url.netloc} sends less than {rate:g} kB/s. Put the file on a faster server."
        return OutboundError("unreachable", message, transient=True)

    def _refusal(self, what: str) -> OutboundError:
        return OutboundError("rejected", f"{self._url.netloc} {what}. Put the file on an ordinary web server.")


def _text(value: bytes) -> str:
    """Latin-1 by the standard, UTF-8 by those who put a name with an accent into ``Location``."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
