"""``/v1/videos`` and ``/v1/models``: OpenAI's protocol over the jobs that there are. By its own clients it is asked in
``tests/e2e/test_openai_clients.py``."""

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from PIL import Image
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Stopped
from serve_app.api.files import MOST_OF_A_JOB
from serve_app.api.openai.videos import poll_after
from serve_app.jobs.job import Job, Status
from serve_app.jobs.reads import Seen
from serve_app.services import Services
from serve_app.storage import keys
from serve_app.storage.s3 import S3Storage
from tests.fakes.http_peer import HttpPeer
from tests.fakes.s3 import make_bucket, s3_server
from tests.node import installed, ran
from tests.parts.serve_app.api.conftest import KEY
from tests.parts.serve_app.api.live_api import live_api
from tests.parts.serve_app.jobs.samples import (
    completed,
    execute,
    failure,
    new_job,
    outcome,
    running,
    waiting,
)

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

UNKNOWN = "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"
NODE = Path(__file__).parents[3] / "clients" / "openai-node"
WithKey = Callable[..., Awaitable[httpx.AsyncClient]]


def picture() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(written, "PNG")
    return written.getvalue()


PICTURE = picture()


async def create(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/videos", json={"prompt": "A storm at sea"} | body)


async def job_of(answer: httpx.Response, services: Services) -> Job:
    assert answer.status_code == 200, answer.text
    job = await services.store.get(answer.json()["id"])
    assert job is not None
    return job


async def uploaded(job: Job, services: Services, folder: Path) -> bytes:
    """The picture that came with it."""
    assert job.sources == {}
    path = folder / job.id
    await services.storage.get_file(job.uploads["image"], path, 2**20)
    return path.read_bytes()


# -------------------------------------------------------------------- create


async def test_a_prompt_is_enough(client: httpx.AsyncClient, services: Services) -> None:
    answer = await create(client)
    job = await job_of(answer, services)
    assert (job.model, job.status, job.params["prompt"]) == ("ltx2", Status.QUEUED, "A storm at sea")
    assert (job.sources, job.uploads, job.params["width"], job.params["duration"]) == ({}, {}, None, 5)
    assert answer.json() == {
        "id": job.id,
        "object": "video",
        "model": "ltx2",
        "status": "queued",
        "progress": 0,
        "created_at": int(job.created_at.timestamp()),
        "completed_at": None,
        "expires_at": None,
        "prompt": "A storm at sea",
        "seconds": "5",
        "size": "auto",
        "remixed_from_video_id": None,
        "error": None,
    }
    assert answer.headers["openai-poll-after-ms"] == "1000"
    assert answer.headers["location"] == f"/v1/videos/{job.id}"
    assert job.request_id == answer.headers["x-request-id"]
    assert (await client.get(f"/v1/videos/{job.id}")).json() == answer.json()


@pytest.mark.parametrize("form", [False, True])
async def test_the_protocols_words_and_our_own(client: httpx.AsyncClient, services: Services, form: bool) -> None:
    said: dict[str, Any] = {
        "model": "ltx2",
        "prompt": "A storm",
        "seconds": "8",
        "size": "1280x720",
        "negative_prompt": "rain",
        "seed": 7,
        "recipe": "standard",
        "user_id": "ann",
    }
    if form:
        fields = {name: (None, str(value)) for name, value in said.items()}
        answer = await client.post("/v1/videos", files={**fields, "metadata[shot]": (None, "12")})
    else:
        answer = await client.post("/v1/videos", json={**said, "metadata": {"shot": "12"}})
    job = await job_of(answer, services)
    asked = {"prompt": "A storm", "negative_prompt": "rain", "duration": 8, "width": 1280, "height": 720, "seed": 7}
    assert job.params.items() >= asked.items()
    assert (job.params["recipe"], job.user_id, job.metadata) == ("standard", "ann", {"shot": "12"})
    assert (answer.json()["seconds"], answer.json()["size"]) == ("8", "1280x720")


@pytest.mark.parametrize(
    ("field", "value", "param", "found"),
    [
        ("seconds", 4, "duration", 4),
        ("seconds", 4.0, "duration", 4),
        ("seconds", "4", "duration", 4),
        ("seconds", None, "duration", 5),
        ("size", "1080x1920", "height", 1920),
        ("size", "auto", "width", None),
        ("size", None, "width", None),
        ("model", None, "prompt", "A storm at sea"),
    ],
)
async def test_lengths_and_sizes_as_clients_write_them(
    client: httpx.AsyncClient, services: Services, field: str, value: object, param: str, found: object
) -> None:
    job = await job_of(await create(client, **{field: value}), services)
    assert job.params[param] == found


DATA_URL = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
LINK = "https://pictures.example/a.png"


@pytest.mark.parametrize("reference", [LINK, {"image_url": LINK}, {"image_url": LINK, "file_id": None}])
async def test_a_picture_by_its_url(client: httpx.AsyncClient, services: Services, reference: object) -> None:
    job = await job_of(await create(client, input_reference=reference), services)
    assert (job.sources, job.uploads) == ({"image": LINK}, {})


@pytest.mark.parametrize("reference", [DATA_URL, {"image_url": DATA_URL}])
async def test_a_picture_as_a_data_url(
    client: httpx.AsyncClient, services: Services, tmp_path: Path, reference: object
) -> None:
    job = await job_of(await create(client, input_reference=reference), services)
    assert await uploaded(job, services, tmp_path) == PICTURE


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("input_reference", ("a.png", PICTURE, "image/png")),
        ("input_reference", (None, PICTURE, "image/png")),
        ("input_reference", (None, DATA_URL)),
        ("input_reference[image_url]", (None, DATA_URL)),
        ("input_reference[image_url]", (None, LINK)),
        ("input_reference", (None, LINK)),
    ],
)
async def test_a_picture_in_a_form(
    client: httpx.AsyncClient, services: Services, tmp_path: Path, name: str, part: Any
) -> None:
    answer = await client.post("/v1/videos", files={"prompt": (None, "A storm"), name: part})
    job = await job_of(answer, services)
    if LINK in part:
        assert (job.sources, job.uploads) == ({"image": LINK}, {})
    else:
        assert await uploaded(job, services, tmp_path) == PICTURE


async def test_a_picture_with_a_name_in_another_alphabet_alone(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    begin = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (b"prompt", b"A storm")
    named = b"--x\r\nContent-Disposition: form-data; name=input_reference; filename*=UTF-8''%C3%A4.png\r\n\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await client.post("/v1/videos", content=begin + named + PICTURE + b"\r\n--x--\r\n", headers=headers)
    assert await uploaded(await job_of(answer, services), services, tmp_path) == PICTURE


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"prompt": None}, "prompt", "required"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"model": 7}, "model", "must be a string"),
        ({"seconds": 0}, "seconds", "greater than or equal to 1"),
        ({"seconds": "12"}, "seconds", "less than or equal to 10"),
        ({"seconds": "4.5"}, "seconds", "whole number"),
        ({"seconds": True}, "seconds", "whole number"),
        ({"size": "1281x720"}, "size", "multiple of 2"),
        ({"size": "4096x2160"}, "size", "less than or equal to 1920"),
        ({"size": "1920x1920", "seconds": 10}, "size", "more than is made"),
        ({"size": "large"}, "size", "width x height"),
        ({"size": [1280, 720]}, "size", "width x height"),
        ({"seed": "7"}, "seed", "valid integer"),
        ({"colour": "red"}, "colour", "not permitted"),
        ({"duration": 5}, "duration", "say `seconds`"),
        ({"width": 64}, "width", "say `size`"),
        ({"image_url": LINK}, "image_url", "say `input_reference`"),
        ({"job_id": UNKNOWN}, "job_id", "not a field here"),
        ({"input_reference": {"file_id": "file-1"}}, "input_reference", "no files are kept here"),
        ({"input_reference": {}}, "input_reference", "image_url: required"),
        ({"input_reference": {"url": LINK}}, "input_reference", "url: unknown"),
        ({"input_reference": "ftp://x.example/a"}, "input_reference", "URL scheme"),
        ({"input_reference": 7}, "input_reference", "URL"),
        ({"input_reference": "data:image/png;base64,%"}, "input_reference", "data URI"),
    ],
)
async def test_what_is_wrong_is_told_by_its_field(
    client: httpx.AsyncClient, services: Services, change: dict[str, Any], param: str, said: str
) -> None:
    answer = await create(client, **change)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_request", param)
    assert said in error["message"]
    assert answer.json()["detail"] == error["message"]
    assert await services.store.list() == []


@pytest.mark.parametrize("model", ["sora-2", "wav2lip", ""])
async def test_a_model_that_does_not_exist_is_told_as_there(client: httpx.AsyncClient, model: str) -> None:
    """One that makes no video of a prompt does not, here."""
    answer = await create(client, model=model)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("model_not_found", "invalid_request_error", "model")
    assert error["message"] == f"The model `{model}` does not exist. There is `ltx2`."


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("application/json", b"[]"), ("application/json", b"{"), ("text/plain", b"prompt=x"), (None, b"prompt=x")],
)
async def test_a_body_that_is_neither_object_nor_form(
    client: httpx.AsyncClient, content_type: str | None, body: bytes
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = await client.post("/v1/videos", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


async def test_json_by_another_name(client: httpx.AsyncClient, services: Services) -> None:
    headers = {"content-type": "application/vnd.api+json"}
    await job_of(await client.post("/v1/videos", content=b'{"prompt": "A storm"}', headers=headers), services)


async def test_a_picture_that_comes_twice_is_refused(client: httpx.AsyncClient) -> None:
    parts = {"prompt": (None, "x"), "input_reference": ("a.png", PICTURE), "input_reference[image_url]": (None, LINK)}
    answer = await client.post("/v1/videos", files=parts)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input_reference")


async def test_the_same_request_again_makes_no_second_video(client: httpx.AsyncClient, services: Services) -> None:
    async def ask(content: bytes, **fields: str) -> httpx.Response:
        parts = {name: (None, value) for name, value in {"prompt": "A storm", **fields}.items()}
        file = {"input_reference": ("a.png", content, "image/png")}
        return await client.post("/v1/videos", files={**parts, **file}, headers={"idempotency-key": "k"})

    first, again = await ask(PICTURE), await ask(PICTURE)
    assert first.status_code == again.status_code == 200
    assert again.json() == first.json()
    assert (again.headers["idempotency-replayed"], again.headers["location"]) == ("true", first.headers["location"])
    assert len(await services.store.list()) == 1
    for other in (await ask(PICTURE + b"x"), await ask(PICTURE, seed="8")):
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    # The one that came again left nothing in the store.
    assert len(await services.storage.page("inputs/", "", 10)) == 1


# -------------------------------------------------------------------- look


async def test_each_state_in_the_protocols_words(
    client: httpx.AsyncClient, services: Services, engine: AsyncEngine
) -> None:
    async def video(job_id: str) -> dict[str, Any]:
        return dict((await client.get(f"/v1/videos/{job_id}")).json())

    made = await completed(services.store, params={"prompt": "hi", "duration": 5, "width": 640, "height": 384})
    found = await video(made)
    job = await services.store.get(made)
    ended = int(job.completed_at.timestamp())
    assert (found["status"], found["progress"], found["completed_at"]) == ("completed", 100, ended)
    # Kept for a day; and its size is that of the file.
    assert (found["expires_at"], found["size"], found["seconds"]) == (ended + 24 * 3600, "64x64", "5")

    lease = await running(services.store)
    await execute(engine, "UPDATE jobs SET progress = 41.9 WHERE id = :id", id=lease.job_id)
    found = await video(lease.job_id)
    assert (found["status"], found["progress"], found["completed_at"]) == ("in_progress", 41, None)
    await services.store.fail(failure(lease, "no_face_found", transient=False))
    found = await video(lease.job_id)
    assert (found["status"], found["expires_at"]) == ("failed", None)
    assert found["error"] == {"code": "no_face_found", "message": "because of no_face_found"}

    job = await waiting(services.store)
    assert (await video(job.id))["status"] == "queued"
    cancelled = await client.post(f"/v1/videos/{job.id}/cancel")
    assert cancelled.status_code == 200
    assert (cancelled.json()["status"], cancelled.json()["error"]["code"]) == ("failed", "cancelled")
    assert await video(job.id) == cancelled.json()


async def test_what_another_model_made_is_shown_as_well(client: httpx.AsyncClient, services: Services) -> None:
    """Its length is not asked for but found."""
    job = await services.store.submit(new_job(model="wav2lip", params={"smoothing": True}))
    found = (await client.get(f"/v1/videos/{job.id}")).json()
    assert (found["model"], found["prompt"], found["seconds"], found["size"]) == ("wav2lip", None, "auto", "auto")
    made = await completed(services.store, params={})
    found = (await client.get(f"/v1/videos/{made}")).json()
    assert (found["seconds"], found["size"]) == ("1.04", "64x64")


@pytest.mark.parametrize("fps", ["0/0", "0/1", "x", 24.5, [24], "1/0"])
async def test_one_row_that_says_nonsense_costs_nobody_the_list(
    client: httpx.AsyncClient, services: Services, engine: AsyncEngine, fps: object
) -> None:
    made = await completed(services.store, params={})
    await execute(engine, "UPDATE jobs SET media = jsonb_set(media, '{fps}', CAST(:fps AS jsonb))", fps=json.dumps(fps))
    answer = await client.get("/v1/videos")
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["data"]
    assert (found["id"], found["size"]) == (made, "64x64")
    assert found["seconds"] == ("1.02" if fps == 24.5 else "auto")


async def test_a_video_of_which_nothing_is_known_is_there(client: httpx.AsyncClient, services: Services) -> None:
    """What its replica said of it was nonsense, and was not written."""
    lease = await running(services.store, params={})
    await services.store.complete(outcome(lease).model_copy(update={"media": None}), f"outputs/{lease.job_id}/1/o.mp4")
    found = (await client.get(f"/v1/videos/{lease.job_id}")).json()
    assert (found["status"], found["seconds"], found["size"]) == ("completed", "auto", "auto")
    found = (await client.get(f"/api/v1/jobs/{lease.job_id}")).json()
    assert (found["status"], found.get("media")) == ("completed", None)


async def test_a_running_video_is_cancelled_at_its_next_step_and_only_then_deleted(
    client: httpx.AsyncClient, services: Services
) -> None:
    lease = await running(services.store)
    refused = await client.delete(f"/v1/videos/{lease.job_id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_finished")
    assert "/cancel" in refused.json()["error"]["message"]
    # Else a stock client would try it three times.
    assert refused.headers["x-should-retry"] == "false"
    asked = await client.post(f"/v1/videos/{lease.job_id}/cancel")
    assert (asked.status_code, asked.json()["status"]) == (200, "in_progress")
    await services.store.stopped(Stopped(lease=lease, timings={}))
    gone = await client.delete(f"/v1/videos/{lease.job_id}")
    assert (gone.status_code, gone.json()) == (200, {"id": lease.job_id, "object": "video.deleted", "deleted": True})
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/cancel")):
        answer = await client.request(method, f"/v1/videos/{lease.job_id}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


async def test_what_waits_is_deleted_and_what_waits_for_uploads_is_not_there(
    client: httpx.AsyncClient, services: Services
) -> None:
    job = await waiting(services.store)
    assert (await client.delete(f"/v1/videos/{job.id}")).status_code == 200
    assert await services.store.get(job.id) is None
    opened = await services.store.open_upload(None)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("POST", "/cancel")):
        answer = await client.request(method, f"/v1/videos/{opened.id}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
    assert (await services.store.get(opened.id)).status is Status.UPLOADING
    assert (await client.get("/v1/videos")).json()["data"] == []


@pytest.mark.parametrize(
    ("eta_s", "ms"), [(None, "1000"), (0.0, "500"), (4.1, "512"), (20.0, "2500"), (3600.0, "5000")]
)
def test_when_to_ask_again_follows_from_when_it_will_be_there(eta_s: float | None, ms: str) -> None:
    assert poll_after(eta_s) == {"openai-poll-after-ms": ms}


async def test_only_what_has_not_ended_is_to_be_asked_for_again(client: httpx.AsyncClient, services: Services) -> None:
    job = await waiting(services.store)
    assert "openai-poll-after-ms" in (await client.get(f"/v1/videos/{job.id}")).headers
    made = await completed(services.store)
    assert "openai-poll-after-ms" not in (await client.get(f"/v1/videos/{made}")).headers


# -------------------------------------------------------------------- list


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_have_each_video_once(client: httpx.AsyncClient, services: Services, order: str) -> None:
    ids = [(await create(client)).json()["id"] for _ in range(5)]
    await services.store.open_upload(None)
    expected = ids if order == "asc" else ids[::-1]
    found: list[str] = []
    after: dict[str, str] = {}
    for more in (True, True, False):
        page = (await client.get("/v1/videos", params={"limit": 2, "order": order, **after})).json()
        here = [video["id"] for video in page["data"]]
        assert (page["object"], page["has_more"]) == ("list", more)
        assert (page["first_id"], page["last_id"]) == (here[0], here[-1])
        found += here
        after = {"after": page["last_id"]}
    assert found == expected
    assert (await client.get("/v1/videos")).json()["data"][0] == (await client.get(f"/v1/videos/{ids[-1]}")).json()


async def test_a_list_of_nothing(client: httpx.AsyncClient) -> None:
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert (await client.get("/v1/videos")).json() == empty


@pytest.mark.parametrize("limit", ["0", "101", "x"])
async def test_a_limit_has_limits(client: httpx.AsyncClient, limit: str) -> None:
    answer = await client.get("/v1/videos", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "limit")


async def test_after_a_video_that_is_not_ones_own(
    client: httpx.AsyncClient, with_key: WithKey, services: Services
) -> None:
    """Not an empty page: that would say that there are no more."""
    others = (await create(client)).json()["id"]
    opened = await services.store.open_upload(None)
    ann = await with_key()
    mine = (await create(ann)).json()["id"]
    assert [video["id"] for video in (await ann.get("/v1/videos")).json()["data"]] == [mine]
    for after in (UNKNOWN, others, opened.id):
        answer = await ann.get("/v1/videos", params={"after": after})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_cursor")
        assert answer.json()["error"]["param"] == "after"


# -------------------------------------------------------------------- content


async def finished(services: Services, *, poster: bool = True) -> Job:
    """A job whose video and first frame are in the store."""
    lease = await running(services.store)
    job = await services.store.get(lease.job_id)
    video, first = keys.output(job.folder, 1), keys.poster(job.folder, 1)
    for key, content in ((video, b"0123456789"), (first, b"frame")):
        path = services.settings.data_dir / "media-of-the-test"
        path.write_bytes(content)
        await services.storage.put_file(key, path, "video/mp4")
    await services.store.complete(outcome(lease), video, first if poster else None)
    return job


async def test_a_video_is_downloaded_whole_in_parts_or_not_again(client: httpx.AsyncClient, services: Services) -> None:
    job = await finished(services)
    url = f"/v1/videos/{job.id}/content"
    whole = await client.get(url, headers={"accept": "application/binary"})
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, b"0123456789", "video/mp4")
    assert whole.headers["content-disposition"] == f'attachment; filename="{job.id}.mp4"'
    assert whole.headers["accept-ranges"] == "bytes"
    part = await client.get(url, headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    known = await client.get(url, headers={"if-none-match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    beyond = await client.get(url, headers={"range": "bytes=10-"})
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (416, "range_not_satisfiable")


async def test_who_knows_the_id_of_anothers_video_keeps_nobody_from_it(
    client: httpx.AsyncClient, with_key: WithKey, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await with_key()
    get, all_asked, release, asked = services.reads.get, asyncio.Event(), asyncio.Event(), 0

    async def held_for_ann(job_id: str, *, of_key: str | None = None) -> Seen | None:
        nonlocal asked
        if of_key == ann.headers["x-key-id"]:
            asked += 1
            if asked == MOST_OF_A_JOB:
                all_asked.set()
            await release.wait()
        return await get(job_id, of_key=of_key)

    monkeypatch.setattr(services.reads, "get", held_for_ann)
    url = f"/v1/videos/{(await finished(services)).id}/content"
    held = [asyncio.create_task(ann.get(url)) for _ in range(MOST_OF_A_JOB)]
    try:
        async with asyncio.timeout(20):
            await all_asked.wait()
        assert (await client.get(url)).status_code == 200
        assert (await ann.get(url)).status_code == 503
    finally:
        release.set()
    assert {answer.status_code for answer in await asyncio.gather(*held)} == {404}


async def test_a_thumbnail_is_the_first_frame_and_a_sprite_sheet_is_not_made(
    client: httpx.AsyncClient, services: Services
) -> None:
    job = await finished(services)
    url = f"/v1/videos/{job.id}/content"
    frame = await client.get(url, params={"variant": "thumbnail"})
    assert (frame.status_code, frame.content, frame.headers["content-type"]) == (200, b"frame", "image/webp")
    sheet = await client.get(url, params={"variant": "spritesheet"})
    assert (sheet.status_code, sheet.json()["error"]["code"]) == (501, "not_supported")
    assert sheet.headers["x-should-retry"] == "false"
    other = await client.get(url, params={"variant": "gif"})
    assert (other.status_code, other.json()["error"]["param"]) == (422, "variant")
    plain = await finished(services, poster=False)
    none = await client.get(f"/v1/videos/{plain.id}/content", params={"variant": "thumbnail"})
    assert (none.status_code, none.json()["error"]["code"]) == (404, "not_found")


async def test_a_video_that_is_not_there_yet_has_no_content(client: httpx.AsyncClient, services: Services) -> None:
    job = await waiting(services.store)
    answer = await client.get(f"/v1/videos/{job.id}/content")
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "The video is not there: it is queued.")


async def test_what_was_made_elsewhere_is_there(client: httpx.AsyncClient, services: Services) -> None:
    job = await waiting(services.store)
    await services.store.end_externally(job.id, video_url="https://w.example/v.mp4")
    answer = await client.get(f"/v1/videos/{job.id}/content")
    assert (answer.status_code, answer.headers["location"]) == (302, "https://w.example/v.mp4")


async def test_from_a_bucket_clients_are_sent_there_without_their_key(
    client: httpx.AsyncClient, services: Services
) -> None:
    """The bucket would refuse a request with a key beside the signature."""
    with s3_server() as endpoint:
        bucket = make_bucket(endpoint)
        store = S3Storage(endpoint=endpoint, access_key="k", secret_key="s", bucket=bucket, region="us-east-1")
        object.__setattr__(services, "storage", store)
        job = await finished(services)
        answer = await client.get(f"/v1/videos/{job.id}/content")
        assert (answer.status_code, answer.headers["cache-control"]) == (302, "no-store")
        link = httpx.URL(answer.headers["location"])
        assert str(link).startswith(f"{endpoint}/{bucket}/outputs/{job.folder}/1/output.mp4?")
        async with httpx.AsyncClient() as reader:
            found = await reader.get(link, headers={"range": "bytes=2-4"})
        assert (found.status_code, found.content) == (206, b"234")
        frame = await client.get(f"/v1/videos/{job.id}/content", params={"variant": "thumbnail"})
        assert "/1/poster.webp?" in frame.headers["location"]


@pytest.mark.parametrize("language", ["python", "node"])
async def test_stock_clients_follow_a_link_elsewhere_and_keep_their_key(
    services: Services, language: str, tmp_path: Path
) -> None:
    """Else a bucket would have to be read through the service."""
    project = installed(NODE, tmp_path) if language == "node" else None
    job = await waiting(services.store)
    with HttpPeer() as elsewhere, live_api(services.settings.model_copy(update={"port": 0})) as url:
        elsewhere.files["/v.mp4"] = b"0123456789"
        await services.store.end_externally(job.id, video_url=f"{elsewhere.url}/v.mp4")
        if project is None:
            async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
                found = (await client.videos.download_content(job.id)).text
        else:
            variables = {"SERVICE_URL": f"{url}/v1", "SERVICE_KEY": KEY}
            found = await asyncio.to_thread(ran, ["node", "download.mjs", job.id], project, 60, variables)
        assert found.strip() == "0123456789"
        assert "authorization" not in elsewhere.asked["/v.mp4"]


# -------------------------------------------------------------------- models, and what there is not


async def test_models_are_those_that_can_be_asked_for(client: httpx.AsyncClient) -> None:
    model = {"id": "ltx2", "object": "model", "created": 0, "owned_by": "video-api"}
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [model]}
    assert (await client.get("/v1/models/ltx2")).json() == model
    answer = await client.get("/v1/models/wav2lip")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"/v1/videos/{UNKNOWN}/remix"),
        ("POST", "/v1/videos/edits"),
        ("POST", "/v1/videos/extensions"),
        ("POST", "/v1/videos/characters"),
        ("GET", "/v1/videos/characters/char_1"),
    ],
)
async def test_what_no_model_can_do_is_said_in_the_protocols_shape(
    anyone: httpx.AsyncClient, with_key: WithKey, method: str, path: str
) -> None:
    """Also where a video comes along, which is not read."""
    right, wrong = ("generate", "read") if method == "POST" else ("read", "generate")
    client, other = await with_key(scopes=[right]), await with_key(scopes=[wrong])
    body = b"x" * 200_000 if method == "POST" else b""
    answer = await client.request(method, path, content=body)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (501, "false")
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "not_supported", None)
    assert (await other.request(method, path)).status_code == 403
    assert (await anyone.request(method, path)).status_code == 401


async def test_every_error_below_v1_has_the_protocols_shape(
    anyone: httpx.AsyncClient, client: httpx.AsyncClient, with_key: WithKey
) -> None:
    limited = await with_key(limits={"requests_per_minute": 1})
    await limited.get("/v1/models")
    asked = [
        (await anyone.get("/v1/models"), 401, "authentication_error", "unauthorized"),
        (await (await with_key(scopes=["read"])).post("/v1/videos"), 403, "permission_error", "forbidden"),
        (await limited.get("/v1/models"), 429, "rate_limit_error", "rate_limited"),
        (await client.get("/v1/nothing"), 404, "invalid_request_error", "not_found"),
        (await client.put("/v1/videos"), 405, "invalid_request_error", "method_not_allowed"),
        (await client.post("/v1/videos", content=b"x" * 15_000_000), 413, "invalid_request_error", "payload_too_large"),
    ]
    for answer, status, kind, code in asked:
        body = answer.json()
        assert (answer.status_code, body["error"]["type"], body["error"]["code"]) == (status, kind, code), body
        assert body["error"]["message"] == body["detail"]
        assert answer.headers["content-type"] == "application/problem+json"
        assert body["request_id"] == answer.headers["x-request-id"]
    assert asked[4][0].headers["allow"] == "GET, POST"
    # Not elsewhere.
    assert (await client.get("/v2/nothing")).json()["error"] == "Not found"
