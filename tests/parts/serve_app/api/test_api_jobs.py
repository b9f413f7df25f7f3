"""Looking at jobs, listing, cancelling and deleting them."""

import time
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.conditions import EVERY_MODEL, Condition
from serve_app.jobs.job import Status
from serve_app.services import Services
from serve_app.storage import keys
from tests.parts.serve_app.jobs.samples import (
    api_key,
    completed,
    execute,
    failure,
    fetch,
    jobs_of,
    new_job,
    outcome,
    running,
    waiting,
)

Generate = Callable[..., Awaitable[httpx.Response]]
UNKNOWN = "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"


async def test_a_waiting_job_says_where_it_stands(generate: Generate, client: httpx.AsyncClient) -> None:
    created = (await generate()).json()
    body = (await client.get(f"/api/v1/jobs/{created['job_id']}", params={"model": "ltx2"})).json()
    assert body["job_id"] == created["job_id"]
    assert (body["status"], body["progress"], body["queue_position"], body["attempt"]) == ("queued", 0, 0, 0)
    assert body["created_at"] == created["created_at"]
    # Fields without a value are absent, as in the original.
    assert not {"result_url", "error_message", "error_code", "started_at", "completed_at"} & body.keys()


async def test_a_finished_job_has_a_link_that_works(client: httpx.AsyncClient, services: Services) -> None:
    job_id = await completed(services.store)

    async def video():
        yield b"an mp4"

    await services.storage.write(f"outputs/{job_id}/1/output.mp4", video(), 100)  # type: ignore[attr-defined]
    body = (await client.get(f"/api/v1/jobs/{job_id}")).json()
    assert (body["status"], body["progress"]) == ("completed", 100)
    assert body["media"]["frames"] == 25
    assert body["notes"] == {"seed": 7}
    answer = await client.get(body["result_url"])
    assert (answer.content, answer.headers["content-type"]) == (b"an mp4", "video/mp4")


async def test_a_finished_job_shows_its_first_frame(client: httpx.AsyncClient, services: Services) -> None:
    lease = await running(services.store)
    key = keys.poster(lease.job_id, 1)

    async def poster():
        yield b"a webp"

    await services.storage.write(key, poster(), 100)  # type: ignore[attr-defined]
    await services.store.complete(outcome(lease), keys.output(lease.job_id, 1), key)
    body = (await client.get(f"/api/v1/jobs/{lease.job_id}")).json()
    assert (await client.get("/api/v1/jobs")).json()["data"][0]["poster_url"].split("?")[0] in body["poster_url"]
    answer = await client.get(body["poster_url"])
    assert (answer.content, answer.headers["content-type"]) == (b"a webp", "image/webp")


async def test_a_video_from_elsewhere_has_no_first_frame(client: httpx.AsyncClient, services: Services) -> None:
    lease = await running(services.store)
    await services.store.end_externally(lease.job_id, video_url="https://w.example/v.mp4")
    body = (await client.get(f"/api/v1/jobs/{lease.job_id}")).json()
    assert "result_url" in body
    assert "poster_url" not in body


async def test_a_failed_job_says_why(client: httpx.AsyncClient, services: Services) -> None:
    lease = await running(services.store)
    await services.store.fail(failure(lease, "no_face_found", transient=False))
    body = (await client.get(f"/api/v1/jobs/{lease.job_id}")).json()
    assert (body["status"], body["error_code"]) == ("failed", "no_face_found")
    assert body["error_message"] == "because of no_face_found"
    assert "result_url" not in body


async def test_a_link_lives_as_long_as_the_video(
    client: httpx.AsyncClient, services: Services, engine: AsyncEngine
) -> None:
    """Retention is a day by default; a link that promised a week would lie for six days."""
    job_id = await completed(services.store)

    async def left_s() -> float:
        url = (await client.get(f"/api/v1/jobs/{job_id}")).json()["result_url"]
        return int(parse_qs(urlsplit(url).query)["expires"][0]) - time.time()

    assert 23.9 * 3600 < await left_s() <= 24 * 3600
    await execute(engine, "UPDATE jobs SET completed_at = now() - interval '20 hours'")
    assert 3.9 * 3600 < await left_s() <= 4 * 3600
    # One that is kept for its webhook has a link all the same.
    await execute(engine, "UPDATE jobs SET completed_at = now() - interval '30 hours'")
    assert 200 < await left_s() <= 300


async def told(client: httpx.AsyncClient, job_id: str) -> tuple[str, str | None, str | None]:
    body = (await client.get(f"/api/v1/jobs/{job_id}")).json()
    listed = next(job for job in (await client.get("/api/v1/jobs")).json()["data"] if job["job_id"] == job_id)
    fields = ("stage", "wait_code", "wait_reason")
    assert [listed.get(name) for name in fields] == [body.get(name) for name in fields]
    return tuple(body.get(name) for name in fields)


async def test_a_waiting_job_says_what_it_waits_for(client: httpx.AsyncClient, services: Services) -> None:
    job = await waiting(services.store)
    assert await told(client, job.id) == ("queued", None, None)
    broken = "ltx2 cannot start: FileNotFoundError: /weights"
    await services.conditions.note("ltx2", Condition("model_unavailable", broken))
    await services.conditions.note("wav2lip", Condition("no_node_fits", "No node takes it: needs 2 CPUs, 1 free."))
    assert await told(client, job.id) == ("queued", "model_unavailable", broken)
    await services.conditions.note(EVERY_MODEL, Condition("storage_unavailable", "The object store refuses: full."))
    full = ("storage_unavailable", "storage_unavailable", "The object store refuses: full.")
    assert await told(client, job.id) == full
    for subject in ("ltx2", EVERY_MODEL):
        await services.conditions.lift(subject)
    assert await told(client, job.id) == ("queued", None, None)


async def test_a_job_beyond_its_keys_limit_says_so(
    client: httpx.AsyncClient, services: Services, engine: AsyncEngine
) -> None:
    await api_key(engine, "key_1", running_jobs=2)
    first, second, other = [await waiting(services.store, key_id=key) for key in ("key_1", "key_1", "key_2")]
    await services.store.claim_to_run("ltx2", 3)
    third = await waiting(services.store, key_id="key_1")
    reason = "The key may have 2 jobs running at a time; the job goes on by itself when one of them has ended."
    assert await told(client, third.id) == ("queued", "key_limit", reason)
    for job in (first, second, other):
        # Those have been handed out.
        assert (await told(client, job.id))[1:] == (None, None)
    await services.conditions.note("ltx2", Condition("model_unavailable", "It cannot start."))
    assert (await told(client, third.id))[1] == "model_unavailable"
    await services.conditions.lift("ltx2")
    await services.store.cancel(first.id)
    assert await told(client, third.id) == ("queued", None, None)


async def test_a_job_that_is_retried_says_why(client: httpx.AsyncClient, services: Services) -> None:
    lease = await running(services.store)
    await services.store.fail(failure(lease, "timed_out"))
    reason = "Attempt 1 failed with timed_out: because of timed_out"
    assert await told(client, lease.job_id) == ("retrying", "retrying", reason)


@pytest.mark.parametrize("end", ["completed", "failed", "running", "uploading"])
async def test_a_job_that_does_not_wait_has_no_reason_to(
    client: httpx.AsyncClient, services: Services, end: str
) -> None:
    await services.conditions.note("ltx2", Condition("model_unavailable", "It cannot start."))
    if end == "completed":
        job_id = await completed(services.store)
    elif end == "uploading":
        job_id = (await services.store.open_upload(None)).id
    else:
        job_id = (lease := await running(services.store)).job_id
        if end == "failed":
            await services.store.fail(failure(lease, "no_face_found", transient=False))
    assert (await told(client, job_id))[1:] == (None, None)


async def test_a_video_that_waits_for_the_store_says_so(client: httpx.AsyncClient, services: Services) -> None:
    lease = await running(services.store)
    await services.store.hold(outcome(lease))
    stage, code, reason = await told(client, lease.job_id)
    assert (stage, code) == ("storage_unavailable", "storage_unavailable")
    assert "store" in reason


async def test_a_job_of_another_model_is_not_found(generate: Generate, client: httpx.AsyncClient) -> None:
    job_id = (await generate()).json()["job_id"]
    answer = await client.get(f"/api/v1/jobs/{job_id}", params={"model": "wav2lip"})
    assert (answer.status_code, answer.json()["error"]) == (404, "Job not found")


@pytest.mark.parametrize("job_id", [UNKNOWN, "1", "%00", "..", "a" * 5000, "%F0%9F%98%80"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/jobs/{}"),
        ("POST", "/api/v1/jobs/{}/cancel"),
        ("POST", "/api/v1/jobs/{}/retry"),
        ("DELETE", "/api/v1/jobs/{}"),
        ("GET", "/api/v1/presign/download/{}"),
    ],
)
async def test_an_unknown_job_is_not_found(client: httpx.AsyncClient, method: str, path: str, job_id: str) -> None:
    answer = await client.request(method, path.format(job_id))
    assert answer.status_code in ((404, 405) if job_id == ".." else (404,))
    if job_id != "..":
        assert answer.json()["error"] == "Job not found"
        assert answer.json()["code"] == "job_not_found"


async def test_cancel_ends_a_waiting_job(generate: Generate, client: httpx.AsyncClient) -> None:
    job_id = (await generate()).json()["job_id"]
    for _ in range(2):
        answer = await client.post(f"/api/v1/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


async def test_cancel_asks_a_running_job_to_stop(client: httpx.AsyncClient, services: Services) -> None:
    lease = await running(services.store)
    body = (await client.post(f"/api/v1/jobs/{lease.job_id}/cancel")).json()
    assert (body["status"], body["stage"]) == ("processing", "cancelling")


async def test_delete_takes_the_record_and_notes_the_media(
    client: httpx.AsyncClient, services: Services, engine: AsyncEngine
) -> None:
    job_id = await completed(services.store)
    answer = await client.delete(f"/api/v1/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.get(f"/api/v1/jobs/{job_id}")).status_code == 404
    assert (await client.delete(f"/api/v1/jobs/{job_id}")).status_code == 404
    assert [noted["job_id"] for noted in await fetch(engine, "SELECT job_id FROM discarded_media")] == [job_id]


async def test_a_running_job_is_not_deleted(client: httpx.AsyncClient, services: Services) -> None:
    lease = await running(services.store)
    answer = await client.delete(f"/api/v1/jobs/{lease.job_id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_finished")
    assert (await services.store.get(lease.job_id)).status is Status.PROCESSING


async def pages(client: httpx.AsyncClient, between: Callable[[], Awaitable[object]], **filters: object) -> list[str]:
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = (await client.get("/api/v1/jobs", params={"limit": 2, **filters, **after})).json()
        found += [job["job_id"] for job in page["data"]]
        if not page["has_more"]:
            return found
        assert page["last_id"] == found[-1]
        after = {"after": page["last_id"]}
        await between()


async def test_pages_are_newest_first_and_stable_while_jobs_arrive(
    generate: Generate, client: httpx.AsyncClient
) -> None:
    ids = [(await generate()).json()["job_id"] for _ in range(5)]
    assert await pages(client, generate) == ids[::-1]


async def test_lists_are_filtered(generate: Generate, client: httpx.AsyncClient, services: Services) -> None:
    ann = (await generate(user_id="ann")).json()["job_id"]
    done = await completed(services.store)

    async def nothing() -> None:
        return

    assert await pages(client, nothing, user_id="ann") == [ann]
    assert await pages(client, nothing, status="completed") == [done]
    assert set(await pages(client, nothing, model="ltx2")) == {ann, done}
    assert await pages(client, nothing, user_id="nobody") == []


async def test_lists_are_filtered_by_the_clients_own_pairs(generate: Generate, client: httpx.AsyncClient) -> None:
    """Names and values may have anything in them but a NUL."""
    odd = {"shot": "12", "a][b": "x&y=1 \N{SNOWMAN}", "empty": ""}
    one = (await generate(metadata=odd)).json()["job_id"]
    other = (await generate(metadata={"shot": "12", "scene": "3"})).json()["job_id"]
    await generate(metadata={"shot": "13"})
    await generate()

    async def found(**pairs: str) -> list[str]:
        page = await client.get("/api/v1/jobs", params={f"metadata[{name}]": value for name, value in pairs.items()})
        return [job["job_id"] for job in page.json()["data"]]

    assert await found(shot="12") == [other, one]
    assert await found(shot="12", scene="3") == [other]
    assert await found(**odd) == [one]
    assert await found(empty="") == [one]
    assert await found(shot="1") == await found(scene="12") == []
    shown = (await client.get(f"/api/v1/jobs/{one}")).json()
    assert shown["metadata"] == odd


async def test_a_job_shows_the_limit_that_it_was_given(generate: Generate, client: httpx.AsyncClient) -> None:
    given, none = [(await generate(**asked)).json()["job_id"] for asked in ({"timeout_s": 30}, {})]
    assert (await client.get(f"/api/v1/jobs/{given}")).json()["timeout_s"] == 30
    assert not {"timeout_s", "metadata", "retry_of"} & (await client.get(f"/api/v1/jobs/{none}")).json().keys()


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("status=running", "status"),
        ("model=sora", "model"),
        ("after=%00", "after"),
        ("user_id=%00", "user_id"),
        ("metadata=12", "metadata"),
        ("metadata[shot=12", "metadata"),
        ("metadata[]=12", "metadata"),
        ("metadata[shot]=1&metadata[shot]=2", "metadata"),
        ("metadata[shot]=%00", "metadata"),
        ("metadata[%00]=1", "metadata"),
        (f"metadata[{'a' * 65}]=1", "metadata"),
        (f"metadata[shot]={'a' * 513}", "metadata"),
        ("&".join(f"metadata[{n}]=1" for n in range(17)), "metadata"),
    ],
)
async def test_a_bad_filter_is_named(client: httpx.AsyncClient, query: str, param: str) -> None:
    answer = await client.get(f"/api/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_a_page_after_a_job_that_is_gone_is_not_found(client: httpx.AsyncClient) -> None:
    """The request fits; what it names is not there any more."""
    answer = await client.get("/api/v1/jobs", params={"after": UNKNOWN})
    assert (answer.status_code, answer.json()["param"]) == (404, "after")


async def test_a_newcomer_sees_its_true_place(client: httpx.AsyncClient, services: Services) -> None:
    """Users take turns, so fifty jobs of another user are not ahead of one's first."""
    for _ in range(4):
        await services.store.submit(new_job("ann"))
    job = await waiting(services.store, "bob")
    assert (await client.get(f"/api/v1/jobs/{job.id}")).json()["queue_position"] == 1
    claimed = [claimed.id for claimed in jobs_of(await services.store.claim_to_run("ltx2", 2))]
    assert claimed[1] == job.id
