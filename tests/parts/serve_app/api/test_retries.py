"""A failed job once more: a new one, which needs nothing of the old."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.intake.inputs import StoredInput
from serve_app.jobs.job import Job, NewJob, Status
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.services import Services
from serve_app.storage import keys
from serve_app.storage.local import LocalStorage
from tests.parts.serve_app.api.test_api_media import put, ticket
from tests.parts.serve_app.jobs.samples import completed, execute, failure, fetch, jobs_of, lease_of, new_job, running

Generate = Callable[..., Awaitable[httpx.Response]]
PIXELS = b"pixels as intake judged them"


async def retry(client: httpx.AsyncClient, job_id: str, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    return await client.post(f"/api/v1/jobs/{job_id}/retry", headers=headers)


async def uploaded(client: httpx.AsyncClient, generate: Generate, **fields: Any) -> str:
    """The id of a job whose image was uploaded."""
    opened = await ticket(client, input_type="image", content_type="image/png")
    await put(client, opened, b"pixels as they came")
    answer = await generate(job_id=opened["job_id"], image_url=None, **fields)
    assert answer.status_code == 201, answer.text
    return opened["job_id"]


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def fail_after_intake(services: Services, job_id: str) -> None:
    """As if intake had stored the image, and a replica had found it wanting."""
    storage = services.storage
    assert isinstance(storage, LocalStorage)
    (job,) = jobs_of(await services.store.claim_for_intake(1))
    assert job.id == job_id
    key = keys.verified(job.folder, "image", "png")
    await storage.write(key, chunks(PIXELS), 100)
    await services.store.admit(
        lease_of(job), {"image": StoredInput(content_type="image/png", key=key, size=len(PIXELS))}
    )
    await services.store.cancel(job_id)


async def content(services: Services, key: str, tmp_path: Path) -> bytes:
    await services.storage.get_file(key, tmp_path / "copy", 1000)
    return (tmp_path / "copy").read_bytes()


async def forget(client: httpx.AsyncClient, services: Services, job_id: str) -> None:
    """The job, and all its media."""
    assert (await client.delete(f"/api/v1/jobs/{job_id}")).status_code == 204
    assert await Retention(services.engine, services.storage, RetentionPolicy()).delete_media() == 1


async def job_of(services: Services, answer: httpx.Response) -> Job:
    assert answer.status_code == 201, answer.text
    job = await services.store.get(answer.json()["job_id"])
    assert job is not None
    return job


async def test_a_retry_asks_for_the_same_again(
    client: httpx.AsyncClient, generate: Generate, services: Services, engine: AsyncEngine
) -> None:
    """An admin asks; it stays the job of the key that it was for."""
    asked = {
        "prompt": "A storm",
        "duration": 7,
        "user_id": "ann",
        "priority": 3,
        "webhook_url": "https://c.example/hook",
        "expires_after": 60,
        "timeout_s": 30,
        "metadata": {"shot": "12"},
    }
    old = await job_of(services, await generate(**asked))
    await execute(engine, "UPDATE jobs SET key_id = 'key_b'")
    cancelled = await services.store.cancel(old.id)
    assert cancelled is not None
    new = await job_of(services, answer := await retry(client, old.id))
    assert (answer.json()["status"], answer.json()["model"]) == ("queued", "ltx2")
    assert (new.retry_of, new.id != old.id, new.nonce != old.nonce) == (old.id, True, True)
    plain = NewJob(model="", params={})
    own = {"id", "nonce", "sources", "uploads", "request_id", "retry_of"}
    # Which follow of its parameters.
    for name in NewJob.__dataclass_fields__.keys() - own - {"variant", "size"}:
        assert getattr(cancelled, name) != getattr(plain, name), f"give it a {name}"
        assert getattr(new, name) == getattr(cancelled, name), name
    assert new.sources == old.sources
    assert (new.status, new.attempt, new.faults, new.error_code) == (Status.QUEUED, 0, 0, None)
    assert (await client.get(f"/api/v1/jobs/{new.id}")).json()["retry_of"] == old.id
    assert "retry_of" not in (await client.get(f"/api/v1/jobs/{old.id}")).json()


async def test_an_upload_outlives_its_job(
    client: httpx.AsyncClient, generate: Generate, services: Services, tmp_path: Path
) -> None:
    old = await uploaded(client, generate)
    await client.post(f"/api/v1/jobs/{old}/cancel")
    new = await job_of(services, await retry(client, old))
    await forget(client, services, old)
    assert new.sources == {}
    assert new.uploads == {"image": keys.brought(new.folder, new.nonce, "image")}
    assert await content(services, new.uploads["image"], tmp_path) == b"pixels as they came"


async def test_what_was_fetched_is_not_fetched_again(
    client: httpx.AsyncClient, generate: Generate, services: Services, tmp_path: Path
) -> None:
    """Its link may have expired."""
    old = (await generate()).json()["job_id"]
    await fail_after_intake(services, old)
    new = await job_of(services, await retry(client, old))
    await forget(client, services, old)
    assert new.sources == {}
    assert await content(services, new.uploads["image"], tmp_path) == PIXELS


async def test_what_is_gone_is_fetched_again_where_that_was_said(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    old = await job_of(services, await generate())
    await fail_after_intake(services, old.id)
    await services.storage.delete_prefix(f"inputs/{old.folder}/")
    new = await job_of(services, await retry(client, old.id))
    assert (new.sources, new.uploads) == ({"image": "https://pictures.example/a.png"}, {})


async def test_what_was_left_out_stays_left_out(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    old = await job_of(services, await generate(image_url=None))
    await services.store.cancel(old.id)
    new = await job_of(services, await retry(client, old.id))
    assert (new.sources, new.uploads, new.retry_of) == ({}, {}, old.id)


async def test_an_upload_that_is_gone_says_so(
    client: httpx.AsyncClient, generate: Generate, services: Services, engine: AsyncEngine
) -> None:
    old = await uploaded(client, generate)
    await client.post(f"/api/v1/jobs/{old}/cancel")
    job = await services.store.get(old)
    assert job is not None
    await services.storage.delete_prefix(f"inputs/{job.folder}/")
    answer = await retry(client, old)
    assert (answer.status_code, answer.json()["code"]) == (409, "inputs_gone")
    assert len(await fetch(engine, "SELECT id FROM jobs")) == 1


async def test_what_was_copied_in_vain_is_deleted(client: httpx.AsyncClient, services: Services) -> None:
    """The video is there and its sound is not."""
    storage = services.storage
    assert isinstance(storage, LocalStorage)
    await storage.write("inputs/old/input.mp4", chunks(b"video"), 100)
    uploads = {"video": "inputs/old/input.mp4", "audio": "inputs/old/input.wav"}
    old = await services.store.submit(new_job(model="wav2lip", params={}, sources={}, uploads=uploads))
    assert old is not None
    await services.store.cancel(old.id)
    answer = await retry(client, old.id)
    assert (answer.status_code, answer.json()["code"]) == (409, "inputs_gone")
    assert [found.key for found in await storage.page("inputs/", "", 10)] == ["inputs/old/input.mp4"]


async def test_only_what_has_ended_without_a_video_is_retried(
    client: httpx.AsyncClient, generate: Generate, services: Services, engine: AsyncEngine
) -> None:
    lease = await running(services.store)
    opened = await ticket(client, input_type="image")
    unsubmitted = await ticket(client, input_type="image")
    await client.post(f"/api/v1/jobs/{unsubmitted['job_id']}/cancel")
    ids = [
        (await generate()).json()["job_id"],
        lease.job_id,
        opened["job_id"],
        unsubmitted["job_id"],
        await completed(services.store),
    ]
    for job_id in ids:
        answer = await retry(client, job_id)
        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_failed"), answer.text
    await services.store.fail(failure(lease, "no_face_found", transient=False))
    assert (await retry(client, lease.job_id)).status_code == 201
    assert len(await fetch(engine, "SELECT id FROM jobs WHERE retry_of IS NOT NULL")) == 1


async def test_a_job_that_the_model_takes_no_more_is_refused(
    client: httpx.AsyncClient, generate: Generate, engine: AsyncEngine
) -> None:
    for change in ("params = '{\"duration\": 99}'", "model = 'gone'"):
        job_id = (await generate()).json()["job_id"]
        await client.post(f"/api/v1/jobs/{job_id}/cancel")
        await execute(engine, f"UPDATE jobs SET {change} WHERE id = :id", id=job_id)
        answer = await retry(client, job_id)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_many_retries_at_once_make_one_job_and_keep_one_copy(
    client: httpx.AsyncClient, generate: Generate, services: Services, engine: AsyncEngine
) -> None:
    old = await uploaded(client, generate)
    other = (await generate()).json()["job_id"]
    for job_id in (old, other):
        await client.post(f"/api/v1/jobs/{job_id}/cancel")
    answers = await asyncio.gather(*(retry(client, old, "k-1") for _ in range(12)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    (new,) = await fetch(engine, "SELECT id FROM jobs WHERE retry_of IS NOT NULL")
    kept = {found.key.split("/")[1] for found in await services.storage.page("inputs/", "", 100)}
    assert kept == {old, new["id"]}
    # The job is part of what is asked for.
    assert (await retry(client, other, "k-1")).json()["code"] == "idempotency_key_reused"


async def test_a_key_without_room_has_nothing_copied(
    with_key: Callable[..., Awaitable[httpx.AsyncClient]],
    generate: Generate,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refusal is cheap, a copy is not: else the store could be filled by asking."""
    ann = await with_key(limits={"queued_jobs": 1})

    async def ask(**fields: Any) -> httpx.Response:
        body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"} | fields
        return await ann.post("/api/v1/generate", json=body)

    old = await uploaded(ann, ask)
    await fail_after_intake(services, old)
    assert (await ask()).status_code == 201
    copied: list[str] = []

    async def copy(source: str, target: str) -> None:
        copied.append(target)

    monkeypatch.setattr(services.storage, "copy", copy)
    refused = await retry(ann, old)
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert copied == []
