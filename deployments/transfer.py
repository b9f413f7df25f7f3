"""Bytes in and out of a replica, by presigned URLs only."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import httpx

from deployments.failure_code import FailureCode
from deployments.faults import Fault

CHUNK = 1 << 20
#: Tries of a download, over about three minutes: the link to the head may be cut for one.
GET_TRIES = 12
#: Tries of an upload, over about ten minutes: the video is there, and making it again costs a whole run.
PUT_TRIES = 24
#: Before the second try; twice as long before each that follows, up to ``MAX_WAIT_S``.
AGAIN_S = 0.5
MAX_WAIT_S = 30.0
#: What a link gets whose time is over, or that was signed with a key which the store does not take any more.
STALE = (401, 403)
#: Makes a link anew. Without one, the old link is all there is.
Renew = Callable[[], Awaitable[str]]


class Transfer:
    """GET and PUT that outlast a store's restart; what still fails is a fault of the job."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        timeout = httpx.Timeout(30.0, write=120.0, read=120.0)
        self._client = httpx.AsyncClient(timeout=timeout, trust_env=False, transport=transport)

    async def get(self, url: str, path: Path, renew: Renew | None = None) -> None:
        """Fetch ``url`` into ``path``; ask ``renew`` for another link where this one is refused.

        Raises:
            Fault: ``storage_unavailable``.
        """
        for tries_left in reversed(range(GET_TRIES)):
            try:
                async with self._client.stream("GET", url) as response:
                    response.raise_for_status()
                    file = await asyncio.to_thread(path.open, "wb")
                    with file:
                        async for chunk in response.aiter_bytes(CHUNK):
                            await asyncio.to_thread(file.write, chunk)
                return
            except httpx.HTTPError as error:
                await _wait_or_give_up(GET_TRIES, tries_left, "fetch the input", error, STALE if renew else ())
                url = await _renewed(url, renew, error)

    async def put(self, path: Path, url: str, renew: Renew | None = None, content_type: str = "video/mp4") -> None:
        """Upload a file. The signature in ``url`` covers its content type.

        A bucket that refuses is asked as long as one that is down, with fresh links: the video is there, and whoever
        mends the bucket should find that nothing was lost.

        Raises:
            Fault: ``storage_unavailable``.
        """
        size = (await asyncio.to_thread(path.stat)).st_size
        headers = {"content-type": content_type, "content-length": str(size)}
        for tries_left in reversed(range(PUT_TRIES)):
            try:
                response = await self._client.put(url, content=_chunks(path), headers=headers)
                response.raise_for_status()
                return
            except httpx.HTTPError as error:
                await _wait_or_give_up(PUT_TRIES, tries_left, "upload the video", error, (*STALE, 404) if renew else ())
                url = await _renewed(url, renew, error)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    with file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk


async def _renewed(url: str, renew: Renew | None, error: httpx.HTTPError) -> str:
    return await renew() if renew and _status(error) in (*STALE, 404) else url


async def _wait_or_give_up(tries: int, left: int, what: str, error: httpx.HTTPError, mends: Sequence[int]) -> None:
    """``mends``: refusals that may be over by the next try."""
    status = _status(error)
    refused = status is not None and 400 <= status < 500 and status not in (408, 425, 429, *mends)
    if left == 0 or refused:
        # 401 and 403 are links that have expired: another attempt of the job comes with new ones.
        # The URL carries a signature: it stays out of the message.
        raise Fault(
            FailureCode.STORAGE_UNAVAILABLE,
            f"Could not {what}: {status or type(error).__name__}.",
            transient=not refused or status in STALE,
        ) from None
    await asyncio.sleep(min(AGAIN_S * 2 ** (tries - 1 - left), MAX_WAIT_S))


def _status(error: httpx.HTTPError) -> int | None:
    return error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
