from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.api.asgi import create_asgi
from serve_app.jobs.abilities import Abilities
from serve_app.jobs.database import CHANGES, listen
from serve_app.jobs.feed import Feed
from serve_app.jobs.forecast import Forecasts
from serve_app.jobs.reads import JobReads
from serve_app.jobs.store import JobStore
from serve_app.services import Services
from serve_app.settings import Settings
from serve_app.wiring import build_storage
from tests.fakes.cluster import FakeCluster

KEY = "the-api-key"
WORKER_SECRET = "the-worker-secret"


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    local = Settings(
        database_url=database_url, api_key=SecretStr(KEY), webhook_secret=SecretStr(WORKER_SECRET), port=8000
    )
    return local.model_copy(update={"data_dir": tmp_path})


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
async def services(
    settings: Settings, engine: AsyncEngine, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Services]:
    # What a test changes, it sees at once.
    monkeypatch.setattr("serve_app.jobs.pace.LINE_KEPT_S", 0)
    monkeypatch.setattr("serve_app.jobs.forecast.FRESH_S", 0)
    monkeypatch.setattr("serve_app.jobs.abilities.FRESH_S", 0)
    feed = Feed(partial(listen, settings.database_url, CHANGES))
    made = Services(
        settings=settings,
        engine=engine,
        store=JobStore(engine, lease_s=3600, webhook_url=settings.api_webhook_url),
        reads=JobReads(engine),
        watching=JobReads(engine),
        forecasts=Forecasts(engine),
        abilities=Abilities(engine),
        storage=build_storage(settings),
        feed=feed,
        cluster=cluster,
    )
    yield made
    await made.aclose()


@pytest.fixture
def transport(services: Services) -> httpx.ASGITransport:
    """To one API for all clients. A crash is answered as a real server answers it."""
    return httpx.ASGITransport(create_asgi(services), raise_app_exceptions=False)


@pytest.fixture
async def anyone(services: Services, transport: httpx.ASGITransport) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with httpx.AsyncClient(transport=transport, base_url=services.settings.base_url) as client:
        yield client


@pytest.fixture
async def client(services: Services, transport: httpx.ASGITransport) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url=services.settings.base_url, headers=headers) as client:
        yield client


@pytest.fixture
async def with_key(
    client: httpx.AsyncClient, transport: httpx.ASGITransport
) -> AsyncIterator[Callable[..., Awaitable[httpx.AsyncClient]]]:
    """Makes a client with a key of its own, by the fields of ``POST /api/v1/keys``. Its header ``x-key-id`` says which
    key it is."""
    async with AsyncExitStack() as clients:

        async def make(**fields: Any) -> httpx.AsyncClient:
            answer = await client.post("/api/v1/keys", json={"name": "of a test"} | fields)
            assert answer.status_code == 201, answer.text
            headers = {"authorization": f"Bearer {answer.json()['secret']}", "x-key-id": answer.json()["key_id"]}
            made = httpx.AsyncClient(transport=transport, base_url=client.base_url, headers=headers)
            return await clients.enter_async_context(made)

        yield make


@pytest.fixture
def generate(client: httpx.AsyncClient) -> Callable[..., Awaitable[httpx.Response]]:
    async def generate(**changes: Any) -> httpx.Response:
        body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"} | changes
        return await client.post("/api/v1/generate", json=body)

    return generate
