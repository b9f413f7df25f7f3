"""The API on a port of its own, by the server that serves it in earnest, in a thread with an event loop."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.api.asgi import create_asgi
from serve_app.api.server import HttpServer
from serve_app.settings import Settings
from serve_app.wiring import build_services
from tests.fakes.cluster import FakeCluster


@contextmanager
def live_api(settings: Settings) -> Iterator[str]:
    """Serve it while the body runs; its URL. Nobody works on its jobs."""
    started = threading.Event()
    urls: list[str] = []
    stops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        services = build_services(settings, FakeCluster())
        server = HttpServer(create_asgi(services), "127.0.0.1", settings.port, base_url=settings.base_url)
        stopping = asyncio.Event()
        stops.append((asyncio.get_running_loop(), stopping))
        urls.append(f"http://127.0.0.1:{server.port}")
        await server.start()
        started.set()
        await stopping.wait()
        await services.feed.aclose()
        await server.stop()
        await services.aclose()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert started.wait(30)
        yield urls[0]
    finally:
        for loop, stopping in stops:
            loop.call_soon_threadsafe(stopping.set)
        thread.join(30)
