"""What stands before every route: asked by hand, so that a test sees what was read and when."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from sqlalchemy import text
from starlette.types import Message, Scope
from structlog.testing import capture_logs

from serve_app.access import api_key
from serve_app.access.caller import Limits
from serve_app.access.caller import Scope as KeyScope
from serve_app.access.key_store import KeyStore
from serve_app.api.asgi import create_asgi
from serve_app.api.gate import Gate, GateLimits
from serve_app.api.problems import install
from serve_app.api.streaming import Party, streams
from serve_app.jobs.database import connect
from serve_app.jobs.forecast import Forecasts
from serve_app.jobs.reads import JobReads
from serve_app.jobs.store import JobStore
from serve_app.services import Services, build_ring
from serve_app.settings import Settings
from tests.fakes.tcp_hole import Hole
from tests.fakes.virtual_time import virtual

KEY = {"authorization": "Bearer the-api-key"}
SECRET = {"x-webhook-secret": "the-worker-secret"}
QUICK = GateLimits(
    body_bytes=1000, body_s=0.3, answer_s=0.3, pace_bytes=100, pace_s=0.3, requests=2, streams=6, kept_for_workers=1
)


class Exchange:
    """One request to an ASGI application. ``pieces`` come as they are asked for; None never comes."""

    def __init__(self, method: str, path: str, headers: dict[str, str], pieces: Iterable[bytes | None] = ()) -> None:
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("192.0.2.1", 1),
            "server": ("t", 80),
            "scheme": "http",
            "http_version": "1.1",
        }
        self._pieces = list(pieces)
        self.asked = 0
        #: Set once it waits for what never comes.
        self.waits = asyncio.Event()
        self.status = 0
        self.body = b""
        self.headers: dict[str, str] = {}

    async def receive(self) -> Message:
        self.asked += 1
        piece = self._pieces.pop(0) if self._pieces else b""
        if piece is None:
            self.waits.set()
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")

    async def through(self, app: Any) -> "Exchange":
        async with asyncio.timeout(20):
            await app(self.scope, self.receive, self.send)
        return self

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


class Handlers:
    """Routes that show what reached them."""

    def __init__(self) -> None:
        self.router = router = APIRouter()
        self.seen: list[bytes] = []
        self.hold = asyncio.Event()
        self.cancelled = 0

        @router.post("/api/echo")
        async def echo(request: Request) -> dict[str, int]:
            self.seen.append(await request.body())
            return {"bytes": len(self.seen[-1])}

        @router.get("/api/hang")
        async def hang() -> None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                # As a database driver does that first wants to tell a server which has stopped.
                await self.hold.wait()
                raise

        @router.get("/api/stream")
        @streams(party=lambda path: Party(name=path, most=100))
        async def stream() -> None:
            await self.hold.wait()

        @router.get("/public")
        async def public() -> None:
            await self.hold.wait()

        @router.get("/livez")
        async def livez() -> str:
            return "ok"

        @router.put("/files/{name}")
        @streams(party=lambda path: Party(name=path, most=2, worker="worker" in path), max_bytes=2000, seconds=2)
        async def upload(request: Request) -> dict[str, int]:
            async for piece in request.stream():
                self.seen.append(piece)
            return {"bytes": sum(map(len, self.seen))}


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
def gate(handlers: Handlers, settings: Settings, services: Services) -> Gate:
    """Its limits are meant: tests of it that ask no database are in virtual time, where no machine is slow."""
    app = FastAPI()
    install(app, "http://t")
    app.include_router(handlers.router)
    return Gate(app, settings, build_ring(services), [handlers.router], QUICK)


# -------------------------------------------------------------------- who


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/v1/presign/upload", "/api/no/such/route", "/v1/videos"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic dGhl"}])
async def test_the_body_of_a_stranger_is_never_read(services: Services, path: str, headers: dict[str, str]) -> None:
    found = await Exchange("POST", path, headers, [b"{" * 1_000_000]).through(create_asgi(services))
    assert (found.status, found.code, found.asked) == (401, "unauthorized", 0)
    assert found.headers["www-authenticate"] == "Bearer"
    assert found.headers["x-request-id"]


async def test_nor_is_that_of_a_worker_without_the_secret(services: Services) -> None:
    for headers in ({}, {"x-webhook-secret": "wrong"}, KEY):
        found = await Exchange("POST", "/webhook/complete", headers, [b"{" * 1_000_000]).through(create_asgi(services))
        assert (found.status, found.code, found.asked) == (401, "unauthorized", 0)


async def test_the_secret_of_workers_is_no_key(services: Services) -> None:
    found = await Exchange("GET", "/api/v1/jobs", SECRET).through(create_asgi(services))
    assert found.status == 401


async def test_a_route_is_closed_without_a_gate(services: Services) -> None:
    """Should one ever be mounted elsewhere: the routes ask whether the gate has."""
    app = FastAPI()
    app.state.services = services
    install(app, "http://t")
    from serve_app.api import jobs, worker

    app.include_router(jobs.router)
    app.include_router(worker.router)
    assert (await Exchange("GET", "/api/v1/jobs", KEY).through(app)).status == 401
    body = json.dumps({"job_id": "x", "model": "ltx2", "status": "failed"}).encode()
    headers = SECRET | {"content-type": "application/json"}
    assert (await Exchange("POST", "/webhook/complete", headers, [body]).through(app)).status == 401


async def test_no_body_is_read_where_there_is_no_route(services: Services) -> None:
    for method, path, status in (("POST", "/nothing", 404), ("PUT", "/health", 405), ("POST", "/api/v1/jobs", 405)):
        found = await Exchange(method, path, KEY, [b"x" * 1_000_000]).through(create_asgi(services))
        assert (found.status, found.asked) == (status, 0)


@pytest.mark.parametrize(("path", "headers", "shown"), [("/", {}, False), ("/api/", {}, False), ("/api/", KEY, True)])
async def test_strangers_do_not_fill_the_log(
    services: Services, path: str, headers: dict[str, str], shown: bool
) -> None:
    path += "a" * 5000
    with capture_logs() as said:
        await Exchange("GET", path, headers).through(create_asgi(services))
    assert [line["path"] for line in said if line["log_level"] != "debug"] == ([path[:200]] if shown else [])


# -------------------------------------------------------------------- how many


class Unread(Exchange):
    """Its answer begins and is not taken."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.begun, self.taken = asyncio.Event(), asyncio.Event()

    async def send(self, message: Message) -> None:
        self.begun.set()
        await self.taken.wait()
        await super().send(message)


@virtual
async def test_who_does_not_take_an_answer_holds_nobodys_place(gate: Gate) -> None:
    unread = [Unread("POST", "/api/echo", KEY, [b"{}"]) for _ in range(5)]
    held = []
    for each in unread:
        held.append(asyncio.create_task(each.through(gate)))
        await each.begun.wait()
    assert (await Exchange("POST", "/api/echo", KEY, [b"{}"]).through(gate)).status == 200
    for each in unread:
        each.taken.set()
    assert {each.status for each in await asyncio.gather(*held)} == {200}


@virtual
async def test_that_the_api_lives_is_said_whatever_else_goes_on(gate: Gate, handlers: Handlers) -> None:
    await asyncio.gather(*(Exchange("GET", "/api/hang", KEY).through(gate) for _ in range(2)))
    assert (await Exchange("GET", "/api/hang", KEY).through(gate)).status == 503
    assert (await Exchange("GET", "/livez", {}).through(gate)).status == 200
    handlers.hold.set()


@virtual
async def test_strangers_take_no_place_of_those_who_have_a_key(gate: Gate, handlers: Handlers) -> None:
    asked = await asyncio.gather(*(Exchange("GET", "/public", {}).through(gate) for _ in range(5)))
    assert {each.status for each in asked} == {503}
    assert (await Exchange("POST", "/api/echo", KEY, [b"{}"]).through(gate)).status == 200
    handlers.hold.set()


async def key_of(services: Services, **limits: int) -> dict[str, str]:
    """Headers with a key of its own."""
    keys = KeyStore(services.engine, services.settings.hashing_key)
    issued = await keys.create("ann", {KeyScope.READ}, Limits(**limits))
    return {"authorization": f"Bearer {issued.secret}"}


@pytest.mark.parametrize("path", ["/api/hang", "/api/stream"])
async def test_one_key_holds_at_most_half_of_all_places(
    handlers: Handlers, settings: Settings, services: Services, path: str
) -> None:
    app = FastAPI()
    install(app, "http://t")
    app.include_router(handlers.router)
    share = 3
    limits = GateLimits(requests=6, streams=6, kept_for_workers=0, answer_s=60)
    gate = Gate(app, settings, build_ring(services), [handlers.router], limits)
    ann, bob = await key_of(services), await key_of(services)
    held = [asyncio.create_task(Exchange("GET", path, ann).through(gate)) for _ in range(10)]
    refused = [await each for _, each in zip(range(10 - share), asyncio.as_completed(held), strict=False)]
    assert {(each.status, each.code) for each in refused} == {(429, "rate_limited")}
    assert {each.headers["retry-after"] for each in refused} <= {"1", "5"}
    assert sum(not each.done() for each in held) == share
    # The other half is there for all others.
    others = [asyncio.create_task(Exchange("GET", path, who).through(gate)) for who in (bob, bob, KEY)]
    handlers.hold.set()
    assert {each.status for each in await asyncio.gather(*others)} == {200}
    await asyncio.gather(*held)
    # What was held is given back.
    again = await asyncio.gather(*(Exchange("GET", path, ann).through(gate) for _ in range(share)))
    assert {each.status for each in again} == {200}


async def test_who_asks_too_often_is_refused_before_his_body_is_read(
    handlers: Handlers, settings: Settings, services: Services
) -> None:
    app = FastAPI()
    install(app, "http://t")
    app.include_router(handlers.router)
    gate = Gate(app, settings, build_ring(services), [handlers.router])
    headers = await key_of(services, requests_per_minute=1)
    assert (await Exchange("POST", "/api/echo", headers, [b"{}"]).through(gate)).status == 200
    found = await Exchange("POST", "/api/echo", headers, [b"x" * 1_000_000]).through(gate)
    assert (found.status, found.code, found.asked) == (429, "rate_limited", 0)
    assert found.headers["retry-after"] == "60"
    assert found.headers["ratelimit"] == '"default";r=0;t=60'


async def test_of_a_key_that_is_not_known_nobody_says_that_it_is_wrong_while_the_database_is_away(
    services: Services,
) -> None:
    gone = connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    app = create_asgi(
        replace(
            services,
            engine=gone,
            store=JobStore(gone),
            reads=JobReads(gone),
            watching=JobReads(gone),
            forecasts=Forecasts(gone),
        )
    )
    found = await Exchange("GET", "/api/v1/models", {"authorization": f"Bearer {api_key.make()}"}).through(app)
    assert (found.status, found.code) == (503, "unavailable")
    # What is no key is none without a look.
    wrong = await Exchange("GET", "/api/v1/models", {"authorization": "Bearer wrong"}).through(app)
    assert wrong.status == 401
    assert (await Exchange("GET", "/api/v1/models", KEY).through(app)).status == 200
    await gone.dispose()


@virtual
async def test_one_link_takes_two_places_and_workers_have_some_of_their_own(gate: Gate) -> None:
    async def begun(name: str) -> "asyncio.Task[Exchange]":
        exchange = Exchange("PUT", f"/files/{name}", {}, [b"x", None])
        running = asyncio.create_task(exchange.through(gate))
        waiting = asyncio.create_task(exchange.waits.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return running

    async def refused(name: str) -> bool:
        running = await begun(name)
        return running.done() and running.result().status == 503

    held = [await begun("a"), await begun("a")]
    assert await refused("a")
    held += [await begun("b"), await begun("b"), await begun("c")]
    # All that are not kept for workers.
    assert await refused("d")
    held.append(await begun("worker"))
    assert not any(each.done() for each in held)
    assert await refused("worker")
    await asyncio.gather(*held)
    assert (await Exchange("PUT", "/files/a", {}, [b"x"]).through(gate)).status == 200


# -------------------------------------------------------------------- how much


@virtual
async def test_a_body_that_says_it_is_too_large_is_not_read(gate: Gate, handlers: Handlers) -> None:
    found = await Exchange("POST", "/api/echo", KEY | {"content-length": "1001"}, [b"x" * 1001]).through(gate)
    assert (found.status, found.code, found.asked, handlers.seen) == (413, "payload_too_large", 0, [])


@virtual
async def test_a_body_that_does_not_say_is_counted(gate: Gate, handlers: Handlers) -> None:
    chunked = KEY | {"transfer-encoding": "chunked"}
    found = await Exchange("POST", "/api/echo", chunked, [b"x" * 400] * 10).through(gate)
    assert (found.status, found.code, found.asked, handlers.seen) == (413, "payload_too_large", 3, [])
    found = await Exchange("POST", "/api/echo", chunked, [b"x" * 500] * 2).through(gate)
    assert (found.status, handlers.seen) == (200, [b"x" * 1000])


@virtual
async def test_a_body_that_means_nothing_is_read_and_forgotten(gate: Gate, handlers: Handlers) -> None:
    handlers.hold.set()
    assert (await Exchange("GET", "/public", {}, [b"x" * 500] * 2).through(gate)).status == 200
    assert (await Exchange("GET", "/public", {}, [b"x" * 500] * 3).through(gate)).status == 413


@virtual
async def test_an_upload_has_its_own_size(gate: Gate) -> None:
    assert (await Exchange("PUT", "/files/x", {}, [b"x" * 500] * 4).through(gate)).status == 200
    assert (await Exchange("PUT", "/files/x", {}, [b"x" * 500] * 5).through(gate)).status == 413
    found = await Exchange("PUT", "/files/x", {"content-length": "2001"}, [b"x"]).through(gate)
    assert (found.status, found.asked) == (413, 0)


# -------------------------------------------------------------------- how long


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/echo"), ("GET", "/public")])
@virtual
async def test_a_body_that_does_not_come_holds_no_handler(
    gate: Gate, handlers: Handlers, method: str, path: str
) -> None:
    """Not even many of them: only whole requests count against the limit. Nor is who has not asked yet answered."""
    slow = [Exchange(method, path, KEY, [b"x", None]).through(gate) for _ in range(20)]
    waiting = [asyncio.create_task(each) for each in slow]
    await asyncio.sleep(0.1)
    assert (await Exchange("POST", "/api/echo", KEY, [b"{}"]).through(gate)).status == 200
    assert not any(each.done() for each in waiting)
    ended = await asyncio.gather(*waiting)
    assert {(each.status, each.code) for each in ended} == {(408, "request_timeout")}
    assert handlers.seen == [b"{}"]


@virtual
async def test_an_upload_that_stops_is_ended(gate: Gate) -> None:
    found = await Exchange("PUT", "/files/x", {}, [b"x" * 99, None]).through(gate)
    assert (found.status, found.code) == (408, "request_timeout")


@virtual
async def test_an_upload_that_moves_is_not(gate: Gate) -> None:
    class Slow(Exchange):
        async def receive(self) -> Message:
            await asyncio.sleep(0.1)
            return await super().receive()

    assert (await Slow("PUT", "/files/x", {}, [b"x" * 100] * 10).through(gate)).status == 200
    assert (await Slow("PUT", "/files/x", {}, [b"x" * 20] * 10).through(gate)).status == 408
    # Whatever its pace, it ends.
    assert (await Slow("PUT", "/files/x", {}, [b"x" * 60] * 40).through(gate)).status == 408


@virtual
async def test_a_handler_that_hangs_is_not_waited_for(gate: Gate, handlers: Handlers) -> None:
    """Not even if it cannot be cancelled; and while it hangs it counts, so that there are never too many."""
    hanging = await asyncio.gather(*(Exchange("GET", "/api/hang", KEY).through(gate) for _ in range(2)))
    assert {(each.status, each.code) for each in hanging} == {(503, "unavailable")}
    assert handlers.cancelled == 2
    refused = await Exchange("GET", "/api/hang", KEY).through(gate)
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    handlers.hold.set()
    await asyncio.sleep(0.05)
    assert (await Exchange("GET", "/api/hang", KEY).through(gate)).status == 200


# -------------------------------------------------------------------- a database that hangs


@pytest.fixture
async def hung(services: Services) -> AsyncIterator[Services]:
    """The services over a database that takes connections and says nothing."""
    async with Hole() as hole:
        engine = connect(f"postgresql+psycopg://nobody@127.0.0.1:{hole.port}/none")
        yield replace(
            services,
            engine=engine,
            store=JobStore(engine),
            reads=JobReads(engine),
            watching=JobReads(engine),
            forecasts=Forecasts(engine),
        )
        await engine.dispose()


async def test_every_route_answers_while_the_database_hangs(hung: Services) -> None:
    """Each within ten seconds, all at the same time, 12 of each: more than there are connections, and fewer than the
    gate lets in."""
    app = create_asgi(hung)
    schema = json.loads((await Exchange("GET", "/openapi.json", {}).through(app)).body)
    bodies = {
        "/api/v1/generate": {"model": "ltx2", "image_url": "https://pictures.example/a.png"},
        "/api/v1/presign/upload": {"input_type": "image"},
        "/webhook/complete": {"job_id": "x", "model": "ltx2", "status": "failed"},
        "/api/v1/webhooks": {"url": "https://hooks.example/"},
        "/api/v1/webhooks/{endpoint_id}": {"enabled": True},
        "/api/v1/keys": {"name": "a"},
        "/api/v1/keys/{key_id}/rotate": {},
        "/v1/videos": {"prompt": "A storm"},
    }
    queries = {"/api/v1/estimate": {"model": "ltx2"}}
    independent = {"/livez", "/api/v1/models", "/api/v1/webhooks/secret", "/api/v1/key", "/errors", "/errors/{code}"}
    independent |= {"/v1/models", "/v1/models/{model}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=KEY | SECRET) as client:

        async def ask(method: str, path: str) -> tuple[str, int]:
            url = path.format(
                job_id="01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11",
                key_id="key_x",
                endpoint_id=f"whe_{0:032}",
                delivery_id=f"msg_{0:032}",
                code="not_found",
                video_id="01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11",
                model="ltx2",
            )
            async with asyncio.timeout(10):
                return path, (
                    await client.request(method, url, json=bodies.get(path), params=queries.get(path))
                ).status_code

        asked = [
            ask(method.upper(), path)
            for path, methods in schema["paths"].items()
            if not path.startswith("/files/")
            for method in methods
            for _ in range(12)
        ]
        answers = await asyncio.gather(*asked)
    assert len(answers) == 12 * 40
    assert {status for path, status in answers if path not in independent} == {503}
    assert {status for path, status in answers if path in independent} == {200}


async def test_a_statement_that_waits_is_ended_by_the_server(services: Services) -> None:
    """So that what was given up here does not go on there for ever."""
    async with services.engine.connect() as db:
        shown = [
            (await db.execute(text(f"SHOW {name}"))).scalar_one() for name in ("statement_timeout", "lock_timeout")
        ]
    assert shown == ["15s", "10s"]
