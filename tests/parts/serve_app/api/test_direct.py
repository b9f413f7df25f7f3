"""The short cut and the long way give the same answer, and only what is plain is cut short."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from psycopg import OperationalError

from serve_app.api import generate as generate_module
from serve_app.api import jobs as jobs_module
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import completed, running

BODY = {"model": "ltx2", "image_url": "https://pictures.example/a.png", "prompt": "A cat"}


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was cut short."""
    seen: list[str] = []

    def watched(module: object, name: str) -> None:
        real = getattr(module, name)

        async def call(*arguments: object) -> object:
            answer = await real(*arguments)
            if answer is not None:
                seen.append(name)
            return answer

        monkeypatch.setattr(module, name, call)

    watched(jobs_module, "read")
    watched(generate_module, "create")
    return seen


@pytest.mark.parametrize("make", [running, completed])
async def test_a_job_is_the_same_both_ways(
    client: httpx.AsyncClient, cuts: list[str], services, make: Callable[[JobStore], Awaitable[object]]
) -> None:
    made: Any = await make(services.store)
    job_id = made if isinstance(made, str) else made.job_id
    short = await client.get(f"/api/v1/jobs/{job_id}")
    assert cuts == ["read"]
    long = await client.get(f"/api/v1/jobs/{job_id}?long")
    assert cuts == ["read"]
    assert (short.status_code, short.headers["content-type"]) == (long.status_code, long.headers["content-type"])
    expected = long.json()
    # Its signature tells when it was asked for.
    assert short.json().pop("result_url", "")[:40] == expected.pop("result_url", "")[:40]
    assert {**short.json(), "result_url": None} == {**expected, "result_url": None}


async def test_a_waiting_job_is_the_same_both_ways(client: httpx.AsyncClient, cuts: list[str]) -> None:
    job_id = (await client.post("/api/v1/generate", json=BODY)).json()["job_id"]
    short = await client.get(f"/api/v1/jobs/{job_id}")
    assert short.json() == (await client.get(f"/api/v1/jobs/{job_id}?long")).json()
    assert short.json()["queue_position"] == 0
    assert cuts == ["create", "read"]


@pytest.mark.parametrize("body", [BODY, {**BODY, "image_url": None}])
async def test_a_create_is_the_same_both_ways(client: httpx.AsyncClient, cuts: list[str], body: dict[str, Any]) -> None:
    short = await client.post("/api/v1/generate", json=body)
    assert cuts == ["create"]
    long = await client.post("/api/v1/generate", json=body, headers={"content-type": "application/json; charset=utf-8"})
    assert cuts == ["create"]
    assert short.status_code == long.status_code == 201
    assert short.json().keys() == long.json().keys()
    assert short.headers.keys() == long.headers.keys()
    jobs = [(await client.get(f"/api/v1/jobs/{answer.json()['job_id']}?long")).json() for answer in (short, long)]
    for job, answer in zip(jobs, (short, long), strict=True):
        assert answer.headers["location"] == f"/api/v1/jobs/{job.pop('job_id')}"
        del job["created_at"], job["queue_position"]
    assert jobs[0] == jobs[1]


@pytest.mark.parametrize(
    "body",
    [
        {**BODY, "duration": 99},
        {**BODY, "job_id": "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"},
        {"model": "ltx2", "prompt": "No picture"},
        {"model": "none"},
        [],
    ],
)
async def test_what_is_refused_is_refused_by_the_route(
    client: httpx.AsyncClient, cuts: list[str], body: object
) -> None:
    short = await client.post("/api/v1/generate", json=body)
    long = await client.post("/api/v1/generate", json=body, headers={"content-type": "application/json; charset=utf-8"})
    assert cuts == []
    assert 400 <= short.status_code < 500
    assert {**short.json(), "request_id": ""} == {**long.json(), "request_id": ""}


@pytest.mark.parametrize("header", ["prefer", "idempotency-key"])
async def test_what_asks_for_more_takes_the_long_way(client: httpx.AsyncClient, cuts: list[str], header: str) -> None:
    answer = await client.post("/api/v1/generate", json=BODY, headers={header: "x"})
    assert answer.status_code == 201
    assert cuts == []


async def test_another_job_is_not_found(client: httpx.AsyncClient, cuts: list[str]) -> None:
    answer = await client.get("/api/v1/jobs/01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    assert cuts == []


async def test_a_database_that_is_away_is_said_so(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object, **__: object) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(JobStore, "submit", away)
    answer = await client.post("/api/v1/generate", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
