"""``POST /api/v1/generate``: what is accepted, and how everything else is refused."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from deployments.registry import MODELS
from serve_app.jobs.job import Status
from serve_app.services import Services

Generate = Callable[..., Awaitable[httpx.Response]]


async def test_a_job_is_accepted_as_the_original_answered(generate: Generate, services: Services) -> None:
    answer = await generate(prompt="A storm", duration=7)
    assert answer.status_code == 201
    body = answer.json()
    assert body.keys() == {"job_id", "model", "status", "created_at"}
    assert (body["model"], body["status"]) == ("ltx2", "queued")
    job = await services.store.get(body["job_id"])
    assert (job.params["prompt"], job.params["duration"]) == ("A storm", 7)
    assert job.sources == {"image": "https://pictures.example/a.png"}
    assert job.request_id == answer.headers["x-request-id"]


async def test_parameters_left_out_have_the_originals_defaults(generate: Generate, services: Services) -> None:
    job = await services.store.get((await generate()).json()["job_id"])
    assert (job.params["duration"], job.params["prompt"]) == (5, "A smooth cinematic video")
    assert job.params["negative_prompt"] == "blurry, low quality, distorted"


async def test_everything_that_belongs_to_the_job_is_stored(generate: Generate, services: Services) -> None:
    answer = await generate(user_id="ann", priority=3, webhook_url="https://c.example/hook", expires_after=60)
    job = await services.store.get(answer.json()["job_id"])
    assert (job.user_id, job.priority, job.webhook_url) == ("ann", 3, "https://c.example/hook")
    assert 0 < (job.expires_at - job.created_at).total_seconds() <= 60


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "sora"}, "model"),
        ({"model": None}, "model"),
        ({"duration": 0}, "duration"),
        ({"duration": 11}, "duration"),
        ({"duration": "five"}, "duration"),
        ({"duration": 2.5}, "duration"),
        ({"image_url": "not a url"}, "image_url"),
        ({"image_url": "file:///etc/passwd"}, "image_url"),
        ({"image_url": "ftp://x.example/a.png"}, "image_url"),
        ({"image_url": 7}, "image_url"),
        ({"webhook_url": "javascript:alert(1)"}, "webhook_url"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": MODELS["ltx2"].timeout_s + 1}, "timeout_s"),
        ({"metadata": {"shot": 12}}, "metadata.shot"),
        ({"metadata": {"shot": "a" * 513}}, "metadata.shot"),
        ({"metadata": {"shot": "a\0b"}}, "metadata.shot"),
        ({"metadata": ["shot"]}, "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a\0b"}, "user_id"),
        ({"priority": 11}, "priority"),
        ({"expires_after": 0}, "expires_after"),
        ({"expires_after": float("nan")}, "expires_after"),
        ({"expires_after": float("inf")}, "expires_after"),
        ({"colour": "red"}, "colour"),
        ({"job_id": "1"}, "job_id"),
        ({"job_id": "-" * 36}, "job_id"),
    ],
)
async def test_a_bad_field_is_named(client: httpx.AsyncClient, services: Services, change: Any, param: str) -> None:
    body = {"model": "ltx2", "image_url": "https://pictures.example/a.png"} | change
    # By hand: httpx refuses to write NaN, other clients do not.
    headers = {"content-type": "application/json"}
    answer = await client.post("/api/v1/generate", content=json.dumps(body), headers=headers)
    assert answer.status_code == 422
    problem = answer.json()
    assert (problem["code"], problem["param"]) == ("invalid_request", param)
    assert problem["error"].startswith(f"{param}: ")
    assert await services.store.list() == []


async def test_several_bad_fields_are_all_named(generate: Generate) -> None:
    problem = (await generate(duration=99, prompt="")).json()
    assert {fault["param"] for fault in problem["errors"]} == {"duration", "prompt"}


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe"])
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/api/v1/generate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_request"
    assert problem.get("param") in (None, "model")


async def test_a_job_has_to_be_opened_before_its_id_can_be_used(generate: Generate) -> None:
    answer = await generate(job_id="01990c2e-7b1a-7c3e-9d55-2f1f6f0c9a11")
    assert (answer.status_code, answer.json()["param"]) == (404, "job_id")


async def test_null_means_a_video_without_the_picture(
    client: httpx.AsyncClient, generate: Generate, services: Services
) -> None:
    """Also by the long way, which an idempotency key makes it take; and not the same request as a forgotten one."""
    body = {"model": "ltx2", "prompt": "A storm at sea"}
    for headers in ({}, {"idempotency-key": "k-1"}):
        answer = await client.post("/api/v1/generate", json=body | {"image_url": None}, headers=headers)
        assert answer.status_code == 201, answer.text
        job = await services.store.get(answer.json()["job_id"])
        assert job is not None
        assert (job.sources, job.uploads, job.params["prompt"]) == ({}, {}, "A storm at sea")
        forgotten = await client.post("/api/v1/generate", json=body, headers=headers)
        assert forgotten.status_code == 422
        if not headers:
            assert (forgotten.json()["code"], forgotten.json()["param"]) == ("invalid_request", "image_url")
            assert forgotten.json()["error"].endswith("Send null for a video without it.")
        else:
            assert forgotten.json()["code"] == "idempotency_key_reused"


async def test_an_input_that_a_model_needs_is_not_left_out(client: httpx.AsyncClient, services: Services) -> None:
    body = {"model": "wav2lip", "video_url": "https://x.example/v.mp4", "audio_url": None}
    problem = (await client.post("/api/v1/generate", json=body)).json()
    assert (problem["code"], problem["param"]) == ("invalid_request", "audio_url")
    assert "null" not in problem["error"]
    assert await services.store.list() == []


async def test_the_schema_says_that_the_picture_has_to_be_named_and_may_be_null(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    (named, _) = schemas["Ltx2Request"]["allOf"][-1]["anyOf"]
    assert named == {"required": ["image_url"], "properties": {}}
    assert {"type": "null"} in schemas["Ltx2Request"]["properties"]["image_url"]["anyOf"]
    (named, _) = schemas["Wav2LipRequest"]["allOf"][-1]["anyOf"]
    assert named["properties"] == {"video_url": {"type": "string"}, "audio_url": {"type": "string"}}


async def test_wav2lip_takes_a_video_and_a_sound(client: httpx.AsyncClient, services: Services) -> None:
    body = {"model": "wav2lip", "video_url": "https://x.example/v.mp4", "audio_url": "https://x.example/a.wav"}
    answer = await client.post("/api/v1/generate", json=body)
    job = await services.store.get(answer.json()["job_id"])
    assert (job.status, job.sources.keys()) == (Status.QUEUED, {"video", "audio"})
    refused = await client.post("/api/v1/generate", json=body | {"duration": 5})
    assert refused.json()["param"] == "duration"


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("ltx2", "duration", "5"),
        ("ltx2", "duration", True),
        ("ltx2", "expires_after", "60"),
        ("wav2lip", "smoothing", "true"),
        ("wav2lip", "smoothing", 1),
        ("wav2lip", "pads", ["0", 1, 2, 3]),
        ("wav2lip", "pads", {"top": 0, "bottom": 1, "left": 2, "right": 3}),
    ],
)
async def test_a_text_is_no_number_and_a_number_no_truth(
    client: httpx.AsyncClient, model: str, field: str, value: object
) -> None:
    inputs = {"ltx2": ("image",), "wav2lip": ("video", "audio")}[model]
    body = {"model": model, **{f"{name}_url": "https://media.example/a" for name in inputs}}
    assert (await client.post("/api/v1/generate", json=body)).status_code == 201
    answer = await client.post("/api/v1/generate", json=body | {field: value})
    assert (answer.status_code, answer.json()["param"].split(".")[0]) == (422, field)


async def test_a_whole_number_may_be_written_with_a_point(generate: Generate, services: Services) -> None:
    """JSON Schema and JavaScript know no difference."""
    job = await services.store.get((await generate(duration=3.0)).json()["job_id"])
    assert job is not None
    assert job.params["duration"] == 3
    assert (await generate(duration=3.5)).status_code == 422
