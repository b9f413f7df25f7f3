"""One process of the service without Ray: ``python -m tests.chaos.service_process api|dispatcher``.

The real API on ``PORT``, or the real dispatcher with GPU workers of its own. Says ``ready``, and goes on until killed.
"""

import asyncio
import sys
from ipaddress import ip_network

from deployments.classes import deployments
from serve_app.api.asgi import create_asgi
from serve_app.api.server import HttpServer
from serve_app.outbound.client import SafeClient
from serve_app.settings import Settings
from serve_app.storage.local import LocalStorage
from serve_app.wiring import build_dispatcher, build_services, build_storage
from tests.fakes.cluster import FakeCluster
from tests.fakes.workers import FakeWorkers


async def api(settings: Settings) -> None:
    server = HttpServer(create_asgi(build_services(settings, FakeCluster())), "127.0.0.1", settings.port)
    await server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def dispatcher(settings: Settings) -> None:
    storage = build_storage(settings)
    assert isinstance(storage, LocalStorage)
    workers = FakeWorkers(storage, {"ltx2": 2})
    outbound = SafeClient((ip_network("127.0.0.0/8"),))
    workers.reporter = running = build_dispatcher(settings, workers, FakeCluster(), outbound, deployments({}))
    print("ready", flush=True)
    await running.run()


if __name__ == "__main__":
    asyncio.run({"api": api, "dispatcher": dispatcher}[sys.argv[1]](Settings()))
