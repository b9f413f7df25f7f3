"""``Prefer: wait=n``: answers that are held until the job has ended."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from deployments.contract import Started
from serve_app.api.asgi import create_asgi
from serve_app.api.prefer import MAX_WAIT_S
from serve_app.services import Services
from tests.parts.serve_app.api.conftest import KEY
from tests.parts.serve_app.api.sse import serving
from tests.parts.serve_app.api.test_events import unwatched, watched
from tests.parts.serve_app.jobs.samples import (
    INPUTS,
    completed,
    eventually,
    lease_of,
    outcome,
    running,
    waiting,
)

Generate = Callable[..., Awaitable[httpx.Response]]
BODY = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}


async def finish(services: Services) -> None:
    """Run the job that waits, from its beginning to its end."""

    async def claimed() -> Any:
        return await services.store.claim_for_intake(1)

    (claim,) = await eventually(claimed)
    await services.store.admit(claim.lease, INPUTS)
    (claim,) = await services.store.claim_to_run("ltx2", 1)
    await eventually(lambda: watched(services, claim.job.id))
    await services.store.start(Started(lease=lease_of(claim.job)))
    await services.store.complete(outcome(claim.lease), "outputs/x/1/output.mp4")


async def test_a_create_is_answered_when_the_video_is_there(services: Services, client: httpx.AsyncClient) -> None:
    asked = asyncio.create_task(client.post("/api/v1/generate", json=BODY, headers={"prefer": "wait=1000"}))
    await finish(services)
    answer = await asked
    assert answer.status_code == 201
    # More than a minute is a minute.
    assert answer.headers["preference-applied"] == f"wait={MAX_WAIT_S}"
    found = answer.json()
    assert answer.headers["location"] == f"/api/v1/jobs/{found['job_id']}"
    assert "retry-after" not in answer.headers
    assert {"job_id", "model", "status", "created_at"} <= found.keys()
    assert (found["status"], found["result_url"] != "") == ("completed", True)


async def test_a_create_that_takes_too_long_is_answered_as_it_is(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/generate", json=BODY, headers={"prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (201, "queued")
    assert answer.headers["preference-applied"] == "wait=1"


async def test_a_create_says_where_to_ask_and_when(client: httpx.AsyncClient, generate: Generate) -> None:
    answer = await generate()
    assert "preference-applied" not in answer.headers
    assert int(answer.headers["retry-after"]) >= 1
    assert (await client.get(answer.headers["location"])).json()["job_id"] == answer.json()["job_id"]


async def test_a_create_whose_job_is_deleted_meanwhile_says_what_was_made(
    services: Services, client: httpx.AsyncClient
) -> None:
    asked = asyncio.create_task(client.post("/api/v1/generate", json=BODY, headers={"prefer": "wait=60"}))

    async def made() -> Any:
        return [job for job in await services.store.list() if await watched(services, job.id)]

    (job,) = await eventually(made)
    await services.store.delete(job.id)
    answer = await asked
    assert (answer.status_code, answer.json()["status"]) == (201, "queued")


async def test_a_read_is_answered_when_the_job_has_ended(services: Services, client: httpx.AsyncClient) -> None:
    lease = await running(services.store)
    path = f"/api/v1/jobs/{lease.job_id}"
    asked = asyncio.create_task(client.get(path, headers={"prefer": "respond-async, wait=60"}))
    await eventually(lambda: watched(services, lease.job_id))
    await services.store.complete(outcome(lease), "outputs/x/1/output.mp4")
    answer = await asked
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert answer.headers["preference-applied"] == "wait=60"
    again = await client.get(path, headers={"prefer": "wait=60"})
    assert (again.json()["status"], again.headers["preference-applied"]) == ("completed", "wait=60")


async def test_a_read_of_a_job_that_goes_is_answered_with_404(services: Services, client: httpx.AsyncClient) -> None:
    job = await waiting(services.store)
    asked = asyncio.create_task(client.get(f"/api/v1/jobs/{job.id}", headers={"prefer": "wait=60"}))
    await eventually(lambda: watched(services, job.id))
    await services.store.delete(job.id)
    assert (await asked).status_code == 404


async def test_nobody_waits_longer_than_asked(services: Services, client: httpx.AsyncClient) -> None:
    """Whoever has another job has another one, and a wait is longer than other answers may take."""
    job = await waiting(services.store)
    answer = await client.get(f"/api/v1/jobs/{job.id}", headers={"prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    await eventually(lambda: unwatched(services, job.id))


@pytest.mark.parametrize("prefer", ["wait=0", "wait", "respond-async", 'handling="wait=5"', "wait=x"])
async def test_what_is_no_wait_is_not_applied(services: Services, client: httpx.AsyncClient, prefer: str) -> None:
    job = await waiting(services.store)
    answer = await client.get(f"/api/v1/jobs/{job.id}", headers={"prefer": prefer})
    assert "preference-applied" not in answer.headers


async def test_waits_end_with_their_client_and_with_the_service(services: Services) -> None:
    one, other = await waiting(services.store), await waiting(services.store)
    async with serving(create_asgi(services), KEY) as http:
        asked = [
            asyncio.create_task(http.get(f"/api/v1/jobs/{job.id}", headers={"prefer": "wait=60"}))
            for job in (one, other)
        ]
        for job in (one, other):
            await eventually(lambda job=job: watched(services, job.id))
        asked[0].cancel()
        await eventually(lambda: unwatched(services, one.id))
        assert await watched(services, other.id)
        async with asyncio.timeout(30):
            await services.feed.aclose()
            assert (await asked[1]).json()["status"] == "queued"


async def test_one_that_has_ended_needs_no_place(services: Services, client: httpx.AsyncClient) -> None:
    job_id = await completed(services.store)
    async with asyncio.timeout(30):
        answers = await asyncio.gather(
            *(client.get(f"/api/v1/jobs/{job_id}", headers={"prefer": "wait=60"}) for _ in range(30))
        )
    assert {answer.status_code for answer in answers} == {200}
