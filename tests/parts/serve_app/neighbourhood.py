"""A service some of whose users do what they can to be in the others' way.

Real dispatcher, database, store, decoders and worker processes; GPU workers in this process. Names are served by a real
name server that is silent about some, files and webhooks by real servers that misbehave.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

from PIL import Image
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.classes import deployments
from serve_app.intake.inputs import Intake
from serve_app.jobs.abilities import Abilities
from serve_app.jobs.conditions import Conditions
from serve_app.jobs.deliveries import Deliveries
from serve_app.jobs.dispatcher import Dispatcher
from serve_app.jobs.job import Job, NewJob
from serve_app.jobs.orphans import Orphans
from serve_app.jobs.outlooks import Outlooks
from serve_app.jobs.readiness import Readiness
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.signing import SigningSecrets
from serve_app.jobs.store import JobStore
from serve_app.jobs.windows import Windows
from serve_app.outbound.pool import WorkerPool
from serve_app.storage.local import LocalStorage
from tests.fakes.http_source import HttpSource, Seen, reply, stalled
from tests.fakes.name_server import NameServer
from tests.fakes.workers import FakeWorkers
from tests.parts.serve_app.jobs.samples import execute

SECRETS = SigningSecrets("whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0", b"r" * 32)
#: Turns a hang into a failure.
PATIENCE_S = 120


async def crumbs(_: Seen, writer: asyncio.StreamWriter) -> None:
    """A body in chunks of one byte, as fast as they are taken."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n" * 10_000)
        await writer.drain()


async def drip(_: Seen, writer: asyncio.StreamWriter) -> None:
    """Yes, and then a body that never ends."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.5)


def picture() -> bytes:
    """An honest one."""
    file = io.BytesIO()
    Image.new("RGB", (320, 240), "teal").save(file, "PNG")
    return file.getvalue()


def scan_bomb(scans: int = 3000) -> bytes:
    """A progressive JPEG of 190 kB that repeats one of its scans; each costs a pass over 16 megapixels."""
    file = io.BytesIO()
    Image.new("L", (4000, 4000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    # An AC scan: Ss > 0. From its marker to the next.
    at = data.index(b"\xff\xda")
    while data[at + 7] == 0:
        at = data.index(b"\xff\xda", at + 2)
    end = at + 2
    while not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
        end += 1
    return data[:at] + data[at:end] * scans + b"\xff\xd9"


@dataclass
class Neighbourhood:
    """Made by :func:`neighbourhood`."""

    store: JobStore
    source: HttpSource
    _engine: AsyncEngine

    async def submit(
        self, user: str, path: str, *, key: str = "", host: str = "good.test", hook: str | None = None
    ) -> Job:
        """A job whose image is at ``path`` of the server called ``host``."""
        url = f"http://{host}:{self.source.port}{path}"
        new = NewJob(
            model="ltx2", params={"prompt": "hi"}, sources={"image": url}, key_id=key, user_id=user, webhook_url=hook
        )
        job = await self.store.submit(new)
        assert job is not None
        return job

    async def annoy(self, users: Iterator[str], *, key: str = "") -> Sequence[Job]:
        """All that one can do, each of it as the next of ``users``; the jobs whose inputs are at fault. Returns when
        every part of it has begun."""
        before = len(self.source.seen)
        hooks = [f"http://{n}.hole.test/hook" for n in range(300)] + [self.source.url(f"/drip?{n}") for n in range(20)]
        await self._owe(key, [next(users) for _ in hooks], hooks)
        jobs = [await self.submit(next(users), path, key=key) for path in ("/bomb", "/silent", "/crumbs")]
        for n in range(8):
            jobs.append(await self.submit(next(users), "/crumbs", key=key))
            jobs.append(await self.submit(next(users), "/image", key=key, host=f"{n}.hole.test"))
        jobs += [await self.submit(next(users), path, key=key) for path in ("/bomb", "/bomb", "/bomb", "/silent")]
        wanted = {"/bomb", "/silent", "/crumbs"}
        async with asyncio.timeout(PATIENCE_S):
            while not wanted <= {seen.target for seen in self.source.seen[before:]}:  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.02)
        return jobs

    async def _owe(self, key: str, users: Sequence[str], hooks: Sequence[str]) -> None:
        """Jobs of these users' that are over, of which somebody has to be told."""
        whose = f"{key} {users[0]}"
        await execute(
            self._engine,
            """
            INSERT INTO jobs (id, model, status, stage, error_code, completed_at, key_id, user_id)
            SELECT :whose || n, 'ltx2', 'failed', 'failed', 'worker_failed', now(), :key, user_id
              FROM unnest(CAST(:users AS text[])) WITH ORDINALITY AS u (user_id, n)
            """,
            whose=whose,
            key=key,
            users=users,
        )
        await execute(
            self._engine,
            """
            INSERT INTO deliveries (id, job_id, url, owner, host)
            SELECT 'msg ' || :whose || n, :whose || n, url, owner, substring(url from '^http://([^/:]+)')
              FROM unnest(CAST(:hooks AS text[])) WITH ORDINALITY AS h (url, n) JOIN jobs ON jobs.id = :whose || n
            """,
            whose=whose,
            hooks=list(hooks),
        )

    async def video(self, user: str, *, key: str = "") -> tuple[Job, float]:
        """An honest job with a webhook, as it ended, and the seconds until it had and its webhook was there."""
        begun, hook = time.perf_counter(), f"/hook?{time.perf_counter_ns()}"
        job = await self.submit(user, "/image", key=key, hook=f"http://good.test:{self.source.port}{hook}")
        async with asyncio.timeout(PATIENCE_S):
            while not any(seen.target == hook for seen in self.source.seen):  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.02)
        took = time.perf_counter() - begun
        ended = await self.store.get(job.id)
        assert ended is not None
        return ended, took


@asynccontextmanager
async def neighbourhood(engine: AsyncEngine, database_url: str, folder: Path) -> AsyncIterator[Neighbourhood]:
    """Everything up and running."""
    routes = {
        "/image": reply(200, picture()),
        "/bomb": reply(200, scan_bomb()),
        "/hook": reply(200),
        "/silent": stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"),
        "/crumbs": crumbs,
        "/drip": drip,
        "/tarpit": stalled(),
    }
    storage = LocalStorage(folder / "media", "http://127.0.0.1:1", b"k" * 32)
    store = JobStore(engine, lease_s=30)
    workers = FakeWorkers(storage, {"ltx2": 8})
    names = NameServer({"good.test": ["127.0.0.1"], "slow.test": ["127.0.0.1"]}, silent=["hole.test"])
    async with HttpSource(routes) as source, names:
        pool = WorkerPool((ip_network("127.0.0.0/8"),), dns_servers=[names.address])
        async with pool:
            await pool.start()
            dispatcher = Dispatcher(
                database_url=database_url,
                store=store,
                storage=storage,
                intake=Intake(storage, pool, folder / "intake"),
                workers=workers,
                deliveries=Deliveries(engine, pool, SECRETS, _video_url),
                retention=Retention(engine, storage, RetentionPolicy()),
                orphans=Orphans(engine, storage),
                readiness=Readiness(Conditions(engine)),
                windows=Windows(engine),
                outlooks=Outlooks(engine),
                abilities=Abilities(engine),
                deployments=deployments({}),
                lease_s=30,
            )
            workers.reporter = dispatcher
            loops = asyncio.create_task(dispatcher.run())
            try:
                yield Neighbourhood(store, source, engine)
            finally:
                loops.cancel()
                await asyncio.wait({loops})
                await workers.kill()


def _video_url(job: Job) -> Awaitable[str | None]:
    return asyncio.sleep(0, f"https://v.example/{job.id}.mp4")
