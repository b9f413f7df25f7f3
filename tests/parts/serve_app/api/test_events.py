"""A job as it goes: server-sent events of a real server over a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Progress, Started
from serve_app.api import events
from serve_app.api.asgi import create_asgi
from serve_app.api.server import ServerLimits
from serve_app.jobs import feed as feed_module
from serve_app.services import Services
from tests.parts.serve_app.api.conftest import KEY
from tests.parts.serve_app.api.sse import serving, streaming
from tests.parts.serve_app.jobs.samples import (
    completed,
    eventually,
    fetch,
    lease_of,
    outcome,
    running,
    waiting,
)

NO_SUCH = "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"


@pytest.fixture
async def http(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(create_asgi(services), KEY) as client:
        yield client
        # As in the deployment: or the server would wait for streams.
        await services.feed.aclose()


async def test_a_job_is_told_from_its_snapshot_to_its_end(services: Services, http: httpx.AsyncClient) -> None:
    job = await waiting(services.store)
    async with streaming(http, job.id) as stream:
        assert stream.answer.headers["content-type"].startswith("text/event-stream")
        assert stream.answer.headers["cache-control"] == "no-store"
        assert stream.answer.headers["x-accel-buffering"] == "no"
        first = await stream.next()
        assert first.kind == "snapshot"
        assert first.job == (await http.get(f"/api/v1/jobs/{job.id}")).json()
        (claim,) = await services.store.claim_to_run("ltx2", 1)
        lease = lease_of(claim.job)
        seen = [await stream.next()]
        await services.store.start(Started(lease=lease))
        seen.append(await stream.next())
        await services.store.progress(Progress(lease=lease, stage="denoising", percent=40))
        seen.append(await stream.next())
        # Renews the lease, and nothing that anybody sees.
        await services.store.progress(Progress(lease=lease, stage="denoising", percent=40))
        await services.store.complete(outcome(lease), "outputs/x/1/output.mp4")
        seen += await stream.rest()
    told = [(event.kind, event.job["status"], event.job["stage"], event.job["progress"]) for event in seen]
    assert told == [
        ("update", "queued", "waiting_for_gpu", 0),
        ("update", "processing", "preparing", 0),
        ("update", "processing", "denoising", 40),
        ("end", "completed", "completed", 100),
    ]
    numbers = [int(event.id) for event in [first, *seen]]
    assert numbers == sorted(set(numbers))


async def test_what_the_client_has_is_not_repeated(services: Services, http: httpx.AsyncClient) -> None:
    lease = await running(services.store)
    async with streaming(http, lease.job_id) as stream:
        first = await stream.next()
    async with streaming(http, lease.job_id, after=first.id) as stream:
        await eventually(lambda: watched(services, lease.job_id))
        await services.store.progress(Progress(lease=lease, stage="denoising", percent=10))
        second = await stream.next()
        assert (second.kind, second.job["progress"]) == ("update", 10)
    await services.store.progress(Progress(lease=lease, stage="denoising", percent=20))
    # It has missed something: all of the job, as it is now.
    async with streaming(http, lease.job_id, after=first.id) as stream:
        third = await stream.next()
        assert (third.kind, third.job["progress"]) == ("snapshot", 20)


@pytest.mark.parametrize("nonsense", ["", "x", "-1", "99999999999999999999999", "1.0", "0x1"])
async def test_an_unknown_id_is_none(services: Services, http: httpx.AsyncClient, nonsense: str) -> None:
    job_id = await completed(services.store)
    async with streaming(http, job_id, after=nonsense) as stream:
        assert [event.kind for event in await stream.rest()] == ["snapshot", "end"]


async def test_who_knows_how_it_ended_is_told_to_come_no_more(services: Services, http: httpx.AsyncClient) -> None:
    job_id = await completed(services.store)
    async with streaming(http, job_id) as stream:
        *_, end = await stream.rest()
    async with streaming(http, job_id, after=end.id) as stream:
        assert stream.answer.status_code == 204
        assert await stream.rest() == []


async def test_a_deleted_job_ends_its_streams(services: Services, http: httpx.AsyncClient) -> None:
    job = await waiting(services.store)
    async with streaming(http, job.id) as stream:
        await stream.next()
        await services.store.delete(job.id)
        (event,) = await stream.rest()
    assert (event.kind, json.loads(event.data)) == ("deleted", {"job_id": job.id})
    async with streaming(http, job.id, after="1") as stream:
        assert stream.answer.status_code == 404


async def key(http: httpx.AsyncClient, *scopes: str) -> httpx.AsyncClient:
    """A client with a key of its own."""
    answer = await http.post("/api/v1/keys", json={"name": "one", "scopes": scopes})
    return httpx.AsyncClient(base_url=http.base_url, headers={"authorization": f"Bearer {answer.json()['secret']}"})


async def test_another_keys_job_is_not_there(services: Services, http: httpx.AsyncClient) -> None:
    job = await waiting(services.store)
    async with await key(http, "read", "generate") as stranger, await key(http, "generate") as blind:
        for client, job_id, status in ((http, NO_SUCH, 404), (stranger, job.id, 404), (blind, job.id, 403)):
            async with streaming(client, job_id) as stream:
                assert stream.answer.status_code == status
    assert (await http.get(f"/api/v1/jobs/{NO_SUCH}/events", headers={"authorization": ""})).status_code == 401


async def test_a_place_is_told_when_the_line_has_moved(
    services: Services, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "PLACE_S", 0.0)
    first, second, last = [await waiting(services.store, user) for user in ("ann", "bob", "cid")]
    async with streaming(http, last.id) as stream:
        begun = await stream.next()
        assert begun.job["queue_position"] == 2
        await services.store.cancel(first.id)
        moved = await stream.next()
        # The same id: its row has not changed.
        assert (moved.kind, moved.id, moved.job["queue_position"]) == ("update", begun.id, 1)
        await services.store.delete(second.id)
        moved = await stream.next()
        assert moved.job["queue_position"] == 0


async def test_a_lost_connection_loses_no_change(
    services: Services, http: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "AGAIN_S", 0.1)
    lease = await running(services.store)
    async with streaming(http, lease.job_id) as stream:
        await stream.next()
        (listener,) = await eventually(lambda: listening(engine))
        await fetch(engine, "SELECT pg_terminate_backend(:pid, 5000)", pid=listener["pid"])
        await services.store.progress(Progress(lease=lease, stage="denoising", percent=30))
        event = await stream.next()
        assert event.job["progress"] == 30


async def test_all_streams_end_with_the_service(services: Services, http: httpx.AsyncClient) -> None:
    lease = await running(services.store)
    async with streaming(http, lease.job_id) as one, streaming(http, lease.job_id) as other:
        await one.next(), await other.next()
        await services.feed.aclose()
        assert await one.rest() == await other.rest() == []
    # What comes in the meantime ends as soon.
    async with streaming(http, lease.job_id) as late:
        assert late.answer.status_code == 503


async def test_silence_is_broken_and_no_stream_lasts_for_ever(
    services: Services, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    lease = await running(services.store)
    path, told = f"/api/v1/jobs/{lease.job_id}/events", b""
    async with asyncio.timeout(30), http.stream("GET", path) as answer:
        async for piece in answer.aiter_bytes():
            told += piece
            if told.count(events.HEARTBEAT) >= 3:
                break
    assert told.startswith(b"retry: 2000\n\n")
    monkeypatch.setattr(events, "LASTS_S", 0.3)
    async with asyncio.timeout(30), http.stream("GET", path) as answer:
        told = b"".join([piece async for piece in answer.aiter_bytes()])
    assert told.startswith(b"retry: 2000\n\n")
    assert b"event: end" not in told


async def test_a_slow_reader_finds_the_latest_and_no_backlog(services: Services) -> None:
    """Its connection takes nothing while the job goes on; it is not cut for that, and misses what is past."""
    lease = await running(services.store)
    steps = 60
    async with serving(create_asgi(services), KEY, ServerLimits(stalled_s=30)) as http:
        reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port, limit=1 << 10)
        path = f"/api/v1/jobs/{lease.job_id}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
        await eventually(lambda: watched(services, lease.job_id))
        for step in range(1, steps + 1):
            await services.store.progress(Progress(lease=lease, stage="x" * 60_000 + str(step), percent=step))
        await services.store.complete(outcome(lease), "outputs/x/1/output.mp4")
        received = b""
        async with asyncio.timeout(20):
            while b"event: end" not in received:
                piece = await reader.read(1 << 16)
                assert piece, "cut off"
                received += piece
        writer.close()
        await services.feed.aclose()
    assert received.count(b"event: update") < steps


async def test_many_who_watch_cost_one_look(services: Services, http: httpx.AsyncClient) -> None:
    lease = await running(services.store)
    looked: list[list[str]] = []

    async def look(ids: Any) -> Any:
        looked.append(list(ids))
        return await events.look(services, ids)

    services.feed.show(look)
    async with AsyncExitStack() as opened:
        streams = [await opened.enter_async_context(streaming(http, lease.job_id)) for _ in range(5)]
        for stream in streams:
            await stream.next()
        # It looks once more when it begins to listen.
        await eventually(lambda: listening(services.engine))
        await services.store.progress(Progress(lease=lease, stage="denoising", percent=49))
        for stream in streams:
            while (await stream.next()).job["progress"] < 49:
                pass
        looked.clear()
        await services.store.progress(Progress(lease=lease, stage="denoising", percent=50))
        assert [(await stream.next()).job["progress"] for stream in streams] == [50] * 5
    assert looked == [[lease.job_id]]


async def test_who_leaves_frees_his_place_at_once(services: Services, http: httpx.AsyncClient) -> None:
    job = await waiting(services.store)
    async with AsyncExitStack() as held:
        streams = [await held.enter_async_context(streaming(http, job.id)) for _ in range(19)]
        async with streaming(http, job.id) as last:
            await last.next()
            async with streaming(http, job.id) as refused:
                assert refused.answer.status_code == 429
                assert int(refused.answer.headers["retry-after"]) > 0
                assert json.loads(await refused.answer.aread())["code"] == "too_many_streams"
            # A wait has a place of the same kind; without one it is no wait.
            answer = await http.get(f"/api/v1/jobs/{job.id}", headers={"prefer": "wait=60"})
            assert (answer.status_code, "preference-applied" in answer.headers) == (200, False)
            # Another key has places of its own.
            async with await key(http, "admin") as other, streaming(other, job.id) as stream:
                assert stream.answer.status_code == 200

        async def free() -> bool:
            async with streaming(http, job.id) as stream:
                return stream.answer.status_code == 200

        await eventually(free, within_s=5)
        assert {stream.answer.status_code for stream in streams} == {200}
    await eventually(lambda: unwatched(services, job.id), within_s=5)


async def listening(engine: AsyncEngine) -> Any:
    return await fetch(engine, "SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN video_api_changes'")


async def watched(services: Services, job_id: str) -> bool:
    return job_id in services.feed._watched


async def unwatched(services: Services, job_id: str) -> bool:
    return not await watched(services, job_id)
