"""HTTP for the launcher, to processes that may turn hostile: an answer that is too long is an error.

::

    httpx.Client(transport=Bounded())    httpx.AsyncClient(transport=AsyncBounded())

What runs on Ray may answer in the place of the API or the dashboard, without end; the launcher's memory is the head's.
"""

from collections.abc import AsyncIterator, Iterator

import httpx

#: Answers of ``/health`` and of Serve's dashboard have some kilobytes.
MOST_BYTES = 2 << 20


class Bounded(httpx.HTTPTransport):
    """For ``httpx.Client``."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See the module."""
        return _bound(super().handle_request(_plain(request)))


class AsyncBounded(httpx.AsyncHTTPTransport):
    """For ``httpx.AsyncClient``."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See the module."""
        return _bound(await super().handle_async_request(_plain(request)))


class _Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, whole: httpx.SyncByteStream | httpx.AsyncByteStream) -> None:
        self._whole = whole
        self._seen = 0

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._whole, httpx.SyncByteStream)
        for piece in self._whole:
            yield self._counted(piece)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._whole, httpx.AsyncByteStream)
        async for piece in self._whole:
            yield self._counted(piece)

    def close(self) -> None:
        assert isinstance(self._whole, httpx.SyncByteStream)
        self._whole.close()

    async def aclose(self) -> None:
        assert isinstance(self._whole, httpx.AsyncByteStream)
        await self._whole.aclose()

    def _counted(self, piece: bytes) -> bytes:
        self._seen += len(piece)
        if self._seen > MOST_BYTES:
            raise httpx.RemoteProtocolError(f"an answer of more than {MOST_BYTES} bytes")
        return piece


def _plain(request: httpx.Request) -> httpx.Request:
    request.headers["accept-encoding"] = "identity"
    return request


def _bound(answer: httpx.Response) -> httpx.Response:
    # Not to be unpacked even if it is packed: a kilobyte may become a megabyte.
    answer.headers.pop("content-encoding", None)
    answer.stream = _Stream(answer.stream)
    return answer
