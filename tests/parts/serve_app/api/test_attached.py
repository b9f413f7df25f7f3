"""Files that come with the request itself: in a form, or as data URIs in its JSON."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from serve_app.api import attached, data_uris
from serve_app.api.attached import Shelf, parse
from serve_app.api.data_uris import decoded, is_data_uri
from serve_app.api.errors import InvalidRequest
from serve_app.api.spool import Spool
from serve_app.jobs.job import Job, Status
from serve_app.services import Services
from serve_app.storage.base import StorageError
from tests.parts.serve_app.api.test_api_media import put, ticket
from tests.parts.serve_app.jobs.samples import fetch

#: Nobody looks at them here, and they have all bytes. The large ones do not fit into memory, by the gate's measure.
PIXELS = bytes(range(256)) * 40
LARGE = bytes(range(256)) * 4000
WAYS = ("form", "base64", "escaped")
#: A form by hand.
FORM = {"content-type": "multipart/form-data; boundary=x"}
HEAD = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'


def as_base64(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def as_escapes(data: bytes) -> str:
    return f"data:,{quote(data, safe='')}"


async def send(
    client: httpx.AsyncClient, way: str, data: bytes, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    """Ask for a video of this picture, in one of ``WAYS``."""
    if way == "form":
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        files = {"image": ("x.html", data, "text/html")}
        return await client.post("/api/v1/generate", data={"model": "ltx2"} | texts, files=files, headers=headers)
    uri = as_base64(data) if way == "base64" else as_escapes(data)
    body = {"model": "ltx2", "image_url": uri} | fields
    return await client.post("/api/v1/generate", json=body, headers=headers)


async def form(client: httpx.AsyncClient, *parts: tuple[str, Any]) -> httpx.Response:
    """Ask with these parts: texts, or files as httpx has them."""
    files = [(name, (None, part) if isinstance(part, str) else part) for name, part in parts]
    return await client.post("/api/v1/generate", files=files)


async def job_of(services: Services, answer: httpx.Response) -> Job:
    assert answer.status_code == 201, answer.text
    job = await services.store.get(answer.json()["job_id"])
    assert job is not None
    return job


async def content(services: Services, key: str, tmp_path: Path) -> bytes:
    await services.storage.get_file(key, tmp_path / "got", 20_000_000)
    return (tmp_path / "got").read_bytes()


async def objects(services: Services) -> set[str]:
    return {found.key for found in await services.storage.page("inputs/", "", 1000)}


def left_behind(services: Services) -> list[Path]:
    """By requests, where they are taken apart."""
    return [path for path in services.settings.data_dir.glob("arriving/intake-*/*") if path.name != "lock"]


async def nothing_left(services: Services) -> bool:
    return not left_behind(services)


async def until(true: Callable[[], Awaitable[object]]) -> None:
    """Wait for it; a test that waits for ever is ended."""
    while True:
        if await true():
            return
        await asyncio.sleep(0.01)


# -------------------------------------------------------------------- what is taken


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", [PIXELS, LARGE], ids=["small", "large"])
async def test_a_file_in_the_request_is_an_upload_of_the_job(
    client: httpx.AsyncClient, services: Services, engine: AsyncEngine, tmp_path: Path, way: str, data: bytes
) -> None:
    with capture_logs() as said:
        answer = await send(client, way, data, prompt="A storm", duration=3)
        job = await job_of(services, answer)
        shown = (await client.get(f"/api/v1/jobs/{job.id}")).text
    assert (job.params["prompt"], job.params["duration"]) == ("A storm", 3)
    assert (job.sources, job.uploads) == ({}, {"image": f"inputs/{job.folder}/brought/{job.nonce}/image"})
    assert await content(services, job.uploads["image"], tmp_path) == data
    assert await objects(services) == set(job.uploads.values())
    assert left_behind(services) == []
    # Nothing of it is anywhere else.
    row = await fetch(engine, "SELECT to_jsonb(jobs) FROM jobs")
    for text in (answer.text, shown, str(said), str(row)):
        assert "data:" not in text
        assert "base64" not in text


async def test_json_may_be_written_in_any_way(client: httpx.AsyncClient, services: Services, tmp_path: Path) -> None:
    """PHP writes each slash with a backslash; others write any character by its number."""
    uri = as_base64(LARGE).replace("/", "\\/").replace("+", "\\u002B")
    body = f'{{"prompt": "say \\"data:,x\\"", "image_url": "{uri}", "model": "ltx2"}}'
    headers = {"content-type": "application/json; charset=utf-8"}
    job = await job_of(services, await client.post("/api/v1/generate", content=body, headers=headers))
    assert job.params["prompt"] == 'say "data:,x"'
    assert await content(services, job.uploads["image"], tmp_path) == LARGE


@pytest.mark.parametrize("body", [r'{"x": "\u0064ATa\u003a,"}', r'{"x": "D\u0041\u0054a\u003A,"}', '{"x": "data:,"}'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-be"])
def test_wherever_a_file_may_be_is_seen(body: str, encoding: str) -> None:
    assert is_data_uri(json.loads(body.encode(encoding))["x"])
    assert attached._MAY_HAVE_FILES.search(body.encode(encoding))
    # Of most texts it is seen that there is none.
    assert not attached._MAY_HAVE_FILES.search(json.dumps({"prompt": "données: é, 数据:"}).encode())


async def test_a_text_that_begins_like_a_data_uri_is_a_text(client: httpx.AsyncClient, services: Services) -> None:
    job = await job_of(services, await send(client, "base64", PIXELS, prompt="data: the movie, part 2"))
    assert job.params["prompt"] == "data: the movie, part 2"


async def test_the_texts_of_a_form_mean_what_they_mean_in_json(client: httpx.AsyncClient, services: Services) -> None:
    answer = await form(
        client,
        ("model", "ltx2"),
        ("prompt", "5"),
        ("duration", "3"),
        ("seed", "7"),
        ("expires_after", "60.5"),
        ("metadata[shot]", "12"),
        ("metadata[of]", ""),
        ("image_url", "https://pictures.example/a.png"),
    )
    job = await job_of(services, answer)
    assert (job.params["prompt"], job.params["duration"], job.params["seed"]) == ("5", 3, 7)
    assert (job.expires_after, job.metadata) == (60.5, {"shot": "12", "of": ""})
    assert job.sources == {"image": "https://pictures.example/a.png"}
    answer = await form(
        client,
        ("model", "wav2lip"),
        ("pads", "[1, 2, 3, 4]"),
        ("face_box", "0"),
        ("face_box", "100"),
        ("face_box", "0"),
        ("face_box", "80"),
        ("smoothing", "false"),
        ("video_url", as_base64(PIXELS)),
        ("audio", ("a.mp3", LARGE)),
        ("metadata", '{"shot": "12"}'),
    )
    job = await job_of(services, answer)
    assert (job.params["pads"], job.params["face_box"]) == ([1, 2, 3, 4], [0, 100, 0, 80])
    assert job.params["smoothing"] is False
    assert (job.sources, job.uploads.keys(), job.metadata) == ({}, {"video", "audio"}, {"shot": "12"})


async def test_an_empty_field_of_a_form_means_a_video_without_the_picture(
    client: httpx.AsyncClient, services: Services
) -> None:
    job = await job_of(services, await form(client, ("model", "ltx2"), ("image_url", "")))
    assert (job.sources, job.uploads) == ({}, {})
    # A page may have a field for each: what is not filled in says nothing.
    job = await job_of(services, await form(client, ("model", "ltx2"), ("image_url", ""), ("image", ("a", PIXELS))))
    assert (job.sources, job.uploads.keys()) == ({}, {"image"})
    # What a browser sends where no file was chosen is none: that it is left out on purpose has to be said.
    body = HEAD % b"model" + b"ltx2\r\n" + HEAD % b'image"; filename="' + b"\r\n--x--\r\n"
    answer = await client.post("/api/v1/generate", content=body, headers=FORM)
    assert (answer.status_code, answer.json()["param"]) == (422, "image_url")


# -------------------------------------------------------------------- what is not


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([("duration", "five")], "duration"),
        ([("duration", "11")], "duration"),
        ([("duration", "2.5")], "duration"),
        ([("duration", '"5"')], "duration"),
        ([("duration", "")], "duration"),
        ([("seed", "")], "seed"),
        ([("seed", "null")], "seed"),
        ([("user_id", "")], "user_id"),
        ([("duration", "[" * 9000)], "duration"),
        ([("priority", "true")], "priority"),
        ([("expires_after", "NaN")], "expires_after"),
        ([("colour", "red")], "colour"),
        ([("prompt", "a"), ("prompt", "b")], "prompt"),
        ([("prompt", ("p.txt", b"A storm"))], "prompt"),
        ([("prompt", "a\0b")], "prompt"),
        ([("prompt", (None, b"\xff"))], "prompt"),
        ([("image", "https://pictures.example/a.png")], "image"),
        ([("duration", "1"), ("duration", "2")], "duration"),
        ([("audio", ("a.wav", PIXELS))], "audio"),
        ([("image", ("b.png", PIXELS))], "image"),
        ([("image_url", "https://pictures.example/a.png")], "image"),
        ([("image_url", as_base64(PIXELS))], "image"),
        ([("metadata[shot]", "a" * 513)], "metadata.shot"),
        ([("metadata[shot]", "1"), ("metadata", "{}")], "metadata"),
        ([("model", "sora")], "model"),
    ],
)
async def test_a_bad_part_is_named(
    client: httpx.AsyncClient, services: Services, parts: list[tuple[str, Any]], param: str
) -> None:
    model = [] if parts[0][0] == "model" else [("model", "ltx2")]
    answer = await form(client, *model, ("image", ("a.png", PIXELS)), *parts)
    assert answer.status_code == 422, answer.text
    assert (answer.json()["code"], answer.json()["param"]) == ("invalid_request", param)
    assert await services.store.list() == []
    assert await objects(services) == set()
    assert left_behind(services) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_url", "data:image/png;base64"),
        ("image_url", "data:image/png;base64,!!!!"),
        ("image_url", "data:image/png;base64,iVBO="),
        ("image_url", "data:image/png;base64,iVBOR"),
        ("image_url", "data:,100%"),
        ("image_url", "data:,%zz"),
        ("image_url", "data:,ü"),
        ("image_url", as_base64(LARGE) + "A"),
        ("prompt", as_base64(LARGE)),
        ("webhook_url", as_base64(PIXELS)),
        ("webhook_url", as_base64(LARGE)),
        ("video_url", as_base64(PIXELS)),
        ("colour", as_base64(LARGE)),
        ("metadata", {"image_url": as_base64(LARGE)}),
        ("metadata", {as_base64(LARGE): "a"}),
    ],
)
async def test_a_bad_data_uri_is_named(
    client: httpx.AsyncClient, services: Services, field: str, value: object
) -> None:
    body = {"model": "ltx2", "image_url": as_base64(PIXELS), field: value}
    answer = await client.post("/api/v1/generate", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["param"].split(".")[0] == field
    assert len(answer.text) < 2000
    assert await services.store.list() == []
    assert await objects(services) == set()
    assert left_behind(services) == []


async def test_what_is_neither_json_nor_a_form_is_refused(client: httpx.AsyncClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x", ""):
        headers = {"content-type": kind}
        answer = await client.post("/api/v1/generate", content=b"model=ltx2", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@given(data=st.binary(max_size=500), head=st.sampled_from(["", "text/plain", "image/png;charset=utf-8"]))
@example(data=b"=%==3D%3D=\r\n", head="")
def test_every_byte_comes_through_a_data_uri(data: bytes, head: str) -> None:
    encoded = base64.b64encode(data).decode()
    assert b"".join(decoded([f"data:{head};base64,{encoded}"], "x")) == data
    assert b"".join(decoded([f"DATA:{head};BASE64,{encoded.rstrip('=')}"], "x")) == data
    assert b"".join(decoded([f"data:{head};base64,{quote(encoded, safe='')}"], "x")) == data
    assert b"".join(decoded([f"data:{head};base64,{' '.join(encoded)}\n"], "x")) == data
    assert b"".join(decoded([f"data:{head},{quote(data, safe='')}"], "x")) == data


@given(
    data=st.binary(max_size=600),
    forms=st.lists(st.sampled_from(["{}", "\\u{:04x}", "\\u{:04X}"]), min_size=1, max_size=9),
)
@pytest.mark.parametrize("way", [as_base64, as_escapes])
def test_a_large_data_uri_may_be_escaped_anywhere(
    tmp_path_factory: pytest.TempPathFactory, way: Callable[[bytes], str], data: bytes, forms: list[str]
) -> None:
    """It is read piece by piece."""
    letters = zip(way(data).removeprefix("data:"), cycle(forms), strict=False)
    written = "".join(letter if form == "{}" else form.format(ord(letter)) for letter, form in letters)
    shelf = Shelf(Spool(tmp_path_factory.getbasetemp() / "escaped", most=1000))
    with pytest.MonkeyPatch.context() as patch, shelf.opened:
        patch.setattr(data_uris, "_LONG", 1)
        patch.setattr(data_uris, "_CHUNK", 200)
        found = parse(f'{{"y": "\\\\\\"{{", "x": "data:{written}"}}'.encode(), ("x",), shelf)
        assert found["x"].path.read_bytes() == data


@given(st.text(max_size=50).map("data:".__add__) | st.text("data:;base64,%A=\n", max_size=50).map("data:,".__add__))
def test_a_data_uri_is_read_or_refused(text: str) -> None:
    with suppress(InvalidRequest):
        assert isinstance(b"".join(decoded([text], "x")), bytes)


# -------------------------------------------------------------------- once, and at last


async def test_a_request_with_files_that_comes_again_is_answered_once(
    client: httpx.AsyncClient, services: Services
) -> None:
    """In whichever way, since it is the same; but not with another file."""
    key = {"idempotency-key": "k-1"}
    first = await send(client, "form", LARGE, key, duration=3)
    job = await job_of(services, first)
    for way in WAYS:
        again = await send(client, way, LARGE, key, duration=3)
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["idempotency-replayed"] == "true"
        other = await send(client, way, LARGE[:-1] + b"x", key, duration=3)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await objects(services) == set(job.uploads.values())


async def test_of_those_who_come_at_once_one_makes_a_job(client: httpx.AsyncClient, services: Services) -> None:
    key = {"idempotency-key": "k-1"}
    answers = await asyncio.gather(*(send(client, way, LARGE, key) for way in WAYS * 2))
    (found,) = {answer.json()["job_id"] for answer in answers}
    job = await services.store.get(found)
    assert job is not None
    assert await objects(services) == set(job.uploads.values())


async def test_an_answer_may_be_waited_for(client: httpx.AsyncClient, services: Services) -> None:
    asked = asyncio.create_task(send(client, "form", LARGE, {"prefer": "wait=60"}))
    await until(services.store.list)
    # What came with the request is not kept for as long.
    await until(partial(nothing_left, services))
    (there,) = await services.store.list()
    await services.store.cancel(there.id)
    answer = await asked
    assert (answer.json()["status"], answer.headers["preference-applied"]) == (Status.CANCELLED, "wait=60")


@pytest.mark.parametrize("way", WAYS)
async def test_a_key_without_room_has_nothing_stored(
    with_key: Callable[..., Awaitable[httpx.AsyncClient]],
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    ann = await with_key(limits={"queued_jobs": 1})
    assert (await send(ann, way, PIXELS)).status_code == 201
    stored: list[str] = []

    async def put_file(key: str, *_: object) -> None:
        stored.append(key)

    monkeypatch.setattr(services.storage, "put_file", put_file)
    refused = await send(ann, way, LARGE)
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert (stored, left_behind(services)) == ([], [])


async def test_a_request_that_fails_leaves_nothing_in_the_store(
    client: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the store fails in the middle, or the client's time is over."""
    put_file = services.storage.put_file

    async def fail(key: str, path: Path, content_type: str) -> None:
        await put_file(key, path, content_type)
        raise StorageError("The store is away.", transient=True)

    monkeypatch.setattr(services.storage, "put_file", fail)
    assert (await send(client, "form", LARGE)).status_code == 503
    assert await objects(services) == set()

    storing, given_up = asyncio.Event(), asyncio.Event()

    async def slow(key: str, path: Path, content_type: str) -> None:
        # As a thread does, which nobody can cancel.
        storing.set()
        await given_up.wait()
        await put_file(key, path, content_type)

    monkeypatch.setattr(services.storage, "put_file", slow)
    asked = asyncio.create_task(send(client, "base64", LARGE))
    await storing.wait()
    asked.cancel()
    given_up.set()
    await until(partial(nothing_left, services))
    assert await objects(services) == set()
    assert await services.store.list() == []


async def test_some_files_may_be_uploaded_and_others_come_along(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    """A film is too large for a request, and its new sound is not."""
    opened = await ticket(client, input_type="video", content_type="video/mp4")
    await put(client, opened, PIXELS)
    body = {"model": "wav2lip", "audio_url": as_base64(LARGE), "job_id": opened["job_id"]}
    job = await job_of(services, await client.post("/api/v1/generate", json=body))
    assert job.uploads["video"] == opened["key"]
    assert await content(services, job.uploads["audio"], tmp_path) == LARGE
    assert await objects(services) == set(job.uploads.values())
    # Whoever comes too late takes nothing of it away.
    late = await client.post("/api/v1/generate", json=body)
    assert (late.status_code, late.json()["code"]) == (409, "job_not_uploading")
    assert await objects(services) == set(job.uploads.values())


async def test_of_two_who_want_one_opened_job_one_leaves_nothing(
    client: httpx.AsyncClient, services: Services, tmp_path: Path
) -> None:
    opened = await ticket(client, input_type="video", content_type="video/mp4")
    await put(client, opened, PIXELS)
    body = {"model": "wav2lip", "job_id": opened["job_id"]}
    sounds = {name: name.encode() * 50_000 for name in "abc"}
    answers = await asyncio.gather(
        *(client.post("/api/v1/generate", json=body | {"audio_url": as_base64(sound)}) for sound in sounds.values())
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    job = await services.store.get(opened["job_id"])
    assert job is not None
    assert await content(services, job.uploads["audio"], tmp_path) in sounds.values()
    assert await objects(services) == set(job.uploads.values())


async def test_a_job_that_is_not_there_has_nothing_stored(client: httpx.AsyncClient, services: Services) -> None:
    body = {"model": "ltx2", "image_url": as_base64(PIXELS), "job_id": "01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11"}
    assert (await client.post("/api/v1/generate", json=body)).json()["code"] == "job_not_found"
    assert await objects(services) == set()
