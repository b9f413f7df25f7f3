"""Bytes in and out of a replica, by presigned URLs only."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from deployments.faults import Fault

CHUNK = 1 << 20
TRIES = 3


class Transfer:
    """GET and PUT with a few quick retries; what still fails is a transient fault of the job."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        timeout = httpx.Timeout(30.0, write=120.0, read=120.0)
        self._client = httpx.AsyncClient(timeout=timeout, trust_env=False, transport=transport)

    async def get(self, url: str, path: Path) -> None:
        """Fetch ``url`` into ``path``.

        Raises:
            Fault: ``storage_unavailable``.
        """
        for attempt in range(TRIES):
            try:
                async with self._client.stream("GET", url) as response:
                    response.raise_for_status()
                    file = await asyncio.to_thread(path.open, "wb")
                    with file:
                        async for chunk in response.aiter_bytes(CHUNK):
                            await asyncio.to_thread(file.write, chunk)
                return
            except httpx.HTTPError as error:
                await _wait_or_give_up(attempt, "fetch the input", error)

    async def put(self, path: Path, url: str) -> None:
        """Upload an mp4. The signature in ``url`` covers its content type.

        Raises:
            Fault: ``storage_unavailable``.
        """
        size = (await asyncio.to_thread(path.stat)).st_size
        headers = {"content-type": "video/mp4", "content-length": str(size)}
        for attempt in range(TRIES):
            try:
                response = await self._client.put(url, content=_chunks(path), headers=headers)
                response.raise_for_status()
                return
            except httpx.HTTPError as error:
                await _wait_or_give_up(attempt, "upload the video", error)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    with file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk


async def _wait_or_give_up(attempt: int, what: str, error: httpx.HTTPError) -> None:
    rejected = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
    if attempt == TRIES - 1 or rejected:
        # The URL carries a signature: it stays out of the message.
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
        raise Fault("storage_unavailable", f"Could not {what}: {status}.", transient=True) from None
    await asyncio.sleep(0.5 * 2**attempt)
