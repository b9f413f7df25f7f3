"""The real API behind a real HTTP server, and a worker that does to each job what its prompt says.

Both live in one thread with an event loop. The worker takes a step only when a client has looked at the job since the
last one, so what a waiting client sees depends on no clock.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import uvicorn
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.contract import Failure, MediaFacts, Outcome, Progress, Started, Stopped, Verdict
from deployments.registry import MODELS
from serve_app.api.asgi import create_asgi
from serve_app.intake.inputs import StoredInput
from serve_app.jobs.database import listen
from serve_app.jobs.job import Claim, Job, Status
from serve_app.jobs.store import JobStore
from serve_app.services import Services
from serve_app.serving.state import ModelState
from serve_app.settings import Settings
from serve_app.storage import keys
from serve_app.wiring import build_services

T = TypeVar("T")

API_KEY = "key-of-the-test"
VIDEO = bytes(range(256)) * 4096
POSTER = b"a webp"


@dataclass
class FixedCluster:
    """A cluster that is as it is told to be."""

    states: Mapping[str, ModelState]

    async def models(self) -> Mapping[str, ModelState]:
        return self.states


class Looks:
    """Wraps the API; knows when a client has asked for a job, or was told of it as it is."""

    def __init__(self, app: ASGIApp, store: JobStore) -> None:
        self._app = app
        self._store = store
        self._awaited: dict[str, asyncio.Event] = {}
        #: Versions, by job: from which on a stream has to tell it, and what streams have told last.
        self._wanted: dict[str, int] = {}
        self._told: dict[str, int] = {}

    async def at(self, job_id: str) -> None:
        """Until somebody has asked for the job, by a request that came after this call, or has its present version."""
        job = await self._store.get(job_id)
        self._wanted[job_id] = 0 if job is None else job.version
        awaited = self._awaited[job_id] = asyncio.Event()
        if self._told.get(job_id, -1) < self._wanted[job_id]:
            await awaited.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        looked = scope["type"] == "http" and scope["method"] == "GET" and scope["path"].startswith("/api/v1/jobs/")
        job_id, _, events = scope["path"].removeprefix("/api/v1/jobs/").partition("/") if looked else ("", "", "")
        awaited = None if events else self._awaited.get(job_id)

        async def telling(message: Message) -> None:
            await send(message)
            for line in message.get("body", b"").split(b"\n"):
                if line.startswith(b"id: "):
                    self._told[job_id] = int(line.removeprefix(b"id: "))
                    if job_id in self._awaited and self._told[job_id] >= self._wanted[job_id]:
                        self._awaited[job_id].set()

        await self._app(scope, receive, telling if events else send)
        if awaited is not None:
            awaited.set()


class Worker:
    """Intake, dispatcher and GPU in one, over the real store. Prompts: ``fail``, ``hang``, ``no poster``, anything
    else completes."""

    def __init__(self, services: Services, looks: Looks) -> None:
        #: Whatever the prompt says.
        self.fails = False
        self._services = services
        self._store = services.store
        self._looks = looks
        self._stops: dict[str, asyncio.Event] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as jobs:
            async for payload in listen(self._services.settings.database_url):
                kind, _, job_id = payload.partition(":")
                if kind == "stop" and job_id in self._stops:
                    self._stops[job_id].set()
                while await self._store.settle():
                    pass
                for claim in await self._store.claim_for_intake(10):
                    await self._store.admit(claim.lease, {"image": PICTURE})
                for model in MODELS:
                    for claim in await self._store.claim_to_run(model, 10):
                        self._stops[claim.job.id] = asyncio.Event()
                        jobs.create_task(self._work(claim))

    async def _work(self, claim: Claim) -> None:
        job, lease = claim.job, claim.lease
        await self._looks.at(job.id)
        verdict = await self._store.start(Started(lease=lease))
        if verdict is Verdict.LEASE_LOST:
            # It ended while it waited.
            return
        if verdict is not Verdict.GO_ON:
            # Cancelled before it began, which is quick on a busy machine.
            assert verdict is Verdict.CANCELLED
            await self._store.stopped(Stopped(lease=lease))
            return
        await self._looks.at(job.id)
        await self._store.progress(Progress(lease=lease, stage="generating", percent=42))
        if job.params.get("prompt") == "hang":
            await self._stops[job.id].wait()
            await self._store.stopped(Stopped(lease=lease))
            return
        await self._looks.at(job.id)
        if self.fails or job.params.get("prompt") == "fail":
            failure = Failure(lease=lease, code="not_finite", message="came out as [NaN]", transient=False)
            await self._store.fail(failure)
            return
        key = keys.output(job.folder, lease.attempt)
        await self._services.storage.write(key, _once(VIDEO), len(VIDEO))  # type: ignore[attr-defined]
        media = MediaFacts(width=320, height=192, fps="24/1", frames=121, has_audio=True)
        report = Outcome(lease=lease, size=len(VIDEO), md5="", media=media, timings={}, notes={"seed": 7})
        poster = None
        if job.params.get("prompt") != "no poster":
            poster = keys.poster(job.folder, lease.attempt)
            await self._services.storage.write(poster, _once(POSTER), len(POSTER))  # type: ignore[attr-defined]
        await self._store.complete(report, key, poster)


class LiveService:
    """The server's thread. ``url`` answers from ``__enter__`` to ``__exit__``."""

    def __init__(self, database_url: str, data_dir: Path) -> None:
        self._database_url = database_url
        self._data_dir = data_dir
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._ready = threading.Event()
        self.url = ""
        self.cluster = FixedCluster({name: ModelState("HEALTHY", "", 1, 1, 3) for name in MODELS})

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine where the service runs."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = Settings(
            VIDEO_API_DATA_DIR=self._data_dir,
            public_url=self.url,
            api_key=SecretStr(API_KEY),
            webhook_secret=SecretStr("secret"),
            database_url=self._database_url,
        )
        self.services = build_services(settings, self.cluster)
        looks = Looks(create_asgi(self.services), self.services.store)
        server = uvicorn.Server(uvicorn.Config(looks, log_config=None, access_log=False, lifespan="off"))
        self.worker = Worker(self.services, looks)
        worker = asyncio.create_task(self.worker.run())
        # The socket listens: a request that comes before the server accepts waits in its backlog.
        serving = asyncio.create_task(server.serve([listener]))
        self._ready.set()
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait({worker, serving, ended}, return_when=asyncio.FIRST_COMPLETED)
        await self.services.feed.aclose()
        server.should_exit = True
        worker.cancel()
        await asyncio.wait({worker, serving})
        await self.services.engine.dispose()
        if not worker.cancelled():
            worker.result()

    async def job(self, job_id: str) -> Job | None:
        return await self.services.store.get(job_id)

    async def statuses(self) -> list[Status]:
        return [job.status for job in await self.services.store.list()]


PICTURE = StoredInput(content_type="image/jpeg", key="inputs/x/image.jpg", size=1)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
