"""What all routes share: keys, errors, CORS, request ids; and the routes of operators and outside workers."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import httpx
import pytest
import structlog
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from prometheus_client.core import Metric
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from standardwebhooks import Webhook

from deployments.registry import MODELS
from serve_app.api.asgi import create_asgi
from serve_app.jobs import fleet_metrics, tally
from serve_app.jobs.conditions import Condition
from serve_app.jobs.database import connect
from serve_app.jobs.forecast import Forecasts
from serve_app.jobs.outlooks import Outlook, Outlooks
from serve_app.jobs.reads import JobReads
from serve_app.jobs.store import JobStore
from serve_app.services import Services
from serve_app.storage.base import StorageError
from tests.fakes.cluster import FakeCluster
from tests.parts.serve_app.jobs.samples import completed, execute, fetch, running

Generate = Callable[..., Awaitable[httpx.Response]]
SECRET = {"x-webhook-secret": "the-worker-secret"}


# -------------------------------------------------------------------- keys


PROTECTED = [
    ("POST", "/api/v1/generate"),
    ("GET", "/api/v1/models"),
    ("GET", "/api/v1/estimate"),
    ("GET", "/api/v1/jobs"),
    ("GET", "/api/v1/jobs/x"),
    ("GET", "/api/v1/jobs/x/events"),
    ("POST", "/api/v1/jobs/x/cancel"),
    ("POST", "/api/v1/jobs/x/retry"),
    ("DELETE", "/api/v1/jobs/x"),
    ("POST", "/api/v1/presign/upload"),
    ("GET", "/api/v1/presign/download/x"),
    ("GET", "/api/v1/webhooks/secret"),
    ("POST", "/api/v1/webhooks"),
    ("GET", "/api/v1/webhooks"),
    ("GET", "/api/v1/webhooks/whe_x"),
    ("PATCH", "/api/v1/webhooks/whe_x"),
    ("DELETE", "/api/v1/webhooks/whe_x"),
    ("POST", "/api/v1/webhooks/whe_x/rotate"),
    ("POST", "/api/v1/webhooks/whe_x/test"),
    ("GET", "/api/v1/webhooks/deliveries"),
    ("POST", "/api/v1/webhooks/deliveries/msg_x/redeliver"),
    ("POST", "/api/v1/keys"),
    ("GET", "/api/v1/keys"),
    ("POST", "/api/v1/keys/x/revoke"),
    ("POST", "/api/v1/keys/x/rotate"),
    ("GET", "/api/v1/key"),
    ("POST", "/v1/videos"),
    ("GET", "/v1/videos"),
    ("GET", "/v1/videos/x"),
    ("GET", "/v1/videos/x/content"),
    ("POST", "/v1/videos/x/cancel"),
    ("DELETE", "/v1/videos/x"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/x"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "Missing authorization header"),
        ("Bearer wrong", "Invalid API key"),
        ("Bearer the-api-key2", "Invalid API key"),
        ("Bearer \xe9", "Invalid API key"),
    ],
)
async def test_a_key_is_needed(
    anyone: httpx.AsyncClient, method: str, path: str, header: str | None, message: str
) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = await anyone.request(method, path, headers=headers, json={} if method == "POST" else None)
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert (error["message"] if path.startswith("/v1/") else error) == message
    assert answer.json()["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_every_operation_but_the_public_ones_needs_a_key(anyone: httpx.AsyncClient) -> None:
    """So that a new route cannot be forgotten in the list above."""
    schema = (await anyone.get("/openapi.json")).json()
    secured = {
        (method.upper(), path)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if any("HTTPBearer" in way for way in operation.get("security", []))
    }
    under_api = {
        (method.upper(), path)
        for path, operations in schema["paths"].items()
        for method in operations
        if path.startswith(("/api/", "/v1/"))
    }
    assert secured == under_api
    assert len(secured) == len(PROTECTED)


# -------------------------------------------------------------------- errors


async def test_an_unknown_path_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/nothing")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["error"]) == ("not_found", "Not found")


async def test_a_wrong_method_says_so(client: httpx.AsyncClient) -> None:
    answer = await client.put("/api/v1/generate")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.own_database
async def test_a_crash_is_a_problem_with_the_request_id(
    client: httpx.AsyncClient, services: Services, cluster: FakeCluster, engine: AsyncEngine
) -> None:
    await execute(engine, "ALTER TABLE jobs RENAME TO work")
    headers = {"x-request-id": "find-me", "origin": "https://front.example"}
    answer = await client.get("/api/v1/jobs", headers=headers)
    assert answer.status_code == 500
    assert (answer.json()["code"], answer.json()["request_id"]) == ("internal_error", "find-me")
    assert answer.headers["x-request-id"] == "find-me"
    # Without it a browser's script sees no answer at all.
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "relation" not in answer.text


async def test_a_database_that_is_away_is_unavailable_not_a_crash(services: Services) -> None:
    gone = connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    transport = httpx.ASGITransport(
        create_asgi(
            replace(
                services,
                engine=gone,
                store=JobStore(gone),
                reads=JobReads(gone),
                watching=JobReads(gone),
                forecasts=Forecasts(gone),
            )
        )
    )
    headers = {"authorization": "Bearer the-api-key"}
    async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:
        answer = await client.get("/api/v1/jobs")
    await gone.dispose()
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "nobody" not in answer.text


async def test_a_store_that_is_away_is_unavailable(generate: Generate, services: Services) -> None:
    job = await services.store.open_upload(None)

    async def fail(key: str) -> None:
        raise StorageError("The bucket at https://secret.example does not answer.", transient=True)

    object.__setattr__(services, "storage", type("Down", (), {"stat": staticmethod(fail)})())
    answer = await generate(job_id=job.id, image_url=None)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "secret" not in answer.text


# -------------------------------------------------------------------- request ids and CORS


async def test_a_request_id_is_echoed_and_made_up_when_unusable(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/models", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    for bad in ("", "a b", "x" * 129, "<script>"):
        made_up = (await client.get("/api/v1/models", headers={"x-request-id": bad})).headers["x-request-id"]
        assert made_up != bad
        assert len(made_up) == 32


async def test_requests_at_the_same_time_keep_their_ids_apart(client: httpx.AsyncClient) -> None:
    async def ask(number: int) -> tuple[str, str]:
        answer = await client.get("/api/v1/jobs/unknown", headers={"x-request-id": f"r{number}"})
        return answer.headers["x-request-id"], answer.json()["request_id"]

    found = await asyncio.gather(*(ask(number) for number in range(10)))
    assert found == [(f"r{number}", f"r{number}") for number in range(10)]
    assert structlog.contextvars.get_contextvars() == {}


async def test_any_origin_may_call(anyone: httpx.AsyncClient) -> None:
    headers = {
        "origin": "https://front.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = await anyone.options("/api/v1/generate", headers=headers)
    assert preflight.status_code == 200
    allowed = preflight.headers
    assert allowed["access-control-allow-origin"] == "*"
    assert "POST" in allowed["access-control-allow-methods"]
    assert "authorization" in allowed["access-control-allow-headers"].lower()
    refused = await anyone.get("/api/v1/jobs", headers={"origin": "https://front.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")
    exposed = refused.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "idempotency-replayed", "content-range", "etag"} <= set(exposed)


# -------------------------------------------------------------------- outside workers


async def report(client: httpx.AsyncClient, job_id: str, **changes: object) -> httpx.Response:
    body = {"job_id": job_id, "model": "ltx2", "status": "completed", "video_url": "https://w.example/v.mp4"} | changes
    return await client.post("/webhook/complete", json=body, headers=SECRET)


async def test_a_worker_outside_the_cluster_ends_a_job(
    anyone: httpx.AsyncClient, generate: Generate, client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    job_id = (await generate(webhook_url="https://c.example/hook")).json()["job_id"]
    answer = await report(anyone, job_id)
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    body = (await client.get(f"/api/v1/jobs/{job_id}")).json()
    assert (body["status"], body["result_url"]) == ("completed", "https://w.example/v.mp4")
    assert [row["url"] for row in await fetch(engine, "SELECT url FROM deliveries")] == ["https://c.example/hook"]
    # A second report neither changes nor forwards anything.
    assert (await report(anyone, job_id, status="failed", error="x")).json() == {"success": True}
    assert (await client.get(f"/api/v1/jobs/{job_id}")).json()["status"] == "completed"
    assert len(await fetch(engine, "SELECT 1 FROM deliveries")) == 1


async def test_a_worker_reports_a_failure(
    anyone: httpx.AsyncClient, generate: Generate, client: httpx.AsyncClient
) -> None:
    job_id = (await generate()).json()["job_id"]
    assert (await report(anyone, job_id, status="failed", video_url=None, error="it broke")).status_code == 200
    body = (await client.get(f"/api/v1/jobs/{job_id}")).json()
    assert (body["status"], body["error_message"]) == ("failed", "it broke")


@pytest.mark.parametrize("headers", [{}, {"x-webhook-secret": "wrong"}, {"authorization": "Bearer the-api-key"}])
async def test_a_report_needs_the_secret(
    anyone: httpx.AsyncClient, generate: Generate, client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    job_id = (await generate()).json()["job_id"]
    body = {"job_id": job_id, "model": "ltx2", "status": "failed"}
    assert (await anyone.post("/webhook/complete", json=body, headers=headers)).status_code == 401
    assert (await client.get(f"/api/v1/jobs/{job_id}")).json()["status"] == "queued"


async def test_a_report_on_no_known_job(anyone: httpx.AsyncClient, generate: Generate, services: Services) -> None:
    job_id = (await generate()).json()["job_id"]
    upload = await services.store.open_upload(None)
    for unknown in (
        await report(anyone, "unknown"),
        await report(anyone, job_id, model="wav2lip"),
        await report(anyone, upload.id),
    ):
        assert (unknown.status_code, unknown.json()["error"]) == (404, "Job not found")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"video_url": None}, "video_url"),
        ({"video_url": "nowhere"}, "video_url"),
        ({"status": "done"}, "status"),
        ({"error": "a\0b"}, "error"),
        ({"job_id": "a\0b"}, "job_id"),
    ],
)
async def test_a_bad_report_is_named(anyone: httpx.AsyncClient, generate: Generate, change: dict, param: str) -> None:
    job_id = (await generate()).json()["job_id"]
    answer = await report(anyone, **({"job_id": job_id} | change))
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_receivers_get_their_secret_and_not_the_workers(client: httpx.AsyncClient) -> None:
    secret = (await client.get("/api/v1/webhooks/secret")).json()["secret"]
    assert secret.startswith("whsec_")
    assert "the-worker-secret" not in secret
    Webhook(secret)


# -------------------------------------------------------------------- operators


async def test_health_is_open_and_counts(
    anyone: httpx.AsyncClient, generate: Generate, services: Services, client: httpx.AsyncClient
) -> None:
    await generate()
    await generate()
    await client.post(f"/api/v1/jobs/{(await generate()).json()['job_id']}/cancel")
    await completed(services.store)
    answer = await anyone.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert [body[part] for part in ("api", "database", "storage", "ray")] == ["ok"] * 4
    # Ray on this machine keeps its state in memory.
    assert body["redis"] == "unused"
    assert body["queues"].keys() == MODELS.keys()
    assert body["queues"]["ltx2"]["completed"] == 1
    assert sum(body["queues"]["ltx2"].values()) == 3
    assert body["weights"]["ltx2"] == "random"


@pytest.mark.parametrize("fault", ["silent", "absent"])
async def test_health_tells_of_a_cluster_that_is_down(
    anyone: httpx.AsyncClient, cluster: FakeCluster, fault: str
) -> None:
    if fault == "silent":
        cluster.error = ConnectionError("no controller")
    else:
        del cluster.states["ltx2"]
    answer = await anyone.get("/health")
    assert (answer.status_code, answer.json()["ray"]) == (503, "down")
    assert answer.json()["database"] == "ok"
    assert answer.json()["details"].keys() == {"ray"}


BROKEN = Condition("model_unavailable", "ltx2 cannot start: FileNotFoundError: /nonexistent")
CROWDED = Condition("no_node_fits", "No node takes a replica of ltx2: needs 2 CPUs, 1 free.")


@pytest.mark.parametrize(
    ("state", "health", "detail"),
    [
        ({}, "ok", None),
        ({"starting_replicas": 1}, "starting", None),
        ({"status": "UNHEALTHY", "trouble": BROKEN}, "down", BROKEN.message),
        # One replica of the deployment does not start, another works.
        ({"status": "UNHEALTHY", "trouble": BROKEN, "running_replicas": 1}, "ok", None),
        ({"starting_replicas": 1, "trouble": CROWDED}, "waiting", CROWDED.message),
        (
            {"status": "UNHEALTHY", "message": "A health check failed.\nTraceback: secret"},
            "down",
            "A health check failed.",
        ),
    ],
)
async def test_a_model_that_does_not_work_makes_not_all_of_the_service_unhealthy(
    anyone: httpx.AsyncClient, cluster: FakeCluster, state: dict, health: str, detail: str | None
) -> None:
    cluster.states["ltx2"] = replace(cluster.states["ltx2"], **state)
    answer = await anyone.get("/health")
    body = answer.json()
    assert (answer.status_code, body["ray"]) == (200, "ok")
    assert body["models"] == {**dict.fromkeys(MODELS, "ok"), "ltx2": health}
    assert body["details"] == ({"ltx2": detail} if detail else {})


async def test_what_serve_has_forgotten_is_remembered(anyone: httpx.AsyncClient, services: Services) -> None:
    """At zero replicas it calls a model healthy that did not start a minute ago."""
    await services.conditions.note("ltx2", BROKEN)
    body = (await anyone.get("/health")).json()
    assert (body["models"]["ltx2"], body["details"]) == ("down", {"ltx2": BROKEN.message})


async def test_health_tells_of_a_store_that_is_down(
    anyone: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise StorageError("no bucket", transient=True)

    monkeypatch.setattr(services.storage, "check", fail)
    answer = await anyone.get("/health")
    assert (answer.status_code, answer.json()["storage"], answer.json()["ray"]) == (503, "down", "ok")


@pytest.mark.own_database
async def test_health_tells_of_a_database_that_is_down(anyone: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await execute(engine, "ALTER TABLE jobs RENAME TO work")
    answer = await anyone.get("/health")
    assert (answer.status_code, answer.json()["database"]) == (503, "down")


@pytest.mark.parametrize("fault", ["refuses", "hangs"])
async def test_a_database_that_is_away_is_not_taken_for_anything_else(
    services: Services, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: ``ray: down`` and 0 jobs in every queue, while a connection was cut."""
    monkeypatch.setattr("serve_app.api.health.CHECK_TIMEOUT_S", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    # Connections are taken by the kernel; nobody ever answers them.
    port = listener.getsockname()[1] if fault == "hangs" else 1
    gone = connect(f"postgresql+psycopg://nobody@127.0.0.1:{port}/none")
    broken = replace(
        services,
        engine=gone,
        store=JobStore(gone),
        reads=JobReads(gone),
        watching=JobReads(gone),
        forecasts=Forecasts(gone),
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_asgi(broken)), base_url="http://t") as client:
        answer = await client.get("/health")
    await gone.dispose()
    listener.close()
    body = answer.json()
    assert answer.status_code == 503
    assert [body[part] for part in ("database", "storage", "ray")] == ["down", "ok", "ok"]
    assert body["models"] == dict.fromkeys(MODELS, "ok")
    assert body["queues"] == {}
    assert body["details"].keys() == {"database"}


@pytest.mark.parametrize("path", ["/health", "/metrics", "/openapi.json", "/docs"])
async def test_what_is_shared_is_the_answer_and_not_what_is_said_with_it(services: Services, path: str) -> None:
    settings = services.settings.model_copy(update={"cors_origins": ("https://mine.example",)})
    app = create_asgi(replace(services, settings=settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        mine = await client.get(path, headers={"origin": "https://mine.example"})
        other = await client.get(path, headers={"origin": "https://other.example"})
    assert mine.headers["access-control-allow-origin"] == "https://mine.example"
    assert "access-control-allow-origin" not in other.headers
    assert mine.headers["content-type"] == other.headers["content-type"]
    assert mine.content == other.content


async def test_no_question_takes_a_thread(anyone: httpx.AsyncClient, client: httpx.AsyncClient) -> None:
    """A hop to one costs more than most answers, and more still with each task that waits in the event loop."""
    with patch("anyio.to_thread.run_sync", side_effect=AssertionError("a thread")):
        for path in ("/livez", "/health", "/metrics", "/openapi.json", "/docs"):
            assert (await anyone.get(path)).status_code == 200
        assert (await client.get("/api/v1/jobs")).status_code == 200


async def test_however_many_ask_for_health_it_is_looked_into_once_a_second(
    anyone: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may ask; each look is a call to the bucket and to the database."""
    looks: list[str] = []

    def counted(part: object, name: str) -> None:
        real = getattr(part, name)

        async def look(*arguments: object) -> object:
            looks.append(name)
            return await real(*arguments)

        monkeypatch.setattr(part, name, look)

    counted(services.storage, "check")
    counted(tally, "counts")
    counted(services.cluster, "models")
    monkeypatch.setattr("serve_app.shared.FRESH_S", 3600)
    answers = await asyncio.gather(*(anyone.get(path) for path in ("/health", "/metrics") * 50))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(looks) == ["check", "counts", "models"]
    # What is shared is the answer, and not what is said with it.
    assert len({answer.headers["x-request-id"] for answer in answers}) == 100
    assert {len(answer.headers.get_list("x-request-id")) for answer in answers} == {1}


async def test_a_part_that_is_down_is_not_hammered_either(
    anyone: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    async def fail() -> None:
        nonlocal looks
        looks += 1
        raise StorageError("no bucket", transient=True)

    monkeypatch.setattr(services.storage, "check", fail)
    monkeypatch.setattr("serve_app.shared.FRESH_S", 3600)
    for _ in range(5):
        assert (await anyone.get("/health")).json()["storage"] == "down"
    assert looks == 1


async def test_a_part_that_is_back_is_seen(
    anyone: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([StorageError("no bucket", transient=True), None])

    async def check() -> None:
        if error := next(answers):
            raise error

    monkeypatch.setattr(services.storage, "check", check)
    monkeypatch.setattr("serve_app.shared.FRESH_S", 0)
    assert [(await anyone.get("/health")).json()["storage"] for _ in range(2)] == ["down", "ok"]


async def test_nobody_waits_for_the_next_look_while_the_last_is_young(
    anyone: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = 1000.0, 0
    proceeds = asyncio.Event()

    async def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            await proceeds.wait()

    async def storage() -> str:
        return str((await anyone.get("/health")).json()["storage"])

    monkeypatch.setattr(services.storage, "check", check)
    monkeypatch.setattr("serve_app.shared.time", SimpleNamespace(monotonic=lambda: now))
    assert (await storage(), looks) == ("ok", 1)
    now += 1.5
    # Answered by the first look; the second is under way.
    assert [await storage() for _ in range(3)] == ["ok"] * 3
    assert looks == 2
    now += 1
    waiting = asyncio.create_task(storage())
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    proceeds.set()
    assert (await waiting, looks) == ("ok", 2)


async def test_metrics_are_open(anyone: httpx.AsyncClient, services: Services) -> None:
    await completed(services.store)
    await running(services.store)
    answer = await anyone.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'video_jobs_total{code="",model="ltx2",status="completed"} 1.0' in lines
    assert 'video_queue_depth{model="ltx2",status="processing"} 1.0' in lines


async def test_metrics_and_health_tell_of_rented_machines(anyone: httpx.AsyncClient, services: Services) -> None:
    outlook = Outlook(start_s=300, code="cap_reached", message="$1.20 of $1.00 per hour")
    await Outlooks(services.engine).note("ltx2", outlook)
    lines = (await anyone.get("/metrics")).text.splitlines()
    assert 'video_waits{code="cap_reached",model="ltx2"} 1.0' in lines
    assert "# TYPE video_node_cost_usd_total counter" in lines
    health = (await anyone.get("/health")).json()
    assert (health["models"]["ltx2"], health["details"]["ltx2"]) == ("waiting", "$1.20 of $1.00 per hour")


async def test_a_model_that_works_says_why_it_gets_no_further_machine(
    anyone: httpx.AsyncClient, services: Services, cluster: FakeCluster
) -> None:
    cluster.states["ltx2"] = replace(cluster.states["ltx2"], running_replicas=1)
    outlook = Outlook(start_s=300, code="cap_reached", message="2 of 2 nodes")
    await Outlooks(services.engine).note("ltx2", outlook)
    answer = await anyone.get("/health")
    health = answer.json()
    assert (answer.status_code, health["models"]["ltx2"], health["details"]) == (200, "ok", {"ltx2": "2 of 2 nodes"})


async def test_a_model_without_weights_is_down(anyone: httpx.AsyncClient, services: Services) -> None:
    outlook = Outlook(start_s=300, code="weights_unavailable", message="LTX2_WEIGHTS is not set")
    await Outlooks(services.engine).note("ltx2", outlook)
    health = (await anyone.get("/health")).json()
    assert (health["models"]["ltx2"], health["details"]["ltx2"]) == ("down", "LTX2_WEIGHTS is not set")


async def test_sums_over_all_bills_are_asked_for_once_a_minute(
    anyone: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take longer the more was ever rented, and anybody may ask."""
    monkeypatch.setattr("serve_app.shared.FRESH_S", 0)
    asked = 0
    totals = fleet_metrics.totals

    async def counted(db: AsyncConnection) -> Sequence[Metric]:
        nonlocal asked
        asked += 1
        return await totals(db)

    monkeypatch.setattr(fleet_metrics, "totals", counted)
    for _ in range(3):
        assert (await anyone.get("/metrics")).status_code == 200
    assert asked == 1


# -------------------------------------------------------------------- schema


async def operations(anyone: httpx.AsyncClient) -> dict[str, dict]:
    schema = (await anyone.get("/openapi.json")).json()
    return {
        f"{method} {path}": operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }


async def test_every_operation_has_a_name_a_text_and_its_errors(anyone: httpx.AsyncClient) -> None:
    found = await operations(anyone)
    names = [operation["operationId"] for operation in found.values()]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in (await anyone.get("/openapi.json")).json()["tags"] if tag["description"]}
    summaries = [operation["summary"] for operation in found.values()]
    assert len(summaries) == len(set(summaries))
    for name, operation in found.items():
        assert operation["description"], name
        # What the framework makes of the function's name.
        assert operation["summary"] != operation["summary"].title(), name
        assert set(operation["tags"]) <= tags, name
        assert [each["name"] for each in operation.get("parameters", []) if not each.get("description")] == [], name
        told = [answer["description"] for answer in operation["responses"].values()]
        assert "Successful Response" not in told, name
        assert all(told), name
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        for status, answer in errors.items():
            if (name, status) != ("get /health", "503"):
                assert list(answer["content"]) == ["application/problem+json"], (name, status)
        if operation.get("security"):
            assert "401" in errors, name
        if operation.get("parameters") or operation.get("requestBody"):
            assert "422" in errors, name
        if "{job_id}" in name:
            assert "404" in errors, name
        assert "500" in errors, name


@pytest.mark.parametrize("name", ["JobView", "UploadRequest", "UploadTicket", "DownloadTicket"])
async def test_every_field_that_its_name_does_not_explain_has_a_text(anyone: httpx.AsyncClient, name: str) -> None:
    schema = (await anyone.get("/openapi.json")).json()["components"]["schemas"][name]
    silent = {field for field, said in schema["properties"].items() if not said.get("description")}
    assert silent <= {"job_id", "model", "status", "created_at", "user_id"}


async def test_what_is_no_json_says_what_it_is(anyone: httpx.AsyncClient) -> None:
    found = await operations(anyone)
    for name in ("get /livez", "get /metrics"):
        (said,) = found[name]["responses"]["200"]["content"]
        assert (await anyone.get(name.partition(" ")[2])).headers["content-type"].startswith(said)
    # These have no body.
    assert "content" not in found["put /files/{key}"]["responses"]["200"]
    assert "content" not in found["head /files/{key}"]["responses"]["200"]


async def test_no_answer_has_the_shape_of_the_framework(anyone: httpx.AsyncClient) -> None:
    assert "HTTPValidationError" not in (await anyone.get("/openapi.json")).text


async def test_every_reference_in_the_schema_leads_somewhere(anyone: httpx.AsyncClient) -> None:
    schema = (await anyone.get("/openapi.json")).json()

    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [ref for value in node.values() for ref in references(value)]
        return [ref for value in node for ref in references(value)] if isinstance(node, list) else []

    found = references(schema)
    assert found
    for reference in found:
        target = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


async def test_generate_is_a_union_over_the_models(anyone: httpx.AsyncClient) -> None:
    schema = (await anyone.get("/openapi.json")).json()
    body = schema["paths"]["/api/v1/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["discriminator"]["propertyName"] == "model"
    assert body["discriminator"]["mapping"].keys() == MODELS.keys()
    names = [option["$ref"].rsplit("/", 1)[1] for option in body["oneOf"]]
    models = {schema["components"]["schemas"][name]["properties"]["model"]["const"] for name in names}
    assert models == MODELS.keys()


async def test_a_client_that_takes_the_first_that_fits_sees_the_video(anyone: httpx.AsyncClient) -> None:
    """The answer of ``generate`` is a job or the news that there is one, and a job is both."""
    schema = (await anyone.get("/openapi.json")).json()
    answer = schema["paths"]["/api/v1/generate"]["post"]["responses"]["201"]["content"]["application/json"]["schema"]
    first, second = (schema["components"]["schemas"][each["$ref"].rpartition("/")[2]] for each in answer["anyOf"])
    assert "result_url" in first["properties"]
    assert set(first["required"]) - set(second["required"]), "so that not every other answer is one of these as well"


async def test_workers_show_their_secret_by_a_scheme(anyone: httpx.AsyncClient) -> None:
    schema = (await anyone.get("/openapi.json")).json()
    operation = schema["paths"]["/webhook/complete"]["post"]
    (way,) = operation["security"]
    scheme = schema["components"]["securitySchemes"][next(iter(way))]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "X-Webhook-Secret")
    assert "X-Webhook-Secret" in operation["responses"]["401"]["description"]


async def test_the_schema_is_the_one_that_was_agreed(anyone: httpx.AsyncClient) -> None:
    agreed = json.loads((Path(__file__).parents[4] / "docs" / "openapi.json").read_text())
    current = (await anyone.get("/openapi.json")).json()
    assert current == agreed, "run `make openapi` and look at the difference: it is what clients will notice"


async def test_the_schema_is_valid(anyone: httpx.AsyncClient) -> None:
    schema = (await anyone.get("/openapi.json")).json()
    assert schema["openapi"].startswith("3.1.")
    validate(schema, cls=OpenAPIV31SpecValidator)
