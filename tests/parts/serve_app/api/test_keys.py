"""Keys over HTTP: made, listed, revoked, rotated; how fast and how much each may ask."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from serve_app.access.api_key import is_well_formed
from serve_app.jobs.forecast import Forecasts
from serve_app.jobs.outlooks import Outlook, Outlooks
from serve_app.jobs.quota import MOST_UPLOADS
from serve_app.services import Services
from tests.parts.serve_app.jobs.samples import execute, fetch

WithKey = Callable[..., Awaitable[httpx.AsyncClient]]
JOB = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}


async def create(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/api/v1/keys", json={"name": "ann"} | fields)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_a_new_key_is_shown_once_and_works_at_once(client: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
    made = await create(client)
    assert is_well_formed(made["secret"])
    assert (made["name"], made["scopes"], made["limits"]) == ("ann", ["generate", "read"], {})
    answer = await anyone.get("/api/v1/jobs", headers={"authorization": f"Bearer {made['secret']}"})
    assert answer.status_code == 200
    listed = await client.get("/api/v1/keys")
    assert made["secret"] not in listed.text
    assert listed.json()["data"] == [{name: value for name, value in made.items() if name != "secret"}]


async def test_a_key_has_what_it_was_made_with(client: httpx.AsyncClient) -> None:
    limits = {"requests_per_minute": 60, "running_jobs": 2, "queued_jobs": 100, "usd_per_day": 5.5}
    made = await create(client, scopes=["read"], expires_in=3600, limits=limits)
    assert (made["scopes"], made["limits"]) == (["read"], limits)
    assert datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"]) == timedelta(hours=1)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\0"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["fly"]}, "scopes.0"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": 1e300}, "expires_in"),
        ({"limits": {"queued_jobs": 0}}, "limits.queued_jobs"),
        ({"limits": {"running_jobs": 2**40}}, "limits.running_jobs"),
        ({"limits": {"usd": 1}}, "limits.usd"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_key_that_cannot_be_is_refused(client: httpx.AsyncClient, change: dict, param: str) -> None:
    answer = await client.post("/api/v1/keys", json={"name": "ann"} | change)
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_a_revoked_key_is_refused_from_the_answer_on(client: httpx.AsyncClient, with_key: WithKey) -> None:
    ann = await with_key()
    key_id = ann.headers["x-key-id"]
    assert (await ann.get("/api/v1/jobs")).status_code == 200
    revoked = await client.post(f"/api/v1/keys/{key_id}/revoke")
    assert revoked.json()["revoked_at"]
    refused = await ann.get("/api/v1/jobs")
    assert (refused.status_code, refused.json()["error"]) == (401, "Invalid API key")
    assert (await client.post(f"/api/v1/keys/{key_id}/revoke")).json() == revoked.json()


async def test_a_rotated_key_has_a_new_secret_and_for_a_while_the_old_one(
    client: httpx.AsyncClient, with_key: WithKey
) -> None:
    ann = await with_key()
    key_id = ann.headers["x-key-id"]
    rotated = (await client.post(f"/api/v1/keys/{key_id}/rotate", json={"overlap_s": 60})).json()
    assert (rotated["key_id"], is_well_formed(rotated["secret"])) == (key_id, True)
    assert "previous_until" in rotated
    assert (await ann.get("/api/v1/jobs")).status_code == 200
    assert "previous_until" not in (await client.post(f"/api/v1/keys/{key_id}/rotate", json={})).json()
    assert (await ann.get("/api/v1/jobs")).status_code == 401


@pytest.mark.parametrize("overlap_s", [-1, 7 * 24 * 3600 + 1])
async def test_an_overlap_has_bounds(client: httpx.AsyncClient, with_key: WithKey, overlap_s: float) -> None:
    key_id = (await with_key()).headers["x-key-id"]
    answer = await client.post(f"/api/v1/keys/{key_id}/rotate", json={"overlap_s": overlap_s})
    assert (answer.status_code, answer.json()["param"]) == (422, "overlap_s")


@pytest.mark.parametrize("key_id", ["key_none", "%00"])
async def test_there_is_no_such_key(client: httpx.AsyncClient, key_id: str) -> None:
    for path, body in ((f"{key_id}/revoke", None), (f"{key_id}/rotate", {})):
        answer = await client.post(f"/api/v1/keys/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "key_not_found")


async def test_a_revoked_key_is_not_rotated(client: httpx.AsyncClient, with_key: WithKey) -> None:
    key_id = (await with_key()).headers["x-key-id"]
    await client.post(f"/api/v1/keys/{key_id}/revoke")
    answer = await client.post(f"/api/v1/keys/{key_id}/rotate", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "key_not_found")


async def test_keys_are_listed_by_pages(client: httpx.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await create(client, name=name)
    first = (await client.get("/api/v1/keys", params={"limit": 2})).json()
    assert ([key["name"] for key in first["data"]], first["has_more"]) == (["c", "b"], True)
    second = (await client.get("/api/v1/keys", params={"limit": 2, "after": first["last_id"]})).json()
    assert ([key["name"] for key in second["data"]], second["has_more"]) == (["a"], False)
    assert (await client.get("/api/v1/keys", params={"after": "key_none"})).status_code == 404


# -------------------------------------------------------------------- how fast


async def test_who_asks_too_often_is_told_when_to_come_back(with_key: WithKey, client: httpx.AsyncClient) -> None:
    ann, bob = [await with_key(limits={"requests_per_minute": 2}) for _ in range(2)]
    answers = [await ann.get(path) for path in ("/api/v1/jobs", "/api/v1/jobs/unknown", "/api/v1/jobs")]
    assert [answer.status_code for answer in answers] == [200, 404, 429]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"default";q=2;w=60'}
    assert [answer.headers["ratelimit"][:14] for answer in answers] == [
        '"default";r=1;',
        '"default";r=0;',
        '"default";r=0;',
    ]
    refused = answers[-1]
    assert refused.json()["code"] == "rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    # Neither another key's nor the environment's own.
    assert (await bob.get("/api/v1/jobs")).status_code == 200
    assert "ratelimit" not in (await client.get("/api/v1/jobs")).headers


async def test_the_headers_are_on_errors_too_and_only_where_there_is_a_limit(
    with_key: WithKey, anyone: httpx.AsyncClient
) -> None:
    limited = await with_key(scopes=["read"], limits={"requests_per_minute": 100})
    for answer in (
        await limited.get("/api/v1/nothing"),
        await limited.post("/api/v1/generate", json=JOB),
        await limited.put("/api/v1/jobs"),
    ):
        assert answer.status_code in (403, 404, 405)
        assert "ratelimit" in answer.headers
    for free in (await anyone.get("/api/v1/jobs"), await (await with_key()).get("/api/v1/jobs")):
        assert not {"ratelimit", "ratelimit-policy"} & free.headers.keys()


# -------------------------------------------------------------------- how many jobs


async def counted(engine: AsyncEngine) -> int:
    (row,) = await fetch(engine, "SELECT count(*) AS n FROM jobs")
    return int(row["n"])


async def test_no_more_jobs_wait_than_the_key_may_have(with_key: WithKey, client: httpx.AsyncClient) -> None:
    ann, bob = [await with_key(limits={"queued_jobs": 2}) for _ in range(2)]
    made = [(await ann.post("/api/v1/generate", json=JOB)).json()["job_id"] for _ in range(2)]
    refused = await ann.post("/api/v1/generate", json=JOB)
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    # Uploads would be a way round it.
    opened = await ann.post("/api/v1/presign/upload", json={"input_type": "image"})
    assert (opened.status_code, opened.json()["code"]) == (429, "queue_full")
    for other in (bob, client):
        assert (await other.post("/api/v1/generate", json=JOB)).status_code == 201
    await ann.post(f"/api/v1/jobs/{made[0]}/cancel")
    assert (await ann.post("/api/v1/generate", json=JOB)).status_code == 201


async def test_an_upload_that_is_open_has_its_place(with_key: WithKey, services: Services) -> None:
    ann = await with_key(limits={"queued_jobs": 1})
    job_id = (await ann.post("/api/v1/presign/upload", json={"input_type": "image"})).json()["job_id"]
    assert (await ann.post("/api/v1/generate", json=JOB)).status_code == 429
    # Another link to the same job, and its own submission, take none.
    again = await ann.post("/api/v1/presign/upload", json={"input_type": "image", "job_id": job_id})
    assert (again.status_code, again.json()["job_id"]) == (200, job_id)
    assert (await ann.post("/api/v1/generate", json={**JOB, "job_id": job_id})).status_code == 201
    assert (await ann.post("/api/v1/generate", json=JOB)).status_code == 429


@pytest.mark.parametrize("way", ["generate", "presign/upload"])
async def test_of_many_at_once_no_more_pass_than_there_is_room(
    with_key: WithKey, engine: AsyncEngine, way: str
) -> None:
    ann = await with_key(limits={"queued_jobs": 3})
    body = JOB if way == "generate" else {"input_type": "image"}
    answers = await asyncio.gather(*(ann.post(f"/api/v1/{way}", json=body) for _ in range(20)))
    assert [answer.is_success for answer in answers].count(True) == 3
    assert {answer.json()["code"] for answer in answers if not answer.is_success} == {"queue_full"}
    assert await counted(engine) == 3


async def test_without_a_limit_uploads_have_one(with_key: WithKey, engine: AsyncEngine) -> None:
    """Else a key piles up rows that no job comes of."""
    ann, bob = await with_key(), await with_key()
    await execute(
        engine,
        "INSERT INTO jobs (id, status, key_id) SELECT n::text, 'uploading', :key FROM generate_series(1, :most) n",
        key=ann.headers["x-key-id"],
        most=MOST_UPLOADS,
    )
    refused = await ann.post("/api/v1/presign/upload", json={"input_type": "image"})
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert (await ann.post("/api/v1/generate", json=JOB)).status_code == 201
    assert (await bob.post("/api/v1/presign/upload", json={"input_type": "image"})).status_code == 200


# -------------------------------------------------------------------- how much money


async def spent(engine: AsyncEngine, client: httpx.AsyncClient, usd: float, hours_ago: float = 1) -> str:
    """A job of the client's key that has cost so much; its id."""
    job_id = str((await client.post("/api/v1/generate", json=JOB)).json()["job_id"])
    await execute(
        engine,
        "INSERT INTO rentals (label, slot_id, node_type, state, since, reserved_at, offer, host, why, stretch_at,"
        " ended_at, worked_at)"
        " VALUES (:job, :job, 'gpu', 'ended', now(), now(), '', '', 'dismissed', now(), now(), now())",
        job=job_id,
    )
    await execute(
        engine,
        "INSERT INTO node_costs (label, begun_at, until, node_type, state, gpu_usd, storage_usd, bandwidth_usd)"
        " VALUES (:job, now() - interval '1 hour', now(), 'gpu', 'busy', :usd, 0, 0)",
        job=job_id,
        usd=usd,
    )
    await execute(
        engine,
        "INSERT INTO runs (job_id, attempt, started_at, model, node, effort, ended_at, busy_s, outcome)"
        " VALUES (:job, 1, now() - make_interval(secs => :s), 'ltx2', :job, 1, now(), 10, 'completed')",
        job=job_id,
        s=hours_ago * 3600,
    )
    await execute(
        engine,
        "UPDATE jobs SET status = 'completed', completed_at = now(), output_key = 'o' WHERE id = :job",
        job=job_id,
    )
    return job_id


async def test_a_key_that_has_spent_what_it_may_gets_no_further_job(
    with_key: WithKey, engine: AsyncEngine, client: httpx.AsyncClient
) -> None:
    ann, bob = [await with_key(limits={"usd_per_day": 1.0}) for _ in range(2)]
    await spent(engine, ann, 0.5)
    await spent(engine, ann, 100, hours_ago=25)
    assert (await ann.get("/api/v1/key")).json()["usd_of_24h"] == pytest.approx(0.5)
    job_id = await spent(engine, ann, 0.7)
    refused = await ann.post("/api/v1/generate", json=JOB)
    assert (refused.status_code, refused.json()["code"]) == (429, "budget_reached")
    assert int(refused.headers["retry-after"]) > 0
    # What is deleted was paid for all the same.
    assert (await ann.delete(f"/api/v1/jobs/{job_id}")).status_code == 204
    assert (await ann.post("/api/v1/generate", json=JOB)).status_code == 429
    for other in (bob, client):
        assert (await other.post("/api/v1/generate", json=JOB)).status_code == 201


async def test_what_unfinished_jobs_will_cost_counts(with_key: WithKey, engine: AsyncEngine) -> None:
    """Else a key submits in a minute what it may not spend in a week."""
    outlook = Outlook(start_s=60, usd_per_hour_low=24, usd_per_hour_high=48, start_usd=0.1)
    await Outlooks(engine).note("ltx2", outlook)
    unit_usd = (await Forecasts(engine).unit_costs())["ltx2"]
    ann = await with_key(limits={"usd_per_day": 3.5 * unit_usd})
    answers = await asyncio.gather(*(ann.post("/api/v1/generate", json=JOB) for _ in range(10)))
    assert [answer.status_code for answer in answers].count(201) == 3
    assert {answer.json()["code"] for answer in answers if answer.status_code != 201} == {"budget_reached"}


async def test_an_opened_job_costs_what_others_cost(with_key: WithKey, engine: AsyncEngine) -> None:
    ann = await with_key(limits={"usd_per_day": 1.0})
    job_id = (await ann.post("/api/v1/presign/upload", json={"input_type": "image"})).json()["job_id"]
    await spent(engine, ann, 1.5)
    refused = await ann.post("/api/v1/generate", json={**JOB, "job_id": job_id})
    assert (refused.status_code, refused.json()["code"]) == (429, "budget_reached")


# -------------------------------------------------------------------- one's own


async def test_a_key_asks_what_it_may_and_what_it_uses(with_key: WithKey, client: httpx.AsyncClient) -> None:
    limits = {"queued_jobs": 5, "usd_per_day": 2.0}
    ann = await with_key(name="Ann", limits=limits)
    await ann.post("/api/v1/generate", json=JOB)
    await ann.post("/api/v1/presign/upload", json={"input_type": "image"})
    await client.post("/api/v1/generate", json=JOB)
    found = (await ann.get("/api/v1/key")).json()
    assert found == {
        "key_id": ann.headers["x-key-id"],
        "name": "Ann",
        "scopes": ["generate", "read"],
        "limits": limits,
        "running_jobs": 0,
        "queued_jobs": 2,
        "usd_of_24h": 0.0,
    }
    own = (await client.get("/api/v1/key")).json()
    assert own == {"key_id": "", "name": "API_KEY", "scopes": ["admin", "generate", "read"], "limits": {}}


async def test_the_log_says_whose_request_it_was(with_key: WithKey, client: httpx.AsyncClient) -> None:
    ann = await with_key()
    with capture_logs() as said:
        await ann.get("/api/v1/jobs")
        await client.get("/api/v1/jobs")
    lines = [line for line in said if line["event"] == "request"]
    assert [line.get("key_id") for line in lines] == [ann.headers["x-key-id"], None]


async def test_no_secret_of_a_key_is_in_the_log(client: httpx.AsyncClient) -> None:
    before = structlog.get_config()
    log = io.StringIO()
    # Not by capsys: a test before may have set up logs to go where its own output went.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(log))
    try:
        made = await create(client)
        await client.post(f"/api/v1/keys/{made['key_id']}/rotate", json={"overlap_s": 5})
    finally:
        structlog.configure(**before)
    assert "/api/v1/keys" in log.getvalue()
    assert made["secret"][9:] not in log.getvalue()
