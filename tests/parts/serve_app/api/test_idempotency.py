"""A create that comes again: answered as the first time, whatever has become of the first."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.access.caller import BOOTSTRAP
from serve_app.api.idempotency import keyed
from serve_app.jobs import idempotency
from serve_app.jobs.idempotency import Answer, KeyInFlight
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.services import Services
from tests.parts.serve_app.api.test_api_media import put, ticket
from tests.parts.serve_app.jobs.samples import execute, fetch, new_job

Once = Callable[..., Awaitable[httpx.Response]]
WithKey = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
def once(client: httpx.AsyncClient) -> Once:
    async def once(key: str = "k-1", **changes: Any) -> httpx.Response:
        body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"} | changes
        return await client.post("/api/v1/generate", json=body, headers={"idempotency-key": key})

    return once


async def job_count(engine: AsyncEngine) -> int:
    return (await fetch(engine, "SELECT count(*) AS n FROM jobs"))[0]["n"]


async def test_a_repetition_is_answered_as_the_first(once: Once, engine: AsyncEngine) -> None:
    first, again = await once(prompt="A storm"), await once(prompt="A storm")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    assert await job_count(engine) == 1


async def test_an_answer_is_the_same_with_and_without_a_key(
    client: httpx.AsyncClient, once: Once, services: Services
) -> None:
    keyed_one = await once()
    body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}
    plain = await client.post("/api/v1/generate", json=body)
    assert keyed_one.json().keys() == plain.json().keys()
    assert keyed_one.headers["content-type"] == plain.headers["content-type"]
    one, other = [await services.store.get(answer.json()["job_id"]) for answer in (keyed_one, plain)]
    assert one is not None
    assert other is not None
    assert keyed_one.json()["created_at"] == one.created_at.isoformat().replace("+00:00", "Z")
    assert (one.params, one.sources, one.key_id) == (other.params, other.sources, other.key_id)


async def test_quotes_blanks_and_the_order_of_fields_mean_nothing(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    as_json = {"content-type": "application/json"}
    bodies = (
        b'{"model": "ltx2", "image_url": "https://p.example/a", "metadata": {"a": "1", "b": "2"}}',
        b'{"metadata":{"b":"2","a":"1"},"image_url":"https://p.example/a","model":"ltx2"}',
    )
    answers = [
        await client.post("/api/v1/generate", content=body, headers=as_json | {"idempotency-key": key})
        for body in bodies
        for key in ("k-1", '"k-1"')
    ]
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert await job_count(engine) == 1


async def test_another_request_under_the_key_is_refused(once: Once, engine: AsyncEngine) -> None:
    await once(prompt="A storm")
    answer = await once(prompt="A calm")
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert answer.json()["param"] == "Idempotency-Key"
    assert await job_count(engine) == 1


@pytest.mark.parametrize("key", ["", "two words", '"open', "a" * 256, "a,b"])
async def test_what_is_no_key_is_refused(once: Once, engine: AsyncEngine, key: str) -> None:
    answer = await once(key)
    assert (answer.status_code, answer.json()["code"], answer.json()["param"]) == (
        422,
        "invalid_request",
        "Idempotency-Key",
    )
    assert await job_count(engine) == 0


async def test_two_keys_in_one_request_are_refused(client: httpx.AsyncClient) -> None:
    headers = [("idempotency-key", "a"), ("idempotency-key", "a")]
    body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}
    assert (await client.post("/api/v1/generate", json=body, headers=headers)).status_code == 422


async def test_an_error_leaves_the_key_free(once: Once, engine: AsyncEngine) -> None:
    assert (await once(duration=99)).status_code == 422
    assert (await once(job_id="01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11")).status_code == 404
    assert await fetch(engine, "SELECT * FROM idempotency_keys") == []
    assert (await once(duration=3)).status_code == 201


async def test_a_crash_in_the_middle_leaves_neither(services: Services, engine: AsyncEngine) -> None:
    key = keyed("k-1", BOOTSTRAP, "generate", {})
    assert key is not None

    def broken(_: object) -> Answer:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        await services.store.submit_once(key, broken, new_job())
    assert await job_count(engine) == 0
    assert await services.store.answered(key) is None


async def test_an_upload_that_was_submitted_is_answered_again(
    client: httpx.AsyncClient, once: Once, engine: AsyncEngine
) -> None:
    """Without the key this is a 409: the job does not wait for uploads any more."""
    opened = await ticket(client, input_type="image", content_type="image/png")
    await put(client, opened, b"pixels")
    asked = {"job_id": opened["job_id"], "image_url": None}
    answers = await asyncio.gather(*(once(**asked) for _ in range(8)))
    assert [answer.status_code for answer in answers] == [201] * 8
    assert {answer.json()["job_id"] for answer in answers} == {opened["job_id"]}
    late = await once("k-2", **asked)
    assert (late.status_code, late.json()["code"]) == (409, "job_not_uploading")


async def test_what_was_answered_stands_after_the_job_is_deleted(client: httpx.AsyncClient, once: Once) -> None:
    first = await once()
    assert (await client.delete(f"/api/v1/jobs/{first.json()['job_id']}")).status_code == 204
    assert (await once()).content == first.content


async def test_keys_of_others_and_of_other_routes_are_others(services: Services, engine: AsyncEngine) -> None:
    mine = keyed("k-1", BOOTSTRAP, "generate", {})
    assert mine is not None
    for key in (mine, replace(mine, key_id="key_b"), replace(mine, route="retry")):
        found = await services.store.submit_once(key, lambda job: Answer(201, job.id), new_job())
        assert found is not None
        assert found[0] is not None
    assert await job_count(engine) == 3


async def test_many_at_once_make_one_job(once: Once, engine: AsyncEngine) -> None:
    answers = await asyncio.gather(*(once() for _ in range(40)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert await job_count(engine) == 1


async def test_who_comes_meanwhile_waits_for_the_first(once: Once, services: Services, engine: AsyncEngine) -> None:
    key = keyed("k-1", BOOTSTRAP, "generate", {"image_url": "https://pictures.example/a.png", "model": "ltx2"})
    assert key is not None
    async with engine.begin() as db:
        assert await idempotency.take(db, key) is None
        second = asyncio.create_task(once())
        await waits_for_a_lock(engine)
        body = '{"job_id":"first","model":"ltx2","status":"queued","created_at":"2026-11-26T15:15:55.000001Z"}'
        await idempotency.keep(db, key, Answer(201, body))
    answer = await second
    assert (answer.text, answer.headers["idempotency-replayed"]) == (body, "true")


async def test_who_waits_for_one_that_dies_does_it_himself(once: Once, engine: AsyncEngine) -> None:
    key = keyed("k-1", BOOTSTRAP, "generate", {"image_url": "https://pictures.example/a.png", "model": "ltx2"})
    assert key is not None
    async with engine.connect() as db:
        await idempotency.take(db, key)
        second = asyncio.create_task(once())
        await waits_for_a_lock(engine)
        await db.rollback()
    answer = await second
    assert (answer.status_code, "idempotency-replayed" in answer.headers) == (201, False)
    assert await job_count(engine) == 1


async def test_who_has_waited_for_long_is_told_to_come_again(
    once: Once, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "PATIENCE_MS", 50)
    key = keyed("k-1", BOOTSTRAP, "generate", {"image_url": "https://pictures.example/a.png", "model": "ltx2"})
    assert key is not None
    async with engine.begin() as db:
        await idempotency.take(db, key)
        answer = await once()
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_flight")
        assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")
        async with engine.begin() as other:
            with pytest.raises(KeyInFlight):
                await idempotency.take(other, key)


async def waits_for_a_lock(engine: AsyncEngine) -> None:
    """Until a session of this database does."""
    query = text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple'))")
    async with asyncio.timeout(30), engine.connect() as db:
        while not (await db.execute(query)).scalar():  # noqa: ASYNC110 - what changes is in the database
            await asyncio.sleep(0.01)


async def test_a_day_later_the_key_is_new(once: Once, services: Services, engine: AsyncEngine) -> None:
    first = await once()
    await execute(engine, "UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
    # Swept or not.
    second = await once(prompt="Another")
    assert (second.status_code, "idempotency-replayed" in second.headers) == (201, False)
    assert second.json()["job_id"] != first.json()["job_id"]
    assert (await once(prompt="Another")).content == second.content

    await once("k-2")
    await execute(engine, "UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE value = 'k-1'")
    await Retention(engine, services.storage, RetentionPolicy()).tidy()
    assert [row["value"] for row in await fetch(engine, "SELECT value FROM idempotency_keys")] == ["k-2"]


async def test_a_create_without_a_key_pays_nothing(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    async with engine.begin() as db:
        await db.execute(text("LOCK TABLE idempotency_keys IN ACCESS EXCLUSIVE MODE"))
        body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}
        assert (await client.post("/api/v1/generate", json=body)).status_code == 201


async def test_keys_of_another_api_key_are_others(with_key: WithKey, engine: AsyncEngine) -> None:
    body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}
    for client in (await with_key(scopes=["generate"]), await with_key(scopes=["generate"])):
        answer = await client.post("/api/v1/generate", json=body, headers={"idempotency-key": "k-1"})
        assert (answer.status_code, "idempotency-replayed" in answer.headers) == (201, False)
    assert await job_count(engine) == 2


async def test_a_full_queue_does_not_hide_what_was_done(with_key: WithKey, engine: AsyncEngine) -> None:
    client = await with_key(scopes=["generate"], limits={"queued_jobs": 1})
    body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}

    async def ask(key: str) -> httpx.Response:
        return await client.post("/api/v1/generate", json=body, headers={"idempotency-key": key})

    first = await ask("k-1")
    refused = await ask("k-2")
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert (await ask("k-1")).content == first.content
    # What was refused has left its key free.
    await execute(engine, "DELETE FROM jobs")
    assert (await ask("k-2")).status_code == 201


async def test_a_repetition_may_wait_for_the_end_too(client: httpx.AsyncClient, services: Services) -> None:
    body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}
    headers = {"idempotency-key": "k-1"}
    first = await client.post("/api/v1/generate", json=body, headers=headers)
    await services.store.cancel(first.json()["job_id"])
    answer = await client.post("/api/v1/generate", json=body, headers=headers | {"prefer": "wait=60"})
    assert (answer.json()["job_id"], answer.json()["status"]) == (first.json()["job_id"], "cancelled")
    assert (answer.headers["idempotency-replayed"], answer.headers["preference-applied"]) == ("true", "wait=60")
    await client.delete(f"/api/v1/jobs/{first.json()['job_id']}")
    gone = await client.post("/api/v1/generate", json=body, headers=headers | {"prefer": "wait=60"})
    assert gone.content == first.content
