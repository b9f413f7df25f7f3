"""Presigned uploads and downloads, and the local store's files behind them."""

import hashlib
import re
from collections.abc import Awaitable, Callable
from email import message_from_bytes
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

    early = await client.post("/api/v1/generate", json={"model": "ltx2", "job_id": job_id})
    assert (early.status_code, early.json()["code"], early.json()["param"]) == (409, "upload_missing", "image_url")
    assert early.json()["error"].endswith("Send null for a video without it.")

    stored = await put(client, opened, b"pixels")
    assert (stored.status_code, stored.headers["etag"]) == (200, f'"{hashlib.md5(b"pixels").hexdigest()}"')
    accepted = await generate(job_id=job_id, image_url=None)
    assert (accepted.status_code, accepted.json()["job_id"], accepted.json()["status"]) == (201, job_id, "queued")
    assert (await services.store.get(job_id)).uploads == {"image": opened["key"]}

    again = await generate(job_id=job_id, image_url=None)
    assert (again.status_code, again.json()["code"]) == (409, "job_not_uploading")
    late = await client.post("/api/v1/presign/upload", json={"input_type": "image", "job_id": job_id})
    assert (late.status_code, late.json()["code"]) == (409, "job_not_uploading")


async def test_a_job_opened_for_an_upload_can_do_without_it(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    """What was uploaded counts, whatever is said: many clients send null for what they don't set."""
    opened = await ticket(client, input_type="image")
    accepted = await generate(job_id=opened["job_id"], image_url=None)
    assert (accepted.status_code, accepted.json()["status"]) == (201, "queued")
    job = await services.store.get(opened["job_id"])
    assert (job.sources, job.uploads) == ({}, {})


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


VIDEO = b"0123456789"
OUTPUT = "outputs/x/1/output.mp4"


@pytest.fixture
async def link(services: Services) -> str:
    """To a video of ten bytes, for an hour."""

    async def video():
        yield VIDEO

    await services.storage.write(OUTPUT, video(), 100)  # type: ignore[attr-defined]
    return await services.storage.presign_get(OUTPUT, 3600)


@pytest.mark.parametrize(
    ("asked", "status", "body", "sent"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=5-", 206, b"56789", "bytes 5-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=0-0,20-", 206, b"0", "bytes 0-0/10"),
        # What is no range is no reason to refuse the file.
        ("bytes=5-2", 200, VIDEO, None),
        ("lines=1-2", 200, VIDEO, None),
        ("bytes=+1-2", 200, VIDEO, None),
        (None, 200, VIDEO, None),
    ],
)
async def test_a_video_can_be_read_in_parts(
    anyone: httpx.AsyncClient, link: str, asked: str | None, status: int, body: bytes, sent: str | None
) -> None:
    answer = await anyone.get(link, headers={"range": asked} if asked else {})
    assert (answer.status_code, answer.content) == (status, body)
    assert answer.headers["content-length"] == str(len(body))
    assert answer.headers.get("content-range") == sent
    assert (answer.headers["accept-ranges"], answer.headers["content-type"]) == ("bytes", "video/mp4")


async def test_several_parts_come_in_one_answer(anyone: httpx.AsyncClient, link: str) -> None:
    answer = await anyone.get(link, headers={"range": "bytes=0-1,5-6"})
    assert answer.status_code == 206
    parsed = message_from_bytes(f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode() + answer.content)
    assert [
        (part["content-range"], part.get_payload(decode=True)) for part in parsed.walk() if "content-range" in part
    ] == [
        ("bytes 0-1/10", b"01"),
        ("bytes 5-6/10", b"56"),
    ]


async def test_a_part_that_is_not_there_is_a_problem(anyone: httpx.AsyncClient, link: str) -> None:
    answer = await anyone.get(link, headers={"range": "bytes=20-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "range_not_satisfiable"


async def test_a_browser_keeps_a_video_as_long_as_it_may_read_it(anyone: httpx.AsyncClient, link: str) -> None:
    first = await anyone.get(link)
    _, age, immutable = first.headers["cache-control"].split(", ")
    assert 3500 < int(age.removeprefix("max-age=")) <= 3600
    assert immutable == "immutable"
    assert first.headers["x-content-type-options"] == "nosniff"
    etag, modified = first.headers["etag"], first.headers["last-modified"]
    assert not etag.startswith("W/")
    for asked in ({"if-none-match": etag}, {"if-none-match": f'"x", W/{etag}'}, {"if-modified-since": modified}):
        again = await anyone.get(link, headers=asked)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert "max-age" in again.headers["cache-control"]
    assert (await anyone.get(link, headers={"if-none-match": '"x"'})).status_code == 200


async def test_a_part_is_not_joined_to_another_file(anyone: httpx.AsyncClient, link: str) -> None:
    etag = (await anyone.head(link)).headers["etag"]
    part = {"range": "bytes=5-"}
    assert (await anyone.get(link, headers=part | {"if-range": etag})).status_code == 206
    for other in ('"x"', f"W/{etag}", "Thu, 26 Nov 2020 15:00:00 GMT"):
        answer = await anyone.get(link, headers=part | {"if-range": other})
        assert (answer.status_code, answer.content) == (200, VIDEO)


async def test_a_file_that_is_replaced_has_another_tag(
    anyone: httpx.AsyncClient, services: Services, link: str
) -> None:
    async def other():
        yield VIDEO[::-1]

    before = (await anyone.head(link)).headers["etag"]
    await services.storage.write(OUTPUT, other(), 100)  # type: ignore[attr-defined]
    assert (await anyone.head(link)).headers["etag"] != before


async def test_a_link_to_read_tells_of_the_file_alone(anyone: httpx.AsyncClient, link: str) -> None:
    head, whole = await anyone.head(link), await anyone.get(link)
    assert (head.status_code, head.content) == (200, b"")
    names = {"content-length", "content-type", "etag", "last-modified", "accept-ranges", "content-disposition"}
    assert names <= head.headers.keys()
    assert {name: head.headers[name] for name in names} == {name: whole.headers[name] for name in names}
    # A part of nothing is nothing: RFC 9110 defines ranges of GET alone.
    assert (await anyone.head(link, headers={"range": "bytes=50-"})).status_code == 200
    assert (await anyone.head(link.split("?")[0])).status_code == 403


async def test_a_video_is_shown_or_saved_as_its_link_says(
    anyone: httpx.AsyncClient, services: Services, link: str
) -> None:
    assert (await anyone.get(link)).headers["content-disposition"] == "inline"
    for filename, header in (
        ("a.mp4", 'attachment; filename="a.mp4"'),
        ('"é".mp4', "attachment; filename=\"___.mp4\"; filename*=UTF-8''%22%C3%A9%22.mp4"),
    ):
        saved = await services.storage.presign_get(OUTPUT, 60, filename=filename)
        assert (await anyone.get(saved)).headers["content-disposition"] == header


async def test_an_upload_is_not_kept_by_a_browser(anyone: httpx.AsyncClient, services: Services) -> None:
    """It may be put once more under the same key."""

    async def picture():
        yield b"pixels"

    await services.storage.write("inputs/x/input.jpg", picture(), 100)  # type: ignore[attr-defined]
    answer = await anyone.get(await services.storage.presign_get("inputs/x/input.jpg", 60))
    assert answer.headers["cache-control"] == "private, no-cache"


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
