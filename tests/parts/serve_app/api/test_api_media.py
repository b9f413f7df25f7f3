"""Presigned uploads and downloads, and the local store's files behind them."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from serve_app.services import Services
from serve_app.storage import keys
from serve_app.storage.local import LocalStorage
from tests.parts.serve_app.jobs.samples import completed, new_job

Generate = Callable[..., Awaitable[httpx.Response]]
JOB = "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"


async def ticket(client: httpx.AsyncClient, **body: object) -> dict:
    answer = await client.post("/api/v1/presign/upload", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def put(client: httpx.AsyncClient, ticket: dict, content: bytes) -> httpx.Response:
    # Without the key: the link itself is the permission.
    headers = {"content-type": ticket["content_type"], "authorization": ""}
    return await client.put(ticket["upload_url"], content=content, headers=headers)


async def test_upload_first_then_generate(client: httpx.AsyncClient, generate: Generate, services: Services) -> None:
    opened = await ticket(client, input_type="image", content_type="image/png")
    job_id = opened["job_id"]
    assert (opened["expires_in"], opened["key"]) == (
        3600,
        keys.upload((await services.store.get(job_id)).folder, "image"),
    )
    assert (await client.get(f"/api/v1/jobs/{job_id}")).json()["status"] == "uploading"

    early = await generate(job_id=job_id, image_url=None)
    assert (early.status_code, early.json()["code"], early.json()["param"]) == (422, "upload_missing", "image_url")

    stored = await put(client, opened, b"pixels")
    assert (stored.status_code, stored.headers["etag"]) == (200, f'"{hashlib.md5(b"pixels").hexdigest()}"')
    accepted = await generate(job_id=job_id, image_url=None)
    assert (accepted.status_code, accepted.json()["job_id"], accepted.json()["status"]) == (201, job_id, "queued")
    assert (await services.store.get(job_id)).uploads == {"image": opened["key"]}

    again = await generate(job_id=job_id, image_url=None)
    assert (again.status_code, again.json()["code"]) == (409, "job_not_uploading")
    late = await client.post("/api/v1/presign/upload", json={"input_type": "image", "job_id": job_id})
    assert (late.status_code, late.json()["code"]) == (409, "job_not_uploading")


@pytest.mark.parametrize(
    ("kind", "content_type", "name"),
    [("image", "image/jpeg", "input.jpg"), ("video", "video/mp4", "input.mp4"), ("audio", "audio/wav", "input.wav")],
)
async def test_keys_and_types_are_the_originals(
    client: httpx.AsyncClient, kind: str, content_type: str, name: str
) -> None:
    opened = await ticket(client, job_id=JOB, input_type=kind)
    assert (opened["job_id"], opened["content_type"]) == (JOB, content_type)
    # Between the id and the name is ours: the id alone may have been somebody's before.
    assert re.fullmatch(rf"inputs/{JOB}/[0-9a-f]{{16}}/{name}", opened["key"])


async def test_a_second_file_joins_the_first(client: httpx.AsyncClient) -> None:
    first = await ticket(client, input_type="video")
    second = await ticket(client, input_type="audio", job_id=first["job_id"])
    assert second["job_id"] == first["job_id"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input_type"),
        ({"input_type": "text"}, "input_type"),
        ({"input_type": "image", "content_type": "text/html"}, "content_type"),
        ({"input_type": "image", "content_type": "video/mp4"}, "content_type"),
        ({"input_type": "image", "job_id": "../../etc"}, "job_id"),
        ({"input_type": "image", "job_id": "-" * 36}, "job_id"),
        ({"input_type": "image", "size": 0}, "size"),
        ({"input_type": "image", "size": 2 * 1024**3 + 1}, "size"),
        ({"input_type": "image", "length": 1}, "length"),
    ],
)
async def test_a_bad_upload_request_is_named(
    client: httpx.AsyncClient, services: Services, body: dict, param: str
) -> None:
    answer = await client.post("/api/v1/presign/upload", json=body)
    assert (answer.status_code, answer.json()["param"]) == (422, param)
    assert await services.store.list() == []


async def test_the_id_of_a_deleted_job_is_not_opened_again(client: httpx.AsyncClient) -> None:
    await ticket(client, job_id=JOB, input_type="image")
    assert (await client.delete(f"/api/v1/jobs/{JOB}")).status_code == 204
    again = await client.post("/api/v1/presign/upload", json={"input_type": "image", "job_id": JOB})
    assert (again.status_code, again.json()["code"], again.json()["param"]) == (409, "job_id_used", "job_id")


@pytest.mark.parametrize("end", ["submit", "cancel", "delete"])
async def test_a_link_takes_nothing_once_its_job_does_not_wait_for_uploads(
    client: httpx.AsyncClient, generate: Generate, services: Services, end: str
) -> None:
    """It is good for an hour; what came later would never be read, and never be deleted either."""
    opened = await ticket(client, input_type="image")
    job_id = opened["job_id"]
    await put(client, opened, b"pixels")
    if end == "submit":
        assert (await generate(job_id=job_id, image_url=None)).status_code == 201
    elif end == "cancel":
        await client.post(f"/api/v1/jobs/{job_id}/cancel")
    else:
        await client.delete(f"/api/v1/jobs/{job_id}")
    late = await put(client, opened, b"other pixels")
    assert (late.status_code, late.json()["code"]) == (409, "job_not_uploading")
    assert (await services.storage.stat(opened["key"])).size == len(b"pixels")


async def test_a_replica_may_put_whatever_has_become_of_the_job(client: httpx.AsyncClient, services: Services) -> None:
    """Only uploads wait for somebody; a video has an attempt in its key."""
    key = keys.output("nobody", 1)
    url = await services.storage.presign_put(key, 60, "video/mp4")
    assert (await client.put(url, content=b"an mp4", headers={"content-type": "video/mp4"})).status_code == 200


async def test_an_upload_with_another_type_is_refused(client: httpx.AsyncClient) -> None:
    opened = await ticket(client, input_type="image")
    answer = await put(client, opened | {"content_type": "text/html"}, b"<script>")
    assert (answer.status_code, answer.json()["code"]) == (403, "signature_rejected")


async def test_an_upload_that_is_too_large_leaves_nothing(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.api.files.MAX_UPLOAD_BYTES", 10)
    opened = await ticket(client, input_type="image")
    answer = await put(client, opened, b"x" * 11)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert await services.storage.stat(opened["key"]) is None


def storage_at(services: Services, tmp_path: Path, now: float) -> LocalStorage:
    settings = services.settings
    return LocalStorage(tmp_path / "media", settings.base_url, settings.signing_key, clock=lambda: now)


async def test_links_are_refused_when_changed_or_old(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    opened = await ticket(client, input_type="image")
    url = opened["upload_url"]
    headers = {"content-type": opened["content_type"]}
    await put(client, opened, b"pixels")
    other = url.replace("/input.jpg", "/input.mp4")
    longer = url.replace("expires=", "expires=9")
    for changed in (other, longer, url.replace("image%2Fjpeg", "text%2Fhtml"), url[:-1] + "z", url.split("?")[0]):
        assert changed != url
        assert (await client.put(changed, content=b"x", headers=headers)).status_code == 403
    # A link to write does not read.
    assert (await client.get(url)).status_code == 403
    old = await storage_at(services, tmp_path, now=1000.0).presign_get(opened["key"], 60)
    answer = await client.get(old)
    assert answer.status_code == 403
    assert "expired" in answer.json()["error"]
    assert await services.storage.stat(opened["key"]) is not None


@pytest.mark.parametrize("path", ["/files/../secrets.json", "/files/%2e%2e/secrets.json", "/files/.tmp/x", "/files/"])
async def test_paths_outside_the_store_are_refused(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code in (403, 404)


async def test_a_link_to_nothing_is_not_found(client: httpx.AsyncClient, services: Services) -> None:
    answer = await client.get(await services.storage.presign_get("outputs/x/1/output.mp4", 60))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("asked", "status", "body", "sent"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=5-", 206, b"56789", "bytes 5-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=20-", 416, None, "bytes */10"),
        (None, 200, b"0123456789", None),
    ],
)
async def test_a_video_can_be_read_in_parts(
    client: httpx.AsyncClient,
    services: Services,
    asked: str | None,
    status: int,
    body: bytes | None,
    sent: str | None,
) -> None:
    async def video():
        yield b"0123456789"

    await services.storage.write("outputs/x/1/output.mp4", video(), 100)  # type: ignore[attr-defined]
    url = await services.storage.presign_get("outputs/x/1/output.mp4", 60)
    answer = await client.get(url, headers={"range": asked} if asked else {})
    assert answer.status_code == status
    assert body is None or answer.content == body
    assert answer.headers.get("content-range") == sent


async def test_a_download_ticket_is_for_a_finished_job(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    waiting = (await generate()).json()["job_id"]
    early = await client.get(f"/api/v1/presign/download/{waiting}")
    assert early.status_code == 404
    assert "queued" in early.json()["error"]
    job_id = await completed(services.store)
    answer = (await client.get(f"/api/v1/presign/download/{job_id}")).json()
    assert answer["expires_in"] == 86400
    query = parse_qs(urlsplit(answer["download_url"]).query)
    assert query["filename"] == [f"{job_id}.mp4"]

    async def video():
        yield b"an mp4"

    await services.storage.write(f"outputs/{job_id}/1/output.mp4", video(), 100)  # type: ignore[attr-defined]
    video_answer = await client.get(answer["download_url"])
    assert video_answer.content == b"an mp4"
    assert f"{job_id}.mp4" in video_answer.headers["content-disposition"]


async def test_a_video_made_elsewhere_is_downloaded_there(client: httpx.AsyncClient, services: Services) -> None:
    job = await services.store.submit(new_job())
    await services.store.end_externally(job.id, video_url="https://elsewhere.example/v.mp4")
    answer = (await client.get(f"/api/v1/presign/download/{job.id}")).json()
    assert answer["download_url"] == "https://elsewhere.example/v.mp4"
