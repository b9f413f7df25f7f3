"""The fake Vast without a network, for tests on virtual time."""

import asyncio

import httpx

from cluster.vast.client import VastClient
from tests.fakes.http_source import Seen
from tests.fakes.vast_server import VastServer


class _Wire(httpx.AsyncBaseTransport):
    def __init__(self, server: VastServer, latency_s: float) -> None:
        self._server, self._latency_s = server, latency_s

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Seen(request.method, request.url.raw_path.decode(), headers, await request.aread())
        await asyncio.sleep(self._latency_s)
        try:
            async with asyncio.timeout(request.extensions["timeout"]["read"]):
                answer = await self._server.answer(seen)
        except TimeoutError:
            raise httpx.ReadTimeout("no answer", request=request) from None
        await asyncio.sleep(self._latency_s)
        if answer is None:
            raise httpx.ReadError("cut", request=request)
        status, body, more = answer
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return httpx.Response(status, headers=named, content=body, request=request)


def connect(client: VastClient, server: VastServer, latency_s: float = 0.1) -> VastClient:
    """The client talks to that server, which need not listen; each way takes ``latency_s``."""
    client._exchange._http._transport = _Wire(server, latency_s)
    return client
