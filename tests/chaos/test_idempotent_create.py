"""Two hundred clients ask for the same job, again and again until they are answered, while processes are killed: one
job, and all are told the same.

Two real API processes and a dispatcher on one PostgreSQL. Without Ray, so that what is killed is known to be in the
middle of what it does.
"""

import asyncio
import io
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.fakes.http_source import HttpSource, reply
from tests.parts.serve_app.jobs.samples import eventually, fetch
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
API_KEY = "key-of-the-test"
CLIENTS = 200
#: What a client does not take for an answer.
COME_AGAIN = {409, 502, 503, 504}


class Service:
    """Its processes by name. Each is known to the database by it."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self._environment = os.environ | {
            "DATABASE_URL": database_url,
            "API_KEY": API_KEY,
            "VIDEO_API_DATA_DIR": str(folder),
            "LEASE_SECONDS": "5",
            "PYTHONPATH": str(ROOT),
        }
        self.ports = {f"api-{number}": free_port() for number in range(2)}
        self._processes: dict[str, Process] = {}

    async def start(self, name: str) -> None:
        port = self.ports.get(name, 8000)
        environment = self._environment | {"PORT": str(port), "PGAPPNAME": name}
        arguments = ("-m", "tests.chaos.service_process", name.partition("-")[0])
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment, stdout=PIPE)
        self._processes[name] = process
        assert process.stdout is not None
        async with asyncio.timeout(120):
            while line := await process.stdout.readline():
                if line == b"ready\n":
                    return
        raise AssertionError(f"{name} did not start")

    async def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()

    async def end(self) -> None:
        for name in list(self._processes):
            await self.kill(name)


class Storm:
    """Everybody asks for this, under one key, of one API and then the other."""

    def __init__(self, ports: list[int], body: dict[str, Any]) -> None:
        self._urls = [f"http://127.0.0.1:{port}/api/v1/generate" for port in ports]
        self._body = body
        self.answers: list[httpx.Response] = []
        self._answered = asyncio.Condition()
        #: Why somebody had to ask again.
        self.trouble: Counter[str] = Counter()

    async def rage(self) -> None:
        headers = {"authorization": f"Bearer {API_KEY}", "idempotency-key": "the-same"}
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=30) as client, asyncio.timeout(180):
            await asyncio.gather(*(self._ask(client, number) for number in range(CLIENTS)))

    async def answered(self, number: int) -> None:
        """Until so many are."""
        async with self._answered:
            await self._answered.wait_for(lambda: len(self.answers) >= number)

    async def _ask(self, client: httpx.AsyncClient, number: int) -> None:
        while True:
            try:
                answer = await client.post(self._urls[number % 2], json=self._body)
            except httpx.TransportError as error:
                self.trouble[type(error).__name__] += 1
            else:
                if answer.status_code not in COME_AGAIN:
                    async with self._answered:
                        self.answers.append(answer)
                        self._answered.notify_all()
                    return
                self.trouble[answer.json()["code"]] += 1
            number += 1
            # As a client would, only sooner.
            await asyncio.sleep(0.05)


@pytest.fixture
async def service(database_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(database_url, tmp_path)
    try:
        await asyncio.gather(*(service.start(name) for name in (*service.ports, "dispatcher")))
        yield service
    finally:
        await service.end()


@pytest.fixture
async def storm(service: Service) -> AsyncIterator[Storm]:
    picture = io.BytesIO()
    Image.new("RGB", (320, 240), "teal").save(picture, "png")
    async with HttpSource({"/image": reply(200, picture.getvalue())}) as source:
        yield Storm(list(service.ports.values()), {"model": "ltx2", "image_url": source.url("/image")})


async def in_the_middle(engine: AsyncEngine, killed: str = "") -> str:
    """Which API has inserted the key, and waits for the table of jobs; another one than ``killed``."""
    waiting = (
        "SELECT application_name AS name FROM pg_stat_activity JOIN pg_locks USING (pid)"
        " WHERE NOT granted AND relation = 'jobs'::regclass AND application_name LIKE 'api-%'"
    )

    async def found() -> str | None:
        return next((row["name"] for row in await fetch(engine, waiting) if row["name"] != killed), None)

    return str(await eventually(found))


async def test_one_is_killed_with_the_key_in_its_hand(service: Service, storm: Storm, engine: AsyncEngine) -> None:
    async with asyncio.TaskGroup() as tasks:
        async with engine.connect() as db:
            # Whoever comes first gets as far as the job, and no further.
            await db.execute(text("LOCK TABLE jobs IN SHARE MODE"))
            raging = tasks.create_task(storm.rage())
            killed = await in_the_middle(engine)
            await asyncio.gather(service.kill(killed), service.kill("dispatcher"))
            # The key died with him; somebody else has it by now.
            await in_the_middle(engine, killed)
            assert storm.answers == []
            await db.rollback()
        await asyncio.gather(service.start(killed), service.start("dispatcher"))
        await raging
    await one_job(storm, engine)
    assert storm.trouble.keys() & {"ReadError", "RemoteProtocolError", "ConnectError"}


async def test_one_is_killed_when_some_have_been_answered(service: Service, storm: Storm, engine: AsyncEngine) -> None:
    async with asyncio.TaskGroup() as tasks:
        raging = tasks.create_task(storm.rage())
        for number, name in enumerate(service.ports, 1):
            await storm.answered(number * CLIENTS // 4)
            await asyncio.gather(service.kill(name), service.kill("dispatcher"))
            await asyncio.gather(service.start(name), service.start("dispatcher"))
        await raging
    await one_job(storm, engine)


async def one_job(storm: Storm, engine: AsyncEngine) -> None:
    """There is one, everybody was told of it in the same words, and it ends with a video."""
    assert [answer.status_code for answer in storm.answers] == [201] * CLIENTS
    assert len({answer.content for answer in storm.answers}) == 1
    # Whoever did it may have died before he could say so.
    assert sum("idempotency-replayed" not in answer.headers for answer in storm.answers) <= 1
    job_id = storm.answers[0].json()["job_id"]
    assert [row["id"] for row in await fetch(engine, "SELECT id FROM jobs")] == [job_id]

    async def ended() -> str | None:
        (job,) = await fetch(engine, "SELECT status FROM jobs WHERE completed_at IS NOT NULL") or [{"status": None}]
        return job["status"]

    assert await eventually(ended, within_s=120) == "completed"
