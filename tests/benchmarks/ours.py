"""The API as its deployment runs it, in a process of its own and without Ray: ``python -m tests.benchmarks.ours``, with
the service's environment. Ends when its stdin does."""

import asyncio
import sys

import uvloop

from deployments import logs
from serve_app.api.asgi import create_asgi
from serve_app.api.server import HttpServer
from serve_app.services import build_ring
from serve_app.settings import Settings
from serve_app.wiring import build_services
from tests.fakes.cluster import FakeCluster


async def main() -> None:
    logs.configure("api")
    settings = Settings.load("local")
    services = build_services(settings, FakeCluster())
    ring = build_ring(services)
    keys = asyncio.create_task(ring.run())
    server = HttpServer(create_asgi(services, ring), "127.0.0.1", settings.port)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await services.feed.aclose()
    await server.stop()
    keys.cancel()
    await services.aclose()


if __name__ == "__main__":
    uvloop.run(main())
