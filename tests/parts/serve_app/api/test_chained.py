"""``"video_url": "job:<id>"``: what is taken, what is refused, and what a client sees of it."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from serve_app.intake.inputs import StoredInput
from serve_app.services import Services
from serve_app.storage.local import LocalStorage
from tests.parts.serve_app.api.test_api_media import put, ticket
from tests.parts.serve_app.api.test_retries import PIXELS, chunks, content, retry
from tests.parts.serve_app.jobs.samples import completed, lease_of

Generate = Callable[..., Awaitable[httpx.Response]]
WithKey = Callable[..., Awaitable[httpx.AsyncClient]]
UNKNOWN = "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"
SPEECH = {"model": "wav2lip", "audio_url": "https://sounds.example/a.wav"}


async def chained(client: httpx.AsyncClient, source_id: str, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    body = SPEECH | {"video_url": f"job:{source_id}"} | fields
    return await client.post("/api/v1/generate", json=body, headers=headers)


async def job(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    answer = await client.get(f"/api/v1/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def settled(services: Services) -> None:
    while await services.store.settle():
        pass


async def test_a_job_that_waits_for_another_says_so(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    source_id = (await generate()).json()["job_id"]
    answer = await chained(client, source_id)
    assert answer.status_code == 201, answer.text
    assert answer.json()["status"] == "queued"
    assert "eta_seconds" not in answer.json()
    seen = await job(client, answer.json()["job_id"])
    assert (seen["status"], seen["stage"], seen["wait_code"]) == (
        "queued",
        "waiting_for_source",
        "waiting_for_source",
    )
    assert seen["wait_reason"] == f"Waits for job {source_id}."
    assert seen["source_jobs"] == {"video": source_id}
    assert "queue_position" not in seen
    listed = (await client.get("/api/v1/jobs?status=queued&model=wav2lip")).json()["data"]
    assert [each["wait_code"] for each in listed] == ["waiting_for_source"]
    assert (await client.get("/health")).json()["queues"]["wav2lip"]["pending"] == 1
    await client.post(f"/api/v1/jobs/{source_id}/cancel")
    await settled(services)
    assert (await job(client, answer.json()["job_id"]))["status"] == "cancelled"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"video_url": "job:1"}, "video_url"),
        ({"video_url": "job:"}, "video_url"),
        ({"video_url": f"job:{UNKNOWN}\n"}, "video_url"),
        ({"video_url": f"JOB:{UNKNOWN}"}, "video_url"),
        ({"model": "ltx2", "image_url": f"job:{UNKNOWN}", "audio_url": None}, "image_url"),
    ],
)
async def test_what_names_no_job_or_takes_no_video_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    body = {name: value for name, value in (SPEECH | fields).items() if value is not None}
    answer = await client.post("/api/v1/generate", json=body)
    assert (answer.status_code, answer.json()["param"]) == (422, param), answer.text


async def test_what_is_wrong_with_it_is_said(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/generate", json=SPEECH | {"video_url": "job:7"})
    assert "give job: with the id of a job" in answer.json()["detail"]


async def test_another_keys_job_is_as_unknown_as_none(with_key: WithKey) -> None:
    mine, other = await with_key(scopes=["generate", "read"]), await with_key(scopes=["generate", "read"])
    body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}
    source_id = (await other.post("/api/v1/generate", json=body)).json()["job_id"]
    answers = [await chained(mine, each) for each in (source_id, UNKNOWN)]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"], answer.json()["param"]) == (
            404,
            "job_not_found",
            "video_url",
        )
    ignored = {"request_id", "type"}
    first, second = ({k: v for k, v in a.json().items() if k not in ignored} for a in answers)
    assert first == second
    assert (await chained(other, source_id)).status_code == 201


async def test_what_gives_no_video_is_refused_and_says_why(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    failed, gone = (await generate()).json()["job_id"], (await generate()).json()["job_id"]
    await services.store.end_externally(failed, error="no face")
    opened = (await ticket(client, input_type="audio", content_type="audio/wav"))["job_id"]
    for source_id, said in ((failed, "failed with worker_failed: no face"), (opened, "is not submitted yet")):
        answer = await chained(client, source_id)
        assert (answer.status_code, answer.json()["code"]) == (409, "source_unusable")
        assert (answer.json()["param"], said in answer.json()["detail"]) == ("video_url", True)
    # Nor can one that is opened be its own.
    assert (await chained(client, opened, job_id=opened)).json()["code"] == "source_unusable"
    await client.delete(f"/api/v1/jobs/{gone}")
    assert (await chained(client, gone)).status_code == 404
    assert await services.store.list(model="wav2lip") == []


async def test_once_for_all_requests_with_a_key(client: httpx.AsyncClient, generate: Generate) -> None:
    source_id = (await generate()).json()["job_id"]
    refused = await chained(client, UNKNOWN, key="k")
    assert refused.status_code == 404
    first, second = await chained(client, source_id, key="k"), await chained(client, source_id, key="k")
    assert (first.status_code, second.json()) == (201, first.json())


async def test_sound_may_be_uploaded_to_a_job_that_waits_for_its_video(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    source_id = (await generate()).json()["job_id"]
    opened = await ticket(client, input_type="audio", content_type="audio/wav")
    await put(client, opened, b"sound")
    answer = await chained(client, source_id, job_id=opened["job_id"], audio_url=None)
    assert answer.status_code == 201, answer.text
    made = await services.store.get(opened["job_id"])
    assert made is not None
    assert (made.awaits, list(made.uploads)) == ([source_id], ["audio"])


async def test_it_counts_as_a_job_that_waits_with_its_key(with_key: WithKey) -> None:
    mine = await with_key(scopes=["generate", "read"], limits={"queued_jobs": 2})
    body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"}
    source_id = (await mine.post("/api/v1/generate", json=body)).json()["job_id"]
    assert (await chained(mine, source_id)).status_code == 201
    assert (await chained(mine, source_id)).json()["code"] == "queue_full"


async def test_a_retry_names_the_job_to_retry_first_and_then_takes_it(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    source_id = (await generate()).json()["job_id"]
    job_id = (await chained(client, source_id)).json()["job_id"]
    await services.store.end_externally(source_id, error="no face")
    await settled(services)
    failed = await job(client, job_id)
    assert (failed["status"], failed["error_code"]) == ("failed", "source_failed")
    assert f"Job {source_id}" in failed["error_message"]
    refused = await retry(client, job_id)
    assert (refused.status_code, refused.json()["code"]) == (409, "source_unusable")
    assert f"Job {source_id}" in refused.json()["detail"]
    assert "Retry that job first." in refused.json()["detail"]
    again = (await retry(client, source_id)).json()["job_id"]
    accepted = await retry(client, job_id)
    assert accepted.status_code == 201, accepted.text
    assert (await job(client, accepted.json()["job_id"]))["source_jobs"] == {"video": again}


async def test_a_retry_copies_the_video_that_it_had_and_needs_its_source_no_more(
    client: httpx.AsyncClient, services: Services, tmp_path: Any
) -> None:
    source_id = await completed(services.store)
    job_id = (await chained(client, source_id)).json()["job_id"]
    (claim,) = await services.store.claim_for_intake(1)
    assert isinstance(services.storage, LocalStorage)
    key = f"inputs/{claim.job.folder}/video.mp4"
    await services.storage.write(key, chunks(PIXELS), 100)
    stored = StoredInput(content_type="video/mp4", key=key, size=len(PIXELS))
    await services.store.admit(lease_of(claim.job), {"video": stored})
    await client.post(f"/api/v1/jobs/{job_id}/cancel")
    await client.delete(f"/api/v1/jobs/{source_id}")
    accepted = await retry(client, job_id)
    assert accepted.status_code == 201, accepted.text
    made = await services.store.get(accepted.json()["job_id"])
    assert made is not None
    assert "video" not in made.sources
    assert await content(services, made.uploads["video"], tmp_path) == PIXELS


async def test_a_retry_whose_source_is_gone_says_so(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    source_id = (await generate()).json()["job_id"]
    job_id = (await chained(client, source_id)).json()["job_id"]
    await client.delete(f"/api/v1/jobs/{source_id}")
    await settled(services)
    assert "was deleted" in (await job(client, job_id))["error_message"]
    assert (await retry(client, job_id)).json()["code"] == "inputs_gone"


async def test_the_schema_says_where_a_job_may_be_named(anyone: httpx.AsyncClient) -> None:
    schemas = (await anyone.get("/openapi.json")).json()["components"]["schemas"]
    assert "`job:<id>`" in schemas["Wav2LipRequest"]["properties"]["video_url"]["description"]
    assert "^job:" in str(schemas["Wav2LipRequest"]["properties"]["audio_url"])
    assert "job:" not in str(schemas["Ltx2Request"]["properties"]["image_url"])
